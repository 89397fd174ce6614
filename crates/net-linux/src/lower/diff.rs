//! The transaction between two rulesets.

use super::TABLE;
use super::ir::{Action, Key, Ruleset, Set, Value};
use super::text::{RuleText, replace, write_elements};
use moat_model::policy::NetPolicy;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

/// The `nft` text that makes `new` of `old`, to be run as one transaction; empty when they are equal.
///
/// Only elements and service chains are changed in place; when a rule or the head of a set differs, the whole table is
/// replaced.
pub fn transaction(old: &Ruleset, new: &Ruleset) -> String {
    if old == new {
        return String::new();
    }
    if !same_frame(old, new) {
        return replace(new);
    }
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_difference(&mut out, old, new);
    out
}

fn same_frame(old: &Ruleset, new: &Ruleset) -> bool {
    let head = |set: &Set| (set.key.clone(), set.value, set.interval, set.learned);
    let rules = |ruleset: &Ruleset| {
        ruleset
            .chains
            .iter()
            .filter(|(name, _)| !super::text::is_dynamic(name))
            .map(|(name, chain)| (name.clone(), chain.clone()))
            .collect::<Vec<_>>()
    };
    old.counters == new.counters
        && old.sets.len() == new.sets.len()
        && old.sets.iter().zip(&new.sets).all(|((a, x), (b, y))| a == b && head(x) == head(y))
        && rules(old) == rules(new)
}

fn write_difference(out: &mut String, old: &Ruleset, new: &Ruleset) -> fmt::Result {
    for (name, chain) in new.chains.iter().filter(|(name, chain)| old.chains.get(*name) != Some(chain)) {
        match old.chains.get(name) {
            Some(_) => writeln!(out, "flush chain inet {TABLE} {name}")?,
            None => writeln!(out, "add chain inet {TABLE} {name}")?,
        }
        for rule in &chain.rules {
            writeln!(out, "add rule inet {TABLE} {name} {}", RuleText(rule))?;
        }
    }
    for (name, new) in &new.sets {
        if let Some(old) = old.sets.get(name) {
            write_elements_of(out, "delete", name, &missing(&old.elements, &new.elements))?;
        }
    }
    for (name, new) in &new.sets {
        if let Some(old) = old.sets.get(name) {
            write_elements_of(out, "add", name, &missing(&new.elements, &old.elements))?;
        }
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        writeln!(out, "flush chain inet {TABLE} {name}\ndelete chain inet {TABLE} {name}")?;
    }
    Ok(())
}

type Elements<'a> = Vec<(&'a Key, Option<&'a Value>)>;

/// Elements of `a` that `b` lacks or holds with another value.
fn missing<'a>(a: &'a BTreeMap<Key, Option<Value>>, b: &BTreeMap<Key, Option<Value>>) -> Elements<'a> {
    a.iter().filter(|(key, value)| b.get(*key) != Some(*value)).map(|(key, value)| (key, value.as_ref())).collect()
}

fn write_elements_of(out: &mut String, verb: &str, set: &str, elements: &Elements<'_>) -> fmt::Result {
    if elements.is_empty() {
        return Ok(());
    }
    write!(out, "{verb} element inet {TABLE} {set} {{ ")?;
    write_elements(out, elements.iter().copied())?;
    writeln!(out, " }}")
}

/// The parts of two policies that differ, as two small policies: `transaction` between the rulesets of these equals the
/// one between the whole rulesets, at the cost of what changed. Every entry lowers to elements of its own, which
/// [`super::check`] guarantees.
pub fn difference(old: &NetPolicy, new: &NetPolicy) -> (NetPolicy, NetPolicy) {
    (only_in(old, new), only_in(new, old))
}

fn only_in(a: &NetPolicy, b: &NetPolicy) -> NetPolicy {
    let mut services = only_in_map(&a.services, &b.services);
    let turned = a.held.symmetric_difference(&b.held);
    services.extend(turned.filter_map(|vip| Some((*vip, a.services.get(vip)?.clone()))));
    NetPolicy {
        held: a.held.iter().filter(|vip| services.contains_key(*vip)).copied().collect(),
        sources: only_in_map(&a.sources, &b.sources),
        receivers: only_in_set(&a.receivers, &b.receivers),
        pairs: only_in_set(&a.pairs, &b.pairs),
        ingress: only_in_set(&a.ingress, &b.ingress),
        services,
    }
}

fn only_in_set<T: Ord + Clone>(a: &BTreeSet<T>, b: &BTreeSet<T>) -> BTreeSet<T> {
    a.difference(b).cloned().collect()
}

/// Entries of `a` that `b` lacks or holds otherwise; both in order, so one walk is enough.
fn only_in_map<K: Ord + Clone, V: PartialEq + Clone>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    let mut others = b.iter().peekable();
    let mut out = BTreeMap::new();
    for (key, value) in a {
        while others.next_if(|(other, _)| *other < key).is_some() {}
        if others.peek().is_none_or(|(other, held)| *other != key || *held != value) {
            out.insert(key.clone(), value.clone());
        }
    }
    out
}

impl Ruleset {
    /// Names of the chains and sets that rules use but that are not there; empty for every ruleset this module makes.
    pub fn dangling(&self) -> Vec<String> {
        let actions = self.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.actions);
        let chains: BTreeSet<&str> = actions
            .flat_map(|action| match action {
                Action::Goto(chain) => vec![*chain],
                Action::ByState(states) => states.iter().map(|(_, chain)| *chain).collect(),
                Action::ByProto(protocols) => protocols.iter().map(|(_, chain)| *chain).collect(),
                Action::Accept
                | Action::Drop
                | Action::ByMap(..)
                | Action::MarkFrom(..)
                | Action::TranslateDestination(..)
                | Action::TranslateSource(_)
                | Action::Masquerade
                | Action::Reset
                | Action::Unreachable(_)
                | Action::Count(_)
                | Action::Learn(..) => vec![],
            })
            .chain(self.sets.values().flat_map(|set| set.elements.values()).filter_map(|value| match value {
                Some(Value::Goto(chain)) => Some(chain.as_str()),
                Some(Value::Mark(_) | Value::Address(_)) | None => None,
            }))
            .collect();
        chains.into_iter().filter(|chain| !self.chains.contains_key(*chain)).map(str::to_owned).collect()
    }
}
