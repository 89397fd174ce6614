//! Services of which everything is known.

use super::Sight;
use super::databases::Database;
use super::defaults::{DefaultValue, When, default_port, version_key};
use super::domains;
use super::fingerprint;
use super::images;
use super::plans::{self, DEFAULT_PLAN, PlanProblem};
use super::sites;
use super::values::Values;
use super::workspace::{Entry, Workspace};
use crate::codes::{Code, Report};
use crate::memory::{Memory, Space};
use crate::names::{closest, one_of, quoted};
use crate::zones::{isolated_zone, open_zone};
use moat_blueprint::spec::{EnvironmentIndex, EnvironmentSpec, RuntimeSpec, ServiceSpec, Text};
use moat_model::net::RESERVED_PORTS;
use moat_model::state::{
    Disk, Dockerfile, EnvironmentRef, ImageOrigin, ImageWorkload, KeyValueWorkload, NativeWorkload, Persistence, Scaling, Source, Workload,
};
use moat_model::{AddressPair, DesiredState, Egress, Limits, NetworkId, Secret, Service, ServiceKind, Slug, Span, StartOrder, ZoneId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// The region of a service that names none.
pub(crate) const DEFAULT_REGION: &str = "oregon";
/// The limits where what is written gives none.
const FALLBACK: Limits = Limits { memory_bytes: 512 << 20, cpu_millis: 500, pids: 512 };
/// The most instances of one service.
const MOST_INSTANCES: u32 = 100;
const GIB: u64 = 1 << 30;
/// Seconds that a database has to write down what it holds in memory before it is killed; after a kill it replays its log instead.
const DATABASE_GRACE: u32 = 60;

/// Makes the service of every entry that this Moat runs, and of every database.
pub(crate) fn assemble(
    workspace: &Workspace<'_>,
    values: &Values<'_>,
    memory: &mut Memory,
    random: &mut dyn FnMut() -> [u8; 32],
    report: &mut Report,
) -> DesiredState {
    let closed = closed_environments(workspace, report);
    let mut assembly = Assembly { workspace, values, closed, memory, random, report };
    let mut state = DesiredState::default();
    for (index, entry) in workspace.entries.iter().enumerate() {
        if let Some(kind) = entry.kind().filter(|_| entry.runs())
            && let Some(service) = assembly.service(index, entry, kind)
        {
            state.services.insert(service.slug.clone(), service);
        }
    }
    for database in &workspace.databases {
        state.services.extend(assembly.database(database).map(|service| (service.slug.clone(), service)));
    }
    domains::settle(workspace, &mut state, report);
    state
}

/// Whether each (project, environment) is isolated. Files that differ about one are told, and it is.
fn closed_environments<'a>(workspace: &Workspace<'a>, report: &mut Report) -> BTreeMap<(&'a str, &'a str), bool> {
    let mut closed: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for (input, file) in workspace.inputs.iter().enumerate() {
        for environment in &file.blueprint.environments {
            let key = (environment.project.value.as_str(), environment.name.value.as_str());
            let before = closed.insert(key, environment.isolated || closed.get(&key).copied().unwrap_or_default());
            if before.is_some_and(|before| before != environment.isolated) {
                let help = "it is closed; write the same `networking.isolation` in each file".to_owned();
                let message =
                    format!("environment {} of project {} is closed in one file and open in another", quoted(key.1), quoted(key.0));
                report.say(input, Code::W0306, environment.name.span, "", message, help);
            }
        }
    }
    closed
}

struct Assembly<'a, 'w> {
    workspace: &'w Workspace<'a>,
    values: &'w Values<'a>,
    closed: BTreeMap<(&'a str, &'a str), bool>,
    memory: &'w mut Memory,
    random: &'w mut dyn FnMut() -> [u8; 32],
    report: &'w mut Report,
}

