//! Reverse names (`in-addr.arpa`, `ip6.arpa`): which range a name stands for.

use hickory_proto::rr::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A name under one of the reverse zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reverse {
    /// The range that its well-formed labels, read from the right, stand for; a whole address is a /32 or /128.
    pub range: IpNet,
    /// Whether labels are left that are no part of an address (`x.1.10.in-addr.arpa`).
    pub extra: bool,
}

/// Reads a reverse name; `None` for every other name.
pub(crate) fn parse(name: &Name) -> Option<Reverse> {
    let mut labels = name.iter().rev();
    if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let zone = labels.next()?;
    if zone.eq_ignore_ascii_case(b"in-addr") {
        let mut octets = [0; 4];
        let mut count = 0;
        for (place, label) in octets.iter_mut().zip(&mut labels) {
            let Some(octet) = decimal(label) else {
                return Some(Reverse { range: v4(octets, count), extra: true });
            };
            *place = octet;
            count += 8;
        }
        Some(Reverse { range: v4(octets, count), extra: labels.next().is_some() })
    } else if zone.eq_ignore_ascii_case(b"ip6") {
        let mut bits: u128 = 0;
        let mut count = 0;
        for label in labels {
            let Some(nibble) = nibble(label).filter(|_| count < 128) else {
                return Some(Reverse { range: v6(bits, count), extra: true });
            };
            bits |= u128::from(nibble) << (124 - count);
            count += 4;
        }
        Some(Reverse { range: v6(bits, count), extra: false })
    } else {
        None
    }
}

fn v4(octets: [u8; 4], prefix: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from(octets), prefix).into()
}

fn v6(bits: u128, prefix: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::from(bits), prefix).into()
}

fn decimal(label: &[u8]) -> Option<u8> {
    if label.len() > 1 && label.starts_with(b"0") || !label.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else { return None };
    char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (name, range, extra) in [
            ("9.0.128.10.in-addr.arpa.", Some("10.128.0.9/32"), false),
            ("10.IN-ADDR.ARPA.", Some("10.0.0.0/8"), false),
            ("in-addr.arpa.", Some("0.0.0.0/0"), false),
            ("x.1.10.in-addr.arpa.", Some("10.1.0.0/16"), true),
            ("256.10.in-addr.arpa.", Some("10.0.0.0/8"), true),
            ("01.10.in-addr.arpa.", Some("10.0.0.0/8"), true),
            ("+1.10.in-addr.arpa.", Some("10.0.0.0/8"), true),
            ("5.4.3.2.1.in-addr.arpa.", Some("1.2.3.4/32"), true),
            ("d.f.ip6.arpa.", Some("fd00::/8"), false),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", Some("::1/128"), false),
            ("1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", Some("::1/128"), true),
            ("xx.d.F.ip6.arpa.", Some("fd00::/8"), true),
            ("arpa.", None, false),
            ("example.com.", None, false),
            ("10.in-addr.arpa.example.com.", None, false),
        ] {
            let got = parse(&Name::from_labels(name.trim_end_matches('.').split('.').map(str::as_bytes)).unwrap());
            assert_eq!(got, range.map(|range| Reverse { range: range.parse().unwrap(), extra }), "{name}");
        }
    }
}
