//! The same by podman and docker: the old container is stopped, the new one is started. Both use the host's network, which spares them
//! the time that theirs takes.

use super::traffic::{Took, until};
use crate::docker::Docker;
use crate::failure::Outcome;
use crate::podman::Podman;
use crate::process::timed;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

const IMAGE: &str = "localhost/moat-bench-serve:1";
const NAME: &str = "moat-bench-serve";

enum Program {
    Podman(Podman),
    Docker(Docker),
}

/// One of them.
pub struct Peer {
    /// What the table calls it.
    pub name: &'static str,
    program: Program,
    at: SocketAddr,
}

impl Peer {
    /// With the measured service as its image.
    pub fn podman(podman: Podman, folder: &Path, service: &Path) -> Outcome<Self> {
        Self::with("`podman rm --force`, `podman run`", Program::Podman(podman), 10_001, folder, service)
    }
    /// With the measured service as its image.
    pub fn docker(docker: Docker, folder: &Path, service: &Path) -> Outcome<Self> {
        Self::with("`docker rm --force`, `docker run`", Program::Docker(docker), 10_002, folder, service)
    }

    fn with(name: &'static str, program: Program, port: u16, folder: &Path, service: &Path) -> Outcome<Self> {
        let peer = Self { name, program, at: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port) };
        let tar = folder.join("serve.tar");
        timed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(service.parent().unwrap_or(service)).arg("serve"))?;
        timed(peer.command().arg("import").arg(tar).arg(IMAGE))?;
        Ok(peer)
    }

    fn command(&self) -> Command {
        match &self.program {
            Program::Podman(podman) => podman.command(),
            Program::Docker(docker) => docker.command(),
        }
    }

    /// Stops what runs and starts the next release.
    pub fn deploy(&mut self, release: usize) -> Outcome<Took> {
        let (port, release_is) = (format!("PORT={}", self.at.port()), format!("RELEASE={release}"));
        let mut run = match &self.program {
            Program::Podman(podman) => podman.run("host")?,
            Program::Docker(docker) => {
                let mut run = docker.command();
                run.args(["run", "--rm", "--network", "host"]);
                run
            }
        };
        run.args(["--detach", "--name", NAME, "--env", &port, "--env", &release_is, IMAGE, "/serve"]);
        // Both in one shell, as people write it.
        let mut stop = self.command();
        stop.args(["rm", "--force", NAME]);
        let words = |command: &Command| -> Vec<String> {
            let all = std::iter::once(command.get_program()).chain(command.get_args());
            all.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))).collect()
        };
        let script = format!("{} >/dev/null 2>&1; exec {}", words(&stop).join(" "), words(&run).join(" "));
        until(Command::new("sh").args(["-c", &script]), self.at, "measured", release)
    }

    /// Stops what runs.
    pub fn end(&mut self) -> Outcome {
        timed(self.command().args(["rm", "--force", NAME])).map(drop)
    }
}
