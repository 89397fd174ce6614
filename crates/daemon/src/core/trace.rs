//! Which way a packet takes through the filter that is loaded now.

use super::Core;
use crate::protocol::{Event, Failure};
use crate::reply::Reply;
use moat_engine_linux::LinuxEngine;
use moat_model::{AddressPair, LinkName, Peer, Proto, Purpose};
use moat_net_linux::{FlowKind, Network, Origin, Outcome, Packet};
use std::net::{IpAddr, Ipv4Addr};

/// An address of the internet, for packets that leave (RFC 5737, documentation).
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

impl Core {
    pub(super) fn trace(&self, from: &str, to: &str, reply: &Reply) {
        let network = self.engine.linux().map(LinuxEngine::network).ok_or_else(|| "there is no network here".to_owned());
        let answer = network.and_then(|network| Ok((network, self.packet(network, from, to)?))).map(|(network, packet)| {
            let mut trace = moat_net_linux::trace::trace(&network.ruleset(), &packet);
            let between = matches!((&packet.origin, &trace.outcome), (Origin::Link(_), Outcome::Instance { .. }));
            if between && network.shortcut().is_some() {
                trace.steps.push("later packets of this flow: straight from link to link (shortcut)".to_owned());
            }
            Event::Traced {
                delivered: matches!(trace.outcome, Outcome::Instance { .. } | Outcome::Router | Outcome::Internet),
                steps: trace.steps,
            }
        });
        let error = match answer {
            Ok(event) => {
                let _ = reply.send(event);
                None
            }
            Err(message) => Some(Failure::refused(message, None)),
        };
        let _ = reply.send(Event::End { error });
    }

    fn packet(&self, network: &Network, from: &str, to: &str) -> Result<Packet, String> {
        let (from, _) = moat_planner::explain::parse_peer(from).map_err(|error| error.to_string())?;
        let (to, endpoint) = moat_planner::explain::parse_peer(to).map_err(|error| error.to_string())?;
        let endpoint = endpoint.ok_or("a packet has a port: write `SERVICE:PORT`")?;
        let (origin, source) = match &from {
            Peer::Ingress => (Origin::Router, IpAddr::V4(moat_model::net::GATEWAY_V4)),
            Peer::Internet | Peer::Host => (Origin::Uplink, IpAddr::V4(SOMEWHERE)),
            Peer::Service(slug) | Peer::Build(slug) => {
                let build = matches!(from, Peer::Build(_));
                let address = self.instance_of(slug, build).ok_or_else(|| format!("`{from}` has no instance now"))?;
                (Origin::Link(LinkName::of(address.v4)), IpAddr::V4(address.v4))
            }
        };
        let destination = match &to {
            Peer::Internet | Peer::Ingress => IpAddr::V4(SOMEWHERE),
            Peer::Host => {
                let uplink = network.uplink().ok().flatten().ok_or("there is no uplink now")?;
                IpAddr::V4(uplink.host_address.v4)
            }
            Peer::Service(slug) | Peer::Build(slug) => {
                let vip = self.desired.services.get(slug).and_then(|s| s.vip).filter(|_| origin != Origin::Router);
                let address = vip
                    .or_else(|| self.instance_of(slug, matches!(to, Peer::Build(_))))
                    .ok_or_else(|| format!("`{to}` has no address now"))?;
                IpAddr::V4(address.v4)
            }
        };
        let proto = match endpoint.proto {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        };
        Ok(Packet { origin, source, destination, proto, port: endpoint.port, icmp_type: 0, state: FlowKind::New, turn: 0 })
    }

    fn instance_of(&self, slug: &moat_model::Slug, build: bool) -> Option<AddressPair> {
        let fits = |purpose: Purpose| matches!(purpose, Purpose::Build | Purpose::PreDeploy) == build;
        self.live.values().filter(|l| l.slug == *slug && fits(l.purpose)).max_by_key(|l| l.ready).map(|l| l.address)
    }
}
