//! The router's whole ruleset against the one it should have.
//!
//! The expected text is loaded in a scratch namespace and listed by the same tool as the live one, so that both are
//! spelled alike. Counters, handles, timeouts and the elements of sets that packets fill are left out.

use super::{Error, others, peer_of_address, peer_of_link, per_pair, senders_by_mark};
use crate::report::Drift;
use crate::scene::{Scene, Target};
use moat_model::Peer;
use moat_net_linux::{nft, ns};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A ruleset, comparable.
#[derive(Debug, Default, PartialEq)]
struct Rules {
    /// Tables, chains, sets, maps and counters without their content, by kind and name.
    frames: BTreeMap<String, Value>,
    /// Rules by chain, in order.
    chains: BTreeMap<String, Vec<Value>>,
    /// Elements by set or map.
    elements: BTreeMap<String, Vec<Value>>,
}

impl Rules {
    fn of(items: Vec<Value>) -> Self {
        let mut out = Self::default();
        for item in items {
            let Value::Object(item) = item else { continue };
            for (kind, mut body) in item {
                if kind == "metainfo" {
                    continue;
                }
                strip(&mut body);
                let place = [&body["family"], &body["table"]].map(|v| v.as_str().unwrap_or_default().to_owned()).join(" ");
                if kind == "rule" {
                    let chain = format!("{place} {}", body["chain"].as_str().unwrap_or_default());
                    out.chains.entry(chain).or_default().push(body["expr"].take());
                    continue;
                }
                let name = format!("{place} {}", body["name"].as_str().unwrap_or_default());
                let elements = body.as_object_mut().and_then(|body| body.remove("elem"));
                // `nft` 1.0.6 leaves `dynamic` out of its JSON; nothing of the policy ever times out.
                let learned = body["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "dynamic" || flag == "timeout"));
                if let (Some(Value::Array(elements)), false) = (elements, learned) {
                    out.elements.insert(name.clone(), elements);
                }
                out.frames.insert(format!("{kind} `{}`", name.trim()), body);
            }
        }
        out
    }
}

/// Removes what differs between two equal rulesets.
fn strip(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for key in ["handle", "index", "packets", "bytes", "expires"] {
                object.remove(key);
            }
            object.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every difference; `suspects` gets the ports that differing rules and elements speak of.
pub(super) fn find(scene: &Scene<'_>, suspects: &mut BTreeSet<u16>) -> Result<Vec<Drift>, Error> {
    let list = || nft::list(&["list", "ruleset"]).map(|items| Rules::of(items.unwrap_or_default()));
    let live = ns::in_ns(&scene.router_ns, list)??;
    let expected = ns::in_ns(&ns::scratch()?, || nft::apply(&scene.expected_ruleset, "load the expected ruleset").and_then(|()| list()))??;
    Ok(compare(scene, &expected, &live, suspects))
}

fn compare(scene: &Scene<'_>, expected: &Rules, live: &Rules, suspects: &mut BTreeSet<u16>) -> Vec<Drift> {
    let mut out = Vec::new();
    let names: BTreeSet<&String> = expected.frames.keys().chain(live.frames.keys()).collect();
    for name in names {
        let what = match (expected.frames.get(name), live.frames.get(name)) {
            (Some(_), None) => format!("the router lacks the {name}"),
            (None, Some(_)) => format!("the router has a {name} that does not belong there"),
            (Some(a), Some(b)) if a != b => format!("the {name} is declared otherwise than it should be"),
            (Some(_), Some(_)) | (None, None) => continue,
        };
        out.push(Drift { pair: None, what });
    }
    let empty = Vec::new();
    let of = |map: &BTreeMap<String, Vec<Value>>, name: &str| map.get(name).cloned().unwrap_or_else(|| empty.clone());
    let chains: BTreeSet<&String> = expected.chains.keys().chain(live.chains.keys()).collect();
    for chain in chains {
        let (a, b) = (of(&expected.chains, chain), of(&live.chains, chain));
        let (lost, extra) = (difference(&a, &b), difference(&b, &a));
        if a != b && lost.is_empty() && extra.is_empty() {
            out.push(Drift { pair: None, what: format!("the rules of chain `{chain}` are in another order") });
        }
        for (verb, rules) in [("lacks the rule", lost), ("has a foreign rule", extra)] {
            for rule in rules {
                ports(&rule, suspects);
                let text = words(&rule);
                let mut pairs = pairs_of_rule(scene, &rule);
                if pairs.is_empty() && text.contains("@receivers") {
                    // It decides for every pair of a zone, be it for a protocol that no attempt uses.
                    pairs = allowed_pairs(scene);
                }
                out.extend(per_pair(pairs, &format!("chain `{chain}` {verb}: {text}")));
            }
        }
    }
    let sets: BTreeSet<&String> = expected.elements.keys().chain(live.elements.keys()).collect();
    for set in sets {
        let (a, b) = (of(&expected.elements, set), of(&live.elements, set));
        for (verb, elements) in [("lacks the element", difference(&a, &b)), ("has a foreign element", difference(&b, &a))] {
            for element in elements {
                out.extend(per_pair(pairs_of_element(scene, set, &element), &format!("set `{set}` {verb}: {}", words(&element))));
            }
        }
    }
    out
}

/// Live services that may open flows to each other.
fn allowed_pairs(scene: &Scene<'_>) -> BTreeSet<(Peer, Peer)> {
    let peers: BTreeSet<Peer> = scene.targets.iter().map(Target::peer).collect();
    let pairs = peers.iter().flat_map(|from| peers.iter().map(move |to| (from.clone(), to.clone())));
    pairs.filter(|(from, to)| from != to && moat_planner::reach::verdict(scene.state, from, to, None).is_allowed()).collect()
}

/// Items of `a` that `b` has fewer of.
fn difference(a: &[Value], b: &[Value]) -> Vec<Value> {
    let mut rest: BTreeMap<String, usize> = BTreeMap::new();
    for item in b {
        *rest.entry(item.to_string()).or_default() += 1;
    }
    let mut out = Vec::new();
    for item in a {
        match rest.get_mut(&item.to_string()) {
            Some(count) if *count > 0 => *count -= 1,
            Some(_) | None => out.push(item.clone()),
        }
    }
    out
}

/// A rule or element in few words: its strings and numbers, in order.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(words).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" "),
        Value::Object(object) => {
            let word = |(key, value): (&String, &Value)| match key.as_str() {
                "concat" => value.as_array().map(|parts| parts.iter().map(words).collect::<Vec<_>>().join(" . ")).unwrap_or_default(),
                "match" => format!("{} {} {}", words(&value["left"]), value["op"].as_str().unwrap_or_default(), words(&value["right"])),
                "payload" => format!("{} {}", words(&value["protocol"]), words(&value["field"])),
                "meta" | "elem" | "key" | "val" => words(value),
                "prefix" => format!("{}/{}", words(&value["addr"]), words(&value["len"])),
                "range" => value.as_array().map(|ends| ends.iter().map(words).collect::<Vec<_>>().join("-")).unwrap_or_default(),
                _ => format!("{key} {}", words(value)).trim().to_owned(),
            };
            object.iter().map(word).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
        }
    }
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
