//! The packet filter as data: one `inet` table of sets, maps and chains.
//!
//! Main types: [`Ruleset`], [`Set`], [`Chain`], [`Rule`]. [`super::text`] prints it for `nft`, [`crate::trace`] runs a
//! packet over it; both read this and nothing else, so what is traced is what is loaded.
//! Invariant: names are unique per kind, and every set or chain that a rule names is in the same ruleset.

use ipnet::IpNet;
use moat_model::{Family, LinkName};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One part of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// The name of an instance's link.
    Link(LinkName),
    /// The name of any other link.
    Named(String),
    /// An address (full length) or a range.
    Net(IpNet),
    /// A protocol number of an IP header.
    Proto(u8),
    /// A port.
    Port(u16),
    /// A packet mark: the zone of the source and its egress, see [`super::mark_of`].
    Mark(u32),
}

impl Atom {
    /// An address of either family.
    pub fn address(address: impl Into<IpAddr>) -> Self {
        Self::Net(IpNet::from(address.into()))
    }
}

/// The key of an element: one atom per part.
pub type Key = Vec<Atom>;

/// What a map holds for a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// A packet mark.
    Mark(u32),
    /// An address to translate to.
    Address(IpAddr),
    /// A chain to go to.
    Goto(String),
}

/// The type of one part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `ifname`.
    Link,
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// `inet_proto`.
    Proto,
    /// `inet_service`.
    Port,
    /// `mark`.
    Mark,
}

/// The type of a map's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// `mark`.
    Mark,
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// `verdict`.
    Verdict,
}

/// A named set or, with values, map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Types of the parts of a key.
    pub key: Vec<Kind>,
    /// Type of the values; `None` for a set.
    pub value: Option<ValueKind>,
    /// Elements are ranges.
    pub interval: bool,
    /// Filled by packets: how many elements at most and how long each stays, in seconds. Its elements are counted, and
    /// are no part of the policy.
    pub learned: Option<Learned>,
    /// The elements.
    pub elements: BTreeMap<Key, Option<Value>>,
}

/// Bounds of a set that packets fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Most elements.
    pub size: u32,
    /// Seconds after which an element goes.
    pub timeout: u32,
}

/// A value of the packet that a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Link it came from.
    InLink,
    /// Link it leaves by.
    OutLink,
    /// Source address.
    Source(Family),
    /// Destination address.
    Destination(Family),
    /// Source of the flow's first packet, before any translation.
    FlowSource(Family),
    /// Source of the flow's replies: who really answers.
    FlowResponder(Family),
    /// Transport protocol.
    Proto,
    /// Destination port of TCP, UDP and SCTP.
    Port,
    /// Type of an ICMP or ICMPv6 message.
    IcmpType(Family),
    /// The zone in the mark, see [`Atom::Mark`].
    Zone,
}

/// A constant that a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constant {
    /// A link's name.
    Link(&'static str),
    /// An address.
    Address(IpAddr),
    /// A number: protocol, port or ICMP type.
    Number(u16),
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// First packet of a flow.
    New,
    /// A packet of a known flow that saw both directions.
    Established,
    /// An ICMP error about a known flow.
    Related,
}

/// A condition; all conditions of a rule must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The field is one of these.
    Is(Field, Vec<Constant>),
    /// The field is not this.
    IsNot(Field, Constant),
    /// The fields are a key of this set.
    In(Vec<Field>, &'static str),
    /// Connection tracking says so.
    State(FlowState),
    /// The packet is of this family.
    Family(Family),
    /// A packet from the flow's responder to its opener.
    Reply,
    /// The destination of the flow was translated.
    Translated,
    /// The mark says that the source may open flows to the internet.
    Internet,
}

/// Where a destination is translated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The value of a map at the destination address.
    Map(&'static str),
    /// One after the other, for even spread.
    Spread(Vec<IpAddr>),
}

/// What a rule does; the last of a rule may end the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The packet passes this hook.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Continue in another chain, and don't come back.
    Goto(&'static str),
    /// Continue by the state; nothing when it is not listed.
    ByState(Vec<(FlowState, &'static str)>),
    /// Continue by the transport protocol; nothing when it is not listed.
    ByProto(Vec<(Constant, &'static str)>),
    /// Continue by the value of a map at these fields; nothing when it has none.
    ByMap(Vec<Field>, &'static str),
    /// Sets the mark to the value of a map at these fields; the rule ends when it has none.
    MarkFrom(Vec<Field>, &'static str),
    /// Translates the destination of the flow.
    TranslateDestination(Family, Target),
    /// Translates the source of the flow.
    TranslateSource(IpAddr),
    /// Translates the source to the address of the outgoing link.
    Masquerade,
    /// Answers with a TCP reset.
    Reset,
    /// Answers with ICMP "port unreachable".
    Unreachable(Family),
    /// Counts in a named counter.
    Count(&'static str),
    /// Adds the fields to a learned set, and counts there.
    Learn(Vec<Field>, &'static str),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub matches: Vec<Match>,
    /// Actions in order.
    pub actions: Vec<Action>,
}

/// Where a base chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Every packet that comes in, before its route is known and before connection tracking.
    Raw,
    /// The first packet of a flow that comes in, before its route is known.
    TranslateIn,
    /// Packets from link to link.
    Forward,
    /// Packets to the router's own sockets.
    Input,
    /// Packets of the router's own sockets.
    Output,
    /// The first packet of a flow that leaves.
    TranslateOut,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The hook of a base chain; a base chain of a filter drops what none of its rules accepts, one that translates passes it.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Named counters.
    pub counters: Vec<&'static str>,
    /// Sets and maps by name.
    pub sets: BTreeMap<&'static str, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Destinations that no link of this router leads to and that must never leave by the uplink.
    pub unroutable: Vec<IpNet>,
    /// The router's own addresses.
    pub local: Vec<IpAddr>,
}

impl Ruleset {
    /// Adds an element to the set of this name; nothing when there is no such set.
    pub(crate) fn add(&mut self, set: &str, key: Key, value: Option<Value>) {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.insert(key, value);
        }
    }
}

/// Whether an address is of a family.
pub(crate) const fn is_of(address: IpAddr, family: Family) -> bool {
    matches!((address, family), (IpAddr::V4(_), Family::V4) | (IpAddr::V6(_), Family::V6))
}