/// A service or database, as far as both have a place on the network.
struct Member<'s> {
    input: usize,
    space: Space,
    name: &'s Text,
    pointer: &'s str,
    span: Span,
    region: Option<&'s Text>,
    environment: EnvironmentIndex,
}

/// Where on the network something is.
struct Location {
    region: String,
    network: NetworkId,
    environment: Option<EnvironmentRef>,
    zone: ZoneId,
}

impl Assembly<'_, '_> {
    fn service(&mut self, index: usize, entry: &Entry<'_>, kind: ServiceKind) -> Option<Service> {
        let spec = entry.spec;
        let input = &self.workspace.inputs[entry.input];
        let member = Member {
            input: entry.input,
            space: Space::Services,
            name: &spec.name,
            pointer: &spec.pointer,
            span: spec.span,
            region: spec.region.as_ref(),
            environment: spec.environment,
        };
        let Location { region, network, environment, zone } = self.location(&member)?;
        let vip = if kind.receives() { Some(self.service_address(&member, network)?) } else { None };
        let limits = self.limits(entry, kind);
        let port = self.port(index, entry, kind);
        let (env, build_env, written_keys) = self.environments(index);
        let workload = self.workload(entry, kind, &env)?;
        let secret_files = self.secret_files(entry);
        let moat = spec.moat.as_ref();
        let mut service = Service {
            id: entry.id.clone(),
            name: spec.name.value.clone(),
            slug: entry.slug.clone(),
            kind,
            blueprint: input.path.to_owned(),
            region,
            network,
            environment,
            zone,
            vip,
            port,
            port_given_to: self.values.port_given_to(index),
            allow_from: moat.and_then(|m| m.allow_from.as_ref()).map(|names| self.allowed(entry, names)),
            egress: if kind.sends() {
                moat.and_then(|m| m.egress.as_ref()).map(|e| e.value.clone()).unwrap_or_default()
            } else {
                Egress::None
            },
            instances: instances(spec, kind),
            start: moat.and_then(|m| m.start.as_ref()).map(|start| start.value).unwrap_or_default(),
            limits,
            workload,
            env,
            build_env,
            written_keys,
            secret_files,
            health_check_path: spec
                .health_check_path
                .as_ref()
                .filter(|_| matches!(kind, ServiceKind::Web | ServiceKind::Pserv))
                .map(|path| path.value.clone()),
            max_shutdown_delay_seconds: spec.max_shutdown_delay_seconds.as_ref().map_or(30, |s| s.value.clamp(1, 300)),
            scaling: scaling(spec, kind),
            maintenance: kind == ServiceKind::Web && spec.maintenance_mode.as_ref().is_some_and(|mode| mode.value.enabled),
            public: domains::public(spec, kind),
            fingerprint: String::new(),
            build_fingerprint: String::new(),
        };
        self.fingerprint(&mut service);
        Some(service)
    }

    /// The service that a database is: a datastore without variables.
    fn database(&mut self, database: &Database<'_>) -> Option<Service> {
        let spec = database.spec;
        let kind = ServiceKind::Postgres;
        let member = Member {
            input: database.input,
            space: Space::Databases,
            name: &spec.name,
            pointer: &spec.pointer,
            span: spec.span,
            region: spec.region.as_ref(),
            environment: spec.environment,
        };
        let Location { region, network, environment, zone } = self.location(&member)?;
        let vip = self.service_address(&member, network)?;
        let limits = match &spec.plan {
            Some(plan) => self.plan(member.input, plan, format!("{}/plan", spec.pointer), kind),
            None => plans::limits(plans::DEFAULT_POSTGRES_PLAN, kind).unwrap_or(FALLBACK),
        };
        let mut service = Service {
            id: database.id.clone(),
            name: spec.name.value.clone(),
            slug: database.slug.clone(),
            kind,
            blueprint: self.workspace.inputs[database.input].path.to_owned(),
            region,
            network,
            environment,
            zone,
            vip: Some(vip),
            port: default_port(Some(kind)),
            port_given_to: BTreeSet::new(),
            allow_from: None,
            egress: Egress::None,
            instances: 1,
            start: StartOrder::Together,
            limits,
            workload: Workload::Postgres(database.server.clone()),
            env: BTreeMap::new(),
            build_env: BTreeMap::new(),
            written_keys: BTreeSet::new(),
            secret_files: BTreeMap::new(),
            health_check_path: None,
            max_shutdown_delay_seconds: DATABASE_GRACE,
            scaling: None,
            maintenance: false,
            public: super::domains::database(spec),
            fingerprint: String::new(),
            build_fingerprint: String::new(),
        };
        self.fingerprint(&mut service);
        Some(service)
    }

