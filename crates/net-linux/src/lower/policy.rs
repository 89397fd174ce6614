//! The elements and chains that a policy adds to the closed filter.

use super::base::{HOLD, PAIRS, RANGES, RECEIVERS, REFUSE, SEVERAL, SINGLE, SOURCES, family_of};
use super::ir::{Action, Atom, Chain, Rule, Ruleset, Target, Value};
use super::{Facts, HTTP_DIAL, ZONE_LIMIT, base, mark_of, zone_mark};
use ipnet::IpNet;
use moat_model::policy::NetPolicy;
use moat_model::{AddressPair, Egress, Family, InstanceId, LinkName};
use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A policy that contradicts itself; nothing of it is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two sources have one address or one link.
    #[error("`{first}` and `{second}` share the address `{address}`")]
    SharedAddress {
        /// One.
        first: InstanceId,
        /// The other.
        second: InstanceId,
        /// The address.
        address: AddressPair,
    },
    /// A source's link is not the one of its address.
    #[error("`{instance}` has the link `{link}` but its address belongs to `{expected}`")]
    WrongLink {
        /// The instance.
        instance: InstanceId,
        /// Its link.
        link: LinkName,
        /// The link of its address.
        expected: LinkName,
    },
    /// One IPv4 address goes with two IPv6 addresses, or the other way round.
    #[error("the addresses `{first}` and `{second}` go together only in part")]
    SplitPair {
        /// One pair.
        first: AddressPair,
        /// The other.
        second: AddressPair,
    },
    /// A service address is also an instance's.
    #[error("`{address}` is a service address and an instance's address")]
    ServiceIsInstance {
        /// The address.
        address: AddressPair,
    },
    /// The number of a zone does not fit a packet mark.
    #[error("zone {0} is too large")]
    ZoneTooLarge(u32),
}

/// Whether a policy is consistent: one owner per address, addresses always in the same pairs, links named after them.
pub fn check(policy: &NetPolicy) -> Result<(), PolicyError> {
    let mut pairs = Pairs::with_capacity(policy.sources.len() + policy.services.len());
    for (id, entry) in &policy.sources {
        if pairs.known(entry.address) {
            let first = policy.sources.iter().find(|(_, other)| other.address == entry.address).map_or(id, |(first, _)| first);
            return Err(PolicyError::SharedAddress { first: first.clone(), second: id.clone(), address: entry.address });
        }
        if entry.link.address() != entry.address.v4 {
            return Err(PolicyError::WrongLink {
                instance: id.clone(),
                link: entry.link.clone(),
                expected: LinkName::of(entry.address.v4),
            });
        }
        pairs.see(entry.address)?;
    }
    for vip in policy.services.keys() {
        if pairs.known(*vip) {
            return Err(PolicyError::ServiceIsInstance { address: *vip });
        }
        pairs.see(*vip)?;
    }
    let zones = policy.sources.values().filter_map(|entry| entry.zone).chain(policy.receivers.iter().map(|(zone, _)| *zone));
    if let Some(zone) = zones.into_iter().find(|zone| zone.0 >= ZONE_LIMIT) {
        return Err(PolicyError::ZoneTooLarge(zone.0));
    }
    let listed = policy
        .receivers
        .iter()
        .map(|(_, address)| *address)
        .chain(policy.pairs.iter().flat_map(|(from, to)| [*from, *to]))
        .chain(policy.ingress.iter().map(|(address, _)| *address));
    for address in listed.chain(policy.services.values().flatten().copied()) {
        pairs.see(address)?;
    }
    Ok(())
}

struct Pairs {
    by_v4: HashMap<Ipv4Addr, Ipv6Addr, Fnv>,
    by_v6: HashMap<Ipv6Addr, Ipv4Addr, Fnv>,
}

/// The hasher's state is short because keys are addresses that Moat itself gives out: nobody can aim at collisions.
type Fnv = std::hash::BuildHasherDefault<crate::FnvHasher>;

