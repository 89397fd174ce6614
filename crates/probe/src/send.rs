//! Making attempts: sockets inside a prober's namespace, or frames on the uplink.
//!
//! Main types: [`Sent`], [`Sender`]. Invariant: every TCP attempt has a source port of its own, bound before it connects.

use crate::attempt::{Attempt, Place, WINDOW};
use crate::packet::{Craft, IPV4, IPV6, datagram};
use crate::sys;
use moat_model::{AddressPair, Family, Proto};
use moat_net_linux::ns::in_ns;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect, getsockopt, sendto, setsockopt,
    socket, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What sending an attempt came to.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Index of the attempt.
    pub(crate) attempt: usize,
    /// Its source port.
    pub(crate) source_port: u16,
    /// The connecting socket of a TCP attempt, or why the kernel of the prober's namespace refused.
    pub(crate) result: Result<Option<OwnedFd>, Errno>,
}

/// What a connection attempt has come to so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing came back.
    None,
    /// Refused by the other side.
    Reset,
    /// The handshake is finished.
    Connected,
}

/// Where frames enter the router: the host's end of the uplink and the router's address on it.
#[derive(Debug)]
pub(crate) struct FrameWay {
    /// A packet socket in the host's namespace.
    pub(crate) socket: OwnedFd,
    /// The uplink's index there.
    pub(crate) index: u32,
    /// The link-layer address of the router's end.
    pub(crate) mac: [u8; 6],
    /// Source addresses.
    pub(crate) source: AddressPair,
}

/// Makes the attempts of one prober.
#[derive(Debug)]
pub(crate) struct Sender<'a> {
    /// Where it stands.
    pub(crate) place: Place,
    /// That namespace.
    pub(crate) ns: BorrowedFd<'a>,
    /// For frames.
    pub(crate) frames: Option<FrameWay>,
    /// The link that link-local addresses are reached by.
    pub(crate) scope: u32,
    /// The first port of all windows.
    pub(crate) base: u16,
    /// How many source ports were used.
    pub(crate) used: u32,
}

impl Sender<'_> {
    fn next_port(&mut self) -> u16 {
        let offset = u16::try_from(self.used % u32::from(WINDOW)).unwrap_or(0);
        self.used += 1;
        self.base + self.place.window() * WINDOW + offset
    }

    /// Makes these attempts, all at once. The nonce of a datagram is `run` with the attempt's index in its low half.
    pub(crate) fn send(&mut self, attempts: &[Attempt], wave: &[usize], run: u64) -> Vec<Sent> {
        if self.frames.is_some() {
            return wave.iter().map(|index| self.send_frame(*index, &attempts[*index], run)).collect();
        }
        let ns = self.ns;
        let sent = in_ns(&ns, || {
            let mut datagrams = Datagrams::default();
            wave.iter().map(|index| self.send_one(*index, &attempts[*index], run, &mut datagrams)).collect()
        });
        sent.unwrap_or_else(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            wave.iter().map(|attempt| Sent { attempt: *attempt, source_port: 0, result: Err(errno) }).collect()
        })
    }

    fn send_frame(&mut self, index: usize, attempt: &Attempt, run: u64) -> Sent {
        let source_port = self.next_port();
        let result = match &self.frames {
            Some(way) => {
                let (source, ether_type) = match attempt.address {
                    IpAddr::V4(_) => (IpAddr::V4(way.source.v4), IPV4),
                    IpAddr::V6(_) => (IpAddr::V6(way.source.v6), IPV6),
                };
                let craft = Craft {
                    source,
                    destination: attempt.address,
                    proto: attempt.proto,
                    source_port,
                    port: attempt.port,
                    nonce: nonce(run, index),
                    ttl: attempt.ttl.unwrap_or(64),
                };
                let bytes = craft.bytes().unwrap_or_default();
                sys::send_frame(way.socket.as_fd(), way.index, ether_type, way.mac, &bytes)
                    .map(|()| None)
                    .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
            }
            None => Err(Errno::ENODEV),
        };
        Sent { attempt: index, source_port, result }
    }

    fn send_one(&mut self, index: usize, attempt: &Attempt, run: u64, datagrams: &mut Datagrams) -> Sent {
        match attempt.proto {
            Proto::Tcp => {
                let (source_port, result) = self.dial(attempt);
                Sent { attempt: index, source_port, result: result.map(Some) }
            }
            Proto::Udp => Sent { attempt: index, source_port: 0, result: self.post(attempt, nonce(run, index), datagrams).map(|()| None) },
        }
    }

    fn dial(&mut self, attempt: &Attempt) -> (u16, Result<OwnedFd, Errno>) {
        // A port of the window may be taken by a program of the prober's namespace: the next one will do.
        for _ in 0..16 {
            let port = self.next_port();
            match self.dial_from(port, attempt) {
                Err(Errno::EADDRINUSE) => {}
                result => return (port, result),
            }
        }
        (0, Err(Errno::EADDRINUSE))
    }

    fn dial_from(&self, port: u16, attempt: &Attempt) -> Result<OwnedFd, Errno> {
        let socket = open(attempt.address, SockType::Stream, attempt.ttl)?;
        bind_any(&socket, attempt.address, port)?;
        match with_address(self.destination(attempt), |address| connect(socket.as_raw_fd(), address)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => Ok(socket),
            Err(errno) => Err(errno),
        }
    }

    fn post(&mut self, attempt: &Attempt, nonce: u64, datagrams: &mut Datagrams) -> Result<(), Errno> {
        let family = match attempt.address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let destination = self.destination(attempt);
        let open_one = || -> Result<OwnedFd, Errno> {
            let socket = open(attempt.address, SockType::Datagram, attempt.ttl)?;
            for _ in 0..16 {
                match bind_any(&socket, attempt.address, self.next_port()) {
                    Err(Errno::EADDRINUSE) => {}
                    result => return result.map(|()| socket),
                }
            }
            Err(Errno::EADDRINUSE)
        };
        let socket = datagrams.get_or_open(family, attempt.ttl, open_one)?;
        for _ in 0..100 {
            match with_address(destination, |address| sendto(socket.as_raw_fd(), &datagram(nonce), address, MsgFlags::empty())) {
                Ok(_) => return Ok(()),
                // An answer to an earlier datagram, or a full queue: wait until there is room.
                Err(Errno::ECONNREFUSED) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::from(10_u8))?;
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ENOBUFS)
    }

    fn destination(&self, attempt: &Attempt) -> SocketAddr {
        match attempt.address {
            IpAddr::V4(address) => SocketAddrV4::new(address, attempt.port).into(),
            IpAddr::V6(address) => {
                let scope = if address.is_unicast_link_local() { self.scope } else { 0 };
                SocketAddrV6::new(address, attempt.port, 0, scope).into()
            }
        }
    }
}

