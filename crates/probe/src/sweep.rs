//! All ports of one pair, both protocols and both families, by raw packets.
//!
//! Main types: [`Pair`], [`Sweep`]; [`Watch`] and [`send_crafted`] are its parts, for attempts that no socket makes.

use crate::attempt::{FAMILIES, PROTOS};
use crate::packet::{Craft, MARKER, Packet};
use crate::sniff::{self, Capture, Seen};
use crate::sys;
use moat_model::{AddressPair, Family, LinkName, Proto};
use moat_net_linux::link::Links;
use moat_net_linux::ns::in_ns;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, setsockopt, socket, sockopt,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Ports tried at once: few enough for every queue on the way.
const CHUNK: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_millis(2);
const SOURCE_PORT: u16 = 47_474;

/// The source port for a destination port. Going twice never leads back, so that no packet of a sweep looks like the
/// answer to one of the sweep the other way round (which a filter that tracks flows rightly lets through).
const fn source_port(port: u16) -> u16 {
    match port {
        SOURCE_PORT => SOURCE_PORT + 1,
        47_475 => SOURCE_PORT + 2,
        _ => SOURCE_PORT,
    }
}

/// Why a sweep says nothing.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Sockets or links could not be used.
    #[error("the sweep can't be made")]
    Io(#[from] io::Error),
    /// Packets were not seen leaving, or a sniffer did not see its marker: nothing is proved.
    #[error("nothing is proved: {0}")]
    Unproven(String),
}

/// Who sweeps whom.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Where the packets are sent.
    pub from: BorrowedFd<'a>,
    /// With which source addresses.
    pub source: AddressPair,
    /// Where they should arrive.
    pub to: BorrowedFd<'a>,
    /// At which addresses.
    pub destination: AddressPair,
    /// The router namespace.
    pub router: BorrowedFd<'a>,
    /// The target's link in it.
    pub link: &'a LinkName,
}

/// What a sweep found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Ports whose packets arrived; a key for every protocol and family.
    pub arrived: BTreeMap<(Proto, Family), BTreeSet<u16>>,
    /// How many packets were seen entering the router.
    pub entered: usize,
}

/// Sends a packet to every port, 1 to 65535, and says which arrived.
pub fn sweep(pair: &Pair<'_>) -> Result<Sweep, SweepError> {
    let capture = Capture::start(vec![sniff::open(&pair.to)?, sniff::open(&pair.router)?])?;
    let markers = sniff::frame_socket(&pair.router)?;
    let link = in_ns(&pair.router, || Links::open()?.find(pair.link.as_str()))??
        .ok_or_else(|| SweepError::Unproven(format!("there is no link `{}`", pair.link)))?;
    let sender = Raw::open(&pair.from)?;
    let mut found = Sweep::default();
    let ports: Vec<u16> = (1..=u16::MAX).collect();
    for (family, proto) in FAMILIES.into_iter().flat_map(|family| PROTOS.map(|proto| (family, proto))) {
        let arrived = found.arrived.entry((proto, family)).or_default();
        for (n, chunk) in ports.chunks(CHUNK).enumerate() {
            // A packet that gets lost on a busy machine is sent again; one that is filtered never arrives.
            let mut missing: BTreeSet<u16> = chunk.iter().copied().collect();
            for _ in 0..3 {
                for port in &missing {
                    let craft = Craft {
                        source: pair.source.of(family),
                        destination: pair.destination.of(family),
                        proto,
                        source_port: source_port(*port),
                        port: *port,
                        nonce: u64::from(*port),
                        ttl: 64,
                    };
                    sender.send(&craft)?;
                }
                let nonce = (n as u64) << 8 | u64::from(family == Family::V6) << 1 | u64::from(proto == Proto::Udp);
                let mut entered = BTreeSet::new();
                let mut note = |seen: &[Seen]| {
                    for one in seen.iter().filter(|one| !one.outgoing) {
                        if let Some(port) = port_of(one.packet, pair.source.of(family)) {
                            if one.at == 0 {
                                arrived.insert(port)
                            } else {
                                entered.insert(port)
                            };
                        }
                    }
                };
                sys::send_frame(markers.as_fd(), link.index, MARKER, [0xff; 6], &nonce.to_be_bytes())?;
                let (seen, marked) =
                    capture.wait(PATIENCE, |seen| seen.iter().any(|one| one.at == 0 && one.packet == Packet::Marker(nonce)));
                note(&seen);
                if !marked {
                    return Err(SweepError::Unproven("the marker did not arrive at the target".to_owned()));
                }
                note(&capture.wait(GRACE, |_| false).0);
                found.entered += entered.len();
                missing.retain(|port| !entered.contains(port));
                if missing.is_empty() {
                    break;
                }
            }
            if let Some(port) = missing.first() {
                return Err(SweepError::Unproven(format!(
                    "{} packets were not seen entering the router, {proto} port {port} among them",
                    missing.len()
                )));
            }
        }
    }
    if capture.lost().iter().any(|lost| *lost > 0) {
        return Err(SweepError::Unproven("a sniffer lost packets".to_owned()));
    }
    Ok(found)
}

