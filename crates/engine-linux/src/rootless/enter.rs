//! Into the namespaces: the program goes on in them, as root of the user namespace.

use moat_net_linux::outside::Outside;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Before the number of a process whose namespaces are entered and that is ended then.
pub const SCRATCH: &str = "--scratch=";

/// The role: `RUN [--scratch=PID] -- ARGUMENTS…`. Must be called before the process has started a thread (setns(2)).
pub fn main(args: &[OsString]) -> ExitCode {
    let (run, scratch, rest) = match args {
        [run, dash, rest @ ..] if dash == "--" => (run, None, rest),
        [run, scratch, dash, rest @ ..] if dash == "--" => (run, Some(scratch), rest),
        _ => return ExitCode::from(2),
    };
    let error = match enter(Path::new(run), scratch.map(OsString::as_os_str)) {
        Ok(()) => match env::current_exe() {
            Ok(exe) => Command::new(exe).args(rest).env(moat_net_linux::outside::VARIABLE, Outside::at(Path::new(run)).socket()).exec(),
            Err(error) => error,
        },
        Err(error) => error,
    };
    crate::monitor::complain(&format!("can't enter the user namespace: {error}"));
    ExitCode::from(3)
}

fn enter(run: &Path, scratch: Option<&OsStr>) -> io::Result<()> {
    let holder = match scratch {
        Some(flag) => Some(flag.to_str().and_then(|flag| flag.strip_prefix(SCRATCH)?.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?),
        None => None,
    };
    let [user, mnt, net] = match holder {
        Some(pid) => {
            let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from);
            let opened = [open("user")?, open("mnt")?, open("net")?];
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            // A child of this process, which is looked at alone from here on.
            let _ = waitpid(Pid::from_raw(pid), None);
            opened
        }
        None => Outside::at(run).namespaces()?,
    };
    let here = env::current_dir();
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    // The same folder, as the new namespace has it.
    env::set_current_dir(here.unwrap_or_else(|_| "/".into())).or_else(|_| env::set_current_dir("/"))
}
