//! The closed filter: every rule there is, with empty sets.
//!
//! Chains a packet meets from instance to instance: `ingress` (source and zone in one lookup), `services` (first packet
//! only), `forward`, `leave` (first packet only). The order in `forward` puts the two lookups of an open flow first.

use super::ir::Atom;
use super::ir::{Action, Chain, Constant, Field, FlowState, Hook, Key, Kind, Learned, Match, Rule, Ruleset, Set, Target, ValueKind};
use super::{CROWDED_TIMEOUT, DENIED_SIZE, DENIED_TIMEOUT, Facts};
use ipnet::IpNet;
use moat_model::Family;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6, RESERVED_PORTS};
use std::net::IpAddr;

/// The router's end of the uplink.
pub const UPLINK: &str = "uplink";
/// The set of what the ingress may dial, per family.
pub const HTTP_DIAL: [&str; 2] = ["http4", "http6"];

/// IPv4 ranges that egress never reaches: this network, private use, shared address space, loopback, link-local (cloud
/// metadata), protocol assignments, benchmarking, multicast and reserved (RFC 6890).
pub const PRIVATE_V4: [&str; 10] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
];
/// IPv6 ranges that egress never reaches: unspecified, loopback, IPv4 in disguise (mapped, translated, 6to4, Teredo),
/// unique local (cloud metadata), link-local, site-local and multicast.
pub const PRIVATE_V6: [&str; 9] =
    ["::/96", "::ffff:0.0.0.0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fc00::/7", "fe80::/9", "ff00::/8"];
/// Ranges that only links of this router serve: without one, nothing is there, and it is not asked of the uplink.
const UNROUTABLE: [&str; 3] = ["10.64.0.0/10", "10.128.0.0/10", "fc00::/7"];

const TCP: Constant = Constant::Number(6);
const UDP: Constant = Constant::Number(17);
const SCTP: Constant = Constant::Number(132);
const ICMP: Constant = Constant::Number(1);
const ICMPV6: Constant = Constant::Number(58);
const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// ICMP errors that a flow needs: destination unreachable, time exceeded, parameter problem; no redirects (RFC 792).
const ICMP_ERRORS: [Constant; 3] = [Constant::Number(3), Constant::Number(11), Constant::Number(12)];
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
const ICMPV6_ERRORS: [Constant; 4] = [Constant::Number(1), Constant::Number(2), Constant::Number(3), Constant::Number(4)];
/// Multicast listener reports and router solicitations that kernels send by themselves.
const CHATTER: [Constant; 4] = [Constant::Number(131), Constant::Number(132), Constant::Number(133), Constant::Number(143)];

