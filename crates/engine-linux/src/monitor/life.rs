//! The life of one instance, from its empty namespaces to its report.
//!
//! ```text
//!  namespaces ──ready──▶ engine attaches the network ──go──▶ runtime run ──running──▶ pump, wait ──▶ clean, report
//!                        (meanwhile the root is made)
//!       (end of file instead of go: nobody wants it any more; leave without a trace)
//! ```
//!
//! Invariant: `status.json` is written last, when nothing of the sandbox is left but its folder and its log.

use super::files::{self, Job, ProcessId};
use super::pump::{Allowance, BURST, Lines, LogFile};
use crate::log::Stream;
use crate::lower::sandbox::MountOp;
use crate::{cgroup, mounts, sys, tree};
use moat_model::state::ExitReport;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What the monitor says once its namespaces exist.
pub const READY: &[u8] = b"ready\n";
/// What the engine says once the network is attached.
pub const GO: &[u8] = b"go\n";
/// What the monitor says once the program runs.
pub const RUNNING: &[u8] = b"running\n";

pub fn main(dir: &Path) -> ExitCode {
    match live(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader of the folder is the only one who can be told.
            let _ = files::write_json(&dir.join(files::STATUS), &files::never_ran(error));
            ExitCode::FAILURE
        }
    }
}

