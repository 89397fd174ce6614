//! PROXY headers that connections to instances begin with, for servers that take the client's address from there.
//!
//! Invariant: such a connection carries the requests of one client only (here: one request), since it speaks for that one.

use crate::Arrival;
use crate::preface::SIGNATURE;
use moat_model::ProxyHeader;
use std::net::{IpAddr, SocketAddr};

/// For a client (§2.1 and §2.2 of the protocol's specification).
pub(crate) fn header(version: ProxyHeader, arrival: &Arrival) -> Vec<u8> {
    let (from, to) = (SocketAddr::new(arrival.client, arrival.port), arrival.to);
    let ports = (from.port(), to.port());
    match (version, from.ip(), to.ip()) {
        (ProxyHeader::V1, IpAddr::V4(from), IpAddr::V4(to)) => line("TCP4", &from, &to, ports),
        (ProxyHeader::V1, from, to) => line("TCP6", &six(from), &six(to), ports),
        (ProxyHeader::V2, IpAddr::V4(from), IpAddr::V4(to)) => block(0x11, &from.octets(), &to.octets(), ports),
        (ProxyHeader::V2, from, to) => block(0x21, &six(from).octets(), &six(to).octets(), ports),
    }
}

/// For whoever asks on the ingress' own behalf: a health check.
pub const fn own_header(version: ProxyHeader) -> &'static [u8] {
    match version {
        ProxyHeader::V1 => b"PROXY UNKNOWN\r\n",
        // LOCAL, of no family, without addresses.
        ProxyHeader::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// Both addresses are of one family: an IPv4 address beside one of IPv6 is written as one (RFC 4291 §2.5.5.2).
const fn six(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn line(family: &str, from: &impl std::fmt::Display, to: &impl std::fmt::Display, ports: (u16, u16)) -> Vec<u8> {
    format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
}

fn block(family: u8, from: &[u8], to: &[u8], ports: (u16, u16)) -> Vec<u8> {
    let length = u16::try_from(from.len() + to.len() + 4).unwrap_or_default();
    [SIGNATURE, &[0x21, family], &length.to_be_bytes(), from, to, &ports.0.to_be_bytes(), &ports.1.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preface::{Proxied, proxied};

    #[test]
    fn what_is_written_is_read() {
        for version in [ProxyHeader::V1, ProxyHeader::V2] {
            for (from, to, want) in [
                ("192.0.2.7:5000", "198.51.100.1:443", "192.0.2.7:5000 198.51.100.1:443"),
                ("[2001:db8::7]:65535", "[2001:db8::1]:80", "[2001:db8::7]:65535 [2001:db8::1]:80"),
                ("192.0.2.7:1", "[2001:db8::1]:80", "[::ffff:192.0.2.7]:1 [2001:db8::1]:80"),
            ] {
                let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
                let bytes = header(version, &Arrival { port: from.port(), to, ..Arrival::plain(from.ip()) });
                let Ok(Some(Proxied { length, client: Some((from, to)) })) = proxied(&bytes) else { panic!("{bytes:?}") };
                assert_eq!((length, format!("{from} {to}").as_str()), (bytes.len(), want));
            }
            let own = own_header(version);
            assert_eq!(proxied(own), Ok(Some(Proxied { length: own.len(), client: None })));
        }
    }
}