/// The name of one family's set.
const fn of(family: Family, names: [&'static str; 2]) -> &'static str {
    match family {
        Family::V4 => names[0],
        Family::V6 => names[1],
    }
}

pub(super) const SOURCES: [&str; 2] = ["sources4", "sources6"];
pub(super) const RECEIVERS: [&str; 2] = ["receivers4", "receivers6"];
pub(super) const PAIRS: [&str; 2] = ["pairs4", "pairs6"];
pub(super) const RANGES: [&str; 2] = ["ranges4", "ranges6"];
pub(super) const SINGLE: [&str; 2] = ["single4", "single6"];
pub(super) const SEVERAL: [&str; 2] = ["several4", "several6"];
/// The chain of service addresses with nobody behind.
pub(super) const REFUSE: &str = "refuse";
/// The chain of service addresses whose next instance is about to come.
pub(super) const HOLD: &str = "hold";
const PRIVATE: [&str; 2] = ["private4", "private6"];
const HOST: [&str; 2] = ["host4", "host6"];
const DENIED: [&str; 2] = ["denied4", "denied6"];
const DENIED_PROTO: [&str; 2] = ["denied_proto4", "denied_proto6"];
/// Sources that had too many flows open, for a while.
pub const CROWDED: [&str; 2] = ["crowded4", "crowded6"];
/// More than there are at once.
const CROWDED_SIZE: u32 = 4096;
/// The sets of denied flows: with a port, then without, per family.
pub const DENIED_SETS: [&str; 4] = [DENIED[0], DENIED[1], DENIED_PROTO[0], DENIED_PROTO[1]];

fn rule(matches: Vec<Match>, actions: Vec<Action>) -> Rule {
    Rule { matches, actions }
}

fn set(key: Vec<Kind>) -> Set {
    Set { key, value: None, interval: false, learned: None, elements: std::collections::BTreeMap::new() }
}

fn map(key: Vec<Kind>, value: ValueKind) -> Set {
    Set { value: Some(value), ..set(key) }
}

fn ranges(texts: &[&str]) -> impl Iterator<Item = Key> {
    texts.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|net| vec![Atom::Net(net)])
}

fn sets(facts: &Facts, out: &mut Ruleset) {
    for family in BOTH {
        let address = Kind::Address(family);
        let pair = || set(vec![address, address]);
        let mut add = |names: [&'static str; 2], set: Set| out.sets.insert(of(family, names), set);
        add(SOURCES, map(vec![Kind::Link, address], ValueKind::Mark));
        add(RECEIVERS, set(vec![Kind::Mark, address]));
        add(PAIRS, pair());
        add(RANGES, Set { interval: true, ..pair() });
        add(SINGLE, map(vec![address], ValueKind::Address(family)));
        add(SEVERAL, map(vec![address], ValueKind::Verdict));
        add(HTTP_DIAL, set(vec![address, Kind::Port]));
        let private = match family {
            Family::V4 => ranges(&PRIVATE_V4).map(|key| (key, None)).collect(),
            Family::V6 => ranges(&PRIVATE_V6).map(|key| (key, None)).collect(),
        };
        add(PRIVATE, Set { interval: true, elements: private, ..set(vec![address]) });
        let host = facts
            .host_addresses
            .iter()
            .filter(|host| super::ir::is_of(**host, family))
            .map(|host| (vec![Atom::address(*host)], None))
            .collect();
        add(HOST, Set { elements: host, ..set(vec![address]) });
        let learned = Some(Learned { size: CROWDED_SIZE, timeout: CROWDED_TIMEOUT });
        add(CROWDED, Set { learned, ..set(vec![address]) });
        let learned = Some(Learned { size: DENIED_SIZE, timeout: DENIED_TIMEOUT });
        add(DENIED, Set { learned, ..set(vec![address, address, Kind::Proto, Kind::Port]) });
        add(DENIED_PROTO, Set { learned, ..set(vec![address, address, Kind::Proto]) });
    }
}

/// Source and zone in one lookup per packet; from the uplink only what is for the router's own address there.
fn ingress(facts: &Facts) -> Vec<Rule> {
    let mut rules: Vec<Rule> = BOTH
        .map(|family| rule(vec![], vec![Action::MarkFrom(vec![Field::InLink, Field::Source(family)], of(family, SOURCES)), Action::Accept]))
        .into();
    let from_uplink = Match::Is(Field::InLink, vec![Constant::Link(UPLINK)]);
    for address in [facts.uplink_v4.map(IpAddr::V4), facts.uplink_v6.map(IpAddr::V6)].into_iter().flatten() {
        rules.push(rule(
            vec![from_uplink.clone(), Match::Is(Field::Destination(family_of(address)), vec![Constant::Address(address)])],
            vec![Action::Accept],
        ));
    }
    rules.push(rule(vec![from_uplink], vec![Action::Count("from_uplink"), Action::Drop]));
    rules.push(rule(vec![Match::Is(Field::IcmpType(Family::V6), CHATTER.to_vec())], vec![Action::Drop]));
    rules.push(rule(vec![], vec![Action::Count("spoofed"), Action::Drop]));
    rules
}

/// Service addresses: one ready instance, or a chain for several or none. An unknown one has no route.
fn services(family: Family) -> Vec<Rule> {
    let mut rules = match family {
        Family::V4 => vec![goto(vec![Match::Family(Family::V6)], "services6")],
        Family::V6 => vec![],
    };
    rules.push(rule(vec![], vec![Action::TranslateDestination(family, Target::Map(of(family, SINGLE)))]));
    rules.push(rule(vec![], vec![Action::ByMap(vec![Field::Destination(family)], of(family, SEVERAL))]));
    rules
}

/// A service address with nobody behind it.
fn refuse() -> Vec<Rule> {
    let mut rules = vec![rule(vec![Match::Is(Field::Proto, vec![TCP])], vec![Action::Reset])];
    rules.extend(BOTH.map(|family| rule(vec![Match::Family(family)], vec![Action::Unreachable(family)])));
    rules
}

fn may_reach(family: Family) -> Match {
    Match::In(vec![Field::Zone, Field::Destination(family)], of(family, RECEIVERS))
}

fn goto(matches: Vec<Match>, chain: &'static str) -> Rule {
    rule(matches, vec![Action::Goto(chain)])
}

fn accept(matches: Vec<Match>) -> Rule {
    rule(matches, vec![Action::Accept])
}

fn forward() -> Vec<Rule> {
    let mut rules = vec![accept(vec![Match::Reply, Match::State(FlowState::Established)])];
    rules.extend(BOTH.map(|family| accept(vec![may_reach(family), Match::State(FlowState::Established)])));
    rules.push(rule(
        vec![],
        vec![Action::ByState(vec![(FlowState::New, "opens"), (FlowState::Established, "narrow"), (FlowState::Related, "errors")])],
    ));
    rules
}

/// The first packet of a flow: only these protocols pass at all.
fn opens() -> Vec<Rule> {
    let mut chains = [TCP, UDP, SCTP].map(|proto| (proto, "ported")).to_vec();
    chains.extend([ICMP, ICMPV6].map(|proto| (proto, "echo")));
    let mut rules: Vec<Rule> = BOTH.map(is_crowded).into();
    rules.extend([rule(vec![], vec![Action::ByProto(chains)]), goto(vec![], "denied")]);
    rules
}

/// One source does not fill the table of flows, which all share.
fn is_crowded(family: Family) -> Rule {
    goto(vec![Match::In(vec![Field::Source(family)], of(family, CROWDED))], "crowded")
}

/// A source that had too many flows opens none.
fn crowded() -> Vec<Rule> {
    let mut rules: Vec<Rule> = BOTH
        .map(|family| {
            let ends = vec![Field::Source(family), Field::Destination(family), Field::Proto];
            rule(vec![], vec![Action::Learn(ends, of(family, DENIED_PROTO)), Action::Drop])
        })
        .into();
    rules.push(rule(vec![], vec![Action::Drop]));
    rules
}

fn ported() -> Vec<Rule> {
    let mut rules = vec![goto(vec![Match::Is(Field::Port, RESERVED_PORTS.map(Constant::Number).into())], "denied")];
    rules.extend(zones());
    rules
}

fn echo() -> Vec<Rule> {
    let mut rules: Vec<Rule> = [(Family::V4, 8), (Family::V6, 128)]
        .map(|(family, kind)| goto(vec![Match::Is(Field::IcmpType(family), vec![Constant::Number(kind)])], "zones"))
        .into();
    rules.push(goto(vec![], "denied"));
    rules
}

fn zones() -> Vec<Rule> {
    let mut rules: Vec<Rule> = BOTH.map(|family| accept(vec![may_reach(family)])).into();
    rules.push(goto(vec![], "narrow"));
    rules
}

/// What zones don't allow: single pairs, then egress.
fn narrow() -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        BOTH.map(|family| accept(vec![Match::In(vec![Field::Source(family), Field::Destination(family)], of(family, PAIRS))])).into();
    rules.push(goto(vec![Match::Is(Field::OutLink, vec![Constant::Link(UPLINK)])], "egress"));
    rules.push(goto(vec![], "denied"));
    rules
}

fn egress() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in BOTH {
        let (source, destination) = (Field::Source(family), Field::Destination(family));
        rules.push(goto(vec![Match::In(vec![destination], of(family, PRIVATE))], "denied"));
        rules.push(goto(vec![Match::In(vec![destination], of(family, HOST))], "denied"));
        rules.push(accept(vec![Match::In(vec![source, destination], of(family, RANGES))]));
    }
    rules.push(accept(vec![Match::Internet]));
    rules.push(goto(vec![], "denied"));
    rules
}

