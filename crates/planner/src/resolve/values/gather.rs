//! Makes the variables of every group and service, and says what is missing.

use super::{Node, Origin, Slot, Source, Values};
use crate::codes::{Code, Report};
use crate::memory::Memory;
use crate::names::{closest, is_typo, one_of, quoted};
use crate::resolve::references::{self, Reference};
use crate::resolve::workspace::{Entry, Workspace};
use crate::resolve::{Missing, Settings, Sight, key_of};
use moat_blueprint::spec::{EnvGroupSpec, EnvSource, EnvVarSpec, Text};
use moat_model::{Secret, Span};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

struct Gathering<'a, 'w> {
    workspace: &'w Workspace<'a>,
    memory: &'w Memory,
    random: &'w mut dyn FnMut() -> [u8; 32],
    report: &'w mut Report,
    used: BTreeSet<(usize, String)>,
    references: Vec<Reference<'a>>,
}

impl<'a> Values<'a> {
    /// Makes the nodes of every group and service and links their references.
    pub(crate) fn gather(
        workspace: &'a Workspace<'a>,
        settings: &'a Settings,
        memory: &Memory,
        random: &mut dyn FnMut() -> [u8; 32],
        report: &mut Report,
    ) -> Self {
        let mut values = Self {
            workspace,
            settings,
            nodes: Vec::new(),
            slots: Vec::with_capacity(workspace.entries.len()),
            others: Vec::with_capacity(workspace.entries.len()),
            groups: BTreeMap::new(),
            missing: Vec::new(),
            port_takers: BTreeMap::new(),
            credentials: BTreeMap::new(),
        };
        let mut gathering = Gathering { workspace, memory, random, report, used: BTreeSet::new(), references: Vec::new() };
        for (input, file) in workspace.inputs.iter().enumerate() {
            for group in &file.blueprint.env_groups {
                values.gather_group(input, group, &mut gathering);
            }
        }
        for (index, entry) in workspace.entries.iter().enumerate() {
            values.gather_service(index, entry, &mut gathering);
            values.gather_credential(entry, &mut gathering);
        }
        gathering.unused_given();
        let Gathering { references, report, .. } = gathering;
        for reference in &references {
            let source = references::link(workspace, &values, reference, report);
            values.nodes[reference.node].source = source;
            if let Some(target) = references::takes_port(workspace, reference) {
                let taker = workspace.entries[reference.entry].slug.clone();
                values.port_takers.entry(target).or_default().insert(taker);
            }
        }
        values
    }

    fn node(&mut self, input: usize, span: Span, pointer: &'a str, source: Source<'a>) -> usize {
        self.nodes.push(Node { input, span, pointer, source, found: None });
        self.nodes.len() - 1
    }

    fn gather_group(&mut self, input: usize, group: &'a EnvGroupSpec, gathering: &mut Gathering<'a, '_>) {
        let name = group.name.value.as_str();
        if self.groups.contains_key(&(input, name)) {
            return;
        }
        let remembered = gathering.group_values(input, name).cloned().unwrap_or_default();
        let mut nodes = BTreeMap::new();
        for var in &group.env_vars {
            let source = match &var.source {
                EnvSource::Value { value, .. } => Source::Text(Cow::Borrowed(&value.value)),
                EnvSource::Generate { key } => text(&remembered.get(&key.value).cloned().unwrap_or_else(|| gathering.generate())),
                // Said by the reader: a group has values and generated values only.
                EnvSource::Ask { .. } | EnvSource::Database { .. } | EnvSource::Service { .. } | EnvSource::Group { .. } => continue,
            };
            let Some(key) = key_of(var) else { continue };
            let node = self.node(input, var.span, &var.pointer, source);
            nodes.insert(key.to_owned(), node);
        }
        let omitted: Vec<(String, Secret)> = remembered.into_iter().filter(|(key, _)| !nodes.contains_key(key)).collect();
        for (key, value) in omitted {
            gathering.say_kept(input, group.name.span, &group.pointer, name, &key);
            let node = self.node(input, group.name.span, &group.pointer, text(&value));
            nodes.insert(key, node);
        }
        self.groups.insert((input, name), nodes);
    }

