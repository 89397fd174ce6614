//! Links, addresses, routes and neighbours as netlink messages.
//!
//! Functions here make messages; [`Links`] runs them in the namespace of the calling thread.
#![expect(clippy::wildcard_enum_match_arm, reason = "of the kernel's many kinds only these matter here")]

use crate::netlink::{CREATE, REPLACE, RouteSocket};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Hardware address of the router's end of every link: each link is a wire of its own, so one is enough.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x01];
/// Hardware address of the other end of every link.
pub const FAR_MAC: [u8; 6] = [0x02, 0x6d, 0x6f, 0x61, 0x74, 0x02];

/// How often, and how long in between, a link is asked whether it passes packets.
const WAITS: u32 = 1000;
const WAIT: Duration = Duration::from_millis(2);

/// A message and its flags.
pub type Request = (RouteNetlinkMessage, u16);

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkFacts {
    /// Its name.
    pub name: String,
    /// Its number in its namespace.
    pub index: u32,
    /// Its peer's number in the peer's namespace.
    pub peer: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it passes packets: up, and the kernel has seen that its peer is too.
    pub running: bool,
    /// Its free text.
    pub alias: Option<String>,
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// One end of a new pair.
pub struct End<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// A new pair of links: `near` in the namespace of the socket, `far` in the namespace `ns`.
pub fn new_pair(near: &End<'_>, far: &End<'_>, ns: &impl AsFd) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(far.name.to_owned()),
        LinkAttribute::Address(far.mac.to_vec()),
        LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(near.name.to_owned()),
        LinkAttribute::Address(near.mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]),
    ];
    (RouteNetlinkMessage::NewLink(message), CREATE)
}

/// Turns a link on.
pub fn up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets the free text of a link.
pub fn alias(index: u32, text: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfAlias(text.to_owned())];
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Gives a link an address; without duplicate detection, which would make it wait.
pub fn address(index: u32, net: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    if net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message.attributes.push(AddressAttribute::Local(net.addr()));
    (RouteNetlinkMessage::NewAddress(message), REPLACE)
}

/// A permanent neighbour.
pub fn neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    (RouteNetlinkMessage::NewNeighbour(message), REPLACE)
}

fn route(net: IpNet, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = kind;
    message.attributes.push(RouteAttribute::Destination(net.addr().into()));
    message
}

/// A route to one address on a link.
pub fn route_on_link(index: u32, address: IpAddr) -> Request {
    let mut message = route(IpNet::from(address), RouteType::Unicast, RouteScope::Link);
    message.attributes.push(RouteAttribute::Oif(index));
    (RouteNetlinkMessage::NewRoute(message), REPLACE)
}

/// The default route of the gateway's family.
pub fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = route(IpNet::from(gateway), RouteType::Unicast, RouteScope::Universe);
    message.header.destination_prefix_length = 0;
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    (RouteNetlinkMessage::NewRoute(message), REPLACE)
}

/// Takes a link away.
pub fn removal(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    (RouteNetlinkMessage::DelLink(message), 0)
}

/// Takes an address from a link.
pub fn address_removal(index: u32, net: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(net.addr()), AddressAttribute::Local(net.addr())];
    (RouteNetlinkMessage::DelAddress(message), 0)
}

/// A range that is nowhere.
pub fn unreachable(net: IpNet) -> Request {
    (RouteNetlinkMessage::NewRoute(route(net, RouteType::Unreachable, RouteScope::Universe)), REPLACE)
}

/// Links of the namespace the calling thread is in.
pub struct Links {
    socket: RouteSocket,
}

impl Links {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: RouteSocket::open()? })
    }

    /// Runs requests in one batch; the first refusal is returned.
    pub fn run(&mut self, requests: Vec<Request>) -> io::Result<()> {
        self.socket.batch(requests)?.into_iter().collect()
    }

    /// Asks for all objects of a kind.
    pub fn query(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.socket.dump(message)
    }

    /// The link of this name, if there is one.
    pub fn find(&mut self, name: &str) -> io::Result<Option<LinkFacts>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.socket.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(facts_of(&link))),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a link passes packets. Between "up" and that, whatever is sent is lost, for as long as the kernel's
    /// own work is queued (asking makes newer kernels do it at once).
    pub fn wait_until_running(&mut self, name: &str) -> io::Result<()> {
        for _ in 0..WAITS {
            match self.find(name)? {
                Some(link) if link.running => return Ok(()),
                Some(_) => std::thread::sleep(WAIT),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// All links.
    pub fn all(&mut self) -> io::Result<Vec<LinkFacts>> {
        let found = self.socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found
            .iter()
            .filter_map(|message| if let RouteNetlinkMessage::NewLink(link) = message { Some(facts_of(link)) } else { None })
            .collect())
    }

    /// Removes a link (and with it its peer); whether it was there.
    pub fn remove(&mut self, name: &str) -> io::Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.socket.request(RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every address of this namespace.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let found = self.socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(found.iter().filter_map(address_of).collect())
    }

    /// The addresses that have a route of their own on a link.
    pub fn routes_by(&mut self, index: u32) -> io::Result<Vec<IpAddr>> {
        let found = self.socket.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let on_link = found.iter().filter(|message| matches!(message, RouteNetlinkMessage::NewRoute(route) if route.attributes.contains(&RouteAttribute::Oif(index)) && route.header.table == RouteHeader::RT_TABLE_MAIN));
        Ok(on_link.filter_map(destination_of).filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr()).collect())
    }

    /// Every destination of the routing tables but the default ones.
    pub fn destinations(&mut self) -> io::Result<Vec<IpNet>> {
        let found = self.socket.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(found.iter().filter_map(destination_of).collect())
    }
}

fn facts_of(link: &LinkMessage) -> LinkFacts {
    let mut facts = LinkFacts { index: link.header.index, up: link.header.flags.contains(LinkFlags::Up), ..LinkFacts::default() };
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            facts.name.clone_from(name);
        } else if let LinkAttribute::Link(peer) = attribute {
            facts.peer = Some(*peer);
        } else if let LinkAttribute::IfAlias(alias) = attribute {
            facts.alias = Some(alias.clone());
        } else if let LinkAttribute::OperState(state) = attribute {
            facts.running = *state == State::Up;
        }
    }
    facts
}

fn address_of(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut found = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            found = Some(*address);
        } else if let (AddressAttribute::Address(address), None) = (attribute, found) {
            found = Some(*address);
        }
    }
    Some((message.header.index, IpNet::new(found?, message.header.prefix_len.min(full_length(found?))).ok()?))
}

fn destination_of(message: &RouteNetlinkMessage) -> Option<IpNet> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(netlink_packet_route::route::RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(netlink_packet_route::route::RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}
