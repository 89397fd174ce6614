//! Control groups of instances: version 2, version 1, and the hybrid of both.
//!
//! The OCI runtime makes them; here they are read, emptied and removed.

use crate::mounts;
use moat_engine::EngineError;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Where the version 2 hierarchy of a hybrid is mounted.
pub const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// How the hierarchies are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy, version 2.
    V2,
    /// Version 1 controllers.
    V1,
    /// Version 1 controllers with a version 2 hierarchy beside them.
    Hybrid,
    /// None is mounted.
    Missing,
}

/// How the OCI runtime is told who makes control groups, if anybody does.
pub const fn manager(ours: bool) -> &'static str {
    if ours { "--cgroup-manager=cgroupfs" } else { "--cgroup-manager=disabled" }
}

/// Controllers by which instances are limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    /// Processor time.
    pub cpu: bool,
    /// Memory and swap.
    pub memory: bool,
    /// Processes and threads.
    pub pids: bool,
}

impl Controllers {
    /// Their names.
    pub const NAMES: [&str; 3] = ["memory", "cpu", "pids"];
    /// All of them.
    pub const ALL: Self = Self { cpu: true, memory: true, pids: true };

    /// Those in a list as `cgroup.controllers` has it.
    pub fn of(list: &str) -> Self {
        let has = |name: &str| list.split_ascii_whitespace().any(|listed| listed == name);
        Self { cpu: has("cpu"), memory: has("memory"), pids: has("pids") }
    }

    /// The names of those that are not there.
    pub fn missing(self) -> Vec<&'static str> {
        let [memory, cpu, pids] = Self::NAMES;
        [(memory, self.memory), (cpu, self.cpu), (pids, self.pids)].into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
    }
}

/// The folder of a group in the one hierarchy of version 2.
pub fn folder(group: &str) -> PathBuf {
    Path::new(ROOT).join(group.trim_start_matches('/'))
}

/// Moves this process to a group of the one hierarchy of version 2.
pub fn join(group: &str) -> io::Result<()> {
    fs::write(folder(group).join("cgroup.procs"), "0")
}

/// Looks at what is mounted.
pub fn layout() -> Layout {
    let root = Path::new(ROOT);
    if mounts::is_kind(root, "cgroup2") {
        Layout::V2
    } else if mounts::is_kind(Path::new(UNIFIED), "cgroup2") {
        Layout::Hybrid
    } else if mounts::below(root).is_ok_and(|points| points.iter().any(|point| mounts::is_kind(point, "cgroup"))) {
        Layout::V1
    } else {
        Layout::Missing
    }
}

/// The folders of a control group (such as `/moat-ab12cd/srv-x`) that exist, one in each hierarchy.
pub fn folders(group: &str) -> Vec<PathBuf> {
    let relative = group.trim_start_matches('/');
    let mut bases = vec![PathBuf::from(ROOT)];
    bases.extend(fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path()));
    let hierarchy =
        |base: &PathBuf| statfs(base).is_ok_and(|about| matches!(about.filesystem_type(), CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC));
    // In version 2 every group of the machine is a folder of the root as well; one of ours is in none of them.
    bases.into_iter().filter(hierarchy).map(|base| base.join(relative)).filter(|folder| folder.is_dir()).collect()
}

