//! The files of an instance folder that the monitor and the engine share.
//!
//! Invariant: every file is replaced as a whole (written aside, then renamed), so a reader sees an old or a new one.

use moat_model::state::ExitReport;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the monitor needs to know itself; no secret.
pub const JOB: &str = "job.json";
/// What is mounted; holds secret files, removed once they are in place.
pub const MOUNTS: &str = "mounts.json";
/// Folder of the OCI bundle.
pub const BUNDLE: &str = "bundle";
/// Mount point of the root file system while it is assembled.
pub const ROOTFS: &str = "rootfs";
/// The monitor, as [`ProcessId`].
pub const MONITOR: &str = "monitor.json";
/// The first process of the sandbox, as [`ProcessId`].
pub const PROGRAM: &str = "program.json";
/// How it ended, as [`ExitReport`].
pub const STATUS: &str = "status.json";
/// Seconds between SIGTERM and SIGKILL, written before the monitor is told to stop.
pub const GRACE: &str = "grace.json";
/// What the runtime had to say.
pub const RUNTIME_LOG: &str = "runtime.log";
/// Where the runtime writes the first process' number.
pub const INIT_PID: &str = "init.pid";

/// What a monitor is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The instance's id.
    pub id: String,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// Its state folder.
    pub runtime_root: PathBuf,
    /// Control group, from the root of each hierarchy.
    pub cgroup: String,
    /// The log file.
    pub log: PathBuf,
    /// The folder of bind-mounted network namespaces, which the monitor must not pin.
    pub netns_dir: PathBuf,
    /// Where the finished root file system is moved to, in the monitor's own mount namespace.
    pub root: PathBuf,
    /// Seconds between SIGTERM and SIGKILL when nobody says.
    pub grace_seconds: u32,
    /// The signal that asks the program to end, where that is PID 1 itself; else PID 1 is ours and is told by its standard
    /// input.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Whether its control group is ours to make.
    #[serde(default = "yes")]
    pub limits: bool,
    /// Whether root is that of a user namespace only.
    #[serde(default)]
    pub rootless: bool,
}

/// Monitors of before had control groups.
const fn yes() -> bool {
    true
}

/// A process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number in the host's PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start: u64,
}

impl ProcessId {
    /// The process with this number, if it lives; an error where that can't be told (no descriptor is left, no memory).
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(Self::parse(pid, &stat)),
            // It ended before, or while this was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(pid: i32, stat: &[u8]) -> Option<Self> {
        // The command name, in parentheses, may hold anything.
        let stat = String::from_utf8_lossy(stat);
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start: fields.nth(18)?.parse().ok()? })
    }

    /// Whether this very process lives; an error where that can't be told.
    pub fn alive(self) -> io::Result<bool> {
        Ok(Self::of(self.pid)? == Some(self))
    }

    /// How long it has run, to a hundredth of a second.
    pub fn age(self) -> Duration {
        /// Clock ticks in a second (`USER_HZ`), on every machine that Moat is made for.
        const TICKS: u64 = 100;
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        now.saturating_sub(Duration::from_millis(self.start * 1000 / TICKS))
    }
}

/// Replaces a file as a whole; only root can read it.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&aside, path)
}

/// Replaces a file as a whole; only root can read it. It has come to the disk when this comes back, and a power cut leaves the
/// old one or the new one.
pub fn replace_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Replaces a file with a value as JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?)
}

/// Reads a value; `None` when the file is absent.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A report of a program that never ran.
pub fn never_ran(error: impl Into<String>) -> ExitReport {
    ExitReport { code: 126, signal: None, oom: false, error: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_whatever_it_calls_itself() {
        let stat = |name: &[u8], state: &str| {
            let fields: Vec<String> = (4..22).map(|n| n.to_string()).collect();
            [b"7 (".as_slice(), name, format!(") {state} {} 4242 23 24\n", fields.join(" ")).as_bytes()].concat()
        };
        for (name, state, expect) in [
            (b"moat".as_slice(), "S", Some(4242)),
            (b"a ) Z b", "R", Some(4242)),
            (b"not utf-8: \xff\xfe", "S", Some(4242)),
            (b"moat", "Z", None),
            (b"moat", "X", None),
        ] {
            assert_eq!(ProcessId::parse(7, &stat(name, state)).map(|process| process.start), expect, "{name:?} {state}");
        }
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
        assert!(own.alive().unwrap() && own.age() < Duration::from_hours(24));
        assert!(!ProcessId { start: own.start + 1, ..own }.alive().unwrap());
        // Larger than the largest number of a process.
        assert_eq!(ProcessId::of(i32::MAX).unwrap(), None);
    }
}
