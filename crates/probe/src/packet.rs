//! Packets as probes see and craft them: TCP and UDP headers over IPv4 and IPv6, without options.
//!
//! Main types: [`Packet`] (what a sniffer understood) and [`Craft`] (what a raw socket sends).

use moat_model::Proto;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherType of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;
/// EtherType of markers (IEEE 802 local experimental).
pub(crate) const MARKER: u16 = 0x88b5;
/// The first bytes of every datagram that a probe sends.
pub(crate) const MAGIC: [u8; 4] = *b"mOaT";

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What a sniffer understood of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet {
    /// The first packet of a TCP flow.
    Syn { source: IpAddr, destination: IpAddr, source_port: u16, port: u16 },
    /// A datagram of a probe.
    Datagram { source: IpAddr, destination: IpAddr, port: u16, nonce: u64 },
    /// A marker frame.
    Marker(u64),
}

impl Packet {
    /// Reads a packet that starts at its network header; `None` for everything that no probe sends.
    pub(crate) fn read(ether_type: u16, bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match ether_type {
            MARKER => return Some(Self::Marker(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))),
            IPV4 => {
                let header = usize::from(*bytes.first()? & 0x0f) * 4;
                let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
                (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), *bytes.get(9)?, bytes.get(header..)?)
            }
            IPV6 => {
                let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
                (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), *bytes.get(6)?, bytes.get(40..)?)
            }
            _ => return None,
        };
        let source_port = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
        let port = u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?);
        match protocol {
            TCP if rest.get(13)? & (SYN | ACK) == SYN => Some(Self::Syn { source, destination, source_port, port }),
            UDP if rest.get(8..12)? == MAGIC => {
                let nonce = u64::from_be_bytes(rest.get(12..20)?.try_into().ok()?);
                Some(Self::Datagram { source, destination, port, nonce })
            }
            _ => None,
        }
    }
}

/// The payload of a probe's datagram.
pub(crate) fn datagram(nonce: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&MAGIC);
    out[4..].copy_from_slice(&nonce.to_be_bytes());
    out
}

/// A packet to be sent as it is. Both addresses are of one family.
#[derive(Debug, Clone, Copy)]
pub struct Craft {
    /// Source address, which may be a lie.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TCP (a SYN) or UDP (a datagram with the nonce).
    pub proto: Proto,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// Nonce of a datagram, sequence number of a SYN.
    pub nonce: u64,
    /// Time to live, or hop limit.
    pub ttl: u8,
}

impl Craft {
    /// The whole IP packet with its checksums (RFC 791, RFC 8200, RFC 9293, RFC 768); `None` when the families differ.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let mut transport = match self.proto {
            Proto::Tcp => {
                let mut header = vec![0_u8; 20];
                header[4..8].copy_from_slice(&self.nonce.to_be_bytes()[4..]);
                header[12] = 5 << 4;
                header[13] = SYN;
                header[14..16].copy_from_slice(&64240_u16.to_be_bytes());
                header
            }
            Proto::Udp => {
                let mut header = vec![0_u8; 8];
                header.extend(datagram(self.nonce));
                let len = u16::try_from(header.len()).ok()?;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header
            }
        };
        transport[..2].copy_from_slice(&self.source_port.to_be_bytes());
        transport[2..4].copy_from_slice(&self.port.to_be_bytes());
        let (protocol, checksum_at) = match self.proto {
            Proto::Tcp => (TCP, 16),
            Proto::Udp => (UDP, 6),
        };
        let len = u16::try_from(transport.len()).ok()?;
        let (mut header, pseudo) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0_u8; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                header[6] = 0x40;
                header[8] = self.ttl;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                let pseudo = [&header[12..20], &[0, protocol], &len.to_be_bytes()].concat();
                (header, pseudo)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0_u8; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header[6] = protocol;
                header[7] = self.ttl;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                let pseudo = [&header[8..40], &[0, 0], &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
                (header, pseudo)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let sum = checksum(&[&pseudo, &transport]);
        // A UDP checksum of zero means "none" (RFC 768); its complement says the same sum.
        let sum = if sum == 0 { 0xffff } else { sum };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        header.append(&mut transport);
        Some(header)
    }
}

/// The Internet checksum (RFC 1071) over parts of even length, the last of which may be odd.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn craft(proto: Proto, source: &str, destination: &str) -> Craft {
        Craft {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            proto,
            source_port: 4000,
            port: 80,
            nonce: 0x0102_0304_0506_0708,
            ttl: 64,
        }
    }

    #[test]
    fn what_is_crafted_is_read_back() {
        for (source, destination, ether_type) in [("10.64.0.1", "10.64.0.2", IPV4), ("fd00::1", "fd00::2", IPV6)] {
            let tcp = craft(Proto::Tcp, source, destination);
            let expect = Packet::Syn { source: tcp.source, destination: tcp.destination, source_port: 4000, port: 80 };
            assert_eq!(Packet::read(ether_type, &tcp.bytes().unwrap()), Some(expect));
            let udp = craft(Proto::Udp, source, destination);
            let expect = Packet::Datagram { source: udp.source, destination: udp.destination, port: 80, nonce: udp.nonce };
            assert_eq!(Packet::read(ether_type, &udp.bytes().unwrap()), Some(expect));
        }
        assert_eq!(craft(Proto::Tcp, "10.64.0.1", "fd00::2").bytes(), None);
    }

    #[test]
    fn a_checksum_over_a_packet_with_its_checksum_is_zero() {
        let bytes = craft(Proto::Udp, "10.64.0.1", "10.64.0.2").bytes().unwrap();
        assert_eq!(checksum(&[&bytes[..20]]), 0);
        let pseudo = [&bytes[12..20], &[0, UDP], &20_u16.to_be_bytes()].concat();
        assert_eq!(checksum(&[&pseudo, &bytes[20..]]), 0);
    }

    #[test]
    fn short_and_strange_bytes_are_no_packet() {
        let whole = craft(Proto::Tcp, "10.64.0.1", "10.64.0.2").bytes().unwrap();
        for len in 0..34 {
            assert_eq!(Packet::read(IPV4, &whole[..len]), None, "{len}");
        }
        assert_eq!(Packet::read(0x0806, &whole), None);
        let mut answer = whole;
        answer[33] |= ACK;
        assert_eq!(Packet::read(IPV4, &answer), None);
    }
}
