//! What `nft` lists of a namespace, made comparable, and how two such listings differ.
//!
//! The rules that should be are loaded in a scratch namespace and listed by the same tool as the live ones, so that both are
//! spelled alike. Counters, handles, timeouts and the elements of sets that packets fill are left out.

use crate::{NetError, nft, ns};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::AsFd;

/// A ruleset, comparable.
#[derive(Debug, Default, PartialEq)]
pub struct Listing {
    /// Tables, chains, sets, maps and counters without their content, by kind and name.
    frames: BTreeMap<String, Value>,
    /// Rules by chain, in order.
    chains: BTreeMap<String, Vec<Value>>,
    /// Elements by set or map.
    elements: BTreeMap<String, Vec<Value>>,
}

/// One way in which live rules are not what they should be.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// A table, chain, set, map or counter is missing, foreign or declared otherwise; the words say which.
    Frame(String),
    /// The rules of a chain are in another order.
    Order {
        /// The chain with its table.
        chain: String,
    },
    /// A rule is missing or foreign.
    Rule {
        /// The chain with its table.
        chain: String,
        /// Whether it should not be there; it is missing otherwise.
        foreign: bool,
        /// Its expressions, as `nft -j` lists them.
        rule: Value,
    },
    /// An element of a set or map is missing or foreign.
    Element {
        /// The set with its table.
        set: String,
        /// Whether it should not be there; it is missing otherwise.
        foreign: bool,
        /// It, as `nft -j` lists it.
        element: Value,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(what) => f.write_str(what),
            Self::Order { chain } => write!(f, "the rules of chain `{chain}` are in another order"),
            Self::Rule { chain, foreign, rule } => {
                write!(f, "chain `{chain}` {}: {}", if *foreign { "has a foreign rule" } else { "lacks the rule" }, words(rule))
            }
            Self::Element { set, foreign, element } => {
                write!(f, "set `{set}` {}: {}", if *foreign { "has a foreign element" } else { "lacks the element" }, words(element))
            }
        }
    }
}

impl Listing {
    /// Lists what `arguments` of `nft list` name, in the namespace of the calling thread; empty when it is not there.
    pub fn here(arguments: &[&str]) -> Result<Self, NetError> {
        Ok(Self::of(nft::list(&[&["list"], arguments].concat())?.unwrap_or_default()))
    }

    /// Everything in a namespace.
    pub fn live(ns: &impl AsFd) -> Result<Self, NetError> {
        ns::in_ns(ns, || Self::here(&["ruleset"])).map_err(NetError::io("enter a network namespace"))?
    }

    /// The listing of a text.
    pub fn expected(text: &str) -> Result<Self, NetError> {
        let scratch = ns::scratch().map_err(NetError::io("make a scratch network namespace"))?;
        let load = || nft::apply(text, "load the expected ruleset").and_then(|()| Self::here(&["ruleset"]));
        ns::in_ns(&scratch, load).map_err(NetError::io("enter a scratch network namespace"))?
    }

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

    /// How `live` differs from this; empty when it does not. `whose` begins the sentences about frames, such as "the router".
    pub fn differences(&self, live: &Self, whose: &str) -> Vec<Difference> {
        if self == live {
            return Vec::new();
        }
        let mut out = Vec::new();
        let names: BTreeSet<&String> = self.frames.keys().chain(live.frames.keys()).collect();
        for name in names {
            out.push(Difference::Frame(match (self.frames.get(name), live.frames.get(name)) {
                (Some(_), None) => format!("{whose} lacks the {name}"),
                (None, Some(_)) => format!("{whose} has a {name} that does not belong there"),
                (Some(a), Some(b)) if a != b => format!("the {name} is declared otherwise than it should be"),
                (Some(_), Some(_)) | (None, None) => continue,
            }));
        }
        for (chain, a, b) in side_by_side(&self.chains, &live.chains) {
            let (lost, extra) = (missing(a, b), missing(b, a));
            if a != b && lost.is_empty() && extra.is_empty() {
                out.push(Difference::Order { chain: chain.clone() });
            }
            for (foreign, rules) in [(false, lost), (true, extra)] {
                out.extend(rules.into_iter().map(|rule| Difference::Rule { chain: chain.clone(), foreign, rule }));
            }
        }
        for (set, a, b) in side_by_side(&self.elements, &live.elements) {
            for (foreign, elements) in [(false, missing(a, b)), (true, missing(b, a))] {
                out.extend(elements.into_iter().map(|element| Difference::Element { set: set.clone(), foreign, element }));
            }
        }
        out
    }
}

type Lists = BTreeMap<String, Vec<Value>>;

fn side_by_side<'a>(a: &'a Lists, b: &'a Lists) -> impl Iterator<Item = (&'a String, &'a [Value], &'a [Value])> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let of = |lists: &'a Lists, name: &String| lists.get(name).map_or(&[][..], Vec::as_slice);
    names.into_iter().map(move |name| (name, of(a, name), of(b, name)))
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

/// Items of `a` that `b` has fewer of.
fn missing(a: &[Value], b: &[Value]) -> Vec<Value> {
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
pub fn words(value: &Value) -> String {
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

/// The first few of a list, for one line.
pub fn summary(differences: &[Difference]) -> String {
    const SHOWN: usize = 3;
    let more = differences.len().saturating_sub(SHOWN);
    let shown = differences.iter().take(SHOWN).map(ToString::to_string);
    shown.chain((more > 0).then(|| format!("{more} more"))).collect::<Vec<_>>().join("; ")
}