    fn fingerprint(&self, service: &mut Service) {
        if self.workspace.sight == Sight::Workspace {
            service.fingerprint = fingerprint::of_instance(service);
            service.build_fingerprint = fingerprint::of_build(service);
        }
    }

    fn location(&mut self, member: &Member<'_>) -> Option<Location> {
        let region = member.region.map_or(DEFAULT_REGION, |r| r.value.as_str()).to_owned();
        let Some(network) = self.memory.network(&region) else {
            let help = format!("at most {} regions are told apart", moat_model::net::MAX_NETWORKS);
            self.report.say(
                member.input,
                Code::E0312,
                member.region.map_or(member.span, |r| r.span),
                format!("{}/region", member.pointer),
                format!("there is no network left for region {}", quoted(&region)),
                help,
            );
            return None;
        };
        let input = &self.workspace.inputs[member.input];
        let environment = self.environment(input.blueprint.environments.get(member.environment.unwrap_or(usize::MAX)));
        let zone = match &environment {
            Some(e) if e.isolated => isolated_zone(self.memory.environment(&e.project, &e.name), network),
            Some(_) | None => open_zone(network),
        };
        Some(Location { region, network, environment, zone })
    }

    fn environment(&self, spec: Option<&EnvironmentSpec>) -> Option<EnvironmentRef> {
        let spec = spec?;
        let isolated = self.closed.get(&(spec.project.value.as_str(), spec.name.value.as_str())).copied().unwrap_or(spec.isolated);
        Some(EnvironmentRef { project: spec.project.value.clone(), name: spec.name.value.clone(), isolated })
    }

    /// The remembered service address, or a new one when there is none in this network.
    fn service_address(&mut self, member: &Member<'_>, network: NetworkId) -> Option<AddressPair> {
        let ula = self.memory.ula(self.random);
        let path = self.workspace.inputs[member.input].path;
        let remembered = self.memory.entry(path, member.space, member.name).vip;
        if let Some((_, offset)) = remembered.filter(|(index, _)| *index == network.index()) {
            return Some(network.service(ula, offset));
        }
        let Some(offset) = self.memory.ranges.entry(network.index()).or_default().services.take() else {
            let help = "`moat down` of services that are not needed makes room".to_owned();
            self.report.say(
                member.input,
                Code::E0312,
                member.name.span,
                format!("{}/name", member.pointer),
                "no service address is left in this network",
                help,
            );
            return None;
        };
        if let Some((index, old)) = remembered
            && let Some(ranges) = self.memory.ranges.get_mut(&index)
        {
            ranges.services.give_back(old);
        }
        self.memory.entry(path, member.space, member.name).vip = Some((network.index(), offset));
        Some(network.service(ula, offset))
    }

    fn limits(&mut self, entry: &Entry<'_>, kind: ServiceKind) -> Limits {
        let Some(plan) = &entry.spec.plan else { return plans::limits(DEFAULT_PLAN, kind).unwrap_or(FALLBACK) };
        // Of a cron job, reading said so.
        if plan.value == plans::FREE && plans::has_no_free_plan(kind) && kind != ServiceKind::Cron {
            let message = format!("a {} has no plan `free`: it gets the limits of `{DEFAULT_PLAN}`", kind.phrase());
            self.report.say(entry.input, Code::N0308, plan.span, entry.pointer("plan"), message, format!("write `{DEFAULT_PLAN}`"));
        }
        self.plan(entry.input, plan, entry.pointer("plan"), kind)
    }

