//! How a blueprint differs from what runs.
//!
//! Invariant: definitions are compared as a whole, by what they are written as: a field that is added to them is compared too.

use crate::masked;
use moat_model::{Service, Slug};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// One difference between a blueprint and what runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Drift {
    /// The service.
    pub service: Slug,
    /// Which kind of difference it is.
    pub kind: DriftKind,
    /// In words, after the service's name.
    pub text: String,
}

/// The kinds of [`Drift`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftKind {
    /// The blueprint names a service that does not run.
    New,
    /// The blueprint says otherwise than what runs.
    Changed,
    /// What runs is no longer named by the blueprint.
    Unnamed,
    /// Somebody has set it beside the blueprint.
    Set,
    /// Less runs than should.
    Missing,
}

/// Fields that Moat allots, or that follow from others.
const DERIVED: [&str; 10] =
    ["id", "slug", "vip", "network", "zone", "written_keys", "port_given_to", "fingerprint", "build_fingerprint", "blueprint"];

/// What differs between what runs of a service and what it should be; values that are secret are not in the words.
pub fn changes(runs: &Service, wanted: &Service) -> Vec<String> {
    let fields = |service: &Service| {
        let mut fields = serde_json::to_value(service).unwrap_or_default();
        if let Value::Object(fields) = &mut fields {
            fields.retain(|name, _| !DERIVED.contains(&name.as_str()));
        }
        fields
    };
    let (before, after) = (fields(runs), fields(wanted));
    let (shown_before, shown_after) = (fields(&masked::service(runs)), fields(&masked::service(wanted)));
    let mut paths = Vec::new();
    differing(&before, &after, &mut Vec::new(), &mut paths);
    let mut said = BTreeSet::new();
    paths.iter().map(|path| words(path, &shown_before, &shown_after)).filter(|text| said.insert(text.clone())).collect()
}

/// Paths of the innermost objects' fields that are not equal.
fn differing(before: &Value, after: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            found.push(path.clone());
        }
        return;
    };
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        path.push(key.clone());
        differing(old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), path, found);
        path.pop();
    }
}

fn at<'v>(value: &'v Value, path: &[String]) -> &'v Value {
    path.iter().fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn words(path: &[String], before: &Value, after: &Value) -> String {
    let (old, new) = (at(before, path), at(after, path));
    let what = match path {
        [list, key] if list == "env" || list == "build_env" => format!("`{key}`"),
        [list, key] if list == "secret_files" => format!("the secret file `{key}`"),
        [list, _] if list == "limits" => "its `plan`".to_owned(),
        [.., field] => format!("`{}`", field_name(field)),
        [] => "its definition".to_owned(),
    };
    match (old, new) {
        (Value::Null, Value::Null) => format!("{what} changes"),
        (Value::Null, _) => format!("{what} is added{}", value_words(new).map_or_else(String::new, |text| format!(": {text}"))),
        (_, Value::Null) => format!("{what} is removed"),
        (old, new) => match (value_words(old), value_words(new)) {
            (Some(old), Some(new)) if old != new && !what.ends_with("`plan`") => format!("{what}: {old} → {new}"),
            _ => format!("{what} changes"),
        },
    }
}

/// A field of a definition as a blueprint calls it.
fn field_name(field: &str) -> String {
    if field == "instances" {
        return "numInstances".to_owned();
    }
    let mut name = String::new();
    for (index, part) in field.split('_').enumerate() {
        let mut letters = part.chars();
        match letters.next() {
            Some(first) if index > 0 => name.extend(first.to_uppercase()),
            Some(first) => name.push(first),
            None => {}
        }
        name.push_str(letters.as_str());
    }
    name
}

/// A value short enough to be shown in a line; none for a secret.
fn value_words(value: &Value) -> Option<String> {
    const LONGEST: usize = 60;
    match value {
        Value::String(text) if text == masked::MASK => None,
        Value::String(text) if text.len() <= LONGEST && !text.contains('\n') => Some(format!("`{text}`")),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprints;
    use crate::protocol::UpRequest;
    use moat_planner::memory::Memory;

    const BEFORE: &str = "services:
  - name: api
    type: web
    runtime: python
    buildCommand: make
    startCommand: ./one
    plan: starter
    envVars:
      - {key: TOKEN, value: secret-one}
      - {key: OLD, value: x}
";

    fn service(text: &str, memory: &mut Memory) -> Service {
        let request = UpRequest::new("/srv/shop/render.yaml", text);
        let read = moat_blueprint::read(text);
        let outcome = blueprints::resolve(&[(&request, &read.blueprint)], memory, blueprints::Doors::of(&request));
        outcome.state.services.into_values().next().unwrap()
    }

    #[test]
    fn each_difference_is_told_once_and_no_secret_is() {
        let mut memory = Memory::default();
        let before = service(BEFORE, &mut memory);
        assert_eq!(changes(&before, &before), [] as [String; 0]);
        for (from, to, expect) in [
            ("./one", "./two", &["`startCommand`: `./one` → `./two`"][..]),
            ("secret-one", "secret-two", &["`TOKEN` changes"]),
            ("key: OLD", "key: NEW", &["`NEW` is added"]),
            ("plan: starter", "plan: standard", &["`RENDER_CPU_COUNT` changes", "its `plan` changes"]),
            ("plan: starter", "plan: starter\n    numInstances: 3", &["`numInstances`: 1 → 3"]),
            ("plan: starter", "plan: starter\n    healthCheckPath: /up", &["`healthCheckPath` is added: `/up`"]),
        ] {
            assert_eq!(changes(&before, &service(&BEFORE.replace(from, to), &mut memory.clone())), expect, "{to}");
        }
    }
}
