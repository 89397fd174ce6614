//! Control groups without root: a part of the version 2 hierarchy that is the user's to divide (cgroups(7), "delegation").
//!
//! ```text
//!  …/user@1000.service/app.slice/
//!     moat-4711-815.scope    the *base*: asked of the user's systemd ([`into_scope`]), or a group that is the user's already
//!     ├─ own                 every process of Moat itself
//!     └─ moat-ab12cd         one group for each instance
//! ```
//!
//! Invariant: no group has processes and groups with limits below it at once; the kernel refuses that. What is made beside systemd is
//! removed by [`give_back`], a scope by systemd with its last process.

use crate::cgroup::{self, Controllers, ROOT};
use crate::monitor::files::ProcessId;
use crate::{mounts, toolchain};
use nix::unistd::{AccessFlags, Uid, User, access, geteuid};
use serde::{Deserialize, Serialize};
use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The group of Moat's own processes, below the base.
const OWN: &str = "own";
/// Set for a program that [`into_scope`] has started again.
const IN_SCOPE: &str = "MOAT_IN_SCOPE";
/// Why there was no scope, for a program that is started again.
const NO_SCOPE: &str = "MOAT_NO_SCOPE";
/// Who makes scopes.
const PROGRAM: &str = "systemd-run";
/// How long the last processes may take to leave a base.
const LEFT_WITHIN: Duration = Duration::from_secs(30);
/// Where systemd is told which controllers users are given.
const DROP_IN: &str = "/etc/systemd/system/user@.service.d/moat.conf";

/// Why nothing is delegated to the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoGroups {
    /// In words.
    pub why: String,
    /// What to run.
    pub hint: String,
}

impl NoGroups {
    fn new(why: impl Into<String>) -> Self {
        let name = name();
        let hint = format!(
            "`sudo apt-get install libpam-systemd dbus-user-session` and `sudo loginctl enable-linger {name}` give you a systemd of your own, which gives groups away; then `moat down` and `moat up`"
        );
        Self { why: why.into(), hint }
    }
}

/// Where the groups of a Moat without root are, or why nowhere.
pub type Groups = Result<String, NoGroups>;

