//! PID 1 of a sandbox: starts the program, reaps orphans, passes the stop signal on, and ends when the program or the monitor does.
//!
//! Standard input is a socket whose other end only the monitor holds. Messages from the monitor: `T` (stop). To it:
//! `E CODE SIGNAL\n` with the program's end. End of file means that the monitor is dead; PID 1 leaves, and the kernel kills
//! everything in its PID namespace.
//!
//! Invariant: nothing of the sandbox outlives the monitor.

use super::{start_failure, start_failure_text};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs the program; `stop` asks it to end.
pub fn main(program: &[OsString], stop: Signal) -> ExitCode {
    match supervise(program, stop) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            super::complain(&format!("the first process of the sandbox: {error}"));
            ExitCode::from(126)
        }
    }
}

fn supervise(program: &[OsString], stop: Signal) -> std::io::Result<u8> {
    let Some((name, args)) = program.split_first() else { return Err(Errno::EINVAL.into()) };
    // Others of the same user must not read or steer this process.
    nix::sys::prctl::set_dumpable(false)?;
    let mut monitor = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let wakeups = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    link_secrets()?;

    let child = match Command::new(name).args(args).process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => {
            super::complain(&start_failure_text(name, &error));
            let code = start_failure(&error);
            report(&mut monitor, i32::from(code), 0);
            return Ok(code);
        }
    };
    let main = Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::ERANGE)?);
    crate::sys::trim();
    let mut told: Option<BTreeSet<i32>> = None;
    let mut ended: Option<u8> = None;
    loop {
        let (asked, woken) = {
            let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN), PollFd::new(wakeups.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            (fds[0].any() == Some(true), fds[1].any() == Some(true))
        };
        if asked {
            let mut message = [0];
            if monitor.read(&mut message)? == 0 {
                return Ok(137);
            }
            told = Some(terminate(main, stop));
        }
        if woken {
            while let Ok(Some(_)) = wakeups.read_signal() {}
            reap(main, &mut monitor, &mut ended, told.as_mut());
        }
        // After a stop, what was told to end may do so in its own time; else the program's end is the sandbox's.
        if let Some(code) = ended
            && told.as_ref().is_none_or(BTreeSet::is_empty)
        {
            return Ok(code);
        }
    }
}

/// Collects the ended children; notes the program's own end.
fn reap(main: Pid, monitor: &mut File, ended: &mut Option<u8>, mut told: Option<&mut BTreeSet<i32>>) {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        let (pid, code, signal) = match status {
            WaitStatus::Exited(pid, code) => (pid, code, 0),
            WaitStatus::Signaled(pid, signal, _) => (pid, 128 + signal as i32, signal as i32),
            WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_)
            | WaitStatus::StillAlive => return,
        };
        if let Some(told) = told.as_mut() {
            told.remove(&pid.as_raw());
        }
        if pid == main {
            report(monitor, code, signal);
            *ended = Some(u8::try_from(code).unwrap_or(1));
        }
    }
    // What the program's children should have reaped never comes here: forget what is gone.
    if let Some(told) = told {
        told.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
    }
}

fn report(monitor: &mut File, code: i32, signal: i32) {
    // A dead monitor has nobody to tell; its end of file ends this process too.
    let _ = writeln!(monitor, "E {code} {signal}");
}

/// Sends the stop signal to the program; where that is a shell without a trap (`sh -c 'a && b'`), which would die at once and leave
/// its command without a word, to the shell's children too. Returns who was told.
fn terminate(main: Pid, stop: Signal) -> BTreeSet<i32> {
    let mut told = BTreeSet::new();
    let mut next = vec![main.as_raw()];
    while let Some(pid) = next.pop() {
        if !told.insert(pid) {
            continue;
        }
        if is_shell(pid) && !handles(pid, stop) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            next.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    for &pid in &told {
        // Gone is as good as told.
        let _ = kill(Pid::from_raw(pid), stop);
    }
    told
}

fn is_shell(pid: i32) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    exe.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| matches!(name, "bash" | "dash" | "sh" | "ash" | "busybox" | "zsh" | "ksh"))
}

/// Whether the process catches or ignores a signal (the masks of proc_pid_status(5)).
fn handles(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigCgt:") | mask("SigIgn:")) & (1 << (signal as u32 - 1)) != 0
}

/// Shows each secret file in the working folder as well, as a link: done here, by the unprivileged user, so that a link in
/// the source can't lead a privileged writer astray, and no content lands in a release.
fn link_secrets() -> std::io::Result<()> {
    let Ok(entries) = fs::read_dir(crate::lower::sandbox::SECRETS) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let here = Path::new(".").join(entry.file_name());
        if fs::symlink_metadata(&here).is_ok_and(|there| !there.is_dir()) {
            fs::remove_file(&here)?;
        }
        if let Err(error) = std::os::unix::fs::symlink(entry.path(), &here) {
            super::complain(&format!("showing `{}` in the working folder: {error}", entry.path().display()));
        }
    }
    Ok(())
}
