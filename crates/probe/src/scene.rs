//! What is probed: the desired state and where each of its instances really is.

use ipnet::IpNet;
use moat_model::state::Listener;
use moat_model::{AddressPair, DesiredState, InstanceId, LinkName, Peer, Purpose, Slug};
use std::os::fd::OwnedFd;

/// One live instance.
#[derive(Debug)]
pub struct Target {
    /// Its service.
    pub slug: Slug,
    /// Its id.
    pub instance: InstanceId,
    /// What it runs for.
    pub purpose: Purpose,
    /// Its addresses.
    pub address: AddressPair,
    /// Its service's address, when that has one.
    pub vip: Option<AddressPair>,
    /// Whether it is behind the service address and the discovery name.
    pub ready: bool,
    /// Its network namespace.
    pub ns: OwnedFd,
    /// The sockets it listens on.
    pub listeners: Vec<Listener>,
    /// The HTTP port that was found, when that is not the one the state says.
    pub http_port: Option<u16>,
}

impl Target {
    /// The peer it is: its service, or that service's build.
    pub fn peer(&self) -> Peer {
        if self.is_build() { Peer::Build(self.slug.clone()) } else { Peer::Service(self.slug.clone()) }
    }

    /// Its link in the router namespace.
    pub fn link(&self) -> LinkName {
        LinkName::of(self.address.v4)
    }

    pub(crate) const fn is_build(&self) -> bool {
        matches!(self.purpose, Purpose::Build | Purpose::PreDeploy)
    }
}

/// The router namespace's way out.
#[derive(Debug, Clone)]
pub struct UplinkFacts {
    /// The link's name in the host's namespace.
    pub host_link: String,
    /// The link's name in the router namespace.
    pub router_link: String,
    /// The host's addresses on the link.
    pub host_address: AddressPair,
    /// The router's addresses on the link.
    pub router_address: AddressPair,
    /// The ranges of the private networks, that no route of the host may lead into.
    pub private_ranges: Vec<IpNet>,
    /// Whether egress by IPv6 leaves the router at all.
    pub ipv6: bool,
}

impl UplinkFacts {
    /// The facts of an uplink of the Linux engine; the ranges are all that its router serves.
    pub fn of(uplink: moat_net_linux::Uplink) -> Self {
        Self {
            host_link: uplink.host_link,
            router_link: uplink.router_link.to_owned(),
            host_address: uplink.host_address,
            router_address: uplink.router_address,
            private_ranges: moat_net_linux::lower::base(&moat_net_linux::lower::Facts::default()).unroutable,
            ipv6: uplink.ipv6,
        }
    }
}

/// Everything [`verify`](crate::verify) looks at. The calling thread's namespace is the host's.
#[derive(Debug)]
pub struct Scene<'a> {
    /// What should be so.
    pub state: &'a DesiredState,
    /// Every live instance.
    pub targets: Vec<Target>,
    /// The router namespace.
    pub router_ns: OwnedFd,
    /// The whole ruleset that the router namespace should have, as `nft -f` reads it.
    pub expected_ruleset: String,
    /// The way out.
    pub uplink: UplinkFacts,
    /// Random ports tried for each pair, besides the ones of interest.
    pub random_ports: u32,
    /// Seed of every choice.
    pub seed: u64,
    /// Whether names are asked for: false where no DNS server runs.
    pub names: bool,
}