/// Goes on in a scope of its own that the user's systemd makes: this program is started again in it, and does not come back. Comes
/// back at once there, and with the reason where there is no such systemd.
pub fn into_scope() -> Result<(), NoGroups> {
    if env::var_os(IN_SCOPE).is_some() {
        return Ok(());
    }
    unified()?;
    let user = geteuid();
    let folder = env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from(format!("/run/user/{user}")), PathBuf::from);
    let manager = folder.join("systemd/private");
    if UnixStream::connect(&manager).is_err() {
        return Err(NoGroups::new(format!("no systemd of user {user} answers at `{}`", manager.display())));
    }
    let program = toolchain::program(PROGRAM).ok_or_else(|| NoGroups::new(format!("`{PROGRAM}` is not installed")))?;
    let scope = || {
        let mut command = Command::new(&program);
        command.args(["--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]).env("XDG_RUNTIME_DIR", &folder);
        command
    };
    // Tried first: what replaces this process can't come back.
    let tried = scope().args(["--", "true"]).stdin(Stdio::null()).output();
    let output = tried.map_err(|error| NoGroups::new(format!("`{PROGRAM}`: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(NoGroups::new(format!("`{PROGRAM} --user --scope`: {}", said.lines().next().unwrap_or("failed"))));
    }
    let again = env::current_exe().map_err(|error| NoGroups::new(format!("can't find my own program: {error}")))?;
    let own = i32::try_from(std::process::id()).ok().and_then(|own| ProcessId::of(own).ok().flatten());
    let name = own.map_or_else(|| "moat".to_owned(), |own| format!("moat-{}-{}", own.pid, own.start));
    let error = scope()
        .args([format!("--unit={name}.scope"), "--description=Moat and its services".to_owned(), "--".to_owned()])
        .arg(again)
        .args(env::args_os().skip(1))
        .env(IN_SCOPE, "1")
        .exec();
    Err(NoGroups::new(format!("`{PROGRAM}`: {error}")))
}

/// Tells a program that is started again why there is no scope.
pub fn tell_scope(command: &mut Command, none: Option<&NoGroups>) {
    command.env_remove(IN_SCOPE).env_remove(NO_SCOPE);
    if let Some(text) = none.and_then(|none| serde_json::to_string(none).ok()) {
        command.env(NO_SCOPE, text);
    }
}

/// Divides what is delegated to this process, which moves to the group of Moat's own processes where it stands in the way: the base.
/// `tag` tells this Moat's from others'.
pub fn divide(tag: &str) -> Groups {
    let own = delegated()?;
    let fail = |group: &str| {
        let group = group.to_owned();
        move |error: io::Error| NoGroups::new(format!("the control group `{group}` can't be divided: {error}"))
    };
    match own {
        Delegated::Whole(group) => {
            make(&group).and_then(|()| join(&group)).and_then(|()| enable(&group)).map_err(fail(&group))?;
            Ok(group)
        }
        Delegated::Above(parent) => {
            let base = format!("{parent}/{}", beside(tag));
            enable(&parent).map_err(fail(&parent))?;
            make(&base).and_then(|()| enable(&base)).map_err(fail(&base))?;
            Ok(base)
        }
    }
}

/// Which controllers a process like this one would have; for looking only.
pub fn would_have() -> Result<Controllers, NoGroups> {
    let told = || serde_json::from_str(env::var(NO_SCOPE).ok()?.as_str()).ok();
    let (Delegated::Whole(group) | Delegated::Above(group)) = delegated().map_err(|why| told().unwrap_or(why))?;
    Ok(Controllers::of(&read(&group, "cgroup.controllers")))
}

/// Which controllers limit the instances of a base.
pub fn controllers(base: &str) -> Controllers {
    Controllers::of(&read(base, "cgroup.subtree_control"))
}

/// The base of whoever holds the namespaces.
pub fn of_holder(pid: i32) -> Option<String> {
    base_of(&pid.to_string())
}

/// Moves this process to the group of Moat's own processes.
pub fn join(base: &str) -> io::Result<()> {
    cgroup::join(&format!("{base}/{OWN}"))
}

/// Whether this process is among Moat's own, so that its children may go to groups of the base.
pub fn joined(base: &str) -> bool {
    base_of("self").as_deref() == Some(base)
}

/// Whether a base was made here, beside the group of whoever asked, so that no systemd removes it.
pub fn is_beside(base: &str, tag: &str) -> bool {
    base.rsplit_once('/').is_some_and(|(_, name)| name == beside(tag))
}

/// Waits until nobody but this process is in a base any more, and undoes [`divide`]. Blocks.
pub fn give_back(base: &str, tag: &str) -> io::Result<()> {
    let end = Instant::now() + LEFT_WITHIN;
    let (folder, own) = (cgroup::folder(base), std::process::id().to_string());
    let moats = format!("{base}/{OWN}");
    while read(&moats, "cgroup.procs").lines().any(|pid| pid != own) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if joined(base) {
        // Back to where it was divided, which takes processes once it hands on no controller.
        for name in read(base, "cgroup.subtree_control").split_ascii_whitespace() {
            fs::write(folder.join("cgroup.subtree_control"), format!("-{name}"))?;
        }
        cgroup::join(base)?;
    }
    fs::remove_dir(folder.join(OWN))?;
    if is_beside(base, tag) { fs::remove_dir(folder) } else { Ok(()) }
}

/// What services have to do without for want of controllers, with what gives them.
pub fn lacks(groups: Result<Controllers, &NoGroups>) -> Vec<String> {
    match groups {
        Err(NoGroups { why, hint }) => {
            vec![
                format!("memory and CPU of services are not limited, and nothing is scaled by them: {why}; {hint}"),
                "disks of services that run are not copied: `moat suspend` a service before its backup or snapshot".to_owned(),
            ]
        }
        Ok(controllers) => {
            let missing = controllers.missing();
            if missing.is_empty() {
                return Vec::new();
            }
            vec![format!("{}: you are not given {}; {}", unlimited(&missing), named(&missing), give())]
        }
    }
}

/// What is missing without these controllers. Processes are counted by user where they are not by group.
fn unlimited(controllers: &[&str]) -> String {
    match (controllers.contains(&"memory"), controllers.contains(&"cpu")) {
        (true, true) => "memory and CPU of services are not limited".to_owned(),
        (true, false) => "memory of services is not limited".to_owned(),
        (false, true) => "CPU of services is not limited".to_owned(),
        (false, false) => "processes of services are counted by their users only".to_owned(),
    }
}

fn named(controllers: &[&str]) -> String {
    let names: Vec<String> = controllers.iter().map(|name| format!("`{name}`")).collect();
    format!("the controller{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// What gives this user every controller that limits need.
pub fn give() -> String {
    let user = user();
    format!(
        "`sudo mkdir -p {}`, `printf '[Service]\\nDelegate=cpu memory pids\\n' | sudo tee {DROP_IN}`, `sudo systemctl daemon-reload`, then `moat down`, `sudo systemctl restart user@{user}` (it ends your other sessions' services) and `moat up`",
        Path::new(DROP_IN).parent().unwrap_or(Path::new("/")).display()
    )
}

/// Whether everything of the user's systemd ends with the user's last session, and what keeps it. Without a base, for the group of
/// this process.
pub fn ends_with_session(base: Option<&str>) -> Option<String> {
    let own = group_of("self");
    let base = base.or(own.as_deref())?;
    let of_systemd = base.split('/').any(|name| name.starts_with("user@"));
    let name = name();
    let stays = Path::new("/var/lib/systemd/linger").join(&name).exists();
    (of_systemd && !stays).then(|| format!("`sudo loginctl enable-linger {name}`"))
}

/// The user's number on the machine, of which a user namespace may have made another.
fn user() -> Uid {
    let own = geteuid();
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        match (numbers.next()?, numbers.next()?, numbers.next()?) {
            (Ok(first), Ok(beyond), Ok(1)) if first == own.as_raw() => Some(Uid::from_raw(beyond)),
            _ => None,
        }
    };
    maps.lines().find_map(outside).unwrap_or(own)
}

fn name() -> String {
    let user = user();
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

/// What may be divided.
enum Delegated {
    /// The group of this process, which nobody else is in.
    Whole(String),
    /// The group above it, which nobody is in.
    Above(String),
}

fn delegated() -> Result<Delegated, NoGroups> {
    unified()?;
    let group = group_of("self").ok_or_else(|| NoGroups::new("the control group of this process is not known"))?;
    let own = std::process::id().to_string();
    if is_ours(&group) && read(&group, "cgroup.procs").lines().all(|pid| pid == own) {
        return Ok(Delegated::Whole(group));
    }
    match group.rsplit_once('/') {
        Some((parent, _)) if is_ours(parent) && read(parent, "cgroup.procs").is_empty() => Ok(Delegated::Above(parent.to_owned())),
        _ => Err(NoGroups::new(format!("the control group `{group}/` is not delegated to you"))),
    }
}

/// Only the hierarchy of version 2 can be divided by those who are not root.
fn unified() -> Result<(), NoGroups> {
    if mounts::is_kind(Path::new(ROOT), "cgroup2") {
        return Ok(());
    }
    Err(NoGroups {
        why: "control groups of version 1 can't be given to users".to_owned(),
        hint: "start the kernel with `systemd.unified_cgroup_hierarchy=1`".to_owned(),
    })
}

fn is_ours(group: &str) -> bool {
    let folder = cgroup::folder(group);
    ["", "cgroup.procs", "cgroup.subtree_control"].iter().all(|file| access(&folder.join(file), AccessFlags::W_OK).is_ok())
}

fn beside(tag: &str) -> String {
    format!("moat-{tag}.own")
}

/// Makes a base with the group of Moat's own processes.
fn make(base: &str) -> io::Result<()> {
    let folder = cgroup::folder(base);
    for folder in [&folder, &folder.join(OWN)] {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Hands on every controller that limits need and that is there.
fn enable(group: &str) -> io::Result<()> {
    let there = read(group, "cgroup.controllers");
    for name in there.split_ascii_whitespace().filter(|name| Controllers::NAMES.contains(name)) {
        fs::write(cgroup::folder(group).join("cgroup.subtree_control"), format!("+{name}"))?;
    }
    Ok(())
}

fn read(group: &str, file: &str) -> String {
    fs::read_to_string(cgroup::folder(group).join(file)).unwrap_or_default()
}

/// The base of a process that is among Moat's own.
fn base_of(pid: &str) -> Option<String> {
    Some(group_of(pid)?.strip_suffix(OWN)?.strip_suffix('/')?.to_owned())
}

/// The group of a process in the version 2 hierarchy, without a slash at its end.
fn group_of(pid: &str) -> Option<String> {
    group_in(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The same from the text of `/proc/PID/cgroup`; none outside of this process' own root of groups.
fn group_in(text: &str) -> Option<String> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (!group.split('/').any(|name| name == "..")).then(|| group.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_read_from_its_list() {
        for (text, group) in [
            ("0::/\n", Some("")),
            ("12:pids:/a\n0::/user.slice/user-1000.slice/session-3.scope\n", Some("/user.slice/user-1000.slice/session-3.scope")),
            ("4:memory:/a\n", None),
            ("0::/../other\n", None),
            ("", None),
        ] {
            assert_eq!(group_in(text).as_deref(), group, "{text}");
        }
        assert!(is_beside("/a/moat-12.own", "12") && !is_beside("/a/moat-12.own", "13") && !is_beside("/a/moat-4-5.scope", "4"));
    }

    #[test]
    fn what_is_missing_is_named_with_what_gives_it() {
        let all = Controllers { cpu: true, memory: true, pids: true };
        for (controllers, says) in [
            (all, None),
            (Controllers { cpu: false, ..all }, Some("CPU of services is not limited: you are not given the controller `cpu`; ")),
            (
                Controllers { memory: false, cpu: false, ..all },
                Some("memory and CPU of services are not limited: you are not given the controllers `memory`, `cpu`; "),
            ),
            (
                Controllers { pids: false, ..all },
                Some("processes of services are counted by their users only: you are not given the controller `pids`; "),
            ),
        ] {
            let lacks = lacks(Ok(controllers));
            assert_eq!(lacks.len(), usize::from(says.is_some()), "{lacks:?}");
            if let (Some(says), Some(lack)) = (says, lacks.first()) {
                assert!(lack.starts_with(says) && lack.contains("Delegate=cpu memory pids"), "{lack}");
            }
        }
        let none = NoGroups { why: "because".to_owned(), hint: "do this".to_owned() };
        let lacks = lacks(Err(&none));
        assert!(lacks[0].starts_with("memory and CPU of services are not limited") && lacks[0].ends_with("because; do this"), "{lacks:?}");
    }
}
