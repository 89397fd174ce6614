//! Routes, addresses, links, sockets and settings: of the router namespace, and the host's ways into it.

use super::Error;
use crate::report::Drift;
use crate::scene::{Scene, Target};
use ipnet::IpNet;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use moat_model::{AddressPair, LinkName, Peer};
use moat_net_linux::link::{LinkFacts, Links};
use moat_net_linux::routes::{Route, routes};
use moat_net_linux::{ns, ports, sysctl};
use netlink_packet_route::route::RouteType;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;

/// Settings that must be so for every link of the router. With any other value a packet could go round the filter's idea
/// of who sent it (bypasses: route_localnet, accept_ra, redirects, source routes).
const SETTINGS: [(&str, &str, &str); 8] = [
    ("ipv4/conf", "route_localnet", "0"),
    ("ipv4/conf", "accept_redirects", "0"),
    ("ipv4/conf", "accept_source_route", "0"),
    ("ipv4/conf", "proxy_arp", "0"),
    ("ipv6/conf", "accept_ra", "0"),
    ("ipv6/conf", "accept_redirects", "0"),
    ("ipv6/conf", "accept_source_route", "0"),
    ("ipv6/conf", "proxy_ndp", "0"),
];
const DNS: u16 = 53;

/// Routes of the host that lead into the router: each names the services it covers.
pub(super) fn of_host(scene: &Scene<'_>, host: &File) -> Result<Vec<Drift>, Error> {
    let uplink = &scene.uplink;
    let (routes, link) = ns::in_ns(host, || -> io::Result<_> { Ok((routes()?, Links::open()?.find(&uplink.host_link)?)) })??;
    let Some(link) = link else { return Ok(vec![Drift { pair: None, what: format!("the host lacks the uplink `{}`", uplink.host_link) }]) };
    let mut out = Vec::new();
    for route in routes.iter().filter(|route| route.kind == RouteType::Unicast) {
        let into = route.links.contains(&link.index) || route.gateways.iter().any(|gateway| uplink.router_address.contains(*gateway));
        let connected =
            route.gateways.is_empty() && route.to.prefix_len() > 0 && (route.is_link_local() || contains(route.to, uplink.host_address));
        let covered = covered(scene, route.to);
        if !into || (connected && covered.is_empty()) {
            continue;
        }
        let private = if uplink.private_ranges.iter().any(|range| range.contains(&route.to) || route.to.contains(range)) {
            "the private range "
        } else {
            ""
        };
        let what = format!("a route of the host leads {private}`{}` into the router by `{}`", route.to, uplink.host_link);
        if covered.is_empty() {
            out.push(Drift { pair: None, what: what.clone() });
        }
        out.extend(covered.into_iter().map(|to| Drift { pair: Some((Peer::Host, to)), what: what.clone() }));
    }
    Ok(out)
}

/// Whether one of the addresses is in the range. An address that the uplink has not is unspecified.
fn contains(net: IpNet, pair: AddressPair) -> bool {
    [IpAddr::V4(pair.v4), IpAddr::V6(pair.v6)].iter().any(|address| !address.is_unspecified() && net.contains(address))
}

/// Who lives in a range, by instance or service address.
fn covered(scene: &Scene<'_>, range: IpNet) -> BTreeSet<Peer> {
    let inside = |address: IpAddr| range.contains(&address);
    let instances = scene.targets.iter().filter(|t| inside(t.address.v4.into()) || inside(t.address.v6.into())).map(Target::peer);
    let services = scene
        .state
        .services
        .values()
        .filter(|s| s.vip.is_some_and(|vip| inside(vip.v4.into()) || inside(vip.v6.into())))
        .map(|s| Peer::Service(s.slug.clone()));
    instances.chain(services).collect()
}

