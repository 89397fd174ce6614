//! The same by podman, docker and its compose: the old container is stopped, the new one is started. All use the host's network, which
//! spares them the time that theirs takes.

use super::traffic::{Took, until};
use crate::docker::Docker;
use crate::failure::{Doing as _, Outcome};
use crate::podman::Podman;
use crate::process::timed;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const IMAGE: &str = "localhost/moat-bench-serve:1";
const NAME: &str = "moat-bench-serve";

enum Program {
    Podman(Podman),
    Docker(Arc<Docker>),
    /// With its file.
    Compose(Arc<Docker>, PathBuf),
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
    pub fn docker(docker: Arc<Docker>, folder: &Path, service: &Path) -> Outcome<Self> {
        Self::with("`docker rm --force`, `docker run`", Program::Docker(docker), 10_002, folder, service)
    }

    /// What to say where compose is not installed.
    pub const NO_COMPOSE: &str = "`docker-compose` (apt-get install docker-compose)";

    /// With the image that [`Self::docker`] made.
    pub fn compose(docker: Arc<Docker>, folder: &Path) -> Outcome<Self> {
        let port = 10_003;
        let (at, file) = (SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), folder.join("compose.yaml"));
        let text = format!(
            "version: '3'\nservices:\n  measured:\n    image: {IMAGE}\n    command: /serve\n    network_mode: host\n    environment: ['PORT={port}', 'RELEASE=${{RELEASE}}']\n"
        );
        std::fs::write(&file, text).doing("write a compose file")?;
        Ok(Self { name: "`docker-compose up --detach`", program: Program::Compose(docker, file), at })
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
            Program::Compose(docker, file) => {
                let mut command = Command::new("docker-compose");
                command.env("DOCKER_HOST", docker.socket()).args(["--project-name", NAME, "--file"]).arg(file).stdin(Stdio::null());
                command
            }
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
            Program::Compose(..) => {
                // The measured service waits for nothing at its end, as those of the others.
                let mut up = self.command();
                up.args(["up", "--detach", "--timeout", "0"]).env("RELEASE", release.to_string());
                return until(&mut up, self.at, "measured", release);
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
        let mut end = self.command();
        match &self.program {
            Program::Podman(_) | Program::Docker(_) => end.args(["rm", "--force", NAME]),
            Program::Compose(..) => end.args(["down", "--timeout", "0"]).env("RELEASE", ""),
        };
        timed(&mut end).map(drop)
    }
}
