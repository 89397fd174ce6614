//! Which attempts are made, and what each should come to: the pure half of the probes.
//!
//! Main types: [`Prober`] (a place attempts are made from), [`Attempt`]. Invariant: every ordered pair of a prober and a
//! target is tried on every port of interest, by both protocols and both families.

use crate::report::Via;
use crate::scene::{Scene, Target};
use moat_model::net::{DEFAULT_HTTP_PORT, GATEWAY_V4, GATEWAY_V6, RESERVED_PORTS};
use moat_model::{AddressPair, DenyReason, DesiredState, Egress, Endpoint, Family, Peer, Proto, Purpose, Slug, Verdict};
use moat_net_linux::decide::is_private;
use moat_planner::reach::verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// Source ports of one kind of prober; kinds never share one, so a SYN says who sent it even behind a translation.
pub(crate) const WINDOW: u16 = 4096;
const WINDOWS: u16 = 6;
/// Ports that hardly anything listens on, and one that hosts do.
const CLOSED_PORTS: [u16; 2] = [1, 22];
/// Cloud metadata, link-local and private addresses (bypasses: metadata services of the large clouds; RFC 1918; RFC 6598).
const NEVER_V4: [Ipv4Addr; 7] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 0, 77),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(10, 255, 255, 77),
    Ipv4Addr::new(172, 31, 255, 77),
    Ipv4Addr::new(192, 168, 255, 77),
];
const NEVER_V6: [Ipv6Addr; 2] = [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd77, 0x77, 0, 0, 0, 0, 0, 0x77)];
/// A documentation address (RFC 5737, RFC 3849) stands for the internet: nobody is there. Each prober has one of its
/// own, so that no translation has to change its source port.
fn outside(prober: usize) -> AddressPair {
    let n = u16::try_from(prober % 60_000).unwrap_or(0);
    let last = u8::try_from(n % 250).unwrap_or(0) + 1;
    AddressPair { v4: Ipv4Addr::new(198, 51, 100, last), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n) }
}
/// How many ranges of `x-moat.egress` are tried for each instance.
const RANGES_TRIED: usize = 8;
/// The source of frames that pretend to come from the internet.
pub(crate) const STRANGER: AddressPair =
    AddressPair { v4: Ipv4Addr::new(203, 0, 113, 9), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x9) };

/// A place attempts are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Inside the instance with this index.
    Instance(usize),
    /// The router namespace, where the ingress makes its sockets.
    Router,
    /// The host's namespace.
    Host,
    /// A pretended LAN neighbour.
    Neighbour,
    /// Frames put on the host's end of the uplink, with the host's address.
    HostFrames,
    /// The same with an address of the internet.
    StrangerFrames,
}

impl Place {
    /// The kind of source-port window.
    pub(crate) const fn window(self) -> u16 {
        match self {
            Self::Instance(_) => 0,
            Self::Router => 1,
            Self::Host => 2,
            Self::Neighbour => 3,
            Self::HostFrames => 4,
            Self::StrangerFrames => 5,
        }
    }
    /// Whether the matrix' peer is outside of the router: nothing of it may arrive.
    const fn outside(self) -> bool {
        matches!(self, Self::Host | Self::Neighbour | Self::HostFrames | Self::StrangerFrames)
    }
    const fn frames(self) -> bool {
        matches!(self, Self::HostFrames | Self::StrangerFrames)
    }
}

/// Who makes attempts.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    /// Where.
    pub(crate) place: Place,
    /// As whom.
    pub(crate) peer: Peer,
}

/// Where an attempt should be seen if it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Goal {
    /// At this target.
    Instance(usize),
    /// At any ready instance of the service.
    Service(Slug),
    /// At the host's end of the uplink.
    Uplink,
    /// At a listener in the router namespace: only a finished handshake says so.
    Gateway,
    /// At this sniffer, as a control.
    Control(usize),
}

/// One packet to send, or connection to make.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// Index of the prober.
    pub(crate) prober: usize,
    /// Where it should be seen.
    pub(crate) goal: Goal,
    /// The peer meant.
    pub(crate) to: Peer,
    /// How it is addressed.
    pub(crate) via: Via,
    /// The address.
    pub(crate) address: IpAddr,
    /// Protocol.
    pub(crate) proto: Proto,
    /// Port.
    pub(crate) port: u16,
    /// What the matrix says.
    pub(crate) expected: Verdict,
    /// Time to live when not the usual one.
    pub(crate) ttl: Option<u8>,
}