/// Goes on with the rule only when `link` is the link of the source with the address `end`. The map is the one of
/// sources, so the mark it sets is the one that such a packet has anyway.
fn is_link_of(link: Field, end: Field, family: Family) -> Action {
    Action::MarkFrom(vec![link, end], of(family, SOURCES))
}

/// ICMP errors about a known flow, from one of its two ends or from outside.
fn errors() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in BOTH {
        let kinds = || Match::Is(Field::IcmpType(family), error_kinds(family));
        for end in [Field::FlowResponder(family), Field::FlowSource(family)] {
            rules.push(rule(vec![kinds()], vec![is_link_of(Field::InLink, end, family), Action::Accept]));
        }
        rules.push(accept(vec![Match::Is(Field::InLink, vec![Constant::Link(UPLINK)]), kinds()]));
    }
    rules.push(goto(vec![], "denied"));
    rules
}

fn error_kinds(family: Family) -> Vec<Constant> {
    match family {
        Family::V4 => ICMP_ERRORS.to_vec(),
        Family::V6 => ICMPV6_ERRORS.to_vec(),
    }
}

fn denied() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in BOTH {
        let ends = vec![Field::Source(family), Field::Destination(family), Field::Proto];
        let mut with_port = ends.clone();
        with_port.push(Field::Port);
        rules.push(rule(
            vec![Match::Is(Field::Proto, vec![TCP, UDP, SCTP])],
            vec![Action::Learn(with_port, of(family, DENIED)), Action::Drop],
        ));
        rules.push(rule(vec![], vec![Action::Learn(ends, of(family, DENIED_PROTO)), Action::Drop]));
    }
    rules.push(rule(vec![], vec![Action::Drop]));
    rules
}

