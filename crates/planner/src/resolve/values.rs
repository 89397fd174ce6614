//! Variables and their values.
//!
//! A value is a node: a text, or what another node has. References make a graph in which each node leads to at most one
//! other, so that a value is found by following a line, however long, and a circle is what meets itself.

mod gather;

use super::workspace::{Entry, Workspace};
use super::{Missing, Settings, defaults};
use crate::codes::{Code, Report};
use crate::memory::Memory;
use crate::names::quoted;
use moat_model::net::DEFAULT_HTTP_PORT;
use moat_model::{Secret, Slug, Span};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The kernel takes no longer text in an environment (MAX_ARG_STRLEN).
const LONGEST: usize = 128 * 1024;

/// Where a node's value comes from. Not `Debug`: values may be secret.
pub(crate) enum Source<'a> {
    Text(Cow<'a, str>),
    /// What another node has, after a text.
    After(String, usize),
    /// Nowhere: something was said about it, or it is asked for.
    Nothing,
}

struct Node<'a> {
    input: usize,
    span: Span,
    pointer: &'a str,
    source: Source<'a>,
    /// What became of a [`Source::After`].
    found: Option<String>,
}

impl Node<'_> {
    fn text(&self) -> Option<&str> {
        match &self.source {
            Source::Text(text) => Some(text),
            Source::After(..) => self.found.as_deref(),
            Source::Nothing => None,
        }
    }
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
    workspace: &'a Workspace<'a>,
    settings: &'a Settings,
    nodes: Vec<Node<'a>>,
    /// By entry: variables that it writes.
    slots: Vec<BTreeMap<&'a str, Slot>>,
    /// By entry: variables by groups, and those it once wrote.
    others: Vec<BTreeMap<String, Slot>>,
    groups: BTreeMap<(usize, &'a str), BTreeMap<String, usize>>,
    missing: Vec<Missing>,
    /// By entry: those that have its port in a variable.
    port_takers: BTreeMap<usize, BTreeSet<Slug>>,
    /// Credentials of registries by file and name.
    credentials: BTreeMap<usize, BTreeMap<String, Secret>>,
}

impl<'a> Values<'a> {
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
                if let Source::After(prefix, next) = &self.nodes[node].source {
                    let value = self.nodes[*next].text().filter(|v| prefix.len() + v.len() <= LONGEST);
                    self.nodes[node].found = value.map(|value| format!("{prefix}{value}"));
                }
                done[node] = true;
                on_path[node] = false;
            }
        }
    }

    /// `owner.KEY` of a node.
    fn label(&self, node: usize) -> String {
        let of_entry = |slots: &BTreeMap<&str, Slot>| slots.iter().find(|(_, s)| s.node == node).map(|(key, _)| (*key).to_owned());
        let entries = self.workspace.entries.iter().zip(&self.slots);
        let mut labels = entries.filter_map(|(entry, slots)| Some(format!("{}.{}", entry.spec.name.value, of_entry(slots)?)));
        labels.next().unwrap_or_default()
    }

    fn say_circle(&self, circle: &[usize], report: &mut Report) {
        const MOST: usize = 6;
        let Some(first) = circle.iter().min_by_key(|n| (self.nodes[**n].input, self.nodes[**n].span.start)) else { return };
        let start = circle.iter().position(|n| n == first).unwrap_or_default();
        let mut line: Vec<String> = (0..circle.len().min(MOST)).map(|i| quoted(&self.label(circle[(start + i) % circle.len()]))).collect();
        if circle.len() > MOST {
            line.push("…".to_owned());
        }
        line.push(quoted(&self.label(*first)));
        let node = &self.nodes[*first];
        let help = "give one of them a `value`".to_owned();
        report.say(
            node.input,
            Code::E0306,
            node.span,
            node.pointer,
            format!("these references go in a circle: {}", line.join(" → ")),
            help,
        );
    }

    /// Writes down every value, so that generated and answered ones stay as they are and omitted ones stay at all.
    pub(crate) fn remember(&self, memory: &mut Memory) {
        for (index, entry) in self.workspace.entries.iter().enumerate() {
            let remembered = &mut memory.service(self.workspace.inputs[entry.input].path, &entry.spec.name).values;
            for (key, slot) in self.variables(index).filter(|(_, slot)| slot.origin != Origin::Group) {
                write_down(remembered, key, self.value(slot));
            }
        }
        for (input, credentials) in &self.credentials {
            if let Some(file) = memory.files.get_mut(self.workspace.inputs[*input].path) {
                file.credentials.extend(credentials.clone());
            }
        }
        for ((input, name), nodes) in &self.groups {
            let Some(file) = memory.files.get_mut(self.workspace.inputs[*input].path) else { continue };
            let remembered = file.groups.entry((*name).to_owned()).or_default();
            for (key, node) in nodes {
                write_down(remembered, key, self.nodes[*node].text());
            }
        }
    }

    /// The credential of the registry of a service's image.
    pub(crate) fn credential(&self, entry: &Entry<'_>) -> Option<&Secret> {
        self.credentials.get(&entry.input)?.get(&entry.credential()?.value)
    }

    /// All variables of a service but the defaults.
    pub(crate) fn variables(&self, entry: usize) -> impl Iterator<Item = (&str, Slot)> {
        let own = self.slots[entry].iter().map(|(key, slot)| (*key, *slot));
        own.chain(self.others[entry].iter().map(|(key, slot)| (key.as_str(), *slot)))
    }

    /// A variable of a service, defaults aside.
    pub(crate) fn variable(&self, entry: usize, key: &str) -> Option<Slot> {
        self.slots[entry].get(key).or_else(|| self.others[entry].get(key)).copied()
    }

    /// The defaults of a service.
    pub(crate) fn defaults(&self, entry: usize) -> Vec<defaults::Default> {
        let entry = &self.workspace.entries[entry];
        defaults::of(entry, &self.workspace.inputs[entry.input].git, self.settings)
    }

    /// A value, once they are evaluated.
    pub(crate) fn value(&self, slot: Slot) -> Option<&str> {
        self.nodes[slot.node].text()
    }

    /// Where a variable is written.
    pub(crate) fn place(&self, slot: Slot) -> (usize, Span, &'a str) {
        let node = &self.nodes[slot.node];
        (node.input, node.span, node.pointer)
    }

    /// What a service's `PORT` says, or the default.
    pub(crate) fn port_text(&self, entry: usize) -> Cow<'_, str> {
        let written = self.variable(entry, "PORT").and_then(|slot| self.value(slot));
        written.map_or_else(|| Cow::Owned(DEFAULT_HTTP_PORT.to_string()), |value| Cow::Borrowed(value.trim()))
    }

    /// The services that have a service's port in a variable of theirs.
    pub(crate) fn port_given_to(&self, entry: usize) -> BTreeSet<Slug> {
        self.port_takers.get(&entry).cloned().unwrap_or_default()
    }

    pub(crate) fn into_missing(self) -> Vec<Missing> {
        self.missing
    }
}

/// Copies a value only when it is new.
fn write_down(remembered: &mut BTreeMap<String, Secret>, key: &str, value: Option<&str>) {
    let Some(value) = value else { return };
    if remembered.get(key).is_none_or(|known| known.expose() != value) {
        remembered.insert(key.to_owned(), Secret::new(value));
    }
}