/// A small deterministic source of choices (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The state with the HTTP ports that were found, so that the matrix speaks of these.
pub(crate) fn with_found_ports(scene: &Scene<'_>) -> DesiredState {
    let mut state = scene.state.clone();
    for target in &scene.targets {
        if let (Some(port), Some(service)) = (target.http_port, state.services.get_mut(&target.slug)) {
            service.port = Some(port);
        }
    }
    state
}

/// What decides attempts: the scene, the state with found ports, and ports of suspicious rules.
pub(crate) struct Planner<'a> {
    pub(crate) scene: &'a Scene<'a>,
    pub(crate) state: &'a DesiredState,
    pub(crate) suspects: &'a BTreeSet<u16>,
    pub(crate) host_addresses: &'a [IpAddr],
    /// The first port of the first window.
    pub(crate) base: u16,
}

impl Planner<'_> {
    /// Where the windows of source ports begin, by seed.
    pub(crate) fn base_of(seed: u64) -> u16 {
        32768 + u16::try_from(Choices::new(seed).next() % 8192).unwrap_or(0)
    }

    fn ports(&self, target: &Target, choices: &mut Choices) -> BTreeSet<u16> {
        let mut ports: BTreeSet<u16> = target.listeners.iter().map(|l| l.endpoint.port).collect();
        ports.extend(target.http_port);
        ports.extend(self.state.services.get(&target.slug).and_then(|s| s.port));
        ports.extend([DEFAULT_HTTP_PORT].iter().chain(&RESERVED_PORTS).chain(&CLOSED_PORTS).chain(self.suspects));
        let wanted = ports.len() + usize::try_from(self.scene.random_ports).unwrap_or(usize::MAX).min(32_000);
        let windows = self.base..self.base + WINDOW * WINDOWS;
        while ports.len() < wanted {
            let port = u16::try_from(choices.next() % 65_535).unwrap_or(0) + 1;
            if !windows.contains(&port) {
                ports.insert(port);
            }
        }
        ports
    }

    /// What should become of a flow to an address of the target.
    fn expected(&self, prober: &Prober, target: &Target, endpoint: Endpoint) -> Verdict {
        let says = verdict(self.state, &prober.peer, &target.peer(), Some(endpoint));
        let instead = match target.purpose {
            // The matrix lets the internet in through the ingress; no packet of its own comes along.
            Purpose::Serve | Purpose::Build | Purpose::PreDeploy => prober.place.outside().then_some(DenyReason::NotPublic),
            Purpose::Cron | Purpose::Job => Some(DenyReason::ReceivesNothing),
        };
        match instead {
            Some(because) if says.is_allowed() => Verdict::Deny { because },
            Some(_) | None => says,
        }
    }

    /// Every attempt of every prober.
    pub(crate) fn attempts(&self, probers: &[Prober]) -> Vec<Attempt> {
        let mut choices = Choices::new(self.scene.seed ^ 0x5eed);
        let mut out = Vec::new();
        let mut services: BTreeMap<&Slug, Vec<&Target>> = BTreeMap::new();
        for target in self.scene.targets.iter().filter(|t| t.vip.is_some() && t.purpose == Purpose::Serve) {
            services.entry(&target.slug).or_default().push(target);
        }
        for (index, prober) in probers.iter().enumerate() {
            for (t, target) in self.scene.targets.iter().enumerate().filter(|(t, _)| prober.place != Place::Instance(*t)) {
                let via = if prober.place.frames() { Via::Uplink } else { Via::InstanceAddress };
                let ports = self.ports(target, &mut choices);
                self.flows(index, prober, target, via, &Goal::Instance(t), target.address, &ports, &mut out);
            }
            for (slug, targets) in &services {
                let Some((target, vip)) = targets.iter().find_map(|t| Some((*t, t.vip?))) else { continue };
                let ports = self.ports(target, &mut choices);
                let from = out.len();
                self.flows(index, prober, target, Via::ServiceAddress, &Goal::Service((*slug).clone()), vip, &ports, &mut out);
                // The ingress dials instances, and an address without instances is refused: nothing is expected there.
                if prober.place == Place::Router || !targets.iter().any(|t| t.ready) {
                    let mut n = 0;
                    out.retain(|attempt| {
                        n += 1;
                        n <= from || !attempt.expected.is_allowed()
                    });
                }
            }
            if let Place::Instance(t) = prober.place {
                self.ways_out(index, &self.scene.targets[t], &mut choices, &mut out);
            }
        }
        out
    }

    #[expect(clippy::too_many_arguments, reason = "one call site each for the two kinds of address; a struct would only rename them")]
    fn flows(
        &self,
        index: usize,
        prober: &Prober,
        target: &Target,
        via: Via,
        goal: &Goal,
        pair: AddressPair,
        ports: &BTreeSet<u16>,
        out: &mut Vec<Attempt>,
    ) {
        // Just enough hops for a packet that has a way in, so that one that has none does not wander through the LAN.
        let ttl = match prober.place {
            Place::Host => Some(2),
            Place::Neighbour => Some(3),
            Place::Instance(_) | Place::Router | Place::HostFrames | Place::StrangerFrames => None,
        };
        for port in ports {
            for proto in PROTOS {
                let expected = self.expected(prober, target, Endpoint { proto, port: *port });
                for family in FAMILIES {
                    out.push(Attempt {
                        prober: index,
                        goal: goal.clone(),
                        to: target.peer(),
                        via,
                        address: pair.of(family),
                        proto,
                        port: *port,
                        expected,
                        ttl,
                    });
                }
            }
        }
    }

    /// From an instance to the host, the gateway, metadata and private addresses, and the internet.
    fn ways_out(&self, index: usize, source: &Target, choices: &mut Choices, out: &mut Vec<Attempt>) {
        let uplink = &self.scene.uplink;
        let to_host = verdict(self.state, &source.peer(), &Peer::Host, None);
        let to_internet = verdict(self.state, &source.peer(), &Peer::Internet, None);
        let never = if to_internet.is_allowed() { Verdict::Deny { because: DenyReason::NeverPrivateEgress } } else { to_internet };
        let mut add = |goal: Goal, to: Peer, via: Via, address: IpAddr, ports: &[u16], expected: Verdict| {
            // An uplink without IPv6 has no address of it.
            for port in ports.iter().filter(|_| !address.is_unspecified()) {
                for proto in PROTOS.into_iter().filter(|proto| goal != Goal::Gateway || *proto == Proto::Tcp) {
                    let ttl = (goal == Goal::Uplink).then_some(2);
                    out.push(Attempt {
                        prober: index,
                        goal: goal.clone(),
                        to: to.clone(),
                        via,
                        address,
                        proto,
                        port: *port,
                        expected,
                        ttl,
                    });
                }
            }
        };
        let random = 1024 + u16::try_from(choices.next() % 8192).unwrap_or(0);
        let host: BTreeSet<IpAddr> =
            self.host_addresses.iter().copied().chain(FAMILIES.map(|family| uplink.host_address.of(family))).collect();
        for address in host {
            add(Goal::Uplink, Peer::Host, Via::HostAddress, address, &[22, random], to_host);
        }
        let listeners = [self.base - 1];
        for address in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6), uplink.router_address.v4.into(), uplink.router_address.v6.into()] {
            add(Goal::Gateway, Peer::Host, Via::Gateway, address, &listeners, to_host);
        }
        for address in NEVER_V4.into_iter().map(IpAddr::V4).chain(NEVER_V6.into_iter().map(IpAddr::V6)) {
            add(Goal::Uplink, Peer::Internet, Via::Metadata, address, &[80], never);
        }
        let ranges = match self.state.services.get(&source.slug).map(|s| &s.egress) {
            Some(Egress::Ranges(ranges)) if !source.is_build() => Some(ranges),
            Some(_) | None => None,
        };
        let carried = |address: &IpAddr| address.is_ipv4() || uplink.ipv6;
        for address in FAMILIES.map(|family| outside(index).of(family)) {
            let listed = ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(&address)));
            let expected = if listed { to_internet } else { Verdict::Deny { because: DenyReason::EgressClosed } };
            if carried(&address) || !expected.is_allowed() {
                add(Goal::Uplink, Peer::Internet, Via::Egress, address, &[443, random], expected);
            }
        }
        // One address of each listed range; its own port keeps two probers of one range apart.
        for range in ranges.into_iter().flatten().take(RANGES_TRIED) {
            let address = range.hosts().next().unwrap_or(range.addr());
            let expected = if is_private(address) { never } else { to_internet };
            if carried(&address) || !expected.is_allowed() {
                add(Goal::Uplink, Peer::Internet, Via::Egress, address, &[random], expected);
            }
        }
    }
}