    /// The limits of a plan that is written; a plan that gives none is said.
    fn plan(&mut self, input: usize, plan: &Text, pointer: String, kind: ServiceKind) -> Limits {
        plans::limits(plan, kind).unwrap_or_else(|problem| {
            let message = match problem {
                PlanProblem::Unknown => format!("there is no plan {}", quoted(plan)),
                PlanProblem::NotForKind => format!("a {} can't have the plan {}", kind.phrase(), quoted(plan)),
            };
            let help = match closest(plan, plans::names(kind)) {
                Some(near) if problem == PlanProblem::Unknown => format!("did you mean `{near}`?"),
                Some(_) | None => format!("write {}", one_of(plans::names(kind))),
            };
            self.report.say(input, Code::E0308, plan.span, pointer, message, help);
            FALLBACK
        })
    }

    fn port(&mut self, index: usize, entry: &Entry<'_>, kind: ServiceKind) -> Option<u16> {
        let usual = default_port(Some(kind))?;
        let Some(slot) = self.values.variable(index, "PORT").filter(|_| kind != ServiceKind::KeyValue) else { return Some(usual) };
        // Without a value something else was said about it already.
        let Some(value) = self.values.value(slot) else { return Some(usual) };
        let text = value.trim();
        let (input, span, pointer) = self.values.place(slot);
        let problem = match text.parse::<u16>() {
            Ok(port) if RESERVED_PORTS.contains(&port) => format!("port {port} is reserved on every private network"),
            Ok(port) if port > 0 => return Some(port),
            Ok(_) | Err(_) => format!("{} is not a port", quoted(text)),
        };
        self.report.say(
            input,
            Code::E0307,
            span,
            pointer,
            format!("`PORT` of {}: {problem}", quoted(&entry.spec.name)),
            format!("write a number from 1 to 65535; {usual} is the default"),
        );
        Some(usual)
    }

    /// Variables at run time, variables of the build, and the keys that are not defaults. Empty where nothing will run.
    fn environments(&self, index: usize) -> (BTreeMap<String, Secret>, BTreeMap<String, Secret>, BTreeSet<String>) {
        if self.workspace.sight == Sight::File {
            return Default::default();
        }
        let (mut run, mut build, mut written) = (Vec::new(), Vec::new(), Vec::new());
        for (key, slot) in self.values.variables(index) {
            if let Some(value) = self.values.value(slot) {
                written.push(key.to_owned());
                run.push((key.to_owned(), Secret::new(value)));
                build.push((key.to_owned(), Secret::new(value)));
            }
        }
        for (key, default, when) in self.values.defaults(index) {
            if self.values.variable(index, key).is_some_and(|slot| self.values.value(slot).is_some()) {
                continue;
            }
            let value = Secret::new(match default {
                DefaultValue::Text(text) => text.into_owned(),
                DefaultValue::PortAfter(prefix) => format!("{prefix}{}", self.values.port_text(index)),
            });
            match when {
                When::Run => run.push((key.to_owned(), value)),
                When::Build => build.push((key.to_owned(), value)),
                When::Always => {
                    run.push((key.to_owned(), value.clone()));
                    build.push((key.to_owned(), value));
                }
            }
        }
        // A tree is made of a list at once, which is cheaper than one by one.
        (run.into_iter().collect(), build.into_iter().collect(), written.into_iter().collect())
    }

