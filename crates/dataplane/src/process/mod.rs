//! The data plane's process.
//!
//! ```text
//!  started ──Start──▶ waits for a configuration ──Configure──▶ serves ──Drain──▶ ends with its connections
//!     └── its daemon is gone ──▶ ends ◀──┘          Stop at any moment: ends
//! ```
//!
//! Its socket is there before it is given anything, so that a daemon which comes after the one that started it finds every
//! process that holds a listening socket. Invariant: it serves nothing before it was configured, and it never waits for a daemon
//! once it was.

mod confine;
mod dial;
mod plane;
mod shown;

use crate::channel::{Channel, Parked};
use crate::message::{Hello, Order, PROTOCOL, ROLE};
use crate::{Sockets, folder};
use moat_ingress::{Records, Tls};
use plane::Plane;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why the process could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It was not started by a daemon.
    #[error("only Moat's background process starts this")]
    NoDaemon(#[source] io::Error),
    /// The conversation with the daemon broke off before it began.
    #[error("the background process said something that is not understood")]
    Foreign(#[source] io::Error),
    /// Its own socket can't be made.
    #[error("can't listen at `{path}`")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The router namespace can't be entered.
    #[error("can't enter the router namespace")]
    Router(#[source] io::Error),
    /// A system call failed.
    #[error("can't {doing}")]
    System {
        /// What.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Threads that serve; more than the processors are of no use, and one must not block the other.
const FEWEST_THREADS: usize = 2;

/// How long the last traces may take to be sent.
const LAST_TRACES: Duration = Duration::from_secs(2);

/// Serves until told to end. Standard input is the conversation with the daemon that started this.
///
/// # Errors
/// When it can't begin to serve.
pub fn main(run: &Path) -> Result<(), ProcessError> {
    let system = |doing| move |source| ProcessError::System { doing, source };
    // A session of its own: what ends the daemon's does not end this. A failure means that it leads one already.
    let _ = nix::unistd::setsid();
    confine::prefer_others();
    confine::raise_open_files();
    let parent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(ProcessError::NoDaemon)?);
    parent.local_addr().map_err(ProcessError::NoDaemon)?;
    let own = Own::bind(run)?;
    // One thread until privileges are given up: they belong to threads.
    let waiting = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(system("make a runtime"))?;
    let started = waiting.block_on(start(parent))?;
    drop(waiting);
    let Some(Begun { root, user, sockets, conversation }) = started else {
        own.remove();
        return Ok(());
    };
    let dial = dial::RouterDial::enter(sockets.router.as_fd(), user).map_err(ProcessError::Router)?;
    let base = confine::confine(&root, user);
    let threads = std::thread::available_parallelism().map_or(FEWEST_THREADS, |n| n.get().max(FEWEST_THREADS));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().map_err(system("make a runtime"))?;
    let records = Records::default();
    let outcome = runtime.block_on(async {
        let tls = Tls::new().map_err(io::Error::other)?;
        let plane = Arc::new(Plane::new(sockets, dial, base, tls, records.clone()));
        own.listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(own.listener)?;
        tokio::spawn(plane::accept(Arc::clone(&plane), listener));
        tokio::spawn(plane::converse(Arc::clone(&plane), conversation.go_on()?));
        plane.serve().await
    });
    // What still runs was given its time.
    runtime.shutdown_background();
    records.traces.end(LAST_TRACES);
    outcome.map_err(system("serve"))
}

/// What it is given first.
struct Begun {
    root: PathBuf,
    user: Option<u32>,
    sockets: Sockets,
    conversation: Parked,
}

/// Waits for the sockets; `None` when the daemon is gone before it gave them.
async fn start(parent: UnixStream) -> Result<Option<Begun>, ProcessError> {
    let mut channel = Channel::of_std(parent).map_err(ProcessError::NoDaemon)?;
    let hello =
        Hello { role: ROLE.to_owned(), protocol: PROTOCOL, pid: std::process::id(), stamp: None, draining: false, holds: BTreeSet::new() };
    if channel.send(&hello, &[]).await.is_err() {
        return Ok(None);
    }
    match channel.receive::<Order>().await {
        Ok(Some((Order::Start { root, user }, fds))) => {
            let missing = || ProcessError::Foreign(io::Error::other("sockets are missing"));
            let sockets = Sockets::received(fds).ok_or_else(missing)?;
            Ok(Some(Begun { root, user, sockets, conversation: channel.park().map_err(ProcessError::NoDaemon)? }))
        }
        Ok(Some((Order::Configure(_) | Order::Certificates(_) | Order::Log { .. } | Order::Measure, _))) => {
            Err(ProcessError::Foreign(io::Error::other("a configuration came before the sockets")))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(ProcessError::Foreign(error)),
        // It is not wanted any more. A daemon that was killed may leave a message half-sent.
        Ok(Some((Order::Stop | Order::Drain, _)) | None) | Err(_) => Ok(None),
    }
}

/// The socket that daemons find this process by.
struct Own {
    listener: UnixListener,
    path: PathBuf,
}

impl Own {
    fn bind(run: &Path) -> Result<Self, ProcessError> {
        let folder = folder(run);
        let path = folder.join(format!("{}.sock", std::process::id()));
        let bind = || {
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
            // An earlier process of this number left it.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| ProcessError::Socket { path: path.clone(), source })?;
        Ok(Self { listener, path })
    }

    fn remove(self) {
        // A daemon that finds it knows that nobody listens there.
        let _ = fs::remove_file(self.path);
    }
}
