//! The process that holds the namespaces: it makes them, is given their ids, and then does nothing.
//!
//! ```text
//!  __holder                     whoever made it
//!  new user namespace ──made──▶ newuidmap, newgidmap
//!       ◀──────────── mapped ──
//!  mounts, network   ──ready──▶
//! ```

use super::ids::Maps;
use super::{HOLDER, READY, RootlessError, egress, first_line, groups, restricted, say};
use moat_net_linux::link::{self, Links};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{dup2_stdin, dup2_stdout, setsid};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

const MADE: &str = "made";
const MAPPED: &str = "mapped";
const NONE: Option<&str> = None;
/// Where programs and Moat itself read the machine's resolvers from.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// A holder that has not been let go yet.
#[derive(Debug)]
pub struct Holder {
    child: Option<Child>,
}

impl Holder {
    /// Makes the namespaces and waits until they are ready. Without a runtime folder for what they need, they are for looking only.
    /// It is among Moat's own processes of a base of control groups, where there is one.
    pub fn make(run: Option<&Path>, base: Option<&str>, own_exe: &Path) -> Result<Self, RootlessError> {
        let maps = Maps::find()?;
        let mut command = Command::new(own_exe);
        command.arg(HOLDER).args(run).args(base).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().map_err(RootlessError::io("run myself"))?;
        let pid = child.id();
        let mut holder = Self { child: Some(child) };
        let ended = || RootlessError::new("the process that holds the namespaces ended at once");
        let (mut input, mut output) = holder.pipes().ok_or_else(ended)?;
        expect(&mut output, MADE)?;
        maps.write(pid)?;
        writeln!(input, "{MAPPED}").map_err(RootlessError::io("go on with the namespaces"))?;
        expect(&mut output, READY)?;
        Ok(holder)
    }

    fn pipes(&mut self) -> Option<(impl io::Write + use<>, BufReader<ChildStdout>)> {
        let child = self.child.as_mut()?;
        Some((child.stdin.take()?, BufReader::new(child.stdout.take()?)))
    }

    /// Lets it go on by itself; its number.
    pub fn keep(mut self) -> i32 {
        self.child.take().and_then(|child| i32::try_from(child.id()).ok()).unwrap_or_default()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn expect(output: &mut BufReader<ChildStdout>, word: &str) -> Result<(), RootlessError> {
    let said = first_line(output);
    if said == word {
        return Ok(());
    }
    let said = if said.is_empty() { "it ended".to_owned() } else { said };
    Err(restricted::explain(&format!("no user namespace can be made here: {said}"), "run it with sudo"))
}

/// The role: `[RUN [BASE]]`.
pub fn main(args: &[OsString]) -> ExitCode {
    super::close_handed();
    if let Err(error) = hold(args.first().map(Path::new), args.get(1).and_then(|base| base.to_str())) {
        say(&error);
        return ExitCode::FAILURE;
    }
    loop {
        nix::unistd::pause();
    }
}

fn hold(run: Option<&Path>, base: Option<&str>) -> Result<(), String> {
    let errno = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    // A session of its own: no terminal ends it.
    let _ = setsid();
    if let Some(base) = base {
        groups::join(base).map_err(|error| format!("going to the control group `{base}`: {error}"))?;
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(errno("making the user namespace"))?;
    say(MADE);
    if first_line(io::stdin().lock()) != MAPPED {
        return Err("it has no ids".to_owned());
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(errno("making the mount and network namespaces"))?;
    // What the machine mounts and unmounts later is seen here, and not the other way round.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE).map_err(errno("keeping mounts to itself"))?;
    loopback().map_err(|error| format!("setting loopback up: {error}"))?;
    if let (Some(run), Ok(_)) = (run, egress::found()) {
        resolvers(run).map_err(|error| format!("naming the resolver: {error}"))?;
    }
    say(READY);
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|error| error.to_string())?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).map_err(errno("letting go of its pipes"))
}

fn loopback() -> io::Result<()> {
    let mut links = Links::open()?;
    let Some(lo) = links.find("lo")? else { return Err(io::ErrorKind::NotFound.into()) };
    links.run(vec![link::up(lo.index)])
}

/// Covers the machine's list of resolvers: one of its loopback addresses would be another one here.
fn resolvers(run: &Path) -> io::Result<()> {
    let own = run.join("resolv.conf");
    let mut covered: Vec<PathBuf> = RESOLVERS.iter().filter_map(|file| fs::canonicalize(file).ok()).collect();
    covered.sort();
    covered.dedup();
    if !covered.is_empty() {
        fs::write(&own, format!("nameserver {}\n", egress::RESOLVER))?;
    }
    for file in covered {
        mount(Some(&own), &file, NONE, MsFlags::MS_BIND, NONE)?;
    }
    Ok(())
}