/// To the router itself: questions to the DNS server, answers to the ingress, errors about its flows.
fn input() -> Vec<Rule> {
    let dns = Match::Is(Field::Destination(Family::V4), vec![Constant::Address(GATEWAY_V4.into())]);
    let mut rules = vec![
        accept(vec![Match::Reply, Match::State(FlowState::Established)]),
        is_crowded(Family::V4),
        accept(vec![
            Match::IsNot(Field::InLink, Constant::Link(UPLINK)),
            dns,
            Match::Is(Field::Proto, vec![TCP, UDP]),
            Match::Is(Field::Port, vec![Constant::Number(53)]),
        ]),
    ];
    rules
        .extend(BOTH.map(|family| accept(vec![Match::State(FlowState::Related), Match::Is(Field::IcmpType(family), error_kinds(family))])));
    rules
}

/// From the router itself: answers of the DNS server, dials of the ingress, and resets and errors about forwarded flows.
fn output() -> Vec<Rule> {
    let mut rules: Vec<Rule> = vec![accept(vec![Match::Reply, Match::State(FlowState::Established)])];
    for family in BOTH {
        rules.push(accept(vec![
            Match::Is(Field::Proto, vec![TCP]),
            Match::In(vec![Field::Destination(family), Field::Port], of(family, HTTP_DIAL)),
        ]));
    }
    rules.push(accept(vec![Match::IsNot(Field::OutLink, Constant::Link(UPLINK)), Match::State(FlowState::Related)]));
    rules
}

/// Egress hides behind the uplink's address; an instance that calls its own service address hides behind the gateway's.
fn leave() -> Vec<Rule> {
    let mut rules = vec![rule(vec![Match::Is(Field::OutLink, vec![Constant::Link(UPLINK)])], vec![Action::Masquerade])];
    rules.extend(BOTH.map(|family| {
        let gateway = match family {
            Family::V4 => IpAddr::V4(GATEWAY_V4),
            Family::V6 => IpAddr::V6(GATEWAY_V6),
        };
        rule(vec![Match::Translated], vec![is_link_of(Field::OutLink, Field::Source(family), family), Action::TranslateSource(gateway)])
    }));
    rules
}

pub(super) const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The closed filter: nothing passes but what a policy adds.
pub fn base(facts: &Facts) -> Ruleset {
    let mut out = Ruleset {
        counters: vec!["spoofed", "from_uplink"],
        unroutable: ranges(&UNROUTABLE).filter_map(first_net).collect(),
        ..Ruleset::default()
    };
    out.local = [GATEWAY_V4.into(), GATEWAY_V6.into()].into();
    out.local.extend(facts.uplink_v4.map(IpAddr::V4));
    out.local.extend(facts.uplink_v6.map(IpAddr::V6));
    sets(facts, &mut out);
    let chains = [
        ("ingress", Some(Hook::Raw), ingress(facts)),
        ("services", Some(Hook::TranslateIn), services(Family::V4)),
        ("services6", None, services(Family::V6)),
        (REFUSE, None, refuse()),
        (HOLD, None, vec![rule(vec![], vec![Action::Drop])]),
        ("forward", Some(Hook::Forward), forward()),
        ("opens", None, opens()),
        ("ported", None, ported()),
        ("echo", None, echo()),
        ("zones", None, zones()),
        ("narrow", None, narrow()),
        ("egress", None, egress()),
        ("errors", None, errors()),
        ("denied", None, denied()),
        ("crowded", None, crowded()),
        ("input", Some(Hook::Input), input()),
        ("output", Some(Hook::Output), output()),
        ("leave", Some(Hook::TranslateOut), leave()),
    ];
    out.chains = chains.map(|(name, hook, rules)| (name.to_owned(), Chain { hook, rules })).into();
    out
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to iterators")]
fn first_net(key: Key) -> Option<IpNet> {
    match key.first() {
        Some(Atom::Net(net)) => Some(*net),
        _ => None,
    }
}
