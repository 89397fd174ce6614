//! What a policy says of a packet or a flow, read from the policy itself: no ruleset, no kernel.
//!
//! [`decide`] is the specification that [`crate::trace`] over the lowered ruleset must agree with; [`flow_is_allowed`]
//! says which known flows outlive a change of policy.

use crate::conntrack::Ends;
use crate::lower::{Facts, PRIVATE_V4, PRIVATE_V6, base};
use crate::packet::{FlowKind, Origin, Outcome, Packet};
use ipnet::IpNet;
use moat_model::net::{GATEWAY_V4, RESERVED_PORTS};
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{AddressPair, Egress};
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Whether an address is never reached by egress, whoever asks.
pub fn is_private(address: IpAddr) -> bool {
    PRIVATE_V4.iter().chain(&PRIVATE_V6).filter_map(|text| text.parse::<IpNet>().ok()).any(|net| net.contains(&address))
}

fn source_at(policy: &NetPolicy, address: IpAddr) -> Option<&SourceEntry> {
    policy.sources.values().find(|entry| entry.address.contains(address))
}

/// Whether one instance may open flows to another, ports aside.
fn may_open(policy: &NetPolicy, from: &SourceEntry, to: AddressPair) -> bool {
    from.zone.is_some_and(|zone| policy.receivers.contains(&(zone, to))) || policy.pairs.contains(&(from.address, to))
}

/// Whether a source may open flows to an address outside.
fn may_leave(facts: &Facts, from: &SourceEntry, to: IpAddr) -> bool {
    let listed = match &from.egress {
        Egress::None => false,
        Egress::Internet => true,
        Egress::Ranges(ranges) => ranges.iter().any(|range| range.contains(&to)),
    };
    listed && !is_private(to) && !facts.host_addresses.contains(&to)
}

fn is_local(facts: &Facts, address: IpAddr) -> bool {
    base(facts).local.contains(&address)
}

fn is_unroutable(facts: &Facts, address: IpAddr) -> bool {
    base(facts).unroutable.iter().any(|net| net.contains(&address))
}

/// What becomes of a packet.
pub fn decide(facts: &Facts, policy: &NetPolicy, packet: &Packet) -> Outcome {
    match &packet.origin {
        Origin::Link(link) => match source_at(policy, packet.source).filter(|entry| entry.link == *link) {
            Some(from) => from_instance(facts, policy, from, packet),
            None => Outcome::Dropped,
        },
        Origin::Uplink => from_uplink(facts, policy, packet),
        Origin::Router => from_router(facts, policy, packet),
    }
}

fn from_instance(facts: &Facts, policy: &NetPolicy, from: &SourceEntry, packet: &Packet) -> Outcome {
    let mut to = packet.destination;
    let service = policy.services.iter().find(|(vip, _)| vip.contains(to));
    match (&packet.state, service) {
        (FlowKind::New, Some((vip, ready))) => {
            let ready: Vec<_> = ready.iter().collect();
            if ready.is_empty() {
                return if policy.held.contains(vip) { Outcome::Dropped } else { Outcome::Refused };
            }
            let picked = ready[packet.turn % ready.len()];
            to = if vip.v4 == to { picked.v4.into() } else { picked.v6.into() };
        }
        (FlowKind::Opener { translated: Some(target) } | FlowKind::Reply { translated: Some(target) }, _) => to = *target,
        _ => {}
    }
    if is_local(facts, to) {
        let dns = to == IpAddr::V4(GATEWAY_V4) && matches!(packet.proto, TCP | UDP) && packet.port == 53;
        let error = is_error(packet) && matches!(packet.state, FlowKind::Error { .. });
        return if dns || error || matches!(packet.state, FlowKind::Reply { .. }) { Outcome::Router } else { Outcome::Dropped };
    }
    let target = source_at(policy, to);
    if target.is_none() && is_unroutable(facts, to) {
        return Outcome::NoRoute;
    }
    let delivered = target.map_or(Outcome::Internet, |entry| Outcome::Instance { link: entry.link.clone(), address: to });
    let passes = match &packet.state {
        FlowKind::Reply { .. } => true,
        FlowKind::Invalid => false,
        FlowKind::Error { opener, responder } => is_error(packet) && [*opener, *responder].contains(&packet.source),
        FlowKind::New | FlowKind::Opener { .. } => {
            let opens = match packet.proto {
                TCP | UDP | SCTP => !RESERVED_PORTS.contains(&packet.port),
                _ => is_echo(packet),
            };
            let allowed = target.map_or_else(|| may_leave(facts, from, to), |target| may_open(policy, from, target.address));
            allowed && (opens || packet.state != FlowKind::New)
        }
    };
    if passes { delivered } else { Outcome::Dropped }
}