/// Groups below `/PARENT`, by name, in any hierarchy.
pub fn children(parent: &str) -> Vec<String> {
    let mut names: Vec<String> = folders(parent)
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Whether the kernel killed a process of the group for memory (`memory.events` in version 2, `memory.oom_control` in 1).
pub fn oom_killed(group: &str) -> bool {
    folders(group).iter().any(|folder| {
        ["memory.events", "memory.oom_control"]
            .iter()
            .filter_map(|file| fs::read_to_string(folder.join(file)).ok())
            .any(|text| text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0")))
    })
}

/// Whether swap is counted by group, so that it can be limited.
pub fn counts_swap() -> bool {
    match layout() {
        Layout::V2 => true,
        Layout::V1 | Layout::Hybrid => Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists(),
        Layout::Missing => false,
    }
}

/// Processes of a group.
pub fn processes(group: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = folders(group)
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills what is left in a group and removes it from every hierarchy. Blocks until the kernel has let go, 10 s at most.
pub fn destroy(group: &str) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut pause = Duration::from_micros(200);
    loop {
        for pid in processes(group) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let mut busy = None;
        for folder in folders(group) {
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => busy = Some(error),
            }
        }
        match busy {
            None => return Ok(()),
            Some(error) if Instant::now() > end => return Err(error),
            Some(_) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
    }
}

/// How long the kernel may take to stop every process of a group.
const FREEZES_WITHIN: Duration = Duration::from_secs(5);

/// A control group whose processes stand still for as long as this lives.
#[derive(Debug)]
pub struct Frozen(String);

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw(&self.0);
    }
}

/// Has every process of a group stand still (`cgroup.freeze` in version 2, `freezer.state` in 1). Blocks until they do.
pub fn freeze(group: &str) -> io::Result<Frozen> {
    let frozen = Frozen(group.to_owned());
    let folders = folders(group);
    let v2 = folders.iter().map(|folder| folder.join("cgroup.freeze")).find(|file| file.exists());
    let v1 = folders.iter().map(|folder| folder.join("freezer.state")).find(|file| file.exists());
    let (file, word) = match (v2, v1) {
        (Some(file), _) => (file, "1"),
        (None, Some(file)) => (file, "FROZEN"),
        (None, None) => return Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no freezer of control groups")),
    };
    fs::write(&file, word)?;
    let stands_still = || match word {
        "1" => fs::read_to_string(file.with_file_name("cgroup.events")).is_ok_and(|text| text.lines().any(|line| line == "frozen 1")),
        _ => fs::read_to_string(&file).is_ok_and(|text| text.trim() == word),
    };
    let end = Instant::now() + FREEZES_WITHIN;
    while !stands_still() {
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not stand still"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(frozen)
}

/// Lets every process of a group go on; does nothing where none stands still.
pub fn thaw(group: &str) {
    for folder in folders(group) {
        for (file, word) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
            let file = folder.join(file);
            if file.exists()
                && let Err(error) = fs::write(&file, word)
            {
                tracing::error!(%error, file = %file.display(), "can't thaw");
            }
        }
    }
}

/// Removes an empty parent group; one that still holds others stays.
pub fn remove_parent(parent: &str) -> Result<(), EngineError> {
    for folder in folders(parent) {
        match fs::remove_dir(&folder) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOENT | libc::ENOTEMPTY)) => {}
            Err(error) => {
                return Err(EngineError::new("remove the control groups", format!("`{}`: {error}", folder.display())).caused_by(error));
            }
        }
    }
    Ok(())
}

/// What a control group has used and uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its begin, in microseconds.
    pub cpu_micros: u64,
    /// Memory now, in bytes, without files that can be read again.
    pub memory_bytes: u64,
}

/// What a group uses: `cpu.stat` and `memory.current` in version 2, `cpuacct.usage` and `memory.usage_in_bytes` in version 1.
/// None where a controller is missing or the group is gone.
pub fn usage(group: &str) -> Option<Usage> {
    let folders = folders(group);
    let read = |file: &str| folders.iter().find_map(|folder| fs::read_to_string(folder.join(file)).ok());
    let number = |file: &str| read(file).and_then(|text| text.trim().parse::<u64>().ok());
    let field = |text: &str, name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cpu_micros = match number("cpuacct.usage") {
        Some(nanos) => nanos / 1000,
        None => field(&read("cpu.stat")?, "usage_usec ")?,
    };
    let memory = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let files = read("memory.stat").and_then(|text| field(&text, "total_inactive_file ").or_else(|| field(&text, "inactive_file ")));
    Some(Usage { cpu_micros, memory_bytes: memory.saturating_sub(files.unwrap_or_default()) })
}
