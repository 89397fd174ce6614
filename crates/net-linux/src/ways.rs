//! The router's links, addresses, routes and neighbours against what they should be.
//!
//! [`review`] is pure: what was found beside what should be gives requests that mend it, and instances that have lost their
//! link. A [`Bell`] says when there is something to look at, so that a quiet second costs one read. Invariant: nothing of an
//! instance that the policy does not list is touched, for it may just come or go; and what a listed one lacks is given back
//! only when it lacks it in two looks, for links are made while others look.

use crate::link::{self, FAR_MAC, LinkFacts, Links, Request};
use crate::netlink::RouteSocket;
use crate::routes::{Route, routes};
use crate::sysctl;
use ipnet::IpNet;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use moat_model::policy::NetPolicy;
use moat_model::{InstanceId, LinkName};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and `RTMGRP_IPV6_ROUTE` of rtnetlink(7).
const HOST_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Besides, `RTMGRP_NEIGH` (of the host they come and go all the time) and `RTMGRP_TC`.
const ROUTER_GROUPS: u32 = HOST_GROUPS | 0x4 | 0x8;

/// What was found in a router namespace.
#[derive(Debug, Default)]
pub struct Found {
    links: Vec<LinkFacts>,
    addresses: Vec<(u32, IpNet)>,
    routes: Vec<Route>,
    /// Permanent neighbours with the right hardware address.
    neighbours: BTreeSet<(u32, IpAddr)>,
    v6: bool,
}

impl Found {
    /// Looks around in the namespace of the calling thread.
    pub fn here() -> io::Result<Self> {
        let mut links = Links::open()?;
        Ok(Self {
            links: links.all()?,
            addresses: links.addresses()?,
            routes: routes()?,
            neighbours: neighbours()?,
            v6: sysctl::has_ipv6(),
        })
    }
}

fn neighbours() -> io::Result<BTreeSet<(u32, IpAddr)>> {
    let found = RouteSocket::open()?.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    let permanent = found.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
        let right = message.attributes.iter().any(|a| matches!(a, NeighbourAttribute::LinkLayerAddress(mac) if mac[..] == FAR_MAC));
        let address = message.attributes.iter().find_map(|attribute| {
            if let NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) = attribute {
                Some(IpAddr::V4(*v4))
            } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) = attribute {
                Some(IpAddr::V6(*v6))
            } else {
                None
            }
        })?;
        (right && message.header.state == NeighbourState::Permanent).then_some((message.header.ifindex, address))
    });
    Ok(permanent.collect())
}

/// The router's own end of the uplink.
#[derive(Debug, Clone)]
pub struct Uplink<'a> {
    /// The name of the link.
    pub name: &'a str,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, where there is one.
    pub v6: Option<Ipv6Addr>,
}

impl Uplink<'_> {
    fn owns(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.v4) || self.v6.is_some_and(|v6| address == IpAddr::V6(v6))
    }

    fn connected(&self, net: IpNet) -> bool {
        net.contains(&IpAddr::V4(self.v4)) || self.v6.is_some_and(|v6| net.contains(&IpAddr::V6(v6)))
    }
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Review {
    /// What somebody added, with the request that takes it away.
    pub foreign: Vec<(String, Request)>,
    /// What listed instances lack, with the requests that give it back.
    pub lacking: BTreeMap<LinkName, Vec<(String, Request)>>,
    /// Listed instances without a link, or whose own end of it is down.
    pub lost: BTreeSet<InstanceId>,
}

impl Review {
    /// The links of listed instances that are not whole, be it that they are being made.
    pub fn incomplete(&self, policy: &NetPolicy) -> BTreeSet<LinkName> {
        let lost = self.lost.iter().filter_map(|id| policy.sources.get(id)).map(|entry| entry.link.clone());
        lost.chain(self.lacking.keys().cloned()).collect()
    }
}

