//! A docker daemon of this run, with data, socket and network of its own.
//!
//! Invariant: it ends with the [`Docker`] that started it.

use crate::failure::{Doing, Failure, Outcome};
use crate::process::found;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon and how it is spoken to.
pub struct Docker {
    daemon: Child,
    client: PathBuf,
    socket: String,
    /// Where it keeps images and containers.
    pub data: PathBuf,
}

impl Docker {
    /// What to say where it is not installed.
    pub const MISSING: &str = "docker (apt-get install docker.io)";

    /// Starts the daemon with its folders below this one; none when docker is not installed.
    pub fn start(folder: &Path) -> Outcome<Option<Self>> {
        // What is called `docker` in `PATH` may be something else.
        let Some(client) =
            ["/usr/bin/docker", "/usr/local/bin/docker"].map(PathBuf::from).into_iter().find(is_docker).filter(|_| found("dockerd"))
        else {
            return Ok(None);
        };
        let at = |name: &str| folder.join(name);
        let (socket, data) = (format!("unix://{}", at("docker.sock").display()), at("docker"));
        let log = fs::File::create(at("docker.log")).doing("make docker's log")?;
        let daemon = Command::new("dockerd")
            .args(["--host", &socket, "--data-root"])
            .arg(&data)
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
        let mut docker = Self { daemon, client, socket, data };
        let since = Instant::now();
        while !docker.command().arg("version").output().is_ok_and(|output| output.status.success()) {
            if since.elapsed() > PATIENCE || !matches!(docker.daemon.try_wait(), Ok(None)) {
                let said = fs::read_to_string(at("docker.log")).unwrap_or_default();
                return Err(Failure::new(format!("`dockerd` does not answer: {}", said.trim())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Some(docker))
    }
    /// Where it is spoken to.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// A command line of its client.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.client);
        command.args(["--host", &self.socket]).stdin(Stdio::null());
        command
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
