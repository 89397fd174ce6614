//! Routes of a namespace, of every table.

use crate::netlink::RouteSocket;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where to; everything for a default route.
    pub to: IpNet,
    /// What is done with a packet.
    pub kind: RouteType,
    /// Numbers of the links, several for several hops.
    pub links: Vec<u32>,
    /// The next hops.
    pub gateways: Vec<IpAddr>,
    /// As the kernel told it, to ask for its removal.
    pub message: RouteMessage,
}

impl Route {
    fn read(message: &RouteMessage) -> Option<Self> {
        let any: IpAddr = if message.header.address_family == AddressFamily::Inet {
            Ipv4Addr::UNSPECIFIED.into()
        } else if message.header.address_family == AddressFamily::Inet6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            return None;
        };
        let mut route = Self {
            to: IpNet::new(any, 0).ok()?,
            kind: message.header.kind,
            links: Vec::new(),
            gateways: Vec::new(),
            message: message.clone(),
        };
        route.note(&message.attributes);
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(to) = attribute {
                route.to = IpNet::new(address(to)?, message.header.destination_prefix_length).ok()?;
            } else if let RouteAttribute::MultiPath(hops) = attribute {
                for hop in hops {
                    route.links.push(hop.interface_index);
                    route.note(&hop.attributes);
                }
            }
        }
        Some(route)
    }

    fn note(&mut self, attributes: &[RouteAttribute]) {
        for attribute in attributes {
            if let RouteAttribute::Oif(index) = attribute {
                self.links.push(*index);
            } else if let RouteAttribute::Gateway(gateway) = attribute {
                self.gateways.extend(address(gateway));
            }
        }
    }

    /// Whether it is to addresses of one link only, which the kernel makes by itself.
    pub fn is_link_local(&self) -> bool {
        match self.to.addr() {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
        }
    }

    /// Whether it is for one address only.
    pub fn is_full(&self) -> bool {
        self.to.prefix_len() == self.to.max_prefix_len()
    }
}

fn address(from: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = from {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = from {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

/// The routes of the namespace of the calling thread.
pub fn routes() -> io::Result<Vec<Route>> {
    let found = RouteSocket::open()?.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    Ok(found
        .iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewRoute(route) = message { Route::read(route) } else { None })
        .collect())
}