/// Compares. Links, addresses and routes of instances that the policy does not list are left alone.
pub fn review(policy: &NetPolicy, uplink: &Uplink<'_>, found: &Found) -> Review {
    let mut out = Review::default();
    let by_index: BTreeMap<u32, &str> = found.links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let name_of = |index: u32| by_index.get(&index).copied().unwrap_or("?");
    for link in &found.links {
        let ours = link.name == "lo" || link.name == uplink.name || LinkName::parse(&link.name).is_some();
        // Some modules of the kernel put a link that is down into every namespace.
        if !ours && link.up {
            out.foreign.push((format!("the link `{}`", link.name), link::removal(link.index)));
        }
    }
    for (index, net) in &found.addresses {
        let own = match net.addr() {
            IpAddr::V4(v4) => v4.is_loopback() || v4 == GATEWAY_V4,
            IpAddr::V6(v6) => v6.is_loopback() || v6 == GATEWAY_V6,
        };
        if !own && !uplink.owns(net.addr()) {
            out.foreign.push((format!("the address `{net}` of link `{}`", name_of(*index)), link::address_removal(*index, *net)));
        }
    }
    let by_address: BTreeMap<IpAddr, &LinkName> = policy
        .sources
        .values()
        .flat_map(|entry| [(IpAddr::V4(entry.address.v4), &entry.link), (IpAddr::V6(entry.address.v6), &entry.link)])
        .collect();
    let listed: BTreeSet<&str> = policy.sources.values().map(|entry| entry.link.as_str()).collect();
    for route in found.routes.iter().filter(|route| route.kind == RouteType::Unicast && !route.is_link_local()) {
        let names: Vec<&str> = route.links.iter().map(|index| name_of(*index)).collect();
        let fits = match (by_address.get(&route.to.addr()).filter(|_| route.is_full()), names.as_slice()) {
            (Some(link), [name]) => link.as_str() == *name,
            (None, [name]) => {
                *name == "lo"
                    || (route.is_full() && LinkName::parse(name).is_some() && !listed.contains(name))
                    || (*name == uplink.name && (uplink.connected(route.to) || route.to.prefix_len() == 0))
            }
            (Some(_) | None, _) => false,
        };
        if !fits {
            let request = (RouteNetlinkMessage::DelRoute(route.message.clone()), 0);
            out.foreign.push((format!("the route to `{}` by {names:?}", route.to), request));
        }
    }
    let by_name: BTreeMap<&str, &LinkFacts> = found.links.iter().map(|link| (link.name.as_str(), link)).collect();
    let had: BTreeSet<(u32, IpAddr)> = found.addresses.iter().map(|(index, net)| (*index, net.addr())).collect();
    let led: BTreeSet<(u32, IpAddr)> = found
        .routes
        .iter()
        .filter(|route| route.kind == RouteType::Unicast && route.is_full())
        .filter_map(|route| if let [index] = route.links[..] { Some((index, route.to.addr())) } else { None })
        .collect();
    for (id, entry) in &policy.sources {
        let link = match by_name.get(entry.link.as_str()) {
            // A link that is up passes nothing while its other end is down.
            Some(link) if link.running || !link.up => link,
            Some(_) | None => {
                out.lost.insert(id.clone());
                continue;
            }
        };
        let mut lacks = Vec::new();
        if !link.up {
            lacks.push((format!("the link `{}` was down", entry.link), link::up(link.index)));
        }
        if found.v6 && !had.contains(&(link.index, IpAddr::V6(GATEWAY_V6))) {
            let request = link::address(link.index, IpNet::from(IpAddr::V6(GATEWAY_V6)));
            lacks.push((format!("the link `{}` lacked its address", entry.link), request));
        }
        for address in [IpAddr::V4(entry.address.v4), IpAddr::V6(entry.address.v6)] {
            if address.is_ipv6() && !found.v6 {
                continue;
            }
            if !found.neighbours.contains(&(link.index, address)) {
                let request = link::neighbour(link.index, address, FAR_MAC);
                lacks.push((format!("the link `{}` lacked its neighbour `{address}`", entry.link), request));
            }
            if !led.contains(&(link.index, address)) {
                lacks.push((format!("there was no route to `{address}`"), link::route_on_link(link.index, address)));
            }
        }
        if !lacks.is_empty() {
            out.lacking.insert(entry.link.clone(), lacks);
        }
    }
    out
}

/// Runs requests in the namespace of the calling thread; what of it was done. What has gone by itself meanwhile is no error.
pub fn mend(wanted: Vec<(String, Request)>) -> io::Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (texts, requests): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
    let mut done = Vec::new();
    for (text, answer) in texts.into_iter().zip(RouteSocket::open()?.batch(requests)?) {
        match answer {
            Ok(()) => done.push(text),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT | libc::ENETDOWN)
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Rings when something of the namespace changed, and until a look found everything in order.
pub struct Bell {
    groups: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The namespace's number and the socket that listens there.
    socket: Option<(u64, Socket)>,
    quiet: bool,
    /// What lacked something in the last look.
    suspected: BTreeSet<LinkName>,
    lost: BTreeSet<InstanceId>,
}

impl State {
    /// Takes what was told meanwhile; whether there was anything.
    fn hear(&self) -> io::Result<bool> {
        let Some((_, socket)) = &self.socket else { return Ok(true) };
        let mut told = false;
        loop {
            match socket.recv_from_full() {
                Ok(_) => told = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(told),
                // Lost messages are changes too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Bell {
    /// For a router namespace.
    pub fn of_router() -> Self {
        Self { groups: ROUTER_GROUPS, state: Mutex::default() }
    }

    /// For the host's.
    pub fn of_host() -> Self {
        Self { groups: HOST_GROUPS, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to look at. Runs in the namespace, whose number is `namespace`.
    pub fn rings(&self, namespace: u64) -> io::Result<bool> {
        let mut state = self.state();
        if state.socket.as_ref().is_none_or(|(number, _)| *number != namespace) {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, self.groups))?;
            *state = State { socket: Some((namespace, socket)), ..State::default() };
        }
        let told = state.hear()?;
        state.quiet &= !told;
        Ok(!state.quiet)
    }

    /// Forgets what it heard until now.
    pub fn drain(&self) -> io::Result<()> {
        self.state().hear().map(drop)
    }

    /// Everything is in order: what it heard until now was of one's own making.
    pub fn settle(&self) -> io::Result<()> {
        let mut state = self.state();
        state.hear()?;
        state.quiet = true;
        Ok(())
    }

    /// Takes note of a look: of what was lacking, only what lacked something in the look before too is left in it.
    pub fn note(&self, review: &mut Review) {
        let mut state = self.state();
        state.quiet = review.foreign.is_empty() && review.lacking.is_empty() && review.lost.is_empty();
        let suspected = std::mem::replace(&mut state.suspected, review.lacking.keys().cloned().collect());
        let lost = std::mem::replace(&mut state.lost, review.lost.clone());
        review.lacking.retain(|link, _| suspected.contains(link));
        review.lost.retain(|id| lost.contains(id));
    }
}
