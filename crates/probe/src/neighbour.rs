//! A pretended LAN neighbour: a throw-away namespace, joined to the host's by a pair of links, that sends everything for
//! the private ranges to the host.
//!
//! Invariant: the pair vanishes with the namespace, which nothing but [`Neighbour`] holds, whatever happens to the process.

use crate::attempt::Choices;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use moat_model::AddressPair;
use moat_net_linux::link::{self, End, Links};
use moat_net_linux::ns;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HOST_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x11];
const FAR_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x12];
const FAR: &str = "lan0";
/// Ranges for a pair of addresses are taken from here (RFC 2544, benchmarking).
const POOL: u32 = 0xc612_0000;

/// The namespace and its link.
#[derive(Debug)]
pub(crate) struct Neighbour {
    /// Its namespace.
    pub(crate) ns: File,
    /// The host's addresses on the link.
    pub(crate) host: AddressPair,
    link: String,
}

impl Neighbour {
    /// Joins a new neighbour to the namespace of the calling thread.
    pub(crate) fn join(seed: u64) -> io::Result<Self> {
        let mut choices = Choices::new(seed ^ u64::from(std::process::id()));
        let link = format!("mlan{:06x}", choices.next() & 0x00ff_ffff);
        let mut links = Links::open()?;
        let taken = links.destinations()?;
        let free = |net: IpNet| !taken.iter().any(|other| other.prefix_len() > 0 && (other.contains(&net) || net.contains(other)));
        let v4 = (0..256)
            .map(|_| Ipv4Addr::from(POOL + u32::try_from(choices.next() & 0xfffc).unwrap_or(0)))
            .filter_map(|base| Ipv4Net::new(base, 30).ok())
            .find(|net| free((*net).into()))
            .ok_or_else(|| io::Error::other("no free /30 in 198.18.0.0/16 for the pretended LAN neighbour"))?;
        let random = u16::try_from(choices.next() & 0xffff).unwrap_or(0);
        let v6 = Ipv6Addr::new(0xfdee, random, 0x6d6f, 0x6174, 0, 0, 0, 0);
        let nth = |n: u16| AddressPair {
            v4: Ipv4Addr::from(u32::from(v4.network()) + u32::from(n)),
            v6: Ipv6Addr::from(u128::from(v6) + u128::from(n)),
        };
        let (host, own) = (nth(1), nth(2));
        let ns = ns::scratch()?;
        links.run(vec![link::new_pair(&End { name: &link, mac: HOST_MAC }, &End { name: FAR, mac: FAR_MAC }, &ns)])?;
        let neighbour = Self { ns, host, link };
        let index = links.find(&neighbour.link)?.ok_or(io::ErrorKind::NotFound)?.index;
        configure(&mut links, index, host, own, FAR_MAC)?;
        ns::in_ns(&neighbour.ns, || -> io::Result<()> {
            let mut links = Links::open()?;
            let index = links.find(FAR)?.ok_or(io::ErrorKind::NotFound)?.index;
            configure(&mut links, index, own, host, HOST_MAC)?;
            links.run(vec![link::default_route(index, host.v4.into())])?;
            // Without IPv6 on this machine there is no such neighbour either.
            if moat_net_linux::sysctl::has_ipv6() { links.run(vec![link::default_route(index, host.v6.into())]) } else { Ok(()) }
        })??;
        Ok(neighbour)
    }
}

fn configure(links: &mut Links, index: u32, own: AddressPair, other: AddressPair, mac: [u8; 6]) -> io::Result<()> {
    let nets = [
        Ipv4Net::new(own.v4, 30).map(IpNet::V4).ok(),
        Ipv6Net::new(own.v6, 64).map(IpNet::V6).ok().filter(|_| moat_net_linux::sysctl::has_ipv6()),
    ];
    let mut requests: Vec<_> = nets.iter().flatten().map(|net| link::address(index, *net)).collect();
    requests.push(link::up(index));
    for net in nets.iter().flatten() {
        let peer: IpAddr = if net.addr().is_ipv4() { other.v4.into() } else { other.v6.into() };
        requests.push(link::neighbour(index, peer, mac));
    }
    links.run(requests)
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // When this fails the link goes a moment later, with the namespace.
        if let Ok(mut links) = Links::open() {
            let _ = links.remove(&self.link);
        }
    }
}