impl Pairs {
    fn with_capacity(count: usize) -> Self {
        Self {
            by_v4: HashMap::with_capacity_and_hasher(count, Fnv::default()),
            by_v6: HashMap::with_capacity_and_hasher(count, Fnv::default()),
        }
    }

    fn known(&self, pair: AddressPair) -> bool {
        self.by_v4.get(&pair.v4) == Some(&pair.v6)
    }

    fn see(&mut self, pair: AddressPair) -> Result<(), PolicyError> {
        if self.known(pair) {
            return Ok(());
        }
        let split = |first| Err(PolicyError::SplitPair { first, second: pair });
        if let Some(v6) = self.by_v4.insert(pair.v4, pair.v6) {
            return split(AddressPair { v4: pair.v4, v6 });
        }
        match self.by_v6.insert(pair.v6, pair.v4) {
            Some(v4) => split(AddressPair { v4, v6: pair.v6 }),
            None => Ok(()),
        }
    }
}

const FAMILIES: [(usize, Family); 2] = [(0, Family::V4), (1, Family::V6)];

/// The whole filter for a policy. The policy must have passed [`check`].
pub fn full(facts: &Facts, policy: &NetPolicy) -> Ruleset {
    let mut out = base(facts);
    for entry in policy.sources.values() {
        let ranges = match &entry.egress {
            Egress::Ranges(ranges) => ranges.clone(),
            Egress::None | Egress::Internet => BTreeSet::new(),
        };
        for (i, family) in FAMILIES {
            let address = Atom::address(entry.address.of(family));
            out.add(SOURCES[i], vec![Atom::Link(entry.link.clone()), address], Some(Value::Mark(mark_of(entry.zone, &entry.egress))));
        }
        for range in IpNet::aggregate(&ranges.into_iter().map(|range| range.trunc()).collect()) {
            let (i, family) = FAMILIES[usize::from(matches!(range, IpNet::V6(_)))];
            out.add(RANGES[i], vec![Atom::address(entry.address.of(family)), Atom::Net(range)], None);
        }
    }
    for (i, family) in FAMILIES {
        let atom = |address: &AddressPair| Atom::address(address.of(family));
        for (zone, address) in &policy.receivers {
            out.add(RECEIVERS[i], vec![Atom::Mark(zone_mark(*zone)), atom(address)], None);
        }
        for (from, to) in &policy.pairs {
            out.add(PAIRS[i], vec![atom(from), atom(to)], None);
        }
        for (address, port) in &policy.ingress {
            out.add(HTTP_DIAL[i], vec![atom(address), Atom::Port(*port)], None);
        }
        for (vip, ready) in &policy.services {
            match (ready.first(), ready.len()) {
                (None, _) if policy.held.contains(vip) => out.add(SEVERAL[i], vec![atom(vip)], Some(Value::Goto(HOLD.to_owned()))),
                (None, _) => out.add(SEVERAL[i], vec![atom(vip)], Some(Value::Goto(REFUSE.to_owned()))),
                (Some(only), 1) => out.add(SINGLE[i], vec![atom(vip)], Some(Value::Address(only.of(family)))),
                (Some(_), _) => out.add(SEVERAL[i], vec![atom(vip)], Some(Value::Goto(service_chain(vip)))),
            }
        }
    }
    for (vip, ready) in policy.services.iter().filter(|(_, ready)| ready.len() > 1) {
        out.chains.insert(service_chain(vip), spread(ready));
    }
    out
}

/// The chain of a service with several ready instances.
fn service_chain(vip: &AddressPair) -> String {
    format!("service_{:08x}", u32::from(vip.v4))
}

fn spread(ready: &BTreeSet<AddressPair>) -> Chain {
    let rules = FAMILIES.map(|(_, family)| {
        let targets: Vec<_> = ready.iter().map(|address| address.of(family)).collect();
        debug_assert!(targets.iter().all(|target| family_of(*target) == family));
        Rule { matches: vec![], actions: vec![Action::TranslateDestination(family, Target::Spread(targets))] }
    });
    Chain { hook: None, rules: rules.into() }
}
