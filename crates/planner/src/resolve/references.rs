//! What a reference stands for, and what is wrong with it.

use super::Sight;
use super::defaults::{DefaultValue, PER_INSTANCE, default_port};
use super::values::{Source, Values};
use super::workspace::{Entry, Workspace};
use crate::codes::{Code, Report};
use crate::names::{closest, is_typo, one_of, quoted};
use moat_blueprint::spec::{DatabaseProperty, EnvVarSpec, ServiceProperty, Text};
use moat_model::{ServiceKind, Spanned};

/// A `fromService` of a service.
pub(crate) struct Reference<'a> {
    /// The service it is written at.
    pub(crate) entry: usize,
    /// The node of its variable.
    pub(crate) node: usize,
    /// The whole entry.
    pub(crate) var: &'a EnvVarSpec,
    /// `name`.
    pub(crate) name: &'a Text,
    /// `type`, if written.
    pub(crate) kind: Option<&'a Text>,
    /// `property` or `envVarKey`.
    pub(crate) what: &'a Spanned<ServiceProperty>,
}

/// Finds what the reference stands for.
pub(crate) fn link(workspace: &Workspace<'_>, values: &Values<'_>, reference: &Reference<'_>, report: &mut Report) -> Source<'static> {
    let from = &workspace.entries[reference.entry];
    let Some(index) = workspace.service(from.input, reference.name) else {
        unknown(workspace, from, reference, report);
        return Source::Nothing;
    };
    let target = &workspace.entries[index];
    if let Some(kind) = reference.kind
        && !target.is_called(kind)
    {
        let message = format!("{} is a {}, not {}", quoted(reference.name), target.phrase(), quoted(kind));
        report.say(
            from.input,
            Code::E0304,
            kind.span,
            format!("{}/fromService/type", reference.var.pointer),
            message,
            format!("write `type: {}`", target.word()),
        );
    }
    let found = match &reference.what.value {
        ServiceProperty::EnvVar(key) => return variable(workspace, values, reference, index, key, report),
        ServiceProperty::Slug => Some(Source::Text(target.slug.to_string().into())),
        ServiceProperty::Host if receives(target) => Some(Source::Text(target.slug.to_string().into())),
        ServiceProperty::Port if receives(target) => Some(port(values, index, target, String::new(), reference.node)),
        ServiceProperty::HostPort if receives(target) => Some(port(values, index, target, format!("{}:", target.slug), reference.node)),
        ServiceProperty::ConnectionString if target.kind() == Some(ServiceKind::KeyValue) => {
            Some(Source::Text(format!("redis://{}:6379", target.slug).into()))
        }
        ServiceProperty::Host | ServiceProperty::Port | ServiceProperty::HostPort | ServiceProperty::ConnectionString => None,
    };
    found.unwrap_or_else(|| {
        let word = property_word(&reference.what.value);
        let message = format!("{} is a {}, which has no `{word}`", quoted(reference.name), target.phrase());
        report.say(
            from.input,
            Code::E0303,
            reference.what.span,
            format!("{}/fromService/property", reference.var.pointer),
            message,
            property_help(target),
        );
        Source::Nothing
    })
}

/// The program whose port the reference gives to another service.
pub(crate) fn takes_port(workspace: &Workspace<'_>, reference: &Reference<'_>) -> Option<usize> {
    let target = workspace.service(workspace.entries[reference.entry].input, reference.name)?;
    let of_port = match &reference.what.value {
        ServiceProperty::Port | ServiceProperty::HostPort => true,
        ServiceProperty::EnvVar(key) => key == "PORT",
        ServiceProperty::Host | ServiceProperty::Slug | ServiceProperty::ConnectionString => false,
    };
    let chooses = matches!(workspace.entries[target].kind(), Some(ServiceKind::Web | ServiceKind::Pserv));
    (of_port && chooses && target != reference.entry).then_some(target)
}

fn receives(entry: &Entry<'_>) -> bool {
    entry.kind().is_some_and(ServiceKind::receives)
}

const fn property_word(property: &ServiceProperty) -> &'static str {
    match property {
        ServiceProperty::Host => "host",
        ServiceProperty::Port => "port",
        ServiceProperty::HostPort => "hostport",
        ServiceProperty::Slug => "slug",
        ServiceProperty::ConnectionString => "connectionString",
        ServiceProperty::EnvVar(_) => "envVarKey",
    }
}

fn property_help(target: &Entry<'_>) -> String {
    match target.kind() {
        Some(ServiceKind::Web | ServiceKind::Pserv) => {
            "it has `host`, `port`, `hostport`, or one of its variables by `envVarKey`".to_owned()
        }
        Some(ServiceKind::KeyValue | ServiceKind::Postgres) => "it has `connectionString`, `host`, `port` and `hostport`".to_owned(),
        Some(ServiceKind::Worker) => {
            "a background worker receives nothing: make it a private service (`type: pserv`), or hand it jobs through a Key Value"
                .to_owned()
        }
        Some(ServiceKind::Cron) => "a cron job receives nothing; it has variables, by `envVarKey`".to_owned(),
        Some(ServiceKind::Static) => "it is not on the private network; its public address is `envVarKey: RENDER_EXTERNAL_URL`".to_owned(),
        None => "a workflow is not run yet".to_owned(),
    }
}