    fn gather_service(&mut self, index: usize, entry: &Entry<'a>, gathering: &mut Gathering<'a, '_>) {
        let mut slots = BTreeMap::new();
        let mut others = BTreeMap::new();
        let mut group_slots: BTreeMap<String, Slot> = BTreeMap::new();
        let name = entry.spec.name.value.as_str();
        let remembered = gathering.service_values(entry);
        for var in &entry.spec.env_vars {
            if let EnvSource::Group { name } = &var.source {
                if let Some(group) = self.group(entry, var, name, gathering) {
                    let nodes = self.groups.get(&group).into_iter().flatten();
                    group_slots.extend(nodes.map(|(key, node)| (key.clone(), Slot { node: *node, origin: Origin::Group })));
                }
                continue;
            }
            let Some(key) = key_of(var) else { continue };
            let node = self.node(entry.input, var.span, &var.pointer, Source::Nothing);
            slots.insert(key, Slot { node, origin: Origin::Own });
            let source = match &var.source {
                EnvSource::Value { value, .. } => Source::Text(Cow::Borrowed(&value.value)),
                EnvSource::Generate { .. } => text(&remembered.and_then(|r| r.get(key)).cloned().unwrap_or_else(|| gathering.generate())),
                EnvSource::Ask { key } => {
                    let answer = gathering.given(entry, &key.value).or_else(|| remembered.and_then(|r| r.get(&key.value)).cloned());
                    if answer.is_none() {
                        self.missing(entry, var, key, gathering);
                    }
                    answer.as_ref().map_or(Source::Nothing, text)
                }
                EnvSource::Database { name, property, .. } => {
                    references::database(gathering.workspace, entry, var, name, property.value, gathering.report)
                }
                EnvSource::Service { name, kind, what, .. } => {
                    gathering.references.push(Reference { entry: index, node, var, name, kind: kind.as_ref(), what });
                    Source::Nothing
                }
                EnvSource::Group { .. } => continue,
            };
            self.nodes[node].source = source;
        }
        for (key, slot) in group_slots {
            if !slots.contains_key(key.as_str()) {
                others.insert(key, slot);
            }
        }
        for (key, value) in remembered.into_iter().flatten() {
            if !slots.contains_key(key.as_str()) && !others.contains_key(key) {
                gathering.say_kept(entry.input, entry.spec.name.span, &entry.pointer("envVars"), name, key);
                let node = self.node(entry.input, entry.spec.name.span, &entry.spec.pointer, text(value));
                others.insert(key.clone(), Slot { node, origin: Origin::Kept });
            }
        }
        self.slots.push(slots);
        self.others.push(others);
    }

    /// The credential that a service's image names: given as `registry.NAME`, or remembered.
    fn gather_credential(&mut self, entry: &Entry<'_>, gathering: &mut Gathering<'_, '_>) {
        let Some(name) = entry.credential() else { return };
        let key = format!("registry.{}", name.value);
        let given = gathering.workspace.inputs[entry.input].given.get(&key).cloned();
        if given.is_some() {
            gathering.used.insert((entry.input, key.clone()));
        }
        let path = gathering.workspace.inputs[entry.input].path;
        let remembered = || gathering.memory.files.get(path)?.credentials.get(&name.value).cloned();
        if let Some(credential) = given.or_else(remembered) {
            self.credentials.entry(entry.input).or_default().insert(name.value.clone(), credential);
        } else if gathering.workspace.sight == Sight::Workspace {
            let label = Some("user:password of the image's registry".to_owned());
            let asked = self.missing.iter().any(|m| m.owner == "registry" && m.key == name.value && m.file == path);
            if !asked {
                let (file, owner, key) = (path.to_owned(), "registry".to_owned(), name.value.clone());
                self.missing.push(Missing { file, owner, key, label, span: name.span });
            }
        }
    }

    fn missing(&mut self, entry: &Entry<'_>, var: &EnvVarSpec, key: &Text, gathering: &Gathering<'_, '_>) {
        if gathering.workspace.sight == Sight::Workspace {
            let label = var.display_name.as_ref().or(var.description.as_ref()).map(|text| text.value.clone());
            let file = gathering.workspace.inputs[entry.input].path.to_owned();
            self.missing.push(Missing { file, owner: entry.spec.name.value.clone(), key: key.value.clone(), label, span: key.span });
        }
    }

