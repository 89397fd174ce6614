//! The small process beside each instance: it makes the sandbox, keeps the log and records how the program ended.
//!
//! One program, four roles, told apart by the first argument after [`VERB`]:
//!
//! | arguments | role |
//! |---|---|
//! | `DIR` | the monitor of the instance folder `DIR` ([`life`]) |
//! | `--init [--stop-signal=SIGINT] -- PROGRAM…` | PID 1 inside the sandbox ([`init`]) |
//! | `--run -- PROGRAM…` | inside, for `exec`: becomes the program, or says why not with 127 or 126 |
//! | `--enter PID [--group=GROUP] -- PROGRAM…` | on the host: enters that process' network and mount namespaces, goes to that control group and becomes the program |
//!
//! Invariant: single-threaded, outlives whoever started it, and takes its instance with it when it dies.

mod assemble;
pub mod files;
mod init;
pub(crate) mod layers;
mod life;
mod pump;

pub(crate) use life::{GO, READY, RUNNING};

use crate::cgroup;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The sub-command of the `moat` program that ends up in [`main`].
pub const VERB: &str = "__monitor";
/// See the table above.
pub const INIT_FLAG: &str = "--init";
/// What comes before the signal that asks the program to end, where that is not SIGTERM.
pub const STOP_SIGNAL: &str = "--stop-signal=";
/// See the table above.
pub const RUN_FLAG: &str = "--run";
/// See the table above.
pub const ENTER_FLAG: &str = "--enter";
/// What comes before the control group that is gone to, in the one hierarchy of version 2.
pub const GROUP: &str = "--group=";

/// Exit code of a monitor that was asked for something that makes no sense.
const USAGE: u8 = 2;

/// Runs the role that the arguments after [`VERB`] name. Must be called before the process has started a thread.
pub fn main(args: &[OsString]) -> ExitCode {
    let rest = |from: usize| args.get(from..).filter(|rest| rest.first().is_some_and(|dash| dash == "--")).map(|rest| &rest[1..]);
    match args.first().and_then(|arg| arg.to_str()) {
        Some(INIT_FLAG) => {
            let named = args.get(1).and_then(|arg| arg.to_str()?.strip_prefix(STOP_SIGNAL));
            let signal = named.map_or(Some(Signal::SIGTERM), |name| name.parse().ok());
            match (signal, rest(1 + usize::from(named.is_some()))) {
                (Some(signal), Some(program)) => init::main(program, signal),
                _ => ExitCode::from(USAGE),
            }
        }
        Some(RUN_FLAG) => rest(1).map_or(ExitCode::from(USAGE), become_program),
        Some(ENTER_FLAG) => {
            let group = args.get(2).and_then(|arg| arg.to_str()?.strip_prefix(GROUP));
            match (args.get(1), rest(2 + usize::from(group.is_some()))) {
                (Some(pid), Some(program)) => enter(pid, group, program),
                _ => ExitCode::from(USAGE),
            }
        }
        _ => args.first().map_or(ExitCode::from(USAGE), |dir| life::main(dir.as_ref())),
    }
}

/// Exit code of a command that could not be started, as shells have it.
pub(crate) fn start_failure(error: &std::io::Error) -> u8 {
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}

/// The text for a command that could not be started.
pub(crate) fn start_failure_text(program: &OsStr, error: &std::io::Error) -> String {
    let program = program.to_string_lossy();
    if error.kind() == std::io::ErrorKind::NotFound { format!("`{program}`: command not found") } else { format!("`{program}`: {error}") }
}

fn become_program(program: &[OsString]) -> ExitCode {
    let Some((name, args)) = program.split_first() else { return ExitCode::from(USAGE) };
    let error = Command::new(name).args(args).exec();
    complain(&start_failure_text(name, &error));
    ExitCode::from(start_failure(&error))
}

/// Joins the monitor's network and mount namespaces: the runtime itself joins only namespaces that it made.
fn enter(pid: &OsStr, group: Option<&str>, program: &[OsString]) -> ExitCode {
    if let Some(group) = group
        && let Err(error) = cgroup::join(group)
    {
        complain(&format!("going to the control group `{group}`: {error}"));
        return ExitCode::from(USAGE);
    }
    let folder = std::path::Path::new("/proc").join(pid).join("ns");
    let entered = || -> std::io::Result<()> {
        // Both before either: afterwards `/proc` may be another.
        let (net, mnt) = (std::fs::File::open(folder.join("net"))?, std::fs::File::open(folder.join("mnt"))?);
        setns(net, CloneFlags::CLONE_NEWNET)?;
        Ok(setns(mnt, CloneFlags::CLONE_NEWNS)?)
    };
    if let Err(error) = entered() {
        complain(&format!("entering `{}`: {error}", folder.display()));
        return ExitCode::from(USAGE);
    }
    become_program(program)
}

/// Writes one line to standard error, which is the command's own in these roles.
pub(crate) fn complain(text: &str) {
    use std::io::Write as _;
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "moat: {text}");
}
