//! Other ways of starting the same program: the OCI runtime alone, podman and docker.
//!
//! Every peer has its data in folders of this run, and its processes end with it.

use super::hello;
use crate::failure::{Doing, Failure, Outcome};
use crate::process::{found, timed};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const IMAGE: &str = "localhost/moat-bench-hello:1";
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// One way of starting the program.
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Peer {
    fn new(name: &str, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self { name: name.to_owned(), program: program.into(), arguments: arguments.iter().map(|&argument| argument.to_owned()).collect() }
    }
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }
    /// Milliseconds from running the command to the program's first instruction.
    pub fn start(&self) -> Outcome<f64> {
        hello::through(&mut self.command())
    }
}

/// Control groups that podman and docker make and never remove; those that were there before a run are not this run's.
pub struct Groups(Vec<PathBuf>);

impl Groups {
    /// Those that are not there yet.
    pub fn new() -> Self {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let groups = hierarchies.flat_map(|hierarchy| ["docker", "libpod_parent"].map(|name| hierarchy.path().join(name)));
        Self(groups.filter(|group| !group.exists()).collect())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            // Only what is empty goes, children first: podman leaves one below its own.
            for child in fs::read_dir(group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(group);
        }
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

/// `crun run` of an instance's own bundle: same ids, limits, filter, masks and mounts. Its network namespace is made by crun
/// and empty; its root is a folder made before; the program is started without Moat's first process and without a shell.
pub fn crun(folder: &Path, mut bundle: Value, program: &Path) -> Outcome<Peer> {
    let root = folder.join("crun/rootfs");
    for place in ["proc", "dev", "sys", "tmp", "etc", "opt/render/project/src"] {
        fs::create_dir_all(root.join(place)).doing("make a root folder")?;
    }
    fs::copy(program, root.join("opt/render/project/src/hello")).doing("copy the program")?;
    let first_id = bundle["linux"]["uidMappings"][0]["hostID"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    chown(&root, Some(first_id.into()), Some(first_id.into())).doing("hand over the root folder")?;
    bundle["root"]["path"] = json!(root);
    bundle["process"]["args"] = json!(["/opt/render/project/src/hello"]);
    bundle["linux"]["cgroupsPath"] = json!(format!("/moat-bench-{}", std::process::id()));
    if let Some(namespaces) = bundle["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "network"}));
    }
    if let Some(mounts) = bundle["mounts"].as_array_mut() {
        mounts
            .insert(0, json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}));
    }
    fs::write(folder.join("crun/config.json"), bundle.to_string()).doing("write a bundle")?;
    let (state, bundle) = (folder.join("crun/state"), folder.join("crun"));
    let arguments =
        ["--root", &*state.to_string_lossy(), "--cgroup-manager=cgroupfs", "run", "--bundle", &*bundle.to_string_lossy(), "moat-bench"];
    Ok(Peer::new("`crun run` of the same bundle", "crun", &arguments))
}

/// A tarball with nothing but the program.
fn tarball(folder: &Path, program: &Path) -> Outcome<PathBuf> {
    let tar = folder.join("hello.tar");
    let parent = program.parent().unwrap_or(program);
    timed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(parent).arg("hello")).map(drop)?;
    Ok(tar)
}

/// podman with storage of its own, without and with its network; none when it is not installed.
pub fn podman(folder: &Path, program: &Path) -> Outcome<Option<Vec<Peer>>> {
    if !found("podman") {
        return Ok(None);
    }
    let (data, run) = (folder.join("podman"), folder.join("podman-run"));
    let common = [
        "--root",
        &*data.to_string_lossy(),
        "--runroot",
        &*run.to_string_lossy(),
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "none",
    ];
    let base: Vec<&str> = common.iter().map(|text| &**text).collect();
    timed(Command::new("podman").args(&base).arg("import").arg(tarball(folder, program)?).arg(IMAGE)).map(drop)?;
    // podman asks for higher limits than this process may give.
    let limit = |name: &str, resource| getrlimit(resource).map(|(_, hard)| format!("{name}={0}:{0}", hard.min(4096))).doing("read a limit");
    let (files, processes) = (limit("nofile", Resource::RLIMIT_NOFILE)?, limit("nproc", Resource::RLIMIT_NPROC)?);
    let peer = |name, network| {
        Peer::new(
            name,
            "podman",
            &[&base[..], &["run", "--rm", "--ulimit", &files, "--ulimit", &processes, "--network", network, IMAGE, "/hello"]].concat(),
        )
    };
    Ok(Some(vec![peer("`podman run`, no network", "none"), peer("`podman run`, its default network", "bridge")]))
}

/// A docker daemon of this run, which ends with this.
pub struct Docker {
    daemon: Child,
    /// Without and with its network.
    pub peers: Vec<Peer>,
}

impl Docker {
    /// Starts the daemon and imports the program; none when docker is not installed.
    pub fn start(folder: &Path, program: &Path) -> Outcome<Option<Self>> {
        // What is called `docker` in `PATH` may be something else.
        let Some(client) =
            ["/usr/bin/docker", "/usr/local/bin/docker"].map(PathBuf::from).into_iter().find(is_docker).filter(|_| found("dockerd"))
        else {
            return Ok(None);
        };
        let at = |name: &str| folder.join(name);
        let socket = format!("unix://{}", at("docker.sock").display());
        let log = fs::File::create(at("docker.log")).doing("make docker's log")?;
        let daemon = Command::new("dockerd")
            .args(["--host", &socket, "--data-root"])
            .arg(at("docker"))
            .arg("--exec-root")
            .arg(at("docker-run"))
            .arg("--pidfile")
            .arg(at("docker.pid"))
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().doing("make docker's log")?)
            .stderr(log)
            .spawn()
            .doing("start `dockerd`")?;
        let mut docker = Self { daemon, peers: Vec::new() };
        let since = Instant::now();
        while !Command::new(&client).args(["--host", &socket, "version"]).output().is_ok_and(|output| output.status.success()) {
            if since.elapsed() > PATIENCE || !matches!(docker.daemon.try_wait(), Ok(None)) {
                let said = fs::read_to_string(at("docker.log")).unwrap_or_default();
                return Err(Failure::new(format!("`dockerd` does not answer: {}", said.trim())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        timed(Command::new(&client).args(["--host", &socket, "import"]).arg(tarball(folder, program)?).arg(IMAGE)).map(drop)?;
        let peer = |name, network| Peer::new(name, &client, &["--host", &socket, "run", "--rm", "--network", network, IMAGE, "/hello"]);
        docker.peers = vec![peer("`docker run`, no network", "none"), peer("`docker run`, its default network", "bridge")];
        Ok(Some(docker))
    }
}

fn is_docker(client: &PathBuf) -> bool {
    Command::new(client).arg("--version").output().is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with("Docker version"))
}

impl Drop for Docker {
    fn drop(&mut self) {
        let ended = i32::try_from(self.daemon.id()).is_ok_and(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok());
        if !ended {
            let _ = self.daemon.kill();
        }
        let _ = self.daemon.wait();
    }
}
