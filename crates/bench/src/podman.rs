//! podman with storage of this run.

use crate::failure::{Doing, Failure, Outcome};
use crate::process::found;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Where podman keeps its things, and how it is called.
pub struct Podman {
    /// Its images.
    pub data: PathBuf,
    run: PathBuf,
}

impl Podman {
    /// What to say where it is not installed.
    pub const MISSING: &str = "podman (apt-get install podman)";

    /// With its folders below this one; none when it is not installed.
    pub fn find(folder: &Path) -> Option<Self> {
        found("podman").then(|| Self { data: folder.join("podman"), run: folder.join("podman-run") })
    }
    /// A command line of it. What runs a container needs [`without_hybrid`].
    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&self.data).arg("--runroot").arg(&self.run);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]).stdin(Stdio::null());
        command
    }
    /// A command line of `podman run` in this network, to be followed by the image.
    pub fn run(&self, network: &str) -> Outcome<Command> {
        // podman asks for higher limits than this process may give.
        let limit =
            |name: &str, resource| getrlimit(resource).map(|(_, hard)| format!("{name}={0}:{0}", hard.min(4096))).doing("read a limit");
        let (files, processes) = (limit("nofile", Resource::RLIMIT_NOFILE)?, limit("nproc", Resource::RLIMIT_NPROC)?);
        let mut command = self.command();
        command.args(["run", "--rm", "--ulimit", &files, "--ulimit", &processes, "--network", network]);
        Ok(command)
    }
}

/// Runs work in a thread whose mount namespace has no version 2 of control groups beside version 1, which crun refuses.
pub fn without_hybrid<T: Send>(work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).doing("make a mount namespace")?;
            if Path::new(UNIFIED).exists() {
                umount2(UNIFIED, MntFlags::MNT_DETACH).doing("unmount version 2 of control groups")?;
                mount(Some("bench"), UNIFIED, Some("tmpfs"), MsFlags::empty(), None::<&str>).doing("mount a folder in its place")?;
            }
            work()
        });
        thread.join().map_err(|_| Failure::new("a thread panicked"))?
    })
}
