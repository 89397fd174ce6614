//! Moat without root: the same program in a user namespace of one's own.
//!
//! ```text
//!  the user's own namespaces                 the user namespace, with a mount and a network namespace
//!  moat up ──▶ ensure ──▶ __holder ─────────▶ holds them; ids by newuidmap and newgidmap
//!                    └──▶ __outside           hands in listening sockets and the machine's addresses; runs slirp4netns
//!          ──▶ __enter ──────────────────────▶ moat up ──▶ __daemon, __dataplane, __monitor … as root of the namespace
//! ```
//!
//! What is root inside has no right outside that the user does not have. Invariant: nothing is made unless all of it can be made, and
//! what can't be had without root is told by [`lacks`], never passed over.

mod egress;
mod enter;
mod groups;
mod holder;
mod ids;
mod outside;
mod restricted;

pub use egress::{NoEgress, found as egress_program};
pub use enter::{SCRATCH, main as enter};
pub use groups::{NoGroups, controllers, ends_with_session, give, into_scope, joined as has_joined, tell_scope, would_have};
pub use holder::main as holder;
pub use ids::IDS;
pub use outside::main as outside;

use crate::monitor::files::{self, ProcessId};
use groups::Groups;
use holder::Holder;
use moat_net_linux::outside::Outside;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// The role of [`holder`].
pub const HOLDER: &str = "__holder";
/// The role of [`outside`].
pub const OUTSIDE: &str = "__outside";
/// The role of [`enter`].
pub const ENTER: &str = "__enter";

/// Names the process that holds the namespaces, as [`ProcessId`], in the runtime folder.
const HELD: &str = "holder.json";
/// What a role says when it is ready.
const READY: &str = "ready";

/// Why there is no user namespace to run in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct RootlessError {
    /// In words.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl RootlessError {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::new(format!("can't {doing}: {error}"))
    }
}

/// Whether this process runs in a user namespace of Moat's.
pub fn inside() -> bool {
    Outside::of_process().is_some()
}

/// What services have to do without where Moat runs without root.
fn lacks(egress: Option<&NoEgress>, groups: &Groups) -> Vec<String> {
    let limits = groups.as_deref().map(controllers);
    let mut lacks = groups::lacks(limits);
    if let Some(keeps) = groups.as_deref().ok().and_then(|base| ends_with_session(Some(base))) {
        lacks.push(format!("services end when you log out: {keeps} keeps them"));
    }
    lacks.extend([
        "services share one range of user ids (each still sees its own processes and files only)".to_owned(),
        "packets between services take the filter's whole path: the shortcut needs root".to_owned(),
    ]);
    lacks.extend(egress.map(|NoEgress { why, hint }| format!("services don't reach the internet: {why}; {hint}")));
    lacks
}

/// The control group below which the groups of instances are, of the Moat that this process belongs to; `None` where it is the root, or
/// where there are no groups.
pub fn groups() -> io::Result<Option<String>> {
    match Outside::of_process() {
        Some(outside) => Ok(outside.about()?.group),
        None => Ok(None),
    }
}

/// Takes this process to the group of Moat's own processes, so that its children may go to those of instances. What keeps it from that
/// is told by [`LinuxEngine`](crate::LinuxEngine), which then limits nothing.
pub fn join_own_group() {
    if let Ok(Some(base)) = groups()
        && let Err(error) = groups::join(&base)
    {
        tracing::warn!("services that start now are not limited: this process can't go to the control group `{base}`: {error}");
    }
}

/// Whether something is missing of what holds the namespaces of a runtime folder.
pub fn is_missing(run: &Path) -> bool {
    Outside::at(run).about().is_err()
}

fn tag(run: &Path) -> String {
    crate::paths::tag(&fs::canonicalize(run).unwrap_or_else(|_| run.to_owned()))
}

/// What the Moat of a runtime folder has to do without; nothing where it runs with root, or not at all.
pub fn lacked(run: &Path) -> Vec<String> {
    Outside::at(run).about().map(|about| about.lacks).unwrap_or_default()
}