/// UDP sockets of one wave, by family and time to live.
#[derive(Default)]
struct Datagrams(Vec<(Family, Option<u8>, OwnedFd)>);

impl Datagrams {
    fn get_or_open(&mut self, family: Family, ttl: Option<u8>, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<&OwnedFd, Errno> {
        let at = if let Some(at) = self.0.iter().position(|(f, t, _)| (*f, *t) == (family, ttl)) {
            at
        } else {
            self.0.push((family, ttl, open()?));
            self.0.len() - 1
        };
        Ok(&self.0[at].2)
    }
}

/// The nonce of an attempt's datagram.
pub(crate) fn nonce(run: u64, attempt: usize) -> u64 {
    (run & 0xffff_ffff_0000_0000) | (attempt as u64 & 0xffff_ffff)
}

fn open(address: IpAddr, kind: SockType, ttl: Option<u8>) -> Result<OwnedFd, Errno> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match (address, ttl.map(i32::from)) {
        (IpAddr::V4(_), Some(ttl)) => setsockopt(&socket, sockopt::Ipv4Ttl, &ttl)?,
        (IpAddr::V6(_), Some(ttl)) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&socket, sockopt::Ipv6Ttl, &ttl)?;
        }
        (IpAddr::V6(_), None) => setsockopt(&socket, sockopt::Ipv6V6Only, &true)?,
        (IpAddr::V4(_), None) => {}
    }
    Ok(socket)
}

fn bind_any(socket: &OwnedFd, family: IpAddr, port: u16) -> Result<(), Errno> {
    let any: SocketAddr = match family {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    with_address(any, |address| bind(socket.as_raw_fd(), address))
}

fn with_address<T>(address: SocketAddr, f: impl FnOnce(&dyn SockaddrLike) -> T) -> T {
    match address {
        SocketAddr::V4(address) => f(&SockaddrIn::from(address)),
        SocketAddr::V6(address) => f(&SockaddrIn6::from(address)),
    }
}

/// What has come back to a connecting socket.
pub(crate) fn answer(socket: &OwnedFd) -> Answer {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO).unwrap_or(0) == 0 {
        return Answer::None;
    }
    match getsockopt(socket, sockopt::SocketError) {
        Ok(0) => Answer::Connected,
        Ok(libc::ECONNREFUSED) => Answer::Reset,
        Ok(_) | Err(_) => Answer::None,
    }
}
