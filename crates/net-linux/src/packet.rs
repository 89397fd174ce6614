//! A packet at the router, for the tracer and for what it is held against.

use moat_model::LinkName;
use std::fmt;
use std::net::IpAddr;

/// Where a packet comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The link of an instance.
    Link(LinkName),
    /// The uplink.
    Uplink,
    /// A socket in the router namespace.
    Router,
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowKind {
    /// The first packet of a flow.
    New,
    /// A later packet from who opened the flow; the destination it is translated to, if it is.
    Opener {
        /// The new destination.
        translated: Option<IpAddr>,
    },
    /// A packet from who answers; the destination it is translated back to, if it is.
    Reply {
        /// The new destination.
        translated: Option<IpAddr>,
    },
    /// An ICMP error about a flow.
    Error {
        /// Who opened that flow.
        opener: IpAddr,
        /// Who answers in it.
        responder: IpAddr,
    },
    /// Of no known flow, and no first packet of one.
    Invalid,
}

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub origin: Origin,
    /// Source address; of the same family as `destination`.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number: 6 TCP, 17 UDP, 132 SCTP, 1 ICMP, 58 ICMPv6.
    pub proto: u8,
    /// Destination port of TCP, UDP and SCTP.
    pub port: u16,
    /// Type of an ICMP or ICMPv6 message.
    pub icmp_type: u8,
    /// What is known of its flow.
    pub state: FlowKind,
    /// Which turn it is of the even spread over ready instances.
    pub turn: usize,
}

impl Packet {
    /// The first packet of a TCP flow (for another protocol change `proto`).
    pub const fn opening(origin: Origin, source: IpAddr, destination: IpAddr, port: u16) -> Self {
        Self { origin, source, destination, proto: 6, port, icmp_type: 0, state: FlowKind::New, turn: 0 }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It arrives at an instance.
    Instance {
        /// By this link.
        link: LinkName,
        /// At this address.
        address: IpAddr,
    },
    /// It leaves by the uplink.
    Internet,
    /// It arrives at a socket of the router: the DNS server, or the ingress' dial.
    Router,
    /// It is answered with a reset or "port unreachable".
    Refused,
    /// It is dropped.
    Dropped,
    /// Nothing is at that address; answered with "unreachable".
    NoRoute,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance { link, address } => write!(f, "arrives at `{address}` by `{link}`"),
            Self::Internet => f.write_str("leaves by the uplink"),
            Self::Router => f.write_str("arrives at the router itself"),
            Self::Refused => f.write_str("is refused"),
            Self::Dropped => f.write_str("is dropped"),
            Self::NoRoute => f.write_str("has no route"),
        }
    }
}
