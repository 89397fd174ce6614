//! What the probes look at, and what they saw in words.

use crate::chain;
use crate::core::Core;
use crate::protocol::{Verified, VerifiedPair};
use ipnet::IpNet;
use moat_engine::EngineError;
use moat_model::net::MAX_NETWORKS;
use moat_model::{DesiredState, Verdict};
use moat_net_linux::Network;
use moat_probe::{Report, Row, Scene, Target, UplinkFacts};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Everything a verification needs, owned, so that it can run on a thread of its own.
pub struct OwnedScene {
    state: DesiredState,
    targets: Vec<Target>,
    router_ns: OwnedFd,
    expected_ruleset: String,
    uplink: UplinkFacts,
    random_ports: u32,
    seed: u64,
}

impl Core {
    /// The scene of this moment.
    pub(crate) async fn scene(&self, random_ports: u32) -> Result<OwnedScene, EngineError> {
        let engine = self.engine.linux().ok_or_else(|| EngineError::new(LOOK, "there is no network here"))?;
        let network: &Network = engine.network();
        // Looked at once more now: it stays as it is until the probes are done.
        network.refresh_host_addresses().await.map_err(|error| network_error(&error))?;
        let mut state = self.desired.clone();
        let mut targets = Vec::new();
        for (id, live) in self.live.iter().filter(|(_, l)| l.started && !l.stopping) {
            // An instance that ends just now is no target.
            let Ok(ns) = engine.instance_ns(id).await else { continue };
            if let (Some(port), Some(service)) = (live.http_port, state.services.get_mut(&live.slug)) {
                // The matrix speaks of the port that was found.
                service.port = Some(port);
            }
            targets.push(Target {
                slug: live.slug.clone(),
                instance: id.clone(),
                purpose: live.purpose,
                address: live.address,
                vip: self.desired.services.get(&live.slug).and_then(|s| s.vip),
                ready: live.ready,
                ns,
                listeners: live.listeners.clone(),
                http_port: live.http_port,
            });
        }
        let uplink = uplink_facts(network, &state)?;
        let random = crate::blueprints::random();
        Ok(OwnedScene {
            state,
            targets,
            router_ns: network.router_ns().map_err(|error| network_error(&error))?.into(),
            expected_ruleset: network.expected_ruleset(),
            uplink,
            random_ports,
            seed: u64::from_be_bytes([random[0], random[1], random[2], random[3], random[4], random[5], random[6], random[7]]),
        })
    }
}

/// More pairs than this are counted; the table names each.
const PAIRS_NAMED: usize = 6;
const LOOK: &str = "look at the private network";

fn network_error(error: &moat_net_linux::NetError) -> EngineError {
    EngineError::new(LOOK, chain(error))
}

/// The way out, and every range that no route of the host may lead into.
fn uplink_facts(network: &Network, state: &DesiredState) -> Result<UplinkFacts, EngineError> {
    let uplink = network
        .uplink()
        .map_err(|error| network_error(&error))?
        .ok_or_else(|| EngineError::new(LOOK, "there is no uplink now").hint("`moat up` makes it"))?;
    let networks = u32::from(MAX_NETWORKS);
    let range = |first: u32| ipnet::Ipv4Net::new(std::net::Ipv4Addr::from(0x0a00_0000 | (first << 16)), 10).map(IpNet::V4);
    let mut private_ranges: Vec<IpNet> = [range(64), range(64 + networks)].into_iter().flatten().collect();
    // The installation's own /48, read off any address of it.
    if let Some(vip) = state.services.values().find_map(|s| s.vip)
        && let Ok(net) = ipnet::Ipv6Net::new(vip.v6, 48)
    {
        private_ranges.push(IpNet::V6(net.trunc()));
    }
    Ok(UplinkFacts {
        host_link: uplink.host_link,
        router_link: uplink.router_link.to_owned(),
        host_address: uplink.host_address,
        router_address: uplink.router_address,
        private_ranges,
        ipv6: uplink.ipv6,
    })
}

impl OwnedScene {
    /// Runs the probes; blocks.
    pub fn run(self) -> Result<Verified, serde_json::Error> {
        let Self { state, targets, router_ns, expected_ruleset, uplink, random_ports, seed } = self;
        let report =
            moat_probe::verify(&Scene { state: &state, targets, router_ns, expected_ruleset, uplink, random_ports, seed, names: true });
        in_words(&report)
    }
}

fn in_words(report: &Report) -> Result<Verified, serde_json::Error> {
    Ok(Verified {
        passed: report.passed(),
        pairs: report
            .summary()
            .into_iter()
            .map(|p| VerifiedPair {
                agrees: p.agrees(),
                from: p.from.to_string(),
                to: p.to.to_string(),
                allowed: p.allowed,
                denied: p.denied,
                unproven: p.unproven,
            })
            .collect(),
        disagreements: report.disagreements().map(sentence).collect(),
        failed_controls: report.controls.iter().filter(|c| !c.ok).map(|c| format!("{}: {}", c.name, c.detail)).collect(),
        controls: report.controls.len(),
        drift: by_difference(report),
        probes: report.probes,
        duration_ms: report.duration_ms,
        report: serde_json::to_value(report)?,
    })
}

/// Each difference once, with the pairs it concerns.
fn by_difference(report: &Report) -> Vec<String> {
    let mut pairs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for drift in &report.drift {
        let named = pairs.entry(&drift.what).or_default();
        named.extend(drift.pair.as_ref().map(|(from, to)| format!("{from} → {to}")));
    }
    let words = pairs.into_iter().map(|(what, named)| match named.len() {
        0 => what.to_owned(),
        1..=PAIRS_NAMED => format!("{}: {what}", named.join(", ")),
        more => format!("{} and {} more pairs: {what}", named[..PAIRS_NAMED].join(", "), more - PAIRS_NAMED),
    });
    words.collect()
}

fn sentence(row: &Row) -> String {
    let expected = match row.expected {
        Verdict::Allow { by } => format!("should arrive ({})", moat_planner::explain::rule_word(by)),
        Verdict::Deny { because } => format!("should not arrive ({})", moat_planner::explain::reason_word(because)),
    };
    let observed = match &row.observed {
        moat_probe::Observed::Reached => "it did".to_owned(),
        moat_probe::Observed::NotReached => "it did not".to_owned(),
        moat_probe::Observed::Unproven(why) => format!("nothing is proved: {why}"),
    };
    let detail = row.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
    format!("{} → {}:{} ({}, {}): {expected}, {observed}{detail}", row.from, row.to, row.port, row.what, row.address)
}
