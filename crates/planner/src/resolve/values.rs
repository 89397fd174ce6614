//! Variables and their values.
//!
//! A value is a node: a text, or what another node has. References make a graph in which each node leads to at most one
//! other, so that a value is found by following a line, however long, and a circle is what meets itself.

mod gather;

use super::Missing;
use super::defaults::{self, DefaultValue};
use crate::codes::{Code, Report};
use crate::memory::Memory;
use crate::names::quoted;
use moat_model::{Secret, Span};
use std::collections::BTreeMap;

/// The kernel takes no longer text in an environment (MAX_ARG_STRLEN).
const LONGEST: usize = 128 * 1024;

/// Where a node's value comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Text(Secret),
    /// What another node has, after a text.
    After(String, usize),
    /// Nowhere: something was said about it, or it is asked for.
    Nothing,
}

#[derive(Debug)]
struct Node {
    /// `owner.KEY`, for circles.
    label: String,
    input: usize,
    span: Span,
    pointer: String,
    source: Source,
    value: Option<Secret>,
}

/// How a service came by a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It writes it.
    Own,
    /// By a group.
    Group,
    /// It wrote it once; omitted ones stay.
    Kept,
}

/// A variable of a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) node: usize,
    pub(crate) origin: Origin,
}

/// The variables of every service, defaults aside.
pub(crate) struct Values<'a> {
    nodes: Vec<Node>,
    slots: Vec<BTreeMap<&'a str, Slot>>,
    kept: Vec<BTreeMap<String, Slot>>,
    /// Defaults of every service.
    defaults: Vec<Vec<defaults::Default>>,
    groups: BTreeMap<(usize, &'a str), BTreeMap<String, usize>>,
    /// (file, service name) of each entry, for the memory.
    owners: Vec<(&'a std::path::Path, &'a str)>,
    paths: Vec<&'a std::path::Path>,
    missing: Vec<Missing>,
}

impl Values<'_> {
    /// Follows every reference to its end.
    pub(crate) fn evaluate(&mut self, report: &mut Report) {
        let mut on_path = vec![false; self.nodes.len()];
        let mut done = vec![false; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let mut path = Vec::new();
            let mut at = start;
            while !done[at] {
                if on_path[at] {
                    let from = path.iter().position(|n| *n == at).unwrap_or_default();
                    self.say_circle(&path[from..], report);
                    break;
                }
                on_path[at] = true;
                path.push(at);
                match self.nodes[at].source {
                    Source::After(_, next) => at = next,
                    Source::Text(_) | Source::Nothing => break,
                }
            }
            for node in path.into_iter().rev() {
                self.nodes[node].value = match &self.nodes[node].source {
                    Source::Text(text) => Some(text.clone()),
                    Source::Nothing => None,
                    Source::After(prefix, next) => {
                        let value = self.nodes[*next].value.as_ref().filter(|v| prefix.len() + v.expose().len() <= LONGEST);
                        value.map(|value| Secret::new(format!("{prefix}{}", value.expose())))
                    }
                };
                done[node] = true;
                on_path[node] = false;
            }
        }
    }

    fn say_circle(&self, circle: &[usize], report: &mut Report) {
        const MOST: usize = 6;
        let Some(first) = circle.iter().min_by_key(|n| (self.nodes[**n].input, self.nodes[**n].span.start)) else { return };
        let start = circle.iter().position(|n| n == first).unwrap_or_default();
        let mut line: Vec<String> =
            (0..circle.len().min(MOST)).map(|i| quoted(&self.nodes[circle[(start + i) % circle.len()]].label)).collect();
        if circle.len() > MOST {
            line.push("…".to_owned());
        }
        line.push(quoted(&self.nodes[*first].label));
        let node = &self.nodes[*first];
        let help = "give one of them a `value`".to_owned();
        report.say(
            node.input,
            Code::E0306,
            node.span,
            node.pointer.clone(),
            format!("these references go in a circle: {}", line.join(" → ")),
            help,
        );
    }

    /// Writes down every value, so that generated and answered ones stay as they are and omitted ones stay at all.
    pub(crate) fn remember(&self, memory: &mut Memory) {
        for (index, (path, name)) in self.owners.iter().enumerate() {
            let own = self.variables(index).filter(|(_, slot)| slot.origin != Origin::Group);
            let values: Vec<(&str, Secret)> = own.filter_map(|(key, slot)| Some((key, self.value(slot)?.clone()))).collect();
            let remembered = &mut memory.service(path, name).values;
            for (key, value) in values {
                remembered.insert(key.to_owned(), value);
            }
        }
        for ((input, name), nodes) in &self.groups {
            let Some(file) = self.paths.get(*input).and_then(|path| memory.files.get_mut(*path)) else { continue };
            let remembered = file.groups.entry((*name).to_owned()).or_default();
            for (key, node) in nodes {
                if let Some(value) = &self.nodes[*node].value {
                    remembered.insert(key.clone(), value.clone());
                }
            }
        }
    }

    /// All variables of a service but the defaults.
    pub(crate) fn variables(&self, entry: usize) -> impl Iterator<Item = (&str, Slot)> {
        let own = self.slots[entry].iter().map(|(key, slot)| (*key, *slot));
        own.chain(self.kept[entry].iter().map(|(key, slot)| (key.as_str(), *slot)))
    }

    /// A variable of a service, defaults aside.
    pub(crate) fn variable(&self, entry: usize, key: &str) -> Option<Slot> {
        self.slots[entry].get(key).or_else(|| self.kept[entry].get(key)).copied()
    }

    /// The defaults of a service.
    pub(crate) fn defaults(&self, entry: usize) -> &[defaults::Default] {
        &self.defaults[entry]
    }

    /// A value, once they are evaluated.
    pub(crate) fn value(&self, slot: Slot) -> Option<&Secret> {
        self.nodes[slot.node].value.as_ref()
    }

    /// Where a variable is written.
    pub(crate) fn place(&self, slot: Slot) -> (usize, Span, &str) {
        let node = &self.nodes[slot.node];
        (node.input, node.span, &node.pointer)
    }

    /// The text of a default of this service, once variables are evaluated.
    pub(crate) fn default_text(&self, entry: usize, default: &DefaultValue) -> String {
        match default {
            DefaultValue::Text(text) => text.clone(),
            DefaultValue::PortAfter(prefix) => format!("{prefix}{}", self.port_text(entry)),
        }
    }

    /// What a service's `PORT` says.
    pub(crate) fn port_text(&self, entry: usize) -> String {
        let written = self.variable(entry, "PORT").and_then(|slot| self.value(slot));
        written.map_or_else(|| moat_model::net::DEFAULT_HTTP_PORT.to_string(), |value| value.expose().trim().to_owned())
    }

    pub(crate) fn into_missing(self) -> Vec<Missing> {
        self.missing
    }
}
