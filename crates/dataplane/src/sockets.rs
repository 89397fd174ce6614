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
    /// Listen for clients of databases in the host's namespace, where that is wanted.
    pub databases: Doors<OwnedFd>,
}

/// One of each kind of database, where clients from outside come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doors<T> {
    /// PostgreSQL's.
    pub postgres: Option<T>,
    /// That of Key Values.
    pub keyvalue: Option<T>,
}

impl<T> Default for Doors<T> {
    /// None is open.
    fn default() -> Self {
        Self { postgres: None, keyvalue: None }
    }
}

impl<T> Doors<T> {
    /// The same doors with something else of each that is open; the first error ends it.
    pub fn try_map<U, E>(&self, of: impl Fn(&T) -> Result<U, E>) -> Result<Doors<U>, E> {
        let of = |one: &Option<T>| one.as_ref().map(&of).transpose();
        Ok(Doors { postgres: of(&self.postgres)?, keyvalue: of(&self.keyvalue)? })
    }
}

impl Sockets {
    /// Each, in the order in which they are sent. Where one is left out that others follow, the namespace stands in its place.
    pub fn each(&self) -> Vec<BorrowedFd<'_>> {
        let always = [&self.ingress, &self.router, &self.dns_udp, &self.dns_tcp];
        let wanted = [&self.https, &self.databases.postgres, &self.databases.keyvalue];
        let count = wanted.iter().rposition(|one| one.is_some()).map_or(0, |last| last + 1);
        let wanted = wanted.into_iter().take(count).map(|one| one.as_ref().unwrap_or(&self.router));
        always.into_iter().chain(wanted).map(AsFd::as_fd).collect()
    }

    /// What was received; `None` when it is not all of them.
    pub fn received(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let (ingress, router, dns_udp, dns_tcp) = (fds.next()?, fds.next()?, fds.next()?, fds.next()?);
        let mut wanted = || fds.next().filter(|one| !is_same(one, &router).unwrap_or(false));
        let (https, databases) = (wanted(), Doors { postgres: wanted(), keyvalue: wanted() });
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
            databases: self.databases.try_map(copy)?,
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

    /// Where it listens for clients of databases.
    pub fn listening_databases(&self) -> io::Result<Doors<SocketAddr>> {
        self.databases.try_map(|listener| TcpListener::from(listener.try_clone()?).local_addr())
    }

    /// Whether a process that has these can go on instead of one that has the others.
    pub fn are_as(&self, others: &Self) -> io::Result<bool> {
        let same = |ours: &Option<OwnedFd>, theirs: &Option<OwnedFd>| match (ours, theirs) {
            (None, None) => Ok(true),
            (Some(ours), Some(theirs)) => is_same(ours, theirs),
            (None, Some(_)) | (Some(_), None) => Ok(false),
        };
        let listeners = is_same(&self.ingress, &others.ingress)? && same(&self.https, &others.https)?;
        let (ours, theirs) = (&self.databases, &others.databases);
        let listeners = listeners && same(&ours.postgres, &theirs.postgres)? && same(&ours.keyvalue, &theirs.keyvalue)?;
        Ok(listeners && self.are_of(&others.router)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_is_sent_of_sockets_is_what_is_received() {
        let one = |name: &str| OwnedFd::from(File::open(name).unwrap());
        for open in 0..8 {
            let wanted = |bit: u8, name: &str| (open & bit != 0).then(|| one(name));
            let sockets = Sockets {
                ingress: one("/proc/self/stat"),
                router: one("/proc/self/ns/net"),
                dns_udp: one("/proc/self/status"),
                dns_tcp: one("/proc/self/maps"),
                https: wanted(1, "/proc/self/cmdline"),
                databases: Doors { postgres: wanted(2, "/proc/self/comm"), keyvalue: wanted(4, "/proc/self/limits") },
            };
            let sent = sockets.each().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            let received = Sockets::received(sent).unwrap();
            assert!(received.are_as(&sockets).unwrap(), "{open}");
            let mut others = sockets.duplicate().unwrap();
            others.databases.keyvalue = if open & 4 == 0 { Some(one("/proc/self/limits")) } else { None };
            assert!(!received.are_as(&others).unwrap(), "{open}");
        }
        assert!(Sockets::received(vec![one("/proc/self/stat")]).is_none());
    }
}
