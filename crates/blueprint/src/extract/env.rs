//! Environment variables and groups.

use super::Context;
use super::object::Obj;
use crate::codes::{E0203, E0208, E0213, E0224, E0226};
use crate::judge::{choose, head};
use crate::report::{Path, quoted};
use crate::spec::{DatabaseProperty, EnvGroupSpec, EnvSource, EnvVarSpec, EnvironmentIndex, ServiceProperty, Text};
use crate::tables::{DATABASE_PROPERTY, DATABASE_REFERENCE, FROM_VALUE, REFERENCE_TYPE, SERVICE_PROPERTY, SERVICE_REFERENCE};
use crate::yaml::Node;
use moat_model::Spanned;
use std::collections::HashMap;

/// Reads a group.
pub(super) fn group(obj: Obj<'_, '_>, path: &Path<'_>, environment: EnvironmentIndex, cx: &mut Context<'_>) -> Option<EnvGroupSpec> {
    let list = path.key("envVars");
    let mut env_vars = Vec::new();
    let mut asked: Vec<Text> = Vec::new();
    for (index, variable) in obj.list("envVars", &FROM_VALUE) {
        let Some(spec) = env_var(variable.node, &list.item(index), cx) else { continue };
        match spec.source {
            EnvSource::Ask { key } => {
                // Another source was refused already.
                let refused = ["fromDatabase", "fromService", "fromGroup"];
                if !refused.iter().any(|k| variable.node.entry(k).is_some()) {
                    asked.push(key);
                }
            }
            EnvSource::Value { .. }
            | EnvSource::Generate { .. }
            | EnvSource::Database { .. }
            | EnvSource::Service { .. }
            | EnvSource::Group { .. } => env_vars.push(spec),
        }
    }
    asked_for(&asked, &list, cx);
    twice(&env_vars, cx);
    Some(EnvGroupSpec { pointer: path.pointer(), environment, name: obj.filled("name")?, env_vars })
}

/// Says once per group which of its variables are left out, because a group can't ask for a value.
fn asked_for(keys: &[Text], path: &Path<'_>, cx: &mut Context<'_>) {
    const NAMED: usize = 6;
    let Some(first) = keys.first() else { return };
    let mut names: Vec<String> = keys.iter().take(NAMED).map(|key| quoted(key)).collect();
    if keys.len() > NAMED {
        names.push(format!("{} more", keys.len() - NAMED));
    }
    cx.report.say(
        E0226,
        first.span,
        path,
        format!("a group can't ask for values: left out {}", names.join(", ")),
        "write `sync: false` under `envVars` of each service that needs one".to_owned(),
    );
}