    /// Finds a group; one that no file has is made of the values given and remembered for it.
    fn group(
        &mut self,
        entry: &Entry<'a>,
        var: &'a EnvVarSpec,
        name: &'a Text,
        gathering: &mut Gathering<'a, '_>,
    ) -> Option<(usize, &'a str)> {
        if let Some((input, group)) = gathering.workspace.group(entry.input, name) {
            return Some((input, group.name.value.as_str()));
        }
        let id = (entry.input, name.value.as_str());
        if self.groups.contains_key(&id) {
            return Some(id);
        }
        let mut values = gathering.group_values(entry.input, name).cloned().unwrap_or_default();
        let prefix = format!("{}.", name.value);
        for (key, value) in gathering.workspace.inputs[entry.input].given {
            if let Some(own) = key.strip_prefix(&prefix) {
                gathering.used.insert((entry.input, key.clone()));
                values.insert(own.to_owned(), value.clone());
            }
        }
        if values.is_empty() {
            gathering.unknown_group(entry, var, name);
            return None;
        }
        let nodes = values.into_iter().map(|(key, value)| {
            let node = self.node(entry.input, var.span, &var.pointer, text(&value));
            (key, node)
        });
        let nodes = nodes.collect();
        self.groups.insert(id, nodes);
        Some(id)
    }
}

impl<'w> Gathering<'_, 'w> {
    /// 256 random bits in base64.
    fn generate(&mut self) -> Secret {
        Secret::new(base64(&(self.random)()))
    }

    fn service_values(&self, entry: &Entry<'_>) -> Option<&'w BTreeMap<String, Secret>> {
        let path = self.workspace.inputs[entry.input].path;
        Some(&self.memory.files.get(path)?.services.get(&entry.spec.name.value)?.values)
    }

    fn group_values(&self, input: usize, name: &str) -> Option<&'w BTreeMap<String, Secret>> {
        self.memory.files.get(self.workspace.inputs[input].path)?.groups.get(name)
    }

    /// What was given for a variable: for this service by name or label, else for any.
    fn given(&mut self, entry: &Entry<'_>, key: &str) -> Option<Secret> {
        let given = self.workspace.inputs[entry.input].given;
        let ways = [format!("{}.{key}", entry.spec.name.value), format!("{}.{key}", entry.slug), key.to_owned()];
        let way = ways.into_iter().find(|way| given.contains_key(way))?;
        let value = given.get(&way).cloned();
        self.used.insert((entry.input, way));
        value
    }

    fn say_kept(&mut self, input: usize, span: Span, pointer: &str, owner: &str, key: &str) {
        let help = "`moat up --prune` removes what the file no longer names".to_owned();
        self.report.say(
            input,
            Code::N0303,
            span,
            pointer,
            format!("{} of {} is no longer written and stays", quoted(key), quoted(owner)),
            help,
        );
    }

    fn unused_given(&mut self) {
        for (index, input) in self.workspace.inputs.iter().enumerate() {
            let unused: Vec<&str> =
                input.given.keys().filter(|key| !self.used.contains(&(index, (*key).clone()))).map(String::as_str).collect();
            if !unused.is_empty() {
                let help = "only variables with `sync: false` are asked for; others have their value in the file".to_owned();
                self.report.say(
                    index,
                    Code::N0304,
                    Span::default(),
                    "",
                    format!("given, but asked for by nothing: {}", one_of(unused)),
                    help,
                );
            }
        }
    }

    fn unknown_group(&mut self, entry: &Entry<'_>, var: &EnvVarSpec, name: &Text) {
        let near = closest(name, self.workspace.group_names());
        let code = match (self.workspace.sight, near) {
            (Sight::File, near) if !near.is_some_and(|near| is_typo(name, near)) => Code::N0302,
            (Sight::File | Sight::Workspace, _) => Code::E0311,
        };
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("add it under `envVarGroups`, or give each of its variables with `--set '{}.KEY=VALUE'`", name.value),
        };
        self.report.say(
            entry.input,
            code,
            name.span,
            format!("{}/fromGroup", var.pointer),
            format!("there is no environment group {} here", quoted(name)),
            help,
        );
    }
}

fn text<'a>(value: &Secret) -> Source<'a> {
    Source::Text(Cow::Owned(value.expose().to_owned()))
}

/// Base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[usize::try_from(bits >> (18 - 6 * i) & 63).unwrap_or_default()];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[7; 32]).len(), 44);
    }
}
