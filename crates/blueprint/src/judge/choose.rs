//! Which table an entry of a list is judged by.

use super::suggest::nearest;
use crate::report::{one_of, quoted};
use crate::tables::{
    ANY_ENV, ANY_SERVICE, CRON, FROM_DATABASE, FROM_GROUP, FROM_SERVICE, FROM_VALUE, KEYVALUE, Meant, Object, PSERV, RUNTIME, SERVICE_TYPE,
    STATIC, WEB, WORKER, WORKFLOW,
};
use crate::yaml::Node;
use moat_model::Span;

/// What a service is, and what is wrong with its `type`.
pub(crate) struct Chosen {
    /// The table to judge by.
    pub(crate) table: &'static Object,
    /// What is wrong with `type`.
    pub(crate) problem: Option<Problem>,
}

/// What is wrong with `type`.
pub(crate) enum Problem {
    /// It is not there.
    Missing(String),
    /// It is no type.
    Unknown(Span, String, String),
    /// It is another spelling of a type.
    Spelling(Span, String),
    /// It is a deprecated word for a type.
    Deprecated(Span, &'static str),
}

/// Words that people write for a type, and the type.
const KNOWN: &[(&[&str], &str)] = &[
    (&["webservice", "webapp", "http", "server", "app", "api"], "web"),
    (&["privateservice", "private", "internal", "privateserver"], "pserv"),
    (&["backgroundworker", "background", "workers", "daemon"], "worker"),
    (&["cronjob", "scheduled", "schedule", "job"], "cron"),
    (&["kv", "valkey", "cache", "rediscache", "renderkv"], "keyvalue"),
    (&["workflows"], "workflow"),
];
const DATABASES: &[&str] = &["postgres", "postgresql", "database", "db", "pg", "psql", "postgresdatabase", "mysql", "mongodb", "mongo"];

fn table_of(word: &str, runtime: Option<&str>) -> &'static Object {
    match word {
        "web" if runtime == Some("static") => &STATIC,
        "web" => &WEB,
        "pserv" => &PSERV,
        "worker" => &WORKER,
        "cron" => &CRON,
        "keyvalue" => &KEYVALUE,
        "workflow" => &WORKFLOW,
        _ => &ANY_SERVICE,
    }
}

/// The runtime as written, without a look at whether it exists.
fn runtime_of(node: &Node<'_>) -> Option<String> {
    let word = |key: &str| RUNTIME.canonical(node.entry(key)?.value.text()?);
    word("runtime").or_else(|| word("env"))
}

/// Finds a service's table by `type` and `runtime`.
pub(crate) fn service(node: &Node<'_>) -> Chosen {
    let runtime = runtime_of(node);
    let runtime = runtime.as_deref();
    let unknown = |table, span, message, help| Chosen { table, problem: Some(Problem::Unknown(span, message, help)) };
    let Some(value) = node.entry("type").map(|entry| &entry.value).filter(|value| !value.is_null()) else {
        let help = format!("write one of {}", one_of(SERVICE_TYPE.all));
        return Chosen { table: &ANY_SERVICE, problem: Some(Problem::Missing(help)) };
    };
    let Some(text) = value.text() else {
        let message = format!("`type` is a word, this is {}", value.shape());
        return unknown(&ANY_SERVICE, value.span, message, format!("write one of {}", one_of(SERVICE_TYPE.all)));
    };
    match SERVICE_TYPE.meant(text) {
        Meant::Exactly => return Chosen { table: table_of(text, runtime), problem: None },
        Meant::Deprecated(word) => {
            return Chosen { table: table_of(word, runtime), problem: Some(Problem::Deprecated(value.span, word)) };
        }
        Meant::Spelling(word) => {
            let problem = Problem::Spelling(value.span, word.to_owned());
            return Chosen { table: table_of(word, runtime), problem: Some(problem) };
        }
        Meant::Nothing => {}
    }
    let squeezed = crate::tables::squeeze(text);
    let squeezed = squeezed.as_str();
    if matches!(squeezed, "static" | "staticsite") {
        return unknown(
            &STATIC,
            value.span,
            "a static site is a web service with `runtime: static`".to_owned(),
            "write `type: web` and `runtime: static`".to_owned(),
        );
    }
    if DATABASES.contains(&squeezed) {
        let help = if squeezed.starts_with("my") || squeezed.starts_with("mongo") {
            "run it as a private service (`type: pserv`) from its image; PostgreSQL goes under `databases`"
        } else {
            "move it to the list `databases`, without `type`"
        };
        return unknown(&ANY_SERVICE, value.span, format!("{} is no type of service", quoted(text)), help.to_owned());
    }
    if let Some(runtime) = RUNTIME.canonical(text) {
        return unknown(
            &ANY_SERVICE,
            value.span,
            format!("{} is a runtime, not a type", quoted(text)),
            format!("write `type: web` (or `pserv`, `worker`, `cron`) and `runtime: {runtime}`"),
        );
    }
    let guess = KNOWN
        .iter()
        .find(|(words, _)| words.contains(&squeezed))
        .map(|(_, word)| *word)
        .or_else(|| nearest(text, SERVICE_TYPE.all.iter().copied()));
    let message = format!("{} is no type of service", quoted(text));
    match guess {
        Some(word) => unknown(table_of(word, runtime), value.span, message, format!("did you mean `{word}`?")),
        None => unknown(&ANY_SERVICE, value.span, message, format!("write one of {}", one_of(SERVICE_TYPE.all))),
    }
}

/// The sources that an entry of `envVars` names, in the order of the format.
pub(crate) fn sources<'n, 't>(node: &'n Node<'t>) -> Vec<(&'static str, Span, &'n Node<'t>)> {
    ["value", "generateValue", "sync", "fromDatabase", "fromService", "fromGroup"]
        .into_iter()
        .filter_map(|key| {
            let entry = node.entry(key)?;
            // `generateValue: false` and `sync: true` say nothing.
            let idle = match key {
                "generateValue" => super::lenient_bool(&entry.value) == Some(false),
                "sync" => super::lenient_bool(&entry.value) == Some(true),
                _ => entry.value.is_null(),
            };
            (!idle).then_some((key, entry.key_span, &entry.value))
        })
        .collect()
}

/// Finds the table of an entry of `envVars`.
pub(crate) fn env_var(node: &Node<'_>) -> &'static Object {
    let mut reference: Option<&'static Object> = None;
    let mut sources = 0;
    for entry in node.entries().unwrap_or_default() {
        let table: Option<&'static Object> = match entry.key.as_ref() {
            "fromDatabase" => Some(&FROM_DATABASE),
            "fromService" => Some(&FROM_SERVICE),
            "fromGroup" => Some(&FROM_GROUP),
            "value" | "generateValue" | "sync" => None,
            _ => continue,
        };
        sources += 1;
        reference = reference.or(table);
    }
    match reference {
        None => &FROM_VALUE,
        Some(table) if sources == 1 => table,
        Some(_) => &ANY_ENV,
    }
}
