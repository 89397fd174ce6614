//! Another program takes this one's place: same process, same workloads, same data plane's sockets.
//!
//! Invariants: a program that can't be run changes nothing; what runs is the very file that was looked at, and nobody but root
//! (or this user) could have written it.

use super::requests::{Reply, end};
use super::{Core, Msg};
use crate::protocol::{Event, Failure};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long a program may take to say its version.
const SAYS_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks for children that ended.
const REAP_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// Begins to become `program`, once that has said what it is.
    pub(super) fn upgrade(&self, program: PathBuf, reply: Reply) {
        if !self.copies.is_empty() {
            let hint = Some("say it again once that is over".to_owned());
            return end(&reply, Some(Failure::refused("a backup, a restore or a snapshot is under way", hint)));
        }
        let tx = self.tx.clone();
        tokio::spawn(async move {
            match look(&program).await {
                Ok((file, version)) => {
                    let _ = reply.send(Event::Notice { service: None, text: format!("handing over to {version}") });
                    // What nobody takes any more ends with the daemon.
                    let _ = tx.send(Msg::Become(program, file, reply));
                }
                Err(why) => {
                    let hint = "name a program of Moat for this machine: `moat upgrade --binary FILE`".to_owned();
                    end(&reply, Some(Failure::refused(format!("`{}` can't take over: {why}", program.display()), Some(hint))));
                }
            }
        });
    }

    /// Becomes `program`. Comes back only when that fails.
    pub(super) fn r#become(&mut self, program: &Path, file: &File, reply: &Reply) {
        if let Err(error) = self.commit(self.durable.clone()) {
            // What is known here only would be lost.
            return end(reply, Some(Failure::refused(format!("the durable state can't be written: {}", crate::chain(&error)), None)));
        }
        tracing::info!(program = %program.display(), "handing over");
        let mut command = std::process::Command::new(by_handle(file));
        command.arg0(program).args(std::env::args_os().skip(1));
        // The data plane has what was handed in, and gives it back; here it is closed.
        for name in crate::handed::VARIABLES {
            command.env_remove(name);
        }
        let error = command.exec();
        end(reply, Some(Failure::refused(format!("`{}` can't be run: {error}", program.display()), None)));
    }
}

/// A program that can take over, and what it says that it is; in words why it can't.
pub async fn look(program: &Path) -> Result<(File, String), String> {
    let file = open(program)?;
    let version = version(&file).await?;
    Ok((file, version))
}

/// A program that only root or this user can have written.
fn open(program: &Path) -> Result<File, String> {
    let file = File::open(program).map_err(|error| error.to_string())?;
    let about = file.metadata().map_err(|error| error.to_string())?;
    // In a user namespace root's files are nobody's, and whoever asks is the one user that everything belongs to.
    let trusted = about.uid() == 0 || about.uid() == nix::unistd::geteuid().as_raw() || moat_engine_linux::rootless::inside();
    if !about.is_file() || !trusted || about.mode() & 0o022 != 0 {
        return Err("it is no file of root's that only root can write".to_owned());
    }
    Ok(file)
}

/// The file itself, whatever lies at its path by now.
fn by_handle(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// What a program says that it is.
async fn version(file: &File) -> Result<String, String> {
    let asked = Command::new(by_handle(file)).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(SAYS_WITHIN, asked)
        .await
        .map_err(|_| "it does not say its version".to_owned())?
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && said.starts_with("moat ") { Ok(said) } else { Err("it is no Moat".to_owned()) }
}

/// Looks after the children that this process had under its former program: monitors and the data plane, which nobody else
/// can take leave of.
pub(crate) fn adopt_children() {
    let own = std::process::id();
    let lists = fs::read_dir(format!("/proc/{own}/task")).into_iter().flatten().flatten();
    let mut children: Vec<Pid> = lists
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect::<Vec<_>>())
        .collect();
    if children.is_empty() {
        return;
    }
    tokio::spawn(async move {
        while !children.is_empty() {
            tokio::time::sleep(REAP_EVERY).await;
            children.retain(|child| matches!(waitpid(*child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)));
        }
    });
}

/// The program that this process runs.
pub(crate) fn program() -> String {
    fs::read_link("/proc/self/exe").map(|path| path.display().to_string()).unwrap_or_default()
}
