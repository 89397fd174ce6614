//! The inside of the router namespace, and the links of instances.
//!
//! Functions here run in a thread of the router namespace.

use crate::link::{self, End, FAR_MAC, Links, ROUTER_MAC};
use crate::lower::{Facts, base};
use crate::{ns, sysctl};
use ipnet::IpNet;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use moat_model::{AddressPair, LinkName};
use std::fs::File;
use std::io;
use std::net::IpAddr;

/// Settings of the router namespace. `default` first: links inherit it when they are made.
const SETTINGS: [(&str, &str); 34] = [
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/secure_redirects", "0"),
    ("ipv4/conf/all/secure_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/arp_ignore", "8"),
    ("ipv4/conf/all/arp_ignore", "8"),
    ("ipv4/icmp_echo_ignore_broadcasts", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/all/autoconf", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_source_route", "0"),
    ("ipv6/conf/all/accept_source_route", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/proxy_ndp", "0"),
    // Packets of others are not for sockets here: looking for one costs each of them.
    ("ipv4/ip_early_demux", "0"),
    ("ipv4/tcp_early_demux", "0"),
    ("ipv4/udp_early_demux", "0"),
    // A packet from the middle of a flow that was cut is invalid, not the first of a new one.
    ("netfilter/nf_conntrack_tcp_loose", "0"),
    ("netfilter/nf_conntrack_helper", "0"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "0"),
    // Of a flow that takes the shortcut only the first packet is seen here: such entries are many and short.
    ("netfilter/nf_conntrack_tcp_timeout_syn_sent", "10"),
];

/// Turned on last, when the filter is there.
const FORWARDING: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/default/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// Sets what is not set; the names of what was changed.
pub fn ensure_settings(kept: &sysctl::Kept) -> io::Result<Vec<String>> {
    apply(kept, &SETTINGS)
}

/// Turns forwarding on; the names of what was changed.
pub fn ensure_forwarding(kept: &sysctl::Kept) -> io::Result<Vec<String>> {
    apply(kept, &FORWARDING)
}

fn apply(kept: &sysctl::Kept, settings: &[(&str, &str)]) -> io::Result<Vec<String>> {
    let mut changed = Vec::new();
    for (name, value) in settings {
        if kept.set(name, value)? {
            changed.push((*name).to_owned());
        }
    }
    Ok(changed)
}

/// Loopback with the gateway's address, and the ranges that are nowhere.
pub fn ensure_loopback() -> io::Result<()> {
    let mut links = Links::open()?;
    let Some(lo) = links.find("lo")? else { return Err(io::ErrorKind::NotFound.into()) };
    let mut requests = vec![link::up(lo.index), link::address(lo.index, IpNet::from(IpAddr::V4(GATEWAY_V4)))];
    let ranges = base(&Facts::default()).unroutable;
    requests.extend(ranges.into_iter().filter(|net| net.addr().is_ipv4() || sysctl::has_ipv6()).map(link::unreachable));
    links.run(requests)
}

/// The links of instances.
pub fn instance_links() -> io::Result<Vec<LinkName>> {
    let all = Links::open()?.all()?;
    Ok(all.iter().filter_map(|link| link_name(&link.name)).collect())
}

fn link_name(text: &str) -> Option<LinkName> {
    LinkName::parse(text)
}

/// The link in an instance.
const FAR: &str = "eth0";

/// Makes the pair between the router and `instance`, and configures both ends; `before_up` is given the number of the
/// router's end before anything passes.
pub fn attach(
    instance: &File,
    address: AddressPair,
    name: &LinkName,
    before_up: impl FnOnce(&mut Links, u32) -> io::Result<()>,
) -> io::Result<()> {
    let mut links = Links::open()?;
    ns::in_ns(instance, prepare_instance)??;
    let far = ns::in_ns(instance, || Links::open()?.find(FAR))??;
    let mut near = links.find(name.as_str())?;
    let paired = matches!((&near, &far), (Some(near), Some(far)) if near.peer == Some(far.index) && far.peer == Some(near.index));
    if !paired {
        if near.is_some() {
            links.remove(name.as_str())?;
        }
        links.run(vec![link::new_pair(&End { name: name.as_str(), mac: ROUTER_MAC }, &End { name: FAR, mac: FAR_MAC }, instance)])?;
        near = links.find(name.as_str())?;
    }
    let Some(near) = near else { return Err(io::ErrorKind::NotFound.into()) };
    before_up(&mut links, near.index)?;
    let v6 = sysctl::has_ipv6();
    let ends: Vec<IpAddr> = [IpAddr::V4(address.v4)].into_iter().chain(v6.then_some(IpAddr::V6(address.v6))).collect();
    // The instance first: it can't be reached before the router has a route to it.
    ns::in_ns(instance, || configure_instance(&ends))??;
    let mut requests = vec![link::up(near.index)];
    if v6 {
        requests.push(link::address(near.index, IpNet::from(IpAddr::V6(GATEWAY_V6))));
    }
    for end in &ends {
        requests.push(link::neighbour(near.index, *end, FAR_MAC));
        requests.push(link::route_on_link(near.index, *end));
    }
    links.run(requests)?;
    ns::in_ns(instance, || Links::open()?.wait_until_running(FAR))??;
    links.wait_until_running(name.as_str())
}

/// Whether the link of an instance is there.
pub fn has_link(name: &LinkName) -> io::Result<bool> {
    Ok(Links::open()?.find(name.as_str())?.is_some())
}

/// Removes the link of an instance; the addresses it led to.
pub fn detach(name: &LinkName) -> io::Result<Vec<IpAddr>> {
    let mut links = Links::open()?;
    let mut addresses = vec![name.address().into()];
    if let Some(link) = links.find(name.as_str())? {
        addresses.extend(links.routes_by(link.index)?);
        links.remove(name.as_str())?;
    }
    Ok(addresses)
}

/// Removes every link but loopback.
pub fn dismantle() -> io::Result<()> {
    let mut links = Links::open()?;
    for link in links.all()?.iter().filter(|link| link.name == crate::lower::UPLINK || link_name(&link.name).is_some()) {
        links.remove(&link.name)?;
    }
    Ok(())
}

/// Settings of an instance's namespace, before it has a link.
fn prepare_instance() -> io::Result<()> {
    const IPV6: [(&str, &str); 6] = [
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("addr_gen_mode", "1"),
        ("accept_redirects", "0"),
        ("accept_source_route", "0"),
        ("router_solicitations", "0"),
    ];
    const IPV4: [(&str, &str); 4] =
        [("accept_redirects", "0"), ("send_redirects", "0"), ("accept_source_route", "0"), ("route_localnet", "0")];
    for scope in ["default", "all"] {
        for (setting, value) in IPV6 {
            // `addr_gen_mode` of `all` can't be set before there are links that take it.
            if (scope, setting) != ("all", "addr_gen_mode") {
                sysctl::set(&format!("ipv6/conf/{scope}/{setting}"), value)?;
            }
        }
        for (setting, value) in IPV4 {
            sysctl::set(&format!("ipv4/conf/{scope}/{setting}"), value)?;
        }
    }
    Ok(())
}

fn configure_instance(addresses: &[IpAddr]) -> io::Result<()> {
    let mut links = Links::open()?;
    let (Some(lo), Some(eth0)) = (links.find("lo")?, links.find(FAR)?) else { return Err(io::ErrorKind::NotFound.into()) };
    let mut requests = vec![link::up(lo.index), link::up(eth0.index)];
    for address in addresses {
        let gateway = match address {
            IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
            IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
        };
        requests.push(link::address(eth0.index, IpNet::from(*address)));
        requests.push(link::neighbour(eth0.index, gateway, ROUTER_MAC));
        requests.push(link::route_on_link(eth0.index, gateway));
        requests.push(link::default_route(eth0.index, gateway));
    }
    links.run(requests)
}

#[cfg(test)]
mod tests {
    use super::link_name;

    #[test]
    fn only_names_that_moat_gives_are_links_of_instances() {
        for (text, is) in [
            ("mt0a400001", true),
            ("mt0A400001", false),
            ("mt0a40001", false),
            ("uplink", false),
            ("mtxxxxxxxx", false),
            ("lo", false),
            ("mt+a400001", false),
        ] {
            assert_eq!(link_name(text).is_some(), is, "{text}");
        }
    }
}
