//! Other ways of starting the same program: the OCI runtime alone, podman and docker.
//!
//! Every peer has its data in folders of this run, and its processes end with it.

use super::hello;
use crate::docker::Docker;
use crate::failure::{Doing, Outcome};
use crate::podman::Podman;
use crate::process::timed;
use nix::unistd::chown;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const IMAGE: &str = "localhost/moat-bench-hello:1";

/// One way of starting a program that says the time first of all.
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    command: Command,
}

impl Peer {
    /// One with its whole command line.
    pub fn new(name: impl Into<String>, mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self { name: name.into(), command }
    }
    /// Milliseconds from running the command to the program's first instruction.
    pub fn start(&mut self) -> Outcome<f64> {
        hello::through(&mut self.command)
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
    let mut command = Command::new("crun");
    command.arg("--root").arg(state).args(["--cgroup-manager=cgroupfs", "run", "--bundle"]).arg(bundle).arg("moat-bench");
    Ok(Peer::new("`crun run` of the same bundle", command))
}

/// A tarball with nothing but the program.
fn tarball(folder: &Path, program: &Path) -> Outcome<PathBuf> {
    let tar = folder.join("hello.tar");
    let parent = program.parent().unwrap_or(program);
    timed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(parent).arg("hello")).map(drop)?;
    Ok(tar)
}

/// podman without and with its network.
pub fn podman(podman: &Podman, folder: &Path, program: &Path) -> Outcome<Vec<Peer>> {
    timed(podman.command().arg("import").arg(tarball(folder, program)?).arg(IMAGE)).map(drop)?;
    let peer = |name, network| {
        let mut command = podman.run(network)?;
        command.args([IMAGE, "/hello"]);
        Ok(Peer::new(name, command))
    };
    Ok(vec![peer("`podman run`, no network", "none")?, peer("`podman run`, its default network", "bridge")?])
}

/// docker without and with its network.
pub fn docker(docker: &Docker, folder: &Path, program: &Path) -> Outcome<Vec<Peer>> {
    timed(docker.command().arg("import").arg(tarball(folder, program)?).arg(IMAGE)).map(drop)?;
    let peer = |name, network| {
        let mut command = docker.command();
        command.args(["run", "--rm", "--network", network, IMAGE, "/hello"]);
        Peer::new(name, command)
    };
    Ok(vec![peer("`docker run`, no network", "none"), peer("`docker run`, its default network", "bridge")])
}