fn live(dir: &Path) -> Result<(), String> {
    let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let errno = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let mut engine = detach().map_err(text("leaving the engine's session"))?;
    let job: Job = files::read_json(&dir.join(files::JOB)).map_err(text("reading the job"))?.ok_or("the job is missing")?;
    let wakeups = signals().map_err(errno("setting up signals"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(errno("becoming the reaper"))?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(errno("making the namespaces"))?;
    own_mounts(&job).map_err(text("making the mount namespace private"))?;
    let me = ProcessId::of(i32::try_from(std::process::id()).unwrap_or_default()).map_err(text("looking at /proc"))?;
    let me = me.ok_or("the monitor can't see itself in /proc")?;
    files::write_json(&dir.join(files::MONITOR), &me).map_err(text("writing the monitor's number"))?;
    engine.write_all(READY).map_err(text("telling the engine"))?;
    // While the engine attaches the network, the root file system is made.
    let mut running = start(dir, &job)?;
    let mut answer = [0; GO.len()];
    if engine.read_exact(&mut answer).is_err() || answer != GO {
        running.give_up();
        return Err("the engine went away before the network was ready".to_owned());
    }
    let mut log = LogFile::open(&job.log).map_err(text("opening the log"))?;
    running.open_gate();
    let report = match running.wait_for_runtime(dir, &mut log) {
        Ok(process) => {
            files::write_json(&dir.join(files::PROGRAM), &process).map_err(text("writing the program's number"))?;
            // The engine may be gone; the program runs all the same.
            let _ = engine.write_all(RUNNING);
            drop(engine);
            running.attend(dir, &job, process, &wakeups, &mut log)
        }
        Err(error) => {
            log.write(Stream::Stderr, true, error.as_bytes());
            files::never_ran(error)
        }
    };
    let cleaned = cgroup::destroy(&job.cgroup).and_then(|()| tree::remove(&job.runtime_root.join(&job.id)));
    if let Err(error) = cleaned {
        log.write(Stream::Stderr, true, format!("moat: cleaning up: {error}").as_bytes());
    }
    files::write_json(&dir.join(files::STATUS), &report).map_err(text("writing the report"))
}

/// A session of its own, no descriptor but the socket to the engine (which comes as standard input).
fn detach() -> io::Result<File> {
    sys::close_from(3)?;
    let engine = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    // Already a leader when started as one.
    let _ = setsid();
    std::env::set_current_dir("/")?;
    Ok(engine)
}

fn signals() -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Lets go of what the monitor must not pin, and of the hierarchy that crun refuses in a hybrid layout.
fn own_mounts(job: &Job) -> io::Result<()> {
    const NONE: Option<&str> = None;
    // Slaves: what the host unmounts goes away here too, so that no disk stays busy.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    for point in mounts::below(&job.netns_dir)? {
        umount2(&point, MntFlags::MNT_DETACH)?;
    }
    if cgroup::layout() == cgroup::Layout::Hybrid {
        if job.limits {
            umount2(cgroup::UNIFIED, MntFlags::MNT_DETACH)?;
        }
        // The runtime makes its folder here all the same: let that be in memory of our own.
        mount(Some("moat"), cgroup::UNIFIED, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=64k"))?;
    }
    Ok(())
}

/// The pipes and the child that becomes the OCI runtime.
struct Running {
    runtime: Pid,
    /// A byte lets the child become the runtime; end of file makes it leave.
    gate: Option<File>,
    /// The only other end of PID 1's standard input.
    lifeline: File,
    pipes: [(File, Lines); 2],
    /// End of file once the child has become the runtime; else the reason why it could not.
    failure: File,
}

fn start(dir: &Path, job: &Job) -> Result<Running, String> {
    let errno = |error: Errno| format!("making the pipes: {error}");
    let pipe = || pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(errno);
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let (fail_read, fail_write) = pipe()?;
    let (gate_read, gate_write) = pipe()?;
    let (mine, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).map_err(errno)?;
    match sys::fork_single_threaded().map_err(|error| format!("forking: {error}"))? {
        ForkResult::Child => {
            drop(gate_write);
            let error = become_runtime(dir, job, File::from(gate_read), [&theirs, &out_write, &err_write]);
            let _ = File::from(fail_write).write_all(error.as_bytes());
            std::process::exit(1)
        }
        ForkResult::Parent { child } => {
            for end in [&out_read, &err_read] {
                nonblocking(end).map_err(|error| format!("making the pipes: {error}"))?;
            }
            Ok(Running {
                runtime: child,
                gate: Some(File::from(gate_write)),
                lifeline: File::from(mine),
                pipes: [(File::from(out_read), Lines::new(Stream::Stdout)), (File::from(err_read), Lines::new(Stream::Stderr))],
                failure: File::from(fail_read),
            })
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map(|_| ())
}

/// In the child: makes the root file system, waits for the gate and becomes the runtime with these standard descriptors.
/// Returns only with the reason why not.
fn become_runtime(dir: &Path, job: &Job, mut gate: File, [lifeline, out, err]: [&OwnedFd; 3]) -> String {
    let mut prepared = || -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| format!("preparing the sandbox: {error}");
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| text(&error))?;
        let list = dir.join(files::MOUNTS);
        let ops: Vec<MountOp> = files::read_json(&list).map_err(|error| text(&error))?.ok_or("the list of mounts is missing")?;
        super::assemble::assemble(&dir.join(files::ROOTFS), &job.root, &ops, job.rootless)?;
        fs::remove_file(&list).map_err(|error| text(&error))?;
        gate.read_exact(&mut [0]).map_err(|error| text(&error))?;
        SigSet::empty().thread_set_mask().map_err(|error| text(&error))?;
        let null = File::open("/dev/null").map_err(|error| text(&error))?;
        let input = if job.stop_signal.is_some() { null.as_fd() } else { lifeline.as_fd() };
        dup2_stdin(input).and_then(|()| dup2_stdout(out)).and_then(|()| dup2_stderr(err)).map_err(|error| text(&error))
    };
    if let Err(error) = prepared() {
        return error;
    }
    let error = Command::new(&job.runtime)
        .arg("--root")
        .arg(&job.runtime_root)
        .args([cgroup::manager(job.limits), "--log-format=text"])
        .arg("--log")
        .arg(dir.join(files::RUNTIME_LOG))
        .args(["run", "--detach"])
        .arg("--pid-file")
        .arg(dir.join(files::INIT_PID))
        .arg("--bundle")
        .arg(dir.join(files::BUNDLE))
        .arg(&job.id)
        .exec();
    format!("running `{}`: {error}", job.runtime.display())
}

impl Running {
    /// The network is there.
    fn open_gate(&mut self) {
        if let Some(mut gate) = self.gate.take() {
            // A child that is gone has left its reason.
            let _ = gate.write_all(b"G");
        }
    }

    /// Nobody wants it any more.
    fn give_up(&mut self) {
        self.gate = None;
        // Its end is all that matters.
        let _ = waitpid(self.runtime, None);
    }

    /// Waits until the runtime has started the program; keeps its output flowing meanwhile.
    fn wait_for_runtime(&mut self, dir: &Path, log: &mut LogFile) -> Result<ProcessId, String> {
        let mut failure = String::new();
        // Ends when the child becomes the runtime, which closes it.
        self.failure.read_to_string(&mut failure).map_err(|error| format!("waiting for the runtime: {error}"))?;
        let status = waitpid(self.runtime, None).map_err(|error| format!("waiting for the runtime: {error}"))?;
        if !failure.is_empty() {
            return Err(failure);
        }
        if status != WaitStatus::Exited(self.runtime, 0) {
            self.pump(BURST, log);
            let said = fs::read_to_string(dir.join(files::RUNTIME_LOG)).unwrap_or_default();
            let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
            return Err(format!("the runtime could not start the sandbox: {}", if said.is_empty() { format!("{status:?}") } else { said }));
        }
        let text = fs::read_to_string(dir.join(files::INIT_PID)).map_err(|error| format!("reading the first process' number: {error}"))?;
        let pid: i32 = text.trim().parse().map_err(|error| format!("reading the first process' number: {error}"))?;
        // It may have ended already: then only its number is known, and the reaper finds it.
        Ok(ProcessId::of(pid).ok().flatten().unwrap_or(ProcessId { pid, start: 0 }))
    }

    /// Keeps the log and waits for the end.
    fn attend(&mut self, dir: &Path, job: &Job, process: ProcessId, wakeups: &SignalFd, log: &mut LogFile) -> ExitReport {
        let program = Pid::from_raw(process.pid);
        let mut kill_at: Option<Instant> = None;
        let mut words = Words::default();
        let mut allowance = Allowance::new(Instant::now());
        sys::trim();
        let mut ended = reap(program);
        while ended.is_none() {
            self.wait(wakeups, kill_at, allowance.next());
            while let Ok(Some(signal)) = wakeups.read_signal() {
                if signal.ssi_signo != Signal::SIGCHLD as u32 && kill_at.is_none() {
                    let grace = files::read_json(&dir.join(files::GRACE)).ok().flatten().unwrap_or(job.grace_seconds);
                    kill_at = Some(Instant::now() + Duration::from_secs(u64::from(grace)));
                    // A dead first process is about to be reaped.
                    match job.stop_signal.map(Signal::try_from) {
                        Some(signal) => drop(kill(program, signal.unwrap_or(Signal::SIGTERM))),
                        None => drop(self.lifeline.write_all(b"T")),
                    }
                }
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                let _ = kill(program, Signal::SIGKILL);
                kill_at = Some(Instant::now() + Duration::from_hours(1));
            }
            let most = allowance.at(Instant::now());
            allowance.take(self.pump(most, log));
            words.read(&mut self.lifeline);
            ended = reap(program);
        }
        // Everything in the sandbox is dead: what the pipes hold (1 MiB at most) is all there will be.
        self.pump(BURST, log);
        for (_, lines) in &mut self.pipes {
            lines.finish(log);
        }
        words.read(&mut self.lifeline);
        let oom = cgroup::oom_killed(&job.cgroup);
        match (words.report, ended) {
            (Some((code, signal)), _) => ExitReport { code, signal, oom: oom && signal == Some(9), error: None },
            (None, Some(WaitStatus::Signaled(_, signal, _))) => {
                ExitReport { code: 128 + signal as i32, signal: Some(signal as i32), oom, error: None }
            }
            (None, Some(WaitStatus::Exited(_, code))) => ExitReport { code, signal: None, oom, error: None },
            (None, _) => ExitReport { code: 1, signal: None, oom, error: Some("the program's end was not seen".to_owned()) },
        }
    }

    /// Waits for a signal, for output, or until then; for output only from `reads` on.
    fn wait(&self, wakeups: &SignalFd, until: Option<Instant>, reads: Option<Instant>) {
        let until = until.into_iter().chain(reads).min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(wakeups.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.pipes
                .iter()
                .filter(|(file, _)| reads.is_none() && !finished(file))
                .map(|(file, _)| PollFd::new(file.as_fd(), PollFlags::POLLIN)),
        );
        // An interrupted wait is a wake-up like another.
        let _ = poll(&mut fds, timeout);
    }

    /// Reads what the pipes hold, a bounded amount of each so that signals are seen as well, and about `most` in all: how much it was.
    fn pump(&mut self, most: u64, log: &mut LogFile) -> u64 {
        let mut buffer = [0; 16 * 1024];
        let mut read = 0;
        // Half for each: what floods one pipe must not have the other wait for ever.
        for (nth, (file, lines)) in (1..).zip(&mut self.pipes) {
            for _ in 0..64 {
                if read * 2 >= most * nth {
                    break;
                }
                match file.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => {
                        lines.take(&buffer[..length], log);
                        read += length as u64;
                    }
                }
            }
        }
        read
    }
}

/// Whether every writer has closed the pipe and it is empty: polling it again would not wait.
fn finished(file: &File) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP) && !events.contains(PollFlags::POLLIN))
}

/// Collects every ended child; the program's end is returned.
fn reap(program: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return found,
            Ok(status) if status.pid() == Some(program) => found = Some(status),
            Ok(_) => {}
        }
    }
}

/// What PID 1 says: at most one short line, and whatever it is, it decides nothing but the reported exit code.
#[derive(Default)]
struct Words {
    text: Vec<u8>,
    report: Option<(i32, Option<i32>)>,
}

impl Words {
    fn read(&mut self, lifeline: &mut File) {
        let mut fds = [PollFd::new(lifeline.as_fd(), PollFlags::POLLIN)];
        if self.report.is_some() || !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            return;
        }
        let mut buffer = [0; 64];
        let length = lifeline.read(&mut buffer).unwrap_or(0);
        self.text.extend_from_slice(&buffer[..length]);
        self.text.truncate(64);
        let Some(line) = std::str::from_utf8(&self.text).ok().and_then(|text| text.split_once('\n')).map(|(line, _)| line) else { return };
        let mut fields = line.split(' ').skip(1).map(str::parse::<i32>);
        if let (Some(Ok(code)), Some(Ok(signal))) = (fields.next(), fields.next()) {
            self.report = Some((code, (signal != 0).then_some(signal)));
        }
    }
}