fn port_of(packet: Packet, from: IpAddr) -> Option<u16> {
    match packet {
        Packet::Syn { source, source_port: from_port, port, .. } if source == from && from_port == source_port(port) => Some(port),
        Packet::Datagram { source, port, .. } if source == from => Some(port),
        Packet::Syn { .. } | Packet::Datagram { .. } | Packet::Marker(_) => None,
    }
}

/// Raw sockets of both families.
struct Raw {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Raw {
    fn open(ns: &impl AsFd) -> io::Result<Self> {
        let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        let raw = in_ns(ns, || -> io::Result<Self> { Ok(Self { v4: open(AddressFamily::Inet)?, v6: open(AddressFamily::Inet6)? }) })??;
        for socket in [&raw.v4, &raw.v6] {
            setsockopt(socket, sockopt::SndBuf, &(1 << 20))?;
        }
        Ok(raw)
    }

    fn send(&self, craft: &Craft) -> io::Result<()> {
        let bytes = craft.bytes().ok_or(io::ErrorKind::InvalidInput)?;
        let sent = match craft.destination {
            IpAddr::V4(to) => sendto(self.v4.as_raw_fd(), &bytes, &SockaddrIn::from(SocketAddrV4::new(to, 0)), MsgFlags::empty()),
            IpAddr::V6(to) => sendto(self.v6.as_raw_fd(), &bytes, &SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0)), MsgFlags::empty()),
        };
        match sent {
            // A full queue: whoever waits for the packet sees that it is missing.
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Sends packets as they are from inside a namespace, with whatever source address they claim.
pub fn send_crafted(ns: &impl AsFd, packets: &[Craft]) -> io::Result<()> {
    let raw = Raw::open(ns)?;
    packets.iter().try_for_each(|craft| raw.send(craft))
}

/// Watches what arrives in a namespace.
pub struct Watch(Capture);

impl Watch {
    /// Starts watching every link of the namespace but loopback.
    pub fn open(ns: &impl AsFd) -> io::Result<Self> {
        Ok(Self(Capture::start(vec![sniff::open(ns)?])?))
    }

    /// The nonces of the datagrams that arrived since the last time, waiting until `wanted` is among them or time is up.
    pub fn datagrams(&self, wanted: Option<u64>, patience: Duration) -> BTreeSet<u64> {
        let nonce = |one: &Seen| match one.packet {
            Packet::Datagram { nonce, .. } if !one.outgoing => Some(nonce),
            Packet::Datagram { .. } | Packet::Syn { .. } | Packet::Marker(_) => None,
        };
        let (seen, _) = self.0.wait(patience, |seen| wanted.is_some() && seen.iter().any(|one| nonce(one) == wanted));
        seen.iter().filter_map(nonce).collect()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

#[cfg(test)]
mod tests {
    use super::source_port;

    #[test]
    fn no_packet_looks_like_an_answer_to_the_sweep_the_other_way_round() {
        assert!((1..=u16::MAX).all(|port| source_port(source_port(port)) != port));
    }
}
