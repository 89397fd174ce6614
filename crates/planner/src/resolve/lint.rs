//! What is said about services beyond what keeps them from being resolved.

use super::defaults;
use super::values::{Origin, Values};
use super::workspace::{Entry, Workspace};
use crate::codes::{Code, Report};
use crate::names::quoted;
use crate::reach::verdict;
use moat_blueprint::spec::{DatabaseProperty, EnvSource, EnvVarSpec, RuntimeSpec, ServiceProperty, Text};
use moat_model::{DesiredState, Peer, ServiceKind, Verdict};

/// Looks at every service.
pub(crate) fn lint(workspace: &Workspace<'_>, values: &Values<'_>, state: &DesiredState, report: &mut Report) {
    for (index, entry) in workspace.entries.iter().enumerate() {
        let mut linter = Linter { workspace, values, state, index, entry, report };
        linter.build();
        linter.variables();
        linter.network();
        linter.proxy_header();
        linter.references();
    }
}

struct Linter<'a, 'w> {
    workspace: &'w Workspace<'a>,
    values: &'w Values<'a>,
    state: &'w DesiredState,
    index: usize,
    entry: &'w Entry<'a>,
    report: &'w mut Report,
}

impl Linter<'_, '_> {
    fn say(&mut self, code: Code, span: moat_model::Span, field: &str, message: String, help: impl Into<Option<String>>) {
        self.report.say(self.entry.input, code, span, self.entry.pointer(field), message, help);
    }

    fn build(&mut self) {
        let spec = self.entry.spec;
        if let Some(repo) = spec.repo.as_ref().filter(|_| self.entry.runs() && spec.elsewhere) {
            let message =
                format!("the source of {} is fetched from `repo` for each deploy, not taken from this folder", quoted(&spec.name));
            let help = "remove it when it names the repository that this blueprint is in".to_owned();
            self.say(Code::N0307, repo.span, "repo", message, help);
        }
        let globs = spec.build_filter.iter().flat_map(|filter| filter.value.paths.iter().chain(&filter.value.ignored_paths));
        for glob in globs.filter(|_| self.entry.runs() && !spec.elsewhere) {
            if let Err(why) = crate::push::glob(&glob.value) {
                let message = format!("{} of `buildFilter` is no glob and fits no file: {why}", quoted(glob));
                self.say(Code::W0308, glob.span, "buildFilter", message, "write a path, or `*`, `**`, `?`, `[a-z]`, `{a,b}`".to_owned());
            }
        }
        let native = matches!(spec.runtime.as_ref().map(|r| r.value), Some(RuntimeSpec::Native(_)));
        if self.entry.runs() && native && self.entry.kind() != Some(ServiceKind::KeyValue) && spec.build_command.is_none() {
            let message = format!("{} has no `buildCommand`: its source runs as it is", quoted(&spec.name));
            self.say(Code::N0305, spec.name.span, "buildCommand", message, None);
        }
    }

    fn variables(&mut self) {
        let spec = self.entry.spec;
        for (key, slot) in self.values.variables(self.index).filter(|(_, slot)| slot.origin == Origin::Own) {
            let (input, span, pointer) = self.values.place(slot);
            let phrase = self.entry.phrase();
            if key == "PORT" && matches!(self.entry.kind(), Some(ServiceKind::Worker | ServiceKind::Cron)) {
                let help = "remove it, or make this a private service (`type: pserv`) if others should reach it".to_owned();
                self.report.say(
                    input,
                    Code::W0301,
                    span,
                    pointer.to_owned(),
                    format!("{} sets `PORT`, but a {phrase} receives nothing", quoted(&spec.name)),
                    help,
                );
            }
            if key == defaults::PER_INSTANCE {
                let help = "remove it: each instance has its own".to_owned();
                self.report.say(
                    input,
                    Code::W0304,
                    span,
                    pointer.to_owned(),
                    format!("{} is set by Moat, whatever is written", quoted(key)),
                    help,
                );
            }
        }
    }

