//! Addresses, protocols and the layout of a private network.
//!
//! Layout, inside the router namespace only (it can't collide with a LAN): network `n` (0–63) has the instance range
//! `10.(64+n).0.0/16` and the service address range `10.(128+n).0.0/16`; IPv6 the same offsets under an installation's
//! own ULA /48 (RFC 4193): `fdxx:xxxx:xxxx:(0x100+n)::/64` and `fdxx:xxxx:xxxx:(0x200+n)::/64`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway that every instance sees; the DNS server listens on its port 53.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 gateway that every instance sees (link-local).
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Ports that are never open on the private network.
pub const RESERVED_PORTS: [u16; 3] = [18012, 18013, 19099];
/// The port a web service is expected on unless it sets `PORT`.
pub const DEFAULT_HTTP_PORT: u16 = 10000;
/// More listening ports than this are diagnosed.
pub const MAX_OPEN_PORTS: usize = 75;
/// How many private networks one router can hold.
pub const MAX_NETWORKS: u8 = 64;

/// Transport protocols the policy lets through (others are denied).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A private network: one (workspace, region) pair; an index below [`MAX_NETWORKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkId(u8);

impl NetworkId {
    /// The network with this index, or `None` past the last.
    pub fn new(index: u8) -> Option<Self> {
        (index < MAX_NETWORKS).then_some(Self(index))
    }
    /// The index, 0–63.
    pub const fn index(self) -> u8 {
        self.0
    }
    /// The address pair of the instance at `offset` (1–65534).
    pub fn instance(self, ula: Ula, offset: u16) -> AddressPair {
        self.pair(ula, 64, 0x100, offset)
    }
    /// The service address pair at `offset` (1–65534).
    pub fn service(self, ula: Ula, offset: u16) -> AddressPair {
        self.pair(ula, 128, 0x200, offset)
    }
    fn pair(self, ula: Ula, v4: u8, v6: u16, offset: u16) -> AddressPair {
        let [hi, lo] = offset.to_be_bytes();
        let [a, b, c] = ula.0;
        AddressPair { v4: Ipv4Addr::new(10, v4 + self.0, hi, lo), v6: Ipv6Addr::new(a, b, c, v6 + u16::from(self.0), 0, 0, 0, offset) }
    }
}

/// The installation's own /48 (RFC 4193): three 16-bit groups, the first in `fd00..=fdff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ula(pub [u16; 3]);

impl Ula {
    /// Makes a /48 of 40 random bits.
    pub fn from_random(bits: [u8; 5]) -> Self {
        Self([0xfd00 | u16::from(bits[0]), u16::from_be_bytes([bits[1], bits[2]]), u16::from_be_bytes([bits[3], bits[4]])])
    }
}

/// A policy zone: sources and receivers of one zone may talk. One per network for everything that is not closed, one per
/// isolated environment, one per network for build sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ZoneId(pub u32);

/// An IPv4 and an IPv6 address that always travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressPair {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl AddressPair {
    /// The address of one family.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
    /// Whether one of the two is `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.v4) || address == IpAddr::V6(self.v6)
    }
    /// Offset inside the network's range (the low 16 bits).
    pub fn offset(&self) -> u16 {
        let [_, _, hi, lo] = self.v4.octets();
        u16::from_be_bytes([hi, lo])
    }
}

impl fmt::Display for AddressPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.v4, self.v6)
    }
}

/// A protocol and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Protocol.
    pub proto: Proto,
    /// Port, 1–65535.
    pub port: u16,
}
