//! The sockets that the data plane serves with, and the namespace that it dials in. Both the daemon and the process hold them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many descriptors [`Sockets`] are.
pub const COUNT: usize = 4;

/// All of them.
#[derive(Debug)]
pub struct Sockets {
    /// Listens for HTTP in the host's namespace.
    pub ingress: OwnedFd,
    /// The router namespace.
    pub router: OwnedFd,
    /// Bound to the DNS port in the router namespace, datagrams.
    pub dns_udp: OwnedFd,
    /// The same, listening for streams.
    pub dns_tcp: OwnedFd,
}

impl Sockets {
    /// Each, in the order in which they are sent.
    pub fn each(&self) -> [BorrowedFd<'_>; COUNT] {
        [self.ingress.as_fd(), self.router.as_fd(), self.dns_udp.as_fd(), self.dns_tcp.as_fd()]
    }

    /// What was received; `None` when it is not all of them.
    pub fn received(fds: Vec<OwnedFd>) -> Option<Self> {
        let [ingress, router, dns_udp, dns_tcp] = <[OwnedFd; COUNT]>::try_from(fds).ok()?;
        Some(Self { ingress, router, dns_udp, dns_tcp })
    }

    /// The same sockets once more.
    pub fn duplicate(&self) -> io::Result<Self> {
        let copy = |fd: &OwnedFd| fd.try_clone();
        Ok(Self {
            ingress: copy(&self.ingress)?,
            router: copy(&self.router)?,
            dns_udp: copy(&self.dns_udp)?,
            dns_tcp: copy(&self.dns_tcp)?,
        })
    }

    /// Where the ingress listens.
    pub fn listening(&self) -> io::Result<SocketAddr> {
        TcpListener::from(self.ingress.try_clone()?).local_addr()
    }

    /// Whether `ns` is the router namespace of these sockets.
    pub fn are_of(&self, ns: impl AsFd) -> io::Result<bool> {
        let (ours, theirs) = (rustix::fs::fstat(&self.router)?, rustix::fs::fstat(ns)?);
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
    }
}