/// Sees to it that the namespaces of a runtime folder, and the process outside of them, are there. `scope` is what became of
/// [`into_scope`].
pub fn ensure(run: &Path, own_exe: &Path, scope: &Result<(), NoGroups>) -> Result<(), RootlessError> {
    let outside = Outside::at(run);
    if !outside.socket().exists() {
        // Before anything is made.
        ids::Maps::find()?;
    }
    own_folder(run)?;
    let doing = || RootlessError::io(format!("lock `{}`", run.display()));
    let lock = File::create(run.join("rootless.lock")).map_err(doing())?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| doing()(error.into()))?;
    if outside.about().is_ok() {
        return Ok(());
    }
    let held = run.join(HELD);
    let seeing = || RootlessError::io("look at the process that holds the namespaces");
    // Where whoever was outside is gone, the namespaces and what runs in them are not.
    let lives = match files::read_json::<ProcessId>(&held).ok().flatten() {
        Some(holder) if holder.alive().map_err(seeing())? => Some(holder),
        Some(_) | None => None,
    };
    let (holder, groups) = if let Some(holder) = lives {
        let none = || NoGroups {
            why: "this Moat began where no control groups were given to you".to_owned(),
            hint: "`moat down` and `moat up`".to_owned(),
        };
        (holder, groups::of_holder(holder.pid).ok_or_else(none))
    } else {
        let groups = groups::divide(&tag(run)).map_err(|why| scope.clone().err().unwrap_or(why));
        let undo = |_: &RootlessError| {
            if let Ok(base) = &groups {
                // The reason why there are no namespaces is what counts.
                let _ = groups::give_back(base, &tag(run));
            }
        };
        let holder = Holder::make(Some(run), groups.as_deref().ok(), own_exe).inspect_err(undo)?.keep();
        let ended = || RootlessError::new("the process that holds the namespaces ended at once");
        let holder = ProcessId::of(holder).map_err(seeing())?.ok_or_else(ended)?;
        files::write_json(&held, &holder).map_err(RootlessError::io(format!("write `{}`", held.display())))?;
        (holder, groups)
    };
    let groups = serde_json::to_string(&groups).map_err(|error| RootlessError::new(format!("can't say where groups are: {error}")))?;
    let mut child = Command::new(own_exe)
        .arg(OUTSIDE)
        .arg(run)
        .arg(holder.pid.to_string())
        .arg(groups)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(RootlessError::io("run myself"))?;
    let said = child.stdout.take().map(|output| first_line(BufReader::new(output))).unwrap_or_default();
    if said == READY { Ok(()) } else { Err(RootlessError::new(format!("the process outside did not start: {said}"))) }
}

/// Namespaces for one command only, of which nothing stays: the number of a process that holds them until it is killed.
pub fn scratch(own_exe: &Path) -> Result<i32, RootlessError> {
    Holder::make(None, None, own_exe).map(Holder::keep)
}

/// Makes the runtime folder where it is missing. One that others own or can write (it may be below `/tmp`) is refused.
fn own_folder(run: &Path) -> Result<(), RootlessError> {
    let doing = || RootlessError::io(format!("make `{}`", run.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(doing())?;
    let about = fs::symlink_metadata(run).map_err(doing())?;
    if !about.is_dir() || about.uid() != geteuid().as_raw() {
        return Err(RootlessError::new(format!("`{}` is not yours", run.display())).hint("name another folder by MOAT_RUN_DIR"));
    }
    fs::set_permissions(run, fs::Permissions::from_mode(0o700)).map_err(doing())
}

fn first_line(mut from: impl io::BufRead) -> String {
    let mut line = String::new();
    match from.read_line(&mut line) {
        Ok(_) => line.trim_end().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Closes the sockets that a service manager handed to whoever started this process (`sd_listen_fds(3)`): a role keeps none.
fn close_handed() {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    for number in 3..3_i32.saturating_add(count) {
        // One that is closed already is no worse.
        let _ = nix::unistd::close(number);
    }
}

/// A role's whole output: one line, which may have nobody left to read it.
fn say(line: &str) {
    use io::Write as _;
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
