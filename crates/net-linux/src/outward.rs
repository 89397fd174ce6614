//! The addresses by which others may come to this machine.
//!
//! Those of bridges and tunnels of its own are none, such as that of Docker's: a link that leads to others has a default route, and
//! an address that is not private is one wherever it is.

use crate::decide::is_private;
use crate::link::Links;
use crate::routes::routes;
use netlink_packet_route::route::RouteType;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Those of the namespace of the calling thread. Without any default route all that are no loopback's and not of one link only.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let own = Links::open()?.addresses()?.into_iter().map(|(index, net)| (index, net.addr())).collect();
    let leads_out = routes()?.into_iter().filter(|route| route.kind == RouteType::Unicast && route.to.prefix_len() == 0);
    Ok(chosen(own, &leads_out.flat_map(|route| route.links).collect()))
}

/// `own`: each with its link's number; `links`: those with a default route.
fn chosen(own: Vec<(u32, IpAddr)>, links: &BTreeSet<u32>) -> BTreeSet<IpAddr> {
    let local = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_one = |(link, address): &(u32, IpAddr)| {
        !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || local(*address))
            && (links.is_empty() || links.contains(link) || !is_private(*address))
    };
    own.into_iter().filter(is_one).map(|(_, address)| address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_addresses_are_not_those_of_its_bridges() {
        // Loopback, the way out, Docker's bridge, one without any private address.
        const OWN: [(u32, &str); 9] = [
            (1, "127.0.0.1"),
            (1, "::1"),
            (2, "172.31.5.6"),
            (2, "fe80::1"),
            (2, "2a00:1450::6"),
            (3, "172.17.0.1"),
            (3, "fd00:17::1"),
            (4, "9.9.9.9"),
            (4, "169.254.7.7"),
        ];
        for (links, want) in [
            (&[2][..], &["9.9.9.9", "172.31.5.6", "2a00:1450::6"][..]),
            (&[4], &["9.9.9.9", "2a00:1450::6"]),
            (&[2, 3], &["9.9.9.9", "172.17.0.1", "172.31.5.6", "2a00:1450::6", "fd00:17::1"]),
            (&[], &["9.9.9.9", "172.17.0.1", "172.31.5.6", "2a00:1450::6", "fd00:17::1"]),
        ] {
            let own = OWN.map(|(link, text)| (link, text.parse().unwrap())).to_vec();
            let got: Vec<String> = chosen(own, &links.iter().copied().collect()).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{links:?}");
        }
    }
}