fn is_echo(packet: &Packet) -> bool {
    let kind = if packet.source.is_ipv4() { 8 } else { 128 };
    packet.proto == icmp_of(packet) && packet.icmp_type == kind
}

fn is_error(packet: &Packet) -> bool {
    let kinds: &[u8] = if packet.source.is_ipv4() { &[3, 11, 12] } else { &[1, 2, 3, 4] };
    packet.proto == icmp_of(packet) && kinds.contains(&packet.icmp_type)
}

const fn icmp_of(packet: &Packet) -> u8 {
    if packet.source.is_ipv4() { ICMP } else { ICMPV6 }
}

fn from_uplink(facts: &Facts, policy: &NetPolicy, packet: &Packet) -> Outcome {
    let own = [facts.uplink_v4.map(IpAddr::V4), facts.uplink_v6.map(IpAddr::V6)];
    if !own.contains(&Some(packet.destination)) {
        return Outcome::Dropped;
    }
    match &packet.state {
        FlowKind::Reply { translated: Some(to) } => match source_at(policy, *to) {
            Some(entry) => Outcome::Instance { link: entry.link.clone(), address: *to },
            None => Outcome::NoRoute,
        },
        FlowKind::Reply { translated: None } => Outcome::Router,
        FlowKind::Error { .. } if is_error(packet) => Outcome::Router,
        FlowKind::Error { .. } | FlowKind::New | FlowKind::Opener { .. } | FlowKind::Invalid => Outcome::Dropped,
    }
}

fn from_router(facts: &Facts, policy: &NetPolicy, packet: &Packet) -> Outcome {
    let answers = matches!(packet.state, FlowKind::Reply { .. });
    let tells = matches!(packet.state, FlowKind::Error { .. });
    let to = packet.destination;
    if is_local(facts, to) {
        return if answers || tells { Outcome::Router } else { Outcome::Dropped };
    }
    let Some(target) = source_at(policy, to) else {
        return match (is_unroutable(facts, to), answers) {
            (true, _) => Outcome::NoRoute,
            (false, true) => Outcome::Internet,
            (false, false) => Outcome::Dropped,
        };
    };
    let dials = packet.proto == TCP && policy.ingress.contains(&(target.address, packet.port));
    if dials || answers || tells { Outcome::Instance { link: target.link.clone(), address: to } } else { Outcome::Dropped }
}

/// Whether a known flow may go on under a policy: both its ends are still there, and it could be opened again.
pub(crate) fn flow_is_allowed(facts: &Facts, known: &Known<'_>, flow: &Ends) -> bool {
    let (from, to) = (known.at(flow.source), known.at(flow.responder));
    let local = |address: IpAddr| known.local.contains(&address);
    match (from, to) {
        (Some(from), Some(to)) => may_open(known.policy, from, to.address),
        (Some(_), None) if local(flow.responder) => true,
        (Some(from), None) => may_leave(facts, from, flow.responder),
        (None, Some(to)) => local(flow.source) && flow.proto == TCP && known.policy.ingress.contains(&(to.address, flow.port)),
        (None, None) => false,
    }
}

/// A policy with its sources by address, for questions about many flows.
pub(crate) struct Known<'a> {
    policy: &'a NetPolicy,
    by_address: std::collections::HashMap<IpAddr, &'a SourceEntry>,
    local: Vec<IpAddr>,
}

impl<'a> Known<'a> {
    pub(crate) fn new(facts: &Facts, policy: &'a NetPolicy) -> Self {
        let by_address = policy
            .sources
            .values()
            .flat_map(|entry| [(IpAddr::V4(entry.address.v4), entry), (IpAddr::V6(entry.address.v6), entry)])
            .collect();
        Self { policy, by_address, local: base(facts).local }
    }
    fn at(&self, address: IpAddr) -> Option<&'a SourceEntry> {
        self.by_address.get(&address).copied()
    }
}
