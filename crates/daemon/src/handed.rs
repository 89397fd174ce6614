//! Listening sockets that a service manager hands in (systemd.socket(5), `sd_listen_fds(3)`): the ports of the ingress for a Moat
//! that may not bind them itself.
//!
//! Invariant: a socket that was handed in serves as what it is called, or the daemon does not start.

use rustix::process::{PidfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

/// The variables that tell of them; nothing that this process starts may take them for its own.
pub const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The sockets of the ingress, as far as they were handed in. None is the usual.
#[derive(Debug, Default)]
pub struct Handed {
    /// For HTTP.
    pub http: Option<OwnedFd>,
    /// For HTTPS.
    pub https: Option<OwnedFd>,
}

/// Why sockets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// It is not known what for.
    #[error("a socket called `{0}` was handed in (hint: `FileDescriptorName=http` or `https` in its socket unit)")]
    Unknown(String),
    /// There is one of that name already.
    #[error("two sockets called `{0}` were handed in (hint: `ListenStream=80` alone takes IPv4 and IPv6)")]
    Twice(String),
    /// It accepts no connections.
    #[error("the socket `{0}` that was handed in does not listen on a TCP port (hint: `ListenStream=` with a port, and not `Accept=yes`)")]
    NoListener(String),
    /// The system refuses.
    #[error("can't take the sockets that were handed in")]
    System(#[from] io::Error),
}

/// Takes the sockets that were handed to this process, once.
///
/// # Errors
/// When one of them is for nothing that is known.
pub fn take() -> Result<Handed, HandedError> {
    let own = || Ok::<_, io::Error>(pidfd_open(getpid(), PidfdFlags::empty())?);
    let mut handed = Handed::default();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        let place = match name.as_str() {
            "http" => &mut handed.http,
            "https" => &mut handed.https,
            _ => return Err(HandedError::Unknown(name)),
        };
        let socket = pidfd_getfd(own()?, number, rustix::process::PidfdGetfdFlags::empty()).map_err(io::Error::from)?;
        if !rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false) || address(&socket).is_err() {
            return Err(HandedError::NoListener(name));
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(io::Error::from)?;
        if place.replace(socket).is_some() {
            return Err(HandedError::Twice(name));
        }
    }
    Ok(handed)
}

/// Where a listener listens.
pub fn address(listener: &impl AsFd) -> io::Result<SocketAddr> {
    TcpListener::from(listener.as_fd().try_clone_to_owned()?).local_addr()
}