/// The target's port after a text. A `PORT` that is written as the service's own port, at `node`, stands for the default.
fn port(values: &Values<'_>, index: usize, target: &Entry<'_>, prefix: String, node: usize) -> Source<'static> {
    let usual = default_port(target.kind()).unwrap_or_default();
    // Only programs choose their port: a Key Value has the one of its protocol.
    match values.variable(index, "PORT").filter(|slot| slot.node != node && target.kind() != Some(ServiceKind::KeyValue)) {
        Some(slot) => Source::After(prefix, slot.node),
        None => Source::Text(format!("{prefix}{usual}").into()),
    }
}

fn variable(
    workspace: &Workspace<'_>,
    values: &Values<'_>,
    reference: &Reference<'_>,
    index: usize,
    key: &str,
    report: &mut Report,
) -> Source<'static> {
    let (from, target) = (&workspace.entries[reference.entry], &workspace.entries[index]);
    let mut say = |code, message: String, help: String| {
        report.say(from.input, code, reference.what.span, format!("{}/fromService/envVarKey", reference.var.pointer), message, help);
        Source::Nothing
    };
    let name = quoted(reference.name);
    if target.kind() == Some(ServiceKind::KeyValue) {
        return say(Code::E0303, format!("{name} is a Key Value, which has no variables"), property_help(target));
    }
    let defaults = values.defaults(index);
    let default = defaults.iter().find(|(k, ..)| *k == key);
    // A variable that is written as its own default stands for that default.
    let written = values.variable(index, key).filter(|slot| slot.node != reference.node || default.is_none());
    if let Some(slot) = written {
        return Source::After(String::new(), slot.node);
    }
    if key == PER_INSTANCE {
        return say(
            Code::E0305,
            format!("{} differs from one instance of {name} to the next", quoted(key)),
            "each instance finds its own in its environment".to_owned(),
        );
    }
    let Some((_, value, _)) = default else {
        let names = values.variables(index).map(|(k, _)| k).chain(defaults.iter().map(|(k, ..)| *k));
        let help = match closest(key, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None if key == "RENDER_DISCOVERY_SERVICE" => property_help(target),
            None => match values.variables(index).map(|(k, _)| k).collect::<Vec<_>>() {
                own if own.is_empty() => format!("{name} writes no variables"),
                own => format!("{name} has {}", one_of(own)),
            },
        };
        return say(Code::E0305, format!("{name} has no variable {}", quoted(key)), help);
    };
    if matches!(key, "RENDER_EXTERNAL_URL" | "RENDER_EXTERNAL_HOSTNAME") && *value == DefaultValue::Text("".into()) {
        let help = match target.kind() {
            Some(ServiceKind::Pserv) => "its private address is `property: hostport`".to_owned(),
            _ => "only web services have a public address".to_owned(),
        };
        say(Code::W0302, format!("{} is empty: {name} is a {}, which has no public address", quoted(key), target.phrase()), help);
    }
    match value {
        DefaultValue::Text(text) => Source::Text(text.clone()),
        DefaultValue::PortAfter(prefix) => port(values, index, target, (*prefix).to_owned(), reference.node),
    }
}

fn unknown(workspace: &Workspace<'_>, from: &Entry<'_>, reference: &Reference<'_>, report: &mut Report) {
    let pointer = format!("{}/fromService/name", reference.var.pointer);
    if workspace.database(from.input, reference.name).is_some() {
        let message = format!("{} is a database, not a service", quoted(reference.name));
        let help = format!("write `fromDatabase: {{ name: {}, property: connectionString }}`", reference.name.value);
        report.say(from.input, Code::E0302, reference.name.span, pointer, message, help);
        return;
    }
    let near = closest(reference.name, workspace.service_names());
    let code = absent_code(workspace, reference.name, near);
    report.say(
        from.input,
        code,
        reference.name.span,
        pointer,
        format!("there is no service {} here", quoted(reference.name)),
        absent_help(near, "service"),
    );
}

/// Finds what a `fromDatabase` stands for.
pub(crate) fn database(
    workspace: &Workspace<'_>,
    from: &Entry<'_>,
    var: &EnvVarSpec,
    name: &Text,
    property: DatabaseProperty,
    report: &mut Report,
) -> Source<'static> {
    let pointer = format!("{}/fromDatabase/name", var.pointer);
    if let Some(database) = workspace.database(from.input, name) {
        return Source::Text(database.property(property).into());
    } else if let Some(index) = workspace.service(from.input, name) {
        let target = &workspace.entries[index];
        let property = if target.kind() == Some(ServiceKind::KeyValue) { "connectionString" } else { "hostport" };
        let help = format!("write `fromService: {{ type: {}, name: {}, property: {property} }}`", target.word(), name.value);
        report.say(from.input, Code::E0302, name.span, pointer, format!("{} is a {}, not a database", quoted(name), target.phrase()), help);
    } else {
        let near = closest(name, workspace.database_names());
        let code = absent_code(workspace, name, near);
        report.say(
            from.input,
            code,
            name.span,
            pointer,
            format!("there is no database {} here", quoted(name)),
            absent_help(near, "database"),
        );
    }
    Source::Nothing
}

/// In one file, a name that is there but for a slip is an error; any other may be elsewhere.
fn absent_code(workspace: &Workspace<'_>, name: &str, near: Option<&str>) -> Code {
    match workspace.sight {
        Sight::File if !near.is_some_and(|near| is_typo(name, near)) => Code::N0301,
        Sight::File | Sight::Workspace => Code::E0301,
    }
}

fn absent_help(near: Option<&str>, what: &str) -> String {
    match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("`up` needs it: add the {what} to this file, or bring up the file that has it first"),
    }
}