    fn network(&mut self) {
        let spec = self.entry.spec;
        let Some(moat) = &spec.moat else { return };
        let Some(names) = &moat.allow_from else { return };
        if !self.entry.kind().is_some_and(ServiceKind::receives) {
            let help = "remove it: nobody reaches it in any case".to_owned();
            self.say(
                Code::W0305,
                spec.name.span,
                "x-moat/allowFrom",
                format!("{} is a {}, which receives nothing", quoted(&spec.name), self.entry.phrase()),
                help,
            );
            return;
        }
        for name in names {
            let Some(index) = self.workspace.service(self.entry.input, name) else { continue };
            let source = &self.workspace.entries[index];
            let sends = source.kind().is_some_and(ServiceKind::sends);
            let because = if sends {
                self.denied(&Peer::Service(source.slug.clone()), &Peer::Service(self.entry.slug.clone()))
            } else {
                Some(format!("it is a {}, which opens no connections", source.phrase()))
            };
            if let Some(because) = because {
                self.say(
                    Code::W0305,
                    name.span,
                    "x-moat/allowFrom",
                    format!("{} can't reach {} all the same: {because}", quoted(name), quoted(&spec.name)),
                    None,
                );
            }
        }
    }

    /// What a PROXY header asks of who gets it.
    fn proxy_header(&mut self) {
        let Some(header) = self.entry.spec.moat.as_ref().and_then(|moat| moat.proxy_header.as_ref()) else { return };
        if self.entry.kind() != Some(ServiceKind::Web) {
            return;
        }
        let message = format!(
            "each connection of the ingress and of health checks to {} begins with a PROXY header, and carries one request",
            quoted(&self.entry.spec.name)
        );
        let help = "its server must expect it on its HTTP port; clients of the private network use another port, or begin with one too";
        self.say(Code::N0311, header.span, "x-moat/proxyProtocol", message, help.to_owned());
    }

    /// Why one service can't reach another, both of which are in the state.
    fn denied(&self, from: &Peer, to: &Peer) -> Option<String> {
        match verdict(self.state, from, to, None) {
            Verdict::Allow { .. } | Verdict::Deny { because: moat_model::DenyReason::UnknownPeer } => None,
            Verdict::Deny { .. } => Some(crate::explain::explain(self.state, from, to, None).why),
        }
    }

    /// References to an address that the private network keeps out of reach.
    fn references(&mut self) {
        for var in &self.entry.spec.env_vars {
            if let EnvSource::Database { name, property, .. } = &var.source {
                self.database_reference(var, name, property.value);
            }
            let EnvSource::Service { name, what, .. } = &var.source else { continue };
            let address = match &what.value {
                ServiceProperty::Host | ServiceProperty::HostPort | ServiceProperty::ConnectionString => true,
                ServiceProperty::EnvVar(key) => key == "RENDER_DISCOVERY_SERVICE",
                ServiceProperty::Port | ServiceProperty::Slug => false,
            };
            let Some(index) = self.workspace.service(self.entry.input, name).filter(|i| address && *i != self.index) else { continue };
            let target = &self.workspace.entries[index];
            if !target.kind().is_some_and(ServiceKind::receives) {
                continue;
            }
            if let Some(because) = self.denied(&Peer::Service(self.entry.slug.clone()), &Peer::Service(target.slug.clone())) {
                let message = format!("{} can't reach {}: {because}", quoted(&self.entry.spec.name), quoted(name));
                self.report.say(self.entry.input, Code::W0303, name.span, format!("{}/fromService/name", var.pointer), message, None);
            }
        }
    }
    fn database_reference(&mut self, var: &EnvVarSpec, name: &Text, property: DatabaseProperty) {
        let address = match property {
            DatabaseProperty::ConnectionString | DatabaseProperty::ConnectionPoolString | DatabaseProperty::Host => true,
            DatabaseProperty::Port | DatabaseProperty::User | DatabaseProperty::Password | DatabaseProperty::Database => false,
        };
        let Some(target) = self.workspace.database(self.entry.input, name).filter(|_| address) else { return };
        if let Some(because) = self.denied(&Peer::Service(self.entry.slug.clone()), &Peer::Service(target.slug.clone())) {
            let message = format!("{} can't reach {}: {because}", quoted(&self.entry.spec.name), quoted(name));
            self.report.say(self.entry.input, Code::W0303, name.span, format!("{}/fromDatabase/name", var.pointer), message, None);
        }
    }
}
