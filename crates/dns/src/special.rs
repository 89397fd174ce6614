//! Addresses that are never public: what a name of the outside world must not resolve to.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// IANA's special-purpose IPv4 registry (RFC 6890), without the documentation ranges, plus multicast.
const PRIVATE_V4: [Ipv4Net; 11] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];

/// The same for IPv6. The first entry holds `::`, `::1` and the IPv4-compatible addresses, the second the v4-mapped
/// ones, which a dual-stack socket turns into IPv4.
const PRIVATE_V6: [Ipv6Net; 8] = [
    v6(0, 0, 0, 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    v6(0x64, 0xff9b, 1, 48),
    v6(0x100, 0, 0, 64),
    v6(0xfc00, 0, 0, 7),
    v6(0xfe80, 0, 0, 10),
    v6(0xfec0, 0, 0, 10),
    v6(0xff00, 0, 0, 8),
];

/// Whether an address is private, loopback, link-local, shared (CGNAT), multicast, reserved, or carries such an IPv4
/// address inside (v4-mapped, NAT64 `64:ff9b::/96`, 6to4 `2002::/16`).
///
/// ```
/// assert!(moat_dns::is_private("::ffff:93.184.216.34".parse().unwrap()));
/// assert!(!moat_dns::is_private("93.184.216.34".parse().unwrap()));
/// ```
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => PRIVATE_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            PRIVATE_V6.iter().any(|net| net.contains(&address)) || embedded(address).is_some_and(|inner| is_private(inner.into()))
        }
    }
}

/// The IPv4 address that a translator would take out of this one.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Whether all of a range is private.
pub(crate) fn is_private_range(range: IpNet) -> bool {
    match range {
        IpNet::V4(range) => PRIVATE_V4.iter().any(|net| net.contains(&range)),
        IpNet::V6(range) => PRIVATE_V6.iter().any(|net| net.contains(&range)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for private in [
            "0.0.0.0",
            "10.64.0.1",
            "10.128.0.9",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.53",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.170",
            "198.19.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::fb",
            "100::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.2.7",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2001:db8::1",
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
