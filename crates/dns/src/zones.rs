//! What each asker may see: plain data that the daemon builds and swaps in as a whole.

use moat_model::{AddressPair, Slug};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Everything answers are made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Zones {
    /// Who asks, by source address; an instance has an entry for its IPv4 and one for its IPv6 address. An address
    /// that is not here gets no answer at all.
    pub askers: HashMap<IpAddr, Asker>,
    /// What a group of askers sees. A missing view is an empty one.
    pub views: HashMap<ViewId, View>,
}

/// Names a [`View`]; askers that see the same share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

/// One instance that may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// What it sees.
    pub view: ViewId,
    /// Whether names of the world outside are looked up for it.
    pub forward: Forward,
}

/// Whether names with dots are handed to the machine's resolvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Every name that may leave.
    All,
    /// None: a service without egress could otherwise talk to the world through its name server.
    None,
}

/// One service that a view shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    /// The address that `NAME` resolves to.
    pub service: AddressPair,
    /// The ready instances that `NAME-discovery` resolves to; possibly none.
    pub ready: Vec<AddressPair>,
    /// Instances with a host name of their own, by that name in lower case, ready or not: a program knows its peers by it before
    /// they take traffic.
    pub hosts: BTreeMap<String, AddressPair>,
}

/// The services that an asker may reach: their names, and the reverse names of their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    names: BTreeMap<Slug, NameEntry>,
    hosts: BTreeMap<String, AddressPair>,
    reverse: BTreeMap<IpAddr, String>,
}

/// What a bare label means in a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// `NAME`.
    Service(&'a NameEntry),
    /// `NAME-discovery`.
    Discovery(&'a NameEntry),
    /// An instance's host name.
    Host(&'a AddressPair),
}

impl View {
    /// A view of these names.
    pub fn new(names: BTreeMap<Slug, NameEntry>) -> Self {
        let (mut hosts, mut reverse) = (BTreeMap::new(), BTreeMap::new());
        let mut name = |pair: &AddressPair, name: &str| {
            reverse.insert(IpAddr::V4(pair.v4), name.to_owned());
            reverse.insert(IpAddr::V6(pair.v6), name.to_owned());
        };
        for (slug, entry) in &names {
            for pair in std::iter::once(&entry.service).chain(&entry.ready) {
                name(pair, slug.as_str());
            }
            for (host, pair) in &entry.hosts {
                name(pair, host);
                hosts.insert(host.clone(), *pair);
            }
        }
        Self { names, hosts, reverse }
    }

    /// The names it shows.
    pub fn names(&self) -> &BTreeMap<Slug, NameEntry> {
        &self.names
    }

    /// Looks a lower-case label up. A service's own name wins over a discovery name and over an instance's host name.
    pub(crate) fn find(&self, label: &str) -> Option<Found<'_>> {
        if let Some(entry) = self.names.get(label) {
            return Some(Found::Service(entry));
        }
        let discovery = label.strip_suffix("-discovery").and_then(|name| self.names.get(name));
        discovery.map(Found::Discovery).or_else(|| self.hosts.get(label).map(Found::Host))
    }

    /// Who has this address: an instance's host name, or its service.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    /// Whether it shows an address of this range.
    pub(crate) fn shows_any(&self, range: RangeInclusive<IpAddr>) -> bool {
        self.reverse.range(range).next().is_some()
    }
}
