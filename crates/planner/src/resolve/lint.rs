//! What is said about services beyond what keeps them from being resolved.

use super::values::{Origin, Values};
use super::workspace::{Entry, Workspace};
use super::{cron, defaults};
use crate::codes::{Code, Report};
use crate::names::quoted;
use crate::reach::verdict;
use moat_blueprint::spec::{EnvSource, RuntimeSpec, ServiceProperty, TypeSpec};
use moat_model::{DesiredState, Peer, ServiceKind, Verdict};

/// Mount paths that would hide what every instance needs.
const FORBIDDEN_MOUNTS: [&str; 9] =
    ["/", "/opt", "/opt/render", "/opt/render/project", "/opt/render/project/src", "/home", "/home/render", "/etc", "/etc/secrets"];

/// Looks at every service.
pub(crate) fn lint(workspace: &Workspace<'_>, values: &Values<'_>, state: &DesiredState, report: &mut Report) {
    for (index, entry) in workspace.entries.iter().enumerate() {
        let mut linter = Linter { workspace, values, state, index, entry, report };
        linter.support();
        linter.commands();
        linter.disk();
        linter.variables();
        linter.network();
        linter.references();
    }
    for (input, file) in workspace.inputs.iter().enumerate() {
        for database in &file.blueprint.databases {
            let message = format!("this version of Moat runs no databases: {} would not be there", quoted(&database.name));
            let help = "run a PostgreSQL of your own and give its URL with `sync: false`".to_owned();
            report.say(input, Code::U0302, database.name.span, database.pointer.clone(), message, help);
        }
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

    fn support(&mut self) {
        let spec = self.entry.spec;
        let runtime = spec.runtime.as_ref().map(|r| r.value);
        let (field, span, what) = match (spec.kind.value, runtime) {
            (TypeSpec::StaticSite, _) => ("type", spec.kind.span, "static sites"),
            (TypeSpec::Workflow, _) => ("type", spec.kind.span, "workflows"),
            (TypeSpec::Kind(_), Some(RuntimeSpec::Docker)) => {
                ("runtime", spec.runtime.as_ref().map_or(spec.span, |r| r.span), "Dockerfiles")
            }
            (TypeSpec::Kind(_), Some(RuntimeSpec::Image)) => ("runtime", spec.runtime.as_ref().map_or(spec.span, |r| r.span), "images"),
            (TypeSpec::Kind(_), _) => return,
        };
        let help = "run it elsewhere and leave it out here, or use a native runtime".to_owned();
        self.say(Code::U0301, span, field, format!("this version of Moat runs no {what}: {} would not be there", quoted(&spec.name)), help);
    }

    fn commands(&mut self) {
        let spec = self.entry.spec;
        let Some(RuntimeSpec::Native(runtime)) = spec.runtime.as_ref().map(|r| r.value) else { return };
        let Some(kind) = self.entry.kind() else { return };
        if spec.start_command.is_none() {
            let help = format!("write `startCommand`: a {} service has no command of its own", runtime.word());
            self.say(Code::E0310, spec.name.span, "startCommand", format!("{} has no `startCommand`", quoted(&spec.name)), help);
        }
        if spec.build_command.is_none() {
            self.say(
                Code::N0305,
                spec.name.span,
                "buildCommand",
                format!("{} has no `buildCommand`: its source runs as it is", quoted(&spec.name)),
                None,
            );
        }
        match (&spec.schedule, kind) {
            (None, ServiceKind::Cron) => {
                self.say(
                    Code::E0311,
                    spec.name.span,
                    "schedule",
                    format!("the cron job {} has no `schedule`", quoted(&spec.name)),
                    "write for instance `schedule: \"0 9 * * MON-FRI\"` (UTC)".to_owned(),
                );
            }
            (Some(schedule), ServiceKind::Cron) => {
                if let Err(why) = cron::check(schedule) {
                    let help = "five fields: minute, hour, day of the month, month, day of the week; UTC".to_owned();
                    self.say(Code::E0312, schedule.span, "schedule", format!("{} is no schedule: {why}", quoted(schedule)), help);
                }
            }
            (_, ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::KeyValue) => {}
        }
        if let Some(path) = &spec.health_check_path {
            if !matches!(kind, ServiceKind::Web | ServiceKind::Pserv) {
                let help = "remove it: what receives nothing is not asked".to_owned();
                self.say(Code::W0304, path.span, "healthCheckPath", format!("a {} has no health check", kind.phrase()), help);
            } else if !path.value.starts_with('/') || path.value.contains(|c: char| c.is_whitespace() || c.is_control()) {
                self.say(
                    Code::E0321,
                    path.span,
                    "healthCheckPath",
                    format!("{} is no path", quoted(path)),
                    "write a path such as `/healthz`".to_owned(),
                );
            }
        }
    }

    fn disk(&mut self) {
        let spec = self.entry.spec;
        if let Some(count) = spec.num_instances.as_ref().filter(|n| !(1..=100).contains(&n.value)) {
            self.say(
                Code::E0322,
                count.span,
                "numInstances",
                format!("{} instances", count.value),
                "write a number from 1 to 100".to_owned(),
            );
        }
        if let Some(scaling) = spec.scaling.as_ref().filter(|s| s.value.min == 0 || s.value.min > s.value.max || s.value.max > 100) {
            self.say(
                Code::E0322,
                scaling.span,
                "scaling",
                format!("from {} to {} instances", scaling.value.min, scaling.value.max),
                "write `minInstances` from 1, and `maxInstances` from that to 100".to_owned(),
            );
        }
        let Some(disk) = &spec.disk else { return };
        if let Some(phrase) =
            self.entry.kind().filter(|kind| matches!(kind, ServiceKind::Cron | ServiceKind::KeyValue)).map(ServiceKind::phrase)
        {
            self.say(
                Code::E0314,
                disk.span,
                "disk",
                format!("a {phrase} can't have a disk"),
                "remove it, or make this a background worker".to_owned(),
            );
        }
        let path = &disk.value.mount_path;
        let trimmed = if path.value.len() > 1 { path.value.trim_end_matches('/') } else { &path.value };
        let inside = |part: &str| part == ".." || part == ".";
        if !path.value.starts_with('/') || trimmed.is_empty() || trimmed.split('/').any(inside) || trimmed.contains("//") {
            self.say(
                Code::E0314,
                path.span,
                "disk/mountPath",
                format!("{} is no absolute path", quoted(path)),
                "write for instance `/var/data`".to_owned(),
            );
        } else if FORBIDDEN_MOUNTS.contains(&trimmed) {
            self.say(
                Code::E0314,
                path.span,
                "disk/mountPath",
                format!("a disk at {} would hide what the service needs", quoted(path)),
                "write a folder of its own, for instance `/var/data`".to_owned(),
            );
        }
        let several = spec
            .num_instances
            .as_ref()
            .filter(|n| n.value > 1)
            .map(|n| (n.span, "numInstances"))
            .or(spec.scaling.as_ref().map(|s| (s.span, "scaling")));
        if let Some((span, field)) = several {
            self.say(
                Code::E0313,
                span,
                field,
                format!("{} has a disk, and so one instance", quoted(&spec.name)),
                format!("remove `{field}`, or keep the data elsewhere"),
            );
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
                    Code::W0305,
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
                Code::W0306,
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
                    Code::W0306,
                    name.span,
                    "x-moat/allowFrom",
                    format!("{} can't reach {} all the same: {because}", quoted(name), quoted(&spec.name)),
                    None,
                );
            }
        }
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
}
