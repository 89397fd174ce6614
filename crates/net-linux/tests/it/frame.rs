//! Packets made by hand, as a program with raw sockets would send them.

use crate::world::Instance;
use moat_net_linux::ns;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, sendto, socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

const ROUTER_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x01];
const FAR_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x02];

fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap()
}

/// A UDP datagram in an Ethernet frame.
pub fn udp(from: IpAddr, to: IpAddr, port: u16, text: &str) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap();
    let mut datagram = Vec::new();
    for word in [4444, port, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(text.as_bytes());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(from, to, 17, &datagram),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let checksum = pseudo(from, to, 17, &datagram);
            datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
            v6(from, to, 17, &datagram)
        }
        _ => panic!("two families"),
    }
}

fn pseudo(from: Ipv6Addr, to: Ipv6Addr, proto: u8, payload: &[u8]) -> u16 {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    sum(&[&from.octets(), &to.octets(), &length, &[0, 0, 0, proto], payload])
}

/// An IPv4 packet in an Ethernet frame.
pub fn v4(from: Ipv4Addr, to: Ipv4Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let checksum = sum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    [&ROUTER_MAC[..], &FAR_MAC, &[8, 0], &header, payload].concat()
}

/// An IPv6 packet in an Ethernet frame.
pub fn v6(from: Ipv6Addr, to: Ipv6Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], proto, 64];
    [&ROUTER_MAC[..], &FAR_MAC, &[0x86, 0xdd], &header, &from.octets(), &to.octets(), payload].concat()
}

/// A UDP datagram in two fragments, the first too short for the UDP header to be whole.
pub fn fragments(from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Vec<Vec<u8>> {
    let whole = udp(from.into(), to.into(), port, text);
    let datagram = whole[34..].to_vec();
    [(0, 8, true), (8, datagram.len(), false)]
        .map(|(start, end, more)| {
            let mut piece = v4(from, to, 17, &datagram[start..end]);
            let offset = u16::try_from(start / 8).unwrap() | if more { 0x2000 } else { 0 };
            piece[20..22].copy_from_slice(&offset.to_be_bytes());
            piece[24..26].fill(0);
            let checksum = sum(&[&piece[14..34]]).to_be_bytes();
            piece[24..26].copy_from_slice(&checksum);
            piece
        })
        .into()
}

/// A UDP datagram behind a destination options header.
pub fn behind_options(from: Ipv6Addr, to: Ipv6Addr, port: u16, text: &str) -> Vec<Vec<u8>> {
    let datagram = &udp(from.into(), to.into(), port, text)[54..];
    vec![v6(from, to, 60, &[&[17, 0, 1, 4, 0, 0, 0, 0], datagram].concat())]
}

/// A router advertisement that offers a default route, from a link-local address to all nodes.
pub fn router_advertisement() -> Vec<u8> {
    let (from, to): (Ipv6Addr, Ipv6Addr) = ("fe80::bad".parse().unwrap(), "ff02::1".parse().unwrap());
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // Prefix information option: 2001:db8:bad::/64, on link, autonomous.
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
    let checksum = pseudo(from, to, 58, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = v6(from, to, 58, &message);
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[21] = 255;
    frame
}

/// Sends a frame out of an instance's `eth0`.
pub fn send(instance: &Instance, frame: &[u8]) {
    ns::in_ns(instance, || {
        let link: LinkAddr = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|interface| interface.interface_name == "eth0")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .unwrap();
        assert!(link.len() > 0);
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
        sendto(socket.as_raw_fd(), frame, &link, MsgFlags::empty()).unwrap();
    })
    .unwrap();
}
