//! The sockets that the data plane serves with, and the namespace that it dials in. Both the daemon and the process hold them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// Listens for HTTPS in the host's namespace, where that is wanted.
    pub https: Option<OwnedFd>,
    /// Listens for clients of databases in the host's namespace, where that is wanted.
    pub databases: Option<OwnedFd>,
}

impl Sockets {
    /// Each, in the order in which they are sent. Where one is left out that others follow, the namespace stands in its place.
    pub fn each(&self) -> Vec<BorrowedFd<'_>> {
        let always = [&self.ingress, &self.router, &self.dns_udp, &self.dns_tcp];
        let https = self.https.as_ref().or_else(|| self.databases.as_ref().map(|_| &self.router));
        always.into_iter().chain(https).chain(&self.databases).map(AsFd::as_fd).collect()
    }

    /// What was received; `None` when it is not all of them.
    pub fn received(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let (ingress, router, dns_udp, dns_tcp) = (fds.next()?, fds.next()?, fds.next()?, fds.next()?);
        let https = fds.next().filter(|https| !is_same(https, &router).unwrap_or(false));
        let databases = fds.next();
        fds.next().is_none().then_some(Self { ingress, router, dns_udp, dns_tcp, https, databases })
    }

    /// The same sockets once more.
    pub fn duplicate(&self) -> io::Result<Self> {
        let copy = |fd: &OwnedFd| fd.try_clone();
        Ok(Self {
            ingress: copy(&self.ingress)?,
            router: copy(&self.router)?,
            dns_udp: copy(&self.dns_udp)?,
            dns_tcp: copy(&self.dns_tcp)?,
            https: self.https.as_ref().map(copy).transpose()?,
            databases: self.databases.as_ref().map(copy).transpose()?,
        })
    }

    /// Where the ingress listens.
    pub fn listening(&self) -> io::Result<SocketAddr> {
        TcpListener::from(self.ingress.try_clone()?).local_addr()
    }

    /// Where it listens for HTTPS, if it does.
    pub fn listening_https(&self) -> io::Result<Option<SocketAddr>> {
        self.https.as_ref().map(|https| TcpListener::from(https.try_clone()?).local_addr()).transpose()
    }

    /// Where it listens for clients of databases, if it does.
    pub fn listening_databases(&self) -> io::Result<Option<SocketAddr>> {
        self.databases.as_ref().map(|databases| TcpListener::from(databases.try_clone()?).local_addr()).transpose()
    }

    /// Whether a process that has these can go on instead of one that has the others.
    pub fn are_as(&self, others: &Self) -> io::Result<bool> {
        let same = |ours: &Option<OwnedFd>, theirs: &Option<OwnedFd>| match (ours, theirs) {
            (None, None) => Ok(true),
            (Some(ours), Some(theirs)) => is_same(ours, theirs),
            (None, Some(_)) | (Some(_), None) => Ok(false),
        };
        let listeners = is_same(&self.ingress, &others.ingress)? && same(&self.https, &others.https)?;
        Ok(listeners && same(&self.databases, &others.databases)? && self.are_of(&others.router)?)
    }

    /// Whether `ns` is the router namespace of these sockets.
    pub fn are_of(&self, ns: impl AsFd) -> io::Result<bool> {
        is_same(&self.router, ns)
    }
}

/// Whether two descriptors are of one socket, file or namespace.
pub fn is_same(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}