/// What does not belong into the router namespace, or is missing there.
pub(super) fn of_router(scene: &Scene<'_>) -> Result<Vec<Drift>, Error> {
    let mut out = Vec::new();
    let mut say = |what: String| out.push(Drift { pair: None, what });
    let (links, addresses, routes) = ns::in_ns(&scene.router_ns, || -> io::Result<_> {
        let mut links = Links::open()?;
        Ok((links.all()?, links.addresses()?, routes()?))
    })??;
    let listeners = ports::listeners(&scene.router_ns)?;
    for listener in listeners.iter().filter(|listener| listener.endpoint.port != DNS) {
        say(format!("something listens on {} port {} in the router", listener.endpoint.proto, listener.endpoint.port));
    }
    let uplink = links.iter().find(|link| link.name == scene.uplink.router_link);
    if uplink.is_none() {
        say(format!("the router lacks its uplink `{}`", scene.uplink.router_link));
    }
    let is_instance = |link: &LinkFacts| LinkName::parse(&link.name).is_some();
    for link in links.iter().filter(|link| link.up && link.name != "lo" && link.name != scene.uplink.router_link && !is_instance(link)) {
        say(format!("the router has a link `{}` that does not belong there", link.name));
    }
    for (index, net) in &addresses {
        let own = match net.addr() {
            IpAddr::V4(v4) => v4.is_loopback() || v4 == GATEWAY_V4 || v4 == scene.uplink.router_address.v4,
            IpAddr::V6(v6) => v6.is_loopback() || v6 == GATEWAY_V6 || v6 == scene.uplink.router_address.v6,
        };
        if !own {
            say(format!("the router has the address `{net}` on link `{}`", name_of(&links, *index)));
        }
    }
    for link in links.iter().map(|link| link.name.as_str()).chain(["all", "default"]) {
        out.extend(ns::in_ns(&scene.router_ns, || settings(link))??);
    }
    out.extend(foreign_routes(scene, &links, uplink, &routes));
    Ok(out)
}

fn name_of(links: &[LinkFacts], index: u32) -> &str {
    links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str())
}

/// Settings of one link, in the namespace of the calling thread.
fn settings(link: &str) -> io::Result<Vec<Drift>> {
    let mut out = Vec::new();
    for (folder, setting, wanted) in SETTINGS {
        let name = format!("{folder}/{link}/{setting}");
        // Loopback has settings of its own that no packet of a link meets.
        if let Some(value) = sysctl::get(&name)?.filter(|value| value != wanted && link != "lo") {
            out.push(Drift { pair: None, what: format!("setting `{name}` of the router is {value}, not {wanted}") });
        }
    }
    Ok(out)
}

fn foreign_routes(scene: &Scene<'_>, links: &[LinkFacts], uplink: Option<&LinkFacts>, routes: &[Route]) -> Vec<Drift> {
    let mut out = Vec::new();
    for route in routes.iter().filter(|route| route.kind == RouteType::Unicast && !route.is_link_local()) {
        let names: Vec<&str> = route.links.iter().map(|index| name_of(links, *index)).collect();
        let by_uplink = uplink.is_some_and(|uplink| route.links == [uplink.index]);
        let connected = contains(route.to, scene.uplink.router_address);
        let full = route.to.prefix_len() == route.to.max_prefix_len();
        let fits = match (scene.targets.iter().find(|t| full && t.address.contains(route.to.addr())), names.as_slice()) {
            (Some(target), [link]) => target.link().as_str() == *link,
            // An instance that started after the scene was made, or loopback's own.
            (None, [link]) => {
                *link == "lo"
                    || (full && LinkName::parse(link).is_some() && scene.targets.iter().all(|t| t.link().as_str() != *link))
                    || (by_uplink && (connected || route.to.prefix_len() == 0))
            }
            (_, _) => false,
        };
        if fits {
            continue;
        }
        let what = format!("the router has a route to `{}` by {names:?}", route.to);
        let covered = if route.to.prefix_len() == 0 { BTreeSet::new() } else { covered(scene, route.to) };
        let from = names.iter().find_map(|link| super::peer_of_link(scene, link)).unwrap_or(Peer::Internet);
        out.extend(super::per_pair(covered.into_iter().map(|to| (from.clone(), to)).collect(), &what));
    }
    for target in &scene.targets {
        for address in [IpAddr::V4(target.address.v4), IpAddr::V6(target.address.v6)] {
            if !routes.iter().any(|route| route.kind == RouteType::Unicast && route.to == IpNet::from(address))
                && (address.is_ipv4() || sysctl::has_ipv6())
            {
                out.push(Drift { pair: Some((Peer::Ingress, target.peer())), what: format!("the router lacks the route to `{address}`") });
            }
        }
    }
    out
}