/// Reads `envVars` of a service.
pub(super) fn env_vars(obj: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> Vec<EnvVarSpec> {
    let list = path.key("envVars");
    let mut out = Vec::with_capacity(obj.get("envVars").and_then(Node::items).map_or(0, <[_]>::len));
    for (index, node) in obj.items("envVars") {
        out.extend(env_var(node, &list.item(index), cx));
    }
    twice(&out, cx);
    out
}

fn env_var(node: &Node<'_>, path: &Path<'_>, cx: &mut Context<'_>) -> Option<EnvVarSpec> {
    let table = choose::env_var(node);
    let obj = Obj::new(node, table)?;
    let source = source(obj, path, cx)?;
    Some(EnvVarSpec {
        pointer: path.pointer(),
        span: node.span,
        source,
        preview_value: obj.text("previewValue"),
        display_name: obj.filled("displayName"),
        description: obj.filled("description"),
        sensitive: obj.boolean("sensitive").is_some_and(|sensitive| sensitive.value),
    })
}

fn source(obj: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> Option<EnvSource> {
    if obj.table.name == "envVarFromGroup" {
        return Some(EnvSource::Group { name: obj.filled("fromGroup")? });
    }
    let key = obj.filled("key")?;
    match obj.table.name {
        "envVarFromDatabase" => {
            let below = obj.below("fromDatabase", &DATABASE_REFERENCE)?;
            let property = below.word("property", &DATABASE_PROPERTY)?;
            Some(EnvSource::Database {
                key,
                name: below.filled("name")?,
                property: Spanned::new(database_property(&property)?, property.span),
            })
        }
        "envVarFromService" => {
            let below = obj.below("fromService", &SERVICE_REFERENCE)?;
            service_source(key, below, &path.key("fromService"), cx)
        }
        "envVarFromValue" => {
            if let Some(value) = obj.get("value") {
                let value = Spanned::new(value.text()?.to_owned(), value.span);
                return Some(EnvSource::Value { key, value });
            }
            if obj.boolean("generateValue").is_some_and(|generate| generate.value) {
                return Some(EnvSource::Generate { key });
            }
            Some(EnvSource::Ask { key })
        }
        // Several sources: which one is meant can't be told, and was said.
        _ => None,
    }
}

fn service_source(key: Text, below: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> Option<EnvSource> {
    let kind = below.word("type", &REFERENCE_TYPE);
    let name = below.filled("name")?;
    if below.get("type").is_none() {
        let message = format!("`fromService` needs `type`: {} is looked up by its name alone", quoted(&name));
        cx.report.say(E0208, head(below.node), path, message, "write `type: …` as at the service".to_owned());
    }
    let property = below.get("property");
    let variable = below.entry("envVarKey");
    let what = match (property, variable) {
        (Some(_), Some(second)) => {
            let message = "`fromService` has `property` or `envVarKey`, this has both";
            cx.report.say(E0213, second.key_span, path, message, "keep one of them".to_owned());
            return None;
        }
        (Some(_), None) => {
            let word = below.word("property", &SERVICE_PROPERTY)?;
            Spanned::new(service_property(&word)?, word.span)
        }
        (None, Some(_)) => {
            let variable = below.filled("envVarKey")?;
            Spanned::new(ServiceProperty::EnvVar(variable.value), variable.span)
        }
        (None, None) if kind.as_ref().is_some_and(|kind| kind.value == "keyvalue") => {
            let help = "write `property: connectionString`".to_owned();
            let message = "`fromService` names no property: read as `connectionString`";
            cx.report.say(E0208, head(below.node), path, message, help);
            Spanned::new(ServiceProperty::ConnectionString, below.span())
        }
        (None, None) => {
            let help = "write `property: host`, `port` or `hostport`, or `envVarKey: NAME`".to_owned();
            let message = "`fromService` needs `property` or `envVarKey`";
            cx.report.say(E0203, head(below.node), path, message, help);
            return None;
        }
    };
    Some(EnvSource::Service { key, name, kind, what })
}

fn database_property(word: &str) -> Option<DatabaseProperty> {
    Some(match word {
        "connectionString" => DatabaseProperty::ConnectionString,
        "connectionPoolString" => DatabaseProperty::ConnectionPoolString,
        "host" => DatabaseProperty::Host,
        "port" => DatabaseProperty::Port,
        "user" => DatabaseProperty::User,
        "password" => DatabaseProperty::Password,
        "database" => DatabaseProperty::Database,
        _ => return None,
    })
}

fn service_property(word: &str) -> Option<ServiceProperty> {
    Some(match word {
        "host" => ServiceProperty::Host,
        "port" => ServiceProperty::Port,
        "hostport" => ServiceProperty::HostPort,
        "slug" => ServiceProperty::Slug,
        "connectionString" => ServiceProperty::ConnectionString,
        _ => return None,
    })
}

/// The key that an entry sets; a group sets its own.
pub(super) fn key(source: &EnvSource) -> Option<&Text> {
    match source {
        EnvSource::Value { key, .. }
        | EnvSource::Generate { key }
        | EnvSource::Ask { key }
        | EnvSource::Database { key, .. }
        | EnvSource::Service { key, .. } => Some(key),
        EnvSource::Group { .. } => None,
    }
}

/// Says which variables of one list are given twice.
fn twice(variables: &[EnvVarSpec], cx: &mut Context<'_>) {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for variable in variables {
        let Some(key) = key(&variable.source) else { continue };
        if let Some(line) = seen.insert(key, key.span.line) {
            cx.report.say_at(
                E0224,
                key.span,
                variable.pointer.clone(),
                format!("{} is given twice, first at line {line}: the last one counts", quoted(key)),
                "remove one of them".to_owned(),
            );
        }
    }
}
