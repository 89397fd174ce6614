//! Finding processes, and starting them.

use crate::channel::Channel;
use crate::message::{Hello, Order, PROTOCOL, ROLE};
use crate::{Sockets, folder};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

/// A process greets at once, on however busy a machine; one that does not is stuck.
const GREETED_WITHIN: Duration = Duration::from_secs(20);

/// Where processes are found, and what they are started with.
#[derive(Debug, Clone)]
pub struct Place {
    /// The run folder.
    pub run: PathBuf,
    /// The folder that all sites are below.
    pub root: PathBuf,
    /// The user that a process becomes once it has its sockets, and the group; none stays who started it.
    pub user: Option<u32>,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It can't be run.
    #[error("can't run `{program}`")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the data plane's process ended, or said what is not understood")]
    Talk(#[source] io::Error),
    /// It said nothing, or did not do what was asked, in time.
    #[error("the data plane's process does not answer")]
    Silent,
    /// It is of another version.
    #[error("the data plane's process speaks version {0} of its protocol, not {PROTOCOL}")]
    Version(u32),
    /// The keeper itself has ended.
    #[error("the data plane is not kept any more")]
    Over,
}

/// A process that has greeted.
#[derive(Debug)]
pub(super) struct Met {
    pub hello: Hello,
    pub channel: Channel,
    /// The sockets that it handed over.
    pub sockets: Option<Sockets>,
    pub handle: Handle,
    /// It runs another program than this one.
    pub foreign: bool,
}

/// A process that can't be confused with a later one of the same number.
#[derive(Debug)]
pub(super) struct Handle {
    pidfd: OwnedFd,
}

impl Handle {
    fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Ends it at once. One that has ended already is left alone.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            tracing::debug!(%error, "a data plane's process could not be killed");
        }
    }
}

/// Whether a process runs the same program as this one: a binary that was replaced since has another inode.
fn runs_this_program(pid: i32) -> bool {
    let about = |link: &str| fs::metadata(link).map(|about| (about.dev(), about.ino())).ok();
    about("/proc/self/exe").is_some_and(|own| about(&format!("/proc/{pid}/exe")) == Some(own))
}

/// Every process that listens in the run folder. What dead ones left is removed, and a stuck one is ended.
pub(super) async fn find(run: &Path) -> Vec<Met> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(run)).into_iter().flatten().flatten() {
        let path = entry.path();
        match UnixStream::connect(&path).await {
            Ok(stream) => match meet(Channel::new(stream)).await {
                Ok(met) => found.push(met),
                // It ended in this moment, or was killed for its silence.
                Err(error) => tracing::info!(%error, path = %path.display(), "no data plane"),
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "this data plane has ended");
                let _ = fs::remove_file(&path);
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "a data plane can't be asked"),
        }
    }
    found
}

async fn meet(mut channel: Channel) -> Result<Met, KeepError> {
    let peer = channel.peer().map_err(KeepError::Talk)?;
    let pid = peer.pid().ok_or(KeepError::Silent)?;
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeepError::Talk(io::ErrorKind::PermissionDenied.into()));
    }
    // Before it greets, so that whoever greets is who is held.
    let handle = Handle::open(pid).map_err(KeepError::Talk)?;
    let (hello, fds) = match timeout(GREETED_WITHIN, channel.receive::<Hello>()).await {
        Ok(Ok(Some(greeted))) => greeted,
        Ok(Ok(None)) => return Err(KeepError::Talk(io::ErrorKind::UnexpectedEof.into())),
        Ok(Err(error)) => return Err(KeepError::Talk(error)),
        Err(_) => {
            handle.kill();
            return Err(KeepError::Silent);
        }
    };
    if hello.role != ROLE {
        return Err(KeepError::Talk(io::ErrorKind::InvalidData.into()));
    }
    let foreign = hello.protocol != PROTOCOL || !runs_this_program(pid);
    Ok(Met { hello, channel, sockets: Sockets::received(fds), handle, foreign })
}

/// Starts `program` as a data plane with these sockets.
pub(super) async fn start(program: &Path, place: &Place, sockets: &Sockets) -> Result<Met, KeepError> {
    let failed = |source| KeepError::Run { program: program.to_owned(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg0("moat").arg("__dataplane").env("MOAT_RUN_DIR", &place.run).current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs)));
    // What the service manager handed in is not for it to take.
    command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES");
    let mut child = command.spawn().map_err(failed)?;
    // Its end of the conversation is its own alone: that it closes tells of its end.
    drop(command);
    let pid = child.id().and_then(|pid| RawFd::try_from(pid).ok()).ok_or(KeepError::Silent)?;
    let handle = Handle::open(pid).map_err(KeepError::Talk)?;
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => tracing::info!(pid, %status, "the data plane's process ended"),
            Err(error) => tracing::warn!(pid, %error, "the data plane's process can't be waited for"),
        }
    });
    let mut channel = Channel::of_std(ours).map_err(KeepError::Talk)?;
    // Its own socket is there when it greets, so that whatever it is given from now on can be found.
    let greeted = timeout(GREETED_WITHIN, channel.receive::<Hello>()).await;
    let outcome = match greeted {
        Ok(Ok(Some((hello, _)))) if hello.role == ROLE && hello.protocol == PROTOCOL => {
            let order = Order::Start { root: place.root.clone(), user: place.user };
            channel.send(&order, &sockets.each()).await.map(|()| hello).map_err(KeepError::Talk)
        }
        Ok(Ok(Some((hello, _)))) => Err(KeepError::Version(hello.protocol)),
        Ok(Ok(None)) => Err(KeepError::Talk(io::ErrorKind::UnexpectedEof.into())),
        Ok(Err(error)) => Err(KeepError::Talk(error)),
        Err(_) => Err(KeepError::Silent),
    };
    match outcome {
        Ok(hello) => Ok(Met { hello, channel, sockets: None, handle, foreign: false }),
        Err(error) => {
            handle.kill();
            Err(error)
        }
    }
}
