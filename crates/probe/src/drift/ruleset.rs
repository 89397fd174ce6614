//! The router's whole ruleset against the one it should have, each difference with the pairs it decides for.

use super::{Error, others, peer_of_address, peer_of_link, per_pair, senders_by_mark};
use crate::report::Drift;
use crate::scene::{Scene, Target};
use moat_model::Peer;
use moat_net_linux::listing::{Difference, Listing, words};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Every difference; `suspects` gets the ports that differing rules and elements speak of.
pub(super) fn find(scene: &Scene<'_>, suspects: &mut BTreeSet<u16>) -> Result<Vec<Drift>, Error> {
    let live = Listing::live(&scene.router_ns)?;
    let differences = Listing::expected(&scene.expected_ruleset)?.differences(&live, "the router");
    Ok(differences.iter().flat_map(|difference| drift(scene, difference, suspects)).collect())
}

fn drift(scene: &Scene<'_>, difference: &Difference, suspects: &mut BTreeSet<u16>) -> Vec<Drift> {
    let pairs = match difference {
        Difference::Frame(_) | Difference::Order { .. } => BTreeSet::new(),
        Difference::Rule { rule, .. } => {
            ports(rule, suspects);
            let pairs = pairs_of_rule(scene, rule);
            // It decides for every pair of a zone, be it for a protocol that no attempt uses.
            if pairs.is_empty() && words(rule).contains("@receivers") { allowed_pairs(scene) } else { pairs }
        }
        Difference::Element { set, element, .. } => pairs_of_element(scene, set, element),
    };
    per_pair(pairs, &difference.to_string())
}

/// Live services that may open flows to each other.
fn allowed_pairs(scene: &Scene<'_>) -> BTreeSet<(Peer, Peer)> {
    let peers: BTreeSet<Peer> = scene.targets.iter().map(Target::peer).collect();
    let pairs = peers.iter().flat_map(|from| peers.iter().map(move |to| (from.clone(), to.clone())));
    pairs.filter(|(from, to)| from != to && moat_planner::reach::verdict(scene.state, from, to, None).is_allowed()).collect()
}

/// Every value of a match on a destination port.
fn ports(rule: &Value, out: &mut BTreeSet<u16>) {
    for (left, right) in matches(rule) {
        if words(left).contains("dport") {
            leaves(right, &mut |leaf| {
                if let Some(port) = leaf.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|port| *port > 0) {
                    out.insert(port);
                }
            });
        }
    }
}

fn matches(rule: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    rule.as_array().into_iter().flatten().filter_map(|expr| expr.get("match")).map(|m| (&m["left"], &m["right"]))
}

fn leaves(value: &Value, f: &mut impl FnMut(&Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| leaves(item, f)),
        Value::Object(object) => object.values().for_each(|item| leaves(item, f)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => f(value),
    }
}

/// Peers by the addresses and links in a value, in order, each once.
fn peers_in(scene: &Scene<'_>, value: &Value) -> Vec<Peer> {
    let mut out = Vec::new();
    leaves(value, &mut |leaf| {
        let Some(text) = leaf.as_str() else { return };
        let peer = text.parse::<IpAddr>().ok().and_then(|address| peer_of_address(scene, address)).or_else(|| peer_of_link(scene, text));
        out.extend(peer.filter(|peer| !out.contains(peer)));
    });
    out
}

fn pairs_of_rule(scene: &Scene<'_>, rule: &Value) -> BTreeSet<(Peer, Peer)> {
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (left, right) in matches(rule) {
        let field = words(left);
        let side = if field.contains("saddr") || field.contains("iif") { &mut from } else { &mut to };
        side.extend(peers_in(scene, right));
    }
    match (from.is_empty(), to.is_empty()) {
        (true, true) => BTreeSet::new(),
        (true, false) => to.iter().flat_map(|to| others(scene, to).map(move |from| (from, to.clone()))).collect(),
        (false, true) => from.iter().flat_map(|from| others(scene, from).map(move |to| (from.clone(), to))).collect(),
        (false, false) => from.iter().flat_map(|from| to.iter().map(move |to| (from.clone(), to.clone()))).collect(),
    }
}

fn pairs_of_element(scene: &Scene<'_>, set: &str, element: &Value) -> BTreeSet<(Peer, Peer)> {
    let peers = peers_in(scene, element);
    let (Some(first), second) = (peers.first(), peers.get(1)) else { return BTreeSet::new() };
    let set = set.rsplit(' ').next().unwrap_or_default();
    if let Some(second) = second {
        return [(first.clone(), second.clone())].into();
    }
    let to = |from: Peer| (from, first.clone());
    if set.starts_with("http") {
        return [to(Peer::Ingress)].into();
    }
    if set.starts_with("internet") || set.starts_with("ranges") {
        return [(first.clone(), Peer::Internet)].into();
    }
    if set.starts_with("sources") {
        return others(scene, first).chain([Peer::Internet]).map(|to| (first.clone(), to)).collect();
    }
    let mut marks = Vec::new();
    leaves(element, &mut |leaf| marks.extend(leaf.as_u64()));
    let senders: BTreeSet<(Peer, Peer)> =
        marks.into_iter().flat_map(|mark| senders_by_mark(scene, mark)).filter(|from| from != first).map(to).collect();
    if senders.is_empty() { others(scene, first).map(to).collect() } else { senders }
}