    fn workload(&mut self, entry: &Entry<'_>, kind: ServiceKind, env: &BTreeMap<String, Secret>) -> Option<Workload> {
        let spec = entry.spec;
        let text = |field: &Option<moat_blueprint::spec::Text>| field.as_ref().map(|t| t.value.clone());
        if kind == ServiceKind::Static {
            let source = self.source(entry);
            return sites::workload(self.workspace, entry, source, root_dir(spec), env, self.report).map(Workload::Static);
        }
        if kind == ServiceKind::KeyValue {
            let persistence = match spec.persistence_mode.as_ref().map(|m| m.value.as_str()) {
                Some("off") => Persistence::Off,
                Some("snapshot") => Persistence::Snapshot,
                // Free instances keep nothing.
                _ if spec.plan.as_ref().is_some_and(|plan| plan.value == "free") => Persistence::Off,
                _ => Persistence::JournalSnapshot,
            };
            let policy = text(&spec.maxmemory_policy).unwrap_or_else(|| "allkeys-lru".to_owned());
            return Some(Workload::KeyValue(KeyValueWorkload { maxmemory_policy: policy, persistence }));
        }
        let pre_deploy_command = text(&spec.pre_deploy_command).filter(|_| kind != ServiceKind::Cron);
        let initial_deploy_hook = text(&spec.initial_deploy_hook).filter(|_| kind != ServiceKind::Cron);
        let schedule = text(&spec.schedule).filter(|_| kind == ServiceKind::Cron);
        let disk = spec.disk.as_ref().filter(|_| kind != ServiceKind::Cron).map(|disk| Disk {
            name: disk.name.value.clone(),
            mount_path: PathBuf::from(&disk.mount_path.value),
            size_bytes: u64::from(disk.size_gb) * GIB,
        });
        let runtime = match spec.runtime.as_ref().map(|r| r.value)? {
            RuntimeSpec::Native(runtime) => runtime,
            image @ (RuntimeSpec::Image | RuntimeSpec::Docker) => {
                let origin = if image == RuntimeSpec::Image {
                    ImageOrigin::Published(self.image(entry)?)
                } else {
                    ImageOrigin::Dockerfile(self.dockerfile(entry))
                };
                return Some(Workload::Image(ImageWorkload {
                    origin,
                    credential: self.values.credential(entry).cloned(),
                    command: text(&spec.docker_command),
                    pre_deploy_command,
                    initial_deploy_hook,
                    schedule,
                    disk,
                }));
            }
            RuntimeSpec::Static => return None,
        };
        Some(Workload::Native(NativeWorkload {
            runtime,
            version: version_key(runtime).and_then(|key| env.get(key)).map(|v| v.expose().trim().to_owned()).filter(|v| !v.is_empty()),
            source: self.source(entry),
            root_dir: root_dir(spec),
            build_command: text(&spec.build_command),
            pre_deploy_command,
            initial_deploy_hook,
            // Reading said so when it is missing.
            start_command: text(&spec.start_command).unwrap_or_default(),
            schedule,
            disk,
        }))
    }

    /// What a Dockerfile service is built from.
    fn dockerfile(&self, entry: &Entry<'_>) -> Dockerfile {
        let path = |field: &Option<Text>, otherwise: &str| PathBuf::from(field.as_ref().map_or(otherwise, |text| text.value.trim()));
        Dockerfile {
            source: self.source(entry),
            root_dir: root_dir(entry.spec),
            file: path(&entry.spec.dockerfile_path, "Dockerfile"),
            context: path(&entry.spec.docker_context, "."),
        }
    }

    /// Where the source is: with the blueprint, or in the repository that it names.
    fn source(&self, entry: &Entry<'_>) -> Source {
        let input = &self.workspace.inputs[entry.input];
        let pin = input.git.pins.get(&entry.spec.name.value).cloned();
        match (entry.spec.repo.as_ref().filter(|_| entry.spec.elsewhere), &input.git.pushed_to) {
            (Some(repo), _) => Source::Repository {
                url: repo.value.trim().to_owned(),
                branch: entry.spec.branch.as_ref().map(|branch| branch.value.trim().to_owned()),
                commit: pin,
            },
            (None, Some(repository)) => Source::Repository {
                url: repository.to_string_lossy().into_owned(),
                branch: None,
                commit: Some(pin.unwrap_or_else(|| input.git.commit.clone())),
            },
            (None, None) => Source::Folder(input.source.to_owned()),
        }
    }

    /// The image's reference, when it can be one.
    fn image(&mut self, entry: &Entry<'_>) -> Option<String> {
        let url = &entry.spec.image.as_ref()?.url;
        if let Err(problem) = images::check(&url.value) {
            let help = "write `[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`, such as `docker.io/library/redis:7.2`".to_owned();
            let message = format!("{} is not an image reference: {problem}", quoted(url));
            self.report.say(entry.input, Code::U0302, url.span, entry.pointer("image/url"), message, help);
            return None;
        }
        Some(url.value.trim().to_owned())
    }

    fn secret_files(&mut self, entry: &Entry<'_>) -> BTreeMap<String, Secret> {
        let mut files = BTreeMap::new();
        for (name, path) in entry.spec.moat.iter().flat_map(|m| &m.secret_files) {
            let pointer = entry.pointer("x-moat/secretFiles");
            match self.workspace.inputs[entry.input].files.get(&path.value) {
                Some(content) => drop(files.insert(name.value.clone(), content.clone())),
                None if self.workspace.sight == Sight::File => {}
                None => self.report.say(
                    entry.input,
                    Code::E0310,
                    path.span,
                    pointer,
                    format!("the secret file {} can't be read", quoted(path)),
                    "the path is relative to the blueprint".to_owned(),
                ),
            }
        }
        files
    }

    fn allowed(&mut self, entry: &Entry<'_>, names: &[moat_blueprint::spec::Text]) -> BTreeSet<Slug> {
        let mut allowed = BTreeSet::new();
        for name in names {
            if let Some(index) = self.workspace.service(entry.input, name) {
                allowed.insert(self.workspace.entries[index].slug.clone());
                continue;
            }
            let near = closest(name, self.workspace.service_names());
            let code = match self.workspace.sight {
                Sight::File if !near.is_some_and(|near| crate::names::is_typo(name, near)) => Code::N0301,
                Sight::File | Sight::Workspace => Code::E0309,
            };
            let help = near
                .map_or_else(|| "names are those of services, as they are written".to_owned(), |near| format!("did you mean `{near}`?"));
            self.report.say(
                entry.input,
                code,
                name.span,
                entry.pointer("x-moat/allowFrom"),
                format!("there is no service {} here", quoted(name)),
                help,
            );
        }
        allowed
    }
}

/// The folder below the source: `.`, `./a`, `/a` and `a/` are all within it. `..` counts for nothing; reading said so.
pub(crate) fn root_dir(spec: &ServiceSpec) -> PathBuf {
    let written = spec.root_dir.as_ref().map_or("", |text| text.value.trim());
    Path::new(written).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

fn scaling(spec: &ServiceSpec, kind: ServiceKind) -> Option<Scaling> {
    let scales = matches!(kind, ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker) && spec.disk.is_none();
    let scaling = spec.scaling.as_ref().filter(|_| scales)?.value;
    let min = scaling.min.clamp(1, MOST_INSTANCES);
    Some(Scaling {
        min,
        max: scaling.max.clamp(min, MOST_INSTANCES),
        cpu_percent: scaling.cpu_percent,
        memory_percent: scaling.memory_percent,
    })
}

fn instances(spec: &ServiceSpec, kind: ServiceKind) -> u32 {
    match kind {
        ServiceKind::Cron | ServiceKind::Static => 0,
        ServiceKind::KeyValue | ServiceKind::Postgres => 1,
        ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker if spec.disk.is_some() => 1,
        ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker => {
            let written = spec.scaling.as_ref().map(|s| s.value.min).or(spec.num_instances.as_ref().map(|n| n.value));
            written.unwrap_or(1).clamp(1, MOST_INSTANCES)
        }
    }
}
