//! What the command line asks.

use super::deploys::engine_words;
use super::{Core, Until, Waiting};
use crate::access_log;
use crate::blueprints::{self, Doors, Outcome};
use crate::dataplane::DEFAULT_LISTEN;
use crate::deploy::DeployPhase;
use crate::history::DeployCause;
use crate::logs::Wanted;
use crate::masked;
use crate::protocol::{
    Event, Failure, InstanceStatus, MissingValue, Request, ServicePhase, ServiceState, ServiceStatus, ServiceVerb, SnapshotKind, Status,
    UpRequest,
};
use crate::state::Durable;
use moat_engine_linux::Prune;
use moat_model::state::InstancePhase;
use moat_model::{DesiredState, Purpose, Slug};
use moat_planner::Step;
use moat_store::{EventFilter, EventKind};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) use crate::reply::Reply;

pub(super) fn end(reply: &Reply, error: Option<Failure>) {
    let _ = reply.send(Event::End { error });
}

impl Core {
    pub(super) async fn request(&mut self, request: Request, reply: Reply) {
        match request {
            Request::Ping => end(&reply, None),
            Request::Up(up) if up.pushed.is_some() => self.push(up, &reply),
            Request::Up(up) => {
                if let Some(outcome) = self.resolve_with(&up, &reply) {
                    self.accept(up, outcome.state, &BTreeMap::new(), reply).await;
                }
            }
            Request::Down { file } => self.down(file.as_ref(), reply),
            Request::Status => {
                let _ = reply.send(Event::Status(self.status().await));
                end(&reply, None);
            }
            Request::Logs { service, follow, tail, file, filter } => match Wanted::new(filter) {
                Ok(lines) => self.logs(service.as_ref(), follow, tail, file.as_deref(), lines, reply),
                Err(why) => end(&reply, Some(Failure { message: why, hint: None, exit_code: 2 })),
            },
            Request::Desired => {
                let _ = reply.send(Event::Desired { state: Box::new(masked::state(&self.desired)) });
                end(&reply, None);
            }
            Request::Verify { random_ports } => self.verify(random_ports, reply).await,
            Request::Plan(up) => self.plan(&up, &reply),
            Request::Trace { from, to } => self.trace(&from, &to, &reply),
            Request::PruneImages => self.prune_images(&reply).await,
            Request::Deploys { service } => self.deploys(service.as_deref(), &reply),
            Request::Service { service, verb } => match self.find(&service) {
                Ok(slug) => self.service_verb(slug, verb, reply).await,
                Err(failure) => end(&reply, Some(failure)),
            },
            Request::Upgrade { program } => self.upgrade(program, reply),
            Request::Events { service, kind, since, last, follow } => {
                let filter = EventFilter { service: service.map(|slug| slug.to_string()), kind, since, after: None, last };
                self.answer_events(filter, follow, reply);
            }
            Request::Leave if self.serves => end(&reply, Some(Failure::refused("`moat serve` runs here", None))),
            Request::Leave => {
                end(&reply, None);
                self.leaving = true;
            }
            Request::GroupVariables { group, show } => self.group_variables(&group, show, &reply),
            Request::SetGroupVariables { group, values } => self.set_group_variables(&group, &values, reply),
            Request::Backup { file, services, with_key } => self.backup(file, &services, with_key, reply),
            Request::Restore { file, key, services } => self.restore(file, key.as_deref(), &services, reply),
            Request::Ingress { set } => self.ingress(&set, &reply).await,
            Request::RestartIngress => self.restart_ingress(&reply).await,
            Request::Certificate(verb) => self.certificate(verb, &reply),
            Request::Authority => self.authority(&reply),
            Request::Domains => self.domains(reply),
            Request::AccessLog { service, follow, tail, grep } => match access_log::Wanted::new(service.as_deref(), grep.as_deref()) {
                Ok(wanted) => drop(tokio::spawn(access_log::send(access_log::path(&self.paths.state), wanted, tail, follow, reply))),
                Err(why) => end(&reply, Some(Failure { message: why, hint: None, exit_code: 2 })),
            },
            Request::Load => self.tell_load(false, reply),
            Request::Metrics => self.tell_load(true, reply),
            Request::Denied => {
                let _ = reply.send(Event::Denied { flows: self.denied_flows() });
                end(&reply, None);
            }
        }
    }

    async fn service_verb(&mut self, slug: Slug, verb: ServiceVerb, reply: Reply) {
        match verb {
            ServiceVerb::Restart => self.restart(&slug, reply),
            ServiceVerb::Rollback { deploy } => self.rollback(&slug, deploy.as_deref(), reply),
            ServiceVerb::CancelDeploy => self.cancel_deploy(&slug, &reply),
            ServiceVerb::Scale { instances } => self.scale(slug, instances, reply),
            ServiceVerb::Suspend => self.suspend(slug, reply),
            ServiceVerb::Resume => self.resume_service(slug, reply),
            ServiceVerb::Maintenance { on, page } => self.set_maintenance(&slug, on, page, &reply),
            ServiceVerb::Variables { show } => self.variables(&slug, show, &reply),
            ServiceVerb::SetVariables { values } => self.set_variables(&slug, &values, reply),
            ServiceVerb::Run { command, detach } => self.run_now(slug, command, detach, reply).await,
            ServiceVerb::Snapshots => self.snapshots(&slug, reply),
            ServiceVerb::TakeSnapshot => self.take_snapshot(&slug, SnapshotKind::Asked, reply),
            ServiceVerb::RestoreSnapshot { snapshot } => self.restore_snapshot(&slug, snapshot, reply).await,
        }
    }

    /// Where the ingress is to listen by a request: where it does, unless that says another place.
    fn listen_for(&self, said: &str) -> String {
        let listening = self.dataplane.listening().filter(|_| said == DEFAULT_LISTEN);
        listening.map_or_else(|| said.to_owned(), |address| address.to_string())
    }

    /// Reads all accepted blueprints and this one together; says what is wrong, or what they ask for.
    pub(super) fn resolve_with(&mut self, up: &UpRequest, reply: &Reply) -> Option<Outcome> {
        let mut all = self.durable.blueprints.clone();
        all.insert(up.file.clone(), up.clone());
        let mut memory = self.durable.memory.clone();
        let (http, https) = (self.listen_for(&up.listen), self.https_door(up));
        let outcome = blueprints::read_and_resolve(&all, &mut memory, Doors { http: &http, https: https.as_deref() });
        let refused = outcome.refusals(&up.file, &all);
        if !refused.is_empty() {
            let _ = reply.send(Event::Refused { diagnostics: refused });
            end(reply, Some(Failure { message: format!("`{}` can't be run", up.file.display()), hint: None, exit_code: 2 }));
            return None;
        }
        if !outcome.missing.is_empty() {
            let values = outcome
                .missing
                .iter()
                .map(|m| MissingValue { owner: m.owner.clone(), key: m.key.clone(), label: m.label.clone(), line: m.span.line })
                .collect();
            let _ = reply.send(Event::Missing { values });
            end(
                reply,
                Some(Failure {
                    message: "values are missing".to_owned(),
                    hint: Some("give each with `--set KEY=VALUE` or `--env-file FILE`".to_owned()),
                    exit_code: 2,
                }),
            );
            return None;
        }
        self.durable.memory = memory;
        Some(outcome)
    }

    /// Makes a blueprint's state the desired one and deploys its services; those in `held` keep what runs, for the reason given,
    /// as long as they are not to be otherwise.
    pub(super) async fn accept(&mut self, mut up: UpRequest, state: DesiredState, held: &BTreeMap<Slug, String>, reply: Reply) {
        up.listen = self.listen_for(&up.listen);
        let https = self.https_door(&up);
        if let Err(failure) = self.dataplane.listen(&up.listen, https.as_deref()).await {
            end(&reply, Some(failure));
            return;
        }
        if let Err(failure) = self.dataplane.listen_databases(self.durable.public.doors()).await {
            end(&reply, Some(failure));
            return;
        }
        if let Err(error) = self.engine.apply(&Step::EnsureRouter).await {
            end(&reply, Some(Failure::engine(&error)));
            return;
        }
        if let Err(error) = self.dataplane.ensure().await {
            let hint = Some(format!("`{}` may say more", self.paths.daemon_log().display()));
            end(&reply, Some(Failure { message: crate::chain(&error), hint, exit_code: 3 }));
            return;
        }
        let mut next = self.next_state(&state, &up.file);
        next.public.listen_tls = https;
        // Once is enough: what is asked for later may not be forgotten again at a restart.
        next.blueprints.insert(up.file.clone(), UpRequest { prune: false, ..up.clone() });
        if let Err(error) = self.commit(next) {
            let hint = Some("nothing was changed; what ran goes on".to_owned());
            end(&reply, Some(Failure { message: crate::chain(&error), hint, exit_code: 3 }));
            return;
        }
        self.forward_events(&reply);
        self.take_state(state);
        self.record(
            EventKind::Accepted,
            None,
            format!("`{}` was accepted", up.file.display()),
            json!({ "file": up.file, "generation": self.durable.generation }),
        );
        if up.prune {
            let unnamed = self.durable.kept.values().filter(|kept| kept.blueprint == up.file).map(|kept| kept.slug.clone()).collect();
            self.close(&unnamed);
        }
        self.save();
        for slug in self.durable.kept.keys().cloned().collect::<Vec<_>>() {
            let stops = if up.pushed.is_some() { "moat git deploy --prune" } else { "moat up --prune" };
            self.notice(Some(&slug), format!("no longer named by its blueprint: it keeps running (`{stops}` stops it)"));
        }
        let timeout = Duration::from_secs(up.start_timeout_seconds);
        let cause = if up.pushed.is_some() { DeployCause::Push } else { DeployCause::Up };
        for service in self.desired.services.values().filter(|s| s.blueprint == up.file).cloned().collect::<Vec<_>>() {
            if !self.durable.kept.contains_key(&service.slug) && !self.keeps(&service, held) {
                self.begin_deploy(&service, cause.clone(), timeout);
            }
        }
        // A daemon that comes after this one goes on with these deploys.
        self.save();
        self.waiting.push(Waiting { reply, until: Until::Settled { file: up.file } });
    }

    /// The durable state with a state accepted: services that `file` no longer names are kept.
    pub(super) fn next_state(&self, state: &DesiredState, file: &Path) -> Durable {
        let mut next = self.durable.clone();
        for (slug, old) in &self.desired.services {
            if old.blueprint == file && !state.services.contains_key(slug) && !next.kept.contains_key(slug) {
                next.kept.insert(slug.clone(), old.clone());
            }
        }
        next.kept.retain(|slug, _| !state.services.contains_key(slug));
        next.generation.0 += 1;
        next
    }

    /// Makes a state that was committed the desired one; services that are kept stay in it.
    pub(super) fn take_state(&mut self, mut state: DesiredState) {
        self.closing.retain(|slug| !state.services.contains_key(slug));
        for (slug, kept) in &self.durable.kept {
            state.services.insert(slug.clone(), kept.clone());
        }
        state.generation = self.durable.generation;
        let (known, maintained) = (self.desired.services.keys().cloned().collect::<Vec<_>>(), self.maintained());
        self.desired = state;
        self.open_databases();
        self.follow_blueprints();
        for slug in known {
            self.record_maintenance(&slug, maintained.get(&slug).map(String::as_str));
        }
    }

    /// Sends what happens from now on to one connection, until it closes. The loop itself sends, so that an answer's end
    /// never overtakes an event.
    fn forward_events(&mut self, reply: &Reply) {
        self.followers.push(reply.clone());
    }

    fn down(&mut self, file: Option<&PathBuf>, reply: Reply) {
        if let Some(file) = file
            && !self.durable.blueprints.contains_key(file)
            && !self.durable.queued.contains_key(file)
        {
            let known: Vec<String> = self.durable.blueprints.keys().map(|p| format!("`{}`", p.display())).collect();
            let hint = if known.is_empty() { "nothing of Moat runs here".to_owned() } else { format!("what runs: {}", known.join(", ")) };
            end(&reply, Some(Failure::refused(format!("`{}` does not run", file.display()), Some(hint))));
            return;
        }
        let mut services: BTreeSet<Slug> = BTreeSet::new();
        for (slug, service) in &self.desired.services {
            if file.is_none_or(|f| service.blueprint == *f) {
                services.insert(slug.clone());
            }
        }
        if file.is_none() {
            services.extend(self.live.values().map(|l| l.slug.clone()));
        }
        self.forward_events(&reply);
        let what = file.map_or_else(|| "everything".to_owned(), |file| format!("`{}`", file.display()));
        self.record(EventKind::Stopped, None, format!("{what} is being stopped, as asked"), json!({ "services": services }));
        self.close(&services);
        self.forget_pushes(file);
        match file {
            Some(file) => {
                self.durable.blueprints.remove(file);
            }
            None => self.durable.blueprints.clear(),
        }
        self.durable.generation.0 += 1;
        self.desired.generation = self.durable.generation;
        self.save();
        let everything = self.durable.blueprints.is_empty();
        self.waiting.push(Waiting { reply, until: Until::Gone { services, everything } });
    }

    /// Gives services up: none of them is started again, and [`Self::go_on_closing`] stops what runs.
    fn close(&mut self, services: &BTreeSet<Slug>) {
        for slug in services {
            self.cancel_deploys(slug, "the service was stopped");
            self.set_phase(slug, ServicePhase::Stopping, None);
            self.closing.insert(slug.clone());
            self.durable.deployed.remove(slug);
            self.durable.kept.remove(slug);
            self.backoff.remove(slug);
            self.durable.cron.remove(slug);
            self.scalers.remove(slug);
            self.durable.settings.remove(slug);
            self.durable.sleep.remove(slug);
        }
        self.hooks_due.retain(|slug, _| !services.contains(slug));
    }

    /// Stops what was closed: datastores after the services that use them, so that these can end in order. A service
    /// keeps its flows until its last instance is gone.
    pub(super) fn go_on_closing(&mut self) {
        let is_store = |core: &Self, slug: &Slug| core.desired.services.get(slug).is_some_and(|s| s.kind.is_datastore());
        let users_left = self.live.values().any(|l| self.closing.contains(&l.slug) && !is_store(self, &l.slug));
        let before = self.closing.len();
        for slug in self.closing.clone() {
            let mine: Vec<_> = self.live.iter().filter(|(_, l)| l.slug == slug).map(|(id, _)| id.clone()).collect();
            if mine.is_empty() {
                self.desired.services.remove(&slug);
                self.closing.remove(&slug);
                self.durable.history.forget(&slug);
                self.sweep_fetched = true;
            } else if !(users_left && is_store(self, &slug)) {
                let grace = self.desired.services.get(&slug).map_or(30, |s| s.max_shutdown_delay_seconds);
                for id in mine {
                    self.stop_instance(&id, grace);
                }
            }
        }
        if self.closing.len() < before {
            self.save();
        }
    }

    /// Answers requests whose condition has come about.
    pub(super) async fn answer_waiting(&mut self) {
        self.refresh_phases();
        let mut remove_all = false;
        let mut still = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            match &waiting.until {
                Until::Settled { file } => {
                    let mine: Vec<&ServiceState> =
                        self.desired.services.values().filter(|s| s.blueprint == *file).filter_map(|s| self.phases.get(&s.slug)).collect();
                    let settled = self.durable.blueprints.contains_key(file)
                        && !self.desired.services.values().any(|s| s.blueprint == *file && self.is_busy_with(&s.slug));
                    if !self.durable.blueprints.contains_key(file) {
                        end(&waiting.reply, Some(Failure::refused("stopped by `moat down`", None)));
                    } else if settled {
                        let failed: Vec<String> =
                            mine.iter().filter(|p| p.phase == ServicePhase::Failed).map(|p| format!("`{}`", p.service)).collect();
                        let _ = waiting.reply.send(Event::Status(self.status().await));
                        let error = (!failed.is_empty()).then(|| {
                            Failure::refused(
                                format!("{} failed", failed.join(", ")),
                                Some("the others run; fix it and say `moat up` again, or `moat down`".to_owned()),
                            )
                        });
                        end(&waiting.reply, error);
                    } else {
                        still.push(waiting);
                    }
                }
                Until::Service { slug } => {
                    if !self.desired.services.contains_key(slug) || self.closing.contains(slug) {
                        end(&waiting.reply, Some(Failure::refused("stopped by `moat down`", None)));
                    } else if self.is_settled(slug) {
                        let failed = self.phases.get(slug).is_some_and(|state| state.phase == ServicePhase::Failed);
                        let _ = waiting.reply.send(Event::Status(self.status().await));
                        end(&waiting.reply, failed.then(|| Failure::refused(format!("`{slug}` failed"), None)));
                    } else {
                        still.push(waiting);
                    }
                }
                Until::Gone { services, everything } => {
                    // What was brought up again meanwhile is nobody's to wait for.
                    let all = *everything && self.durable.blueprints.is_empty();
                    let left = self.live.values().any(|l| all || (services.contains(&l.slug) && self.closing.contains(&l.slug)));
                    if left {
                        still.push(waiting);
                    } else if all {
                        remove_all = true;
                        still.push(waiting);
                    } else {
                        for slug in services.iter().filter(|slug| !self.desired.services.contains_key(*slug)) {
                            self.phases.remove(slug);
                        }
                        end(&waiting.reply, None);
                    }
                }
            }
        }
        self.waiting = still;
        if remove_all {
            self.remove_everything().await;
        }
    }

    /// Nothing is left to run: the network goes, and this process with it.
    pub(super) async fn remove_everything(&mut self) {
        self.dataplane.stop().await;
        // A repair under way ends first, and no other begins: it would make anew what is removed. Who goes on looks again later.
        let removed = self.removed.clone();
        let mut removed = removed.lock().await;
        *removed = !self.serves;
        let result = self.engine.apply(&Step::RemoveRouter).await;
        drop(removed);
        if let Err(error) = self.engine.collect_fetched(Vec::new(), BTreeSet::new()).await {
            tracing::warn!(%error, "old sources can't be removed");
        }
        let error = result.err().map(|error| Failure::engine(&error));
        if !self.serves {
            // What takes a while is done before the answer: soon after it this process is gone.
            self.save();
            let _ = self.state.keep_copy();
            // Whoever comes after the answer finds no daemon, and starts one that waits until this one is gone.
            let _ = std::fs::remove_file(self.paths.socket());
        }
        for waiting in std::mem::take(&mut self.waiting) {
            end(&waiting.reply, error.clone());
        }
        self.policy = Arc::default();
        self.shown = super::public::Shown::default();
        self.phases.clear();
        self.leaving = !self.serves;
    }

    fn is_busy_with(&self, slug: &Slug) -> bool {
        self.deploys.contains_key(slug) || self.next.contains_key(slug) || self.closing.contains(slug)
    }

    async fn status(&self) -> Status {
        // Pids are the system's to know; a failure leaves them out.
        let observed = self.engine.observe().await.unwrap_or_default();
        let by_https = self.by_https();
        let services = self.desired.services.values().map(|service| {
            let slug = &service.slug;
            let mut mine: Vec<_> = self.live.iter().filter(|(_, l)| l.slug == *slug).collect();
            // Those that serve first, and of them those that go on.
            mine.sort_by_key(|(_, l)| (l.purpose, l.stopping));
            let instances = mine
                .into_iter()
                .map(|(id, l)| InstanceStatus {
                    id: id.to_string(),
                    purpose: l.purpose,
                    phase: if l.started { InstancePhase::Running } else { InstancePhase::Preparing },
                    ready: l.ready,
                    draining: l.draining.is_some(),
                    address: l.address,
                    pid: observed.instances.get(id).and_then(|o| o.pid),
                    listeners: l.listeners.clone(),
                    restarts: if l.purpose == Purpose::Serve { self.backoff.get(slug).map_or(0, |b| b.restarts) } else { 0 },
                })
                .collect();
            ServiceStatus {
                state: self.phases.get(slug).cloned().unwrap_or(ServiceState {
                    service: slug.clone(),
                    kind: service.kind,
                    phase: ServicePhase::Waiting,
                    detail: None,
                    last_lines: Vec::new(),
                }),
                name: service.name.clone(),
                blueprint: service.blueprint.clone(),
                url: if service.kind.is_public() { Some(self.public_url(service, &by_https)) } else { self.database_url(service) },
                internal: service.vip.map(|_| match self.main_port(service) {
                    Some(port) => format!("{slug}:{port}"),
                    None => slug.to_string(),
                }),
                address: service.vip,
                next_run: self
                    .durable
                    .cron
                    .get(slug)
                    .and_then(|cron| cron.at)
                    .filter(|at| *at < jiff::Timestamp::MAX)
                    .map(|at| at.to_string()),
                commit: self.deployed(slug).and_then(|deployed| deployed.commit.clone()),
                disk: self.disks.get(slug).copied(),
                warning: self.port_given_wrong(service),
                open_ports: self.open_ports(service),
                wanted: self.wanted(slug),
                maintenance: self.maintenance(service).is_some(),
                instances,
            }
        });
        Status {
            listen: self.dataplane.listening().map(|a| a.to_string()),
            listen_tls: self.dataplane.listening_https().map(|a| a.to_string()),
            services: services.collect(),
            daemon_pid: std::process::id(),
            dataplane_pid: self.dataplane.pid(),
            program: super::upgrade::program(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn main_port(&self, service: &moat_model::Service) -> Option<u16> {
        self.live.values().filter(|l| l.slug == service.slug && l.ready).find_map(|l| l.http_port).or(service.port)
    }

    fn logs(&self, service: Option<&Slug>, follow: bool, tail: Option<usize>, file: Option<&Path>, lines: Wanted, reply: Reply) {
        if let Some(slug) = service
            && !self.desired.services.contains_key(slug)
        {
            let known: Vec<&str> = self.desired.services.keys().map(Slug::as_str).collect();
            end(&reply, Some(Failure::refused(format!("no service `{slug}` runs here"), Some(format!("services: {}", known.join(", "))))));
            return;
        }
        let wanted = self
            .desired
            .services
            .values()
            .filter(|s| service.is_none_or(|w| *w == s.slug) && file.is_none_or(|f| s.blueprint == f))
            .map(|s| s.slug.clone())
            .collect();
        // Who runs a blueprint in the foreground wants what runs now, not the runs before.
        let only = file.map(|_| self.live.keys().map(ToString::to_string).collect());
        let events = follow.then(|| self.events.subscribe());
        tokio::spawn(crate::logs::serve(self.paths.state.join("logs"), wanted, only, lines, tail, events, reply));
    }

    fn plan(&mut self, up: &UpRequest, reply: &Reply) {
        let memory = self.durable.memory.clone();
        if let Some(Outcome { mut state, .. }) = self.resolve_with(up, reply) {
            let _ = reply.send(Event::Drift { differences: self.drift(&state, &up.file) });
            self.count_as_set(&mut state);
            let mut scratch = self.durable.memory.clone();
            let plan = crate::blueprints::preview(
                &state,
                &self.desired,
                &self.durable.deployed,
                &self.policy,
                &self.live_instances(),
                &mut scratch,
            );
            let _ = reply.send(Event::Planned { plan: Box::new(masked::plan(plan)), state: Box::new(masked::state(&state)) });
            end(reply, None);
        }
        // Asking what would happen changes nothing.
        self.durable.memory = memory;
    }

    /// Removes the images that nothing runs, goes back to or is about to run.
    async fn prune_images(&mut self, reply: &Reply) {
        let kept = self.releases_kept();
        // What one of these has brought is not known before it reports.
        let under_way = self.deploys.values().any(|deploy| matches!(deploy.phase, DeployPhase::Preparing | DeployPhase::Sealing));
        match self.engine.prune_images(&kept, Prune::All { under_way }).await {
            Ok((images, bytes)) => {
                let _ = reply.send(Event::Pruned { images, bytes });
                end(reply, None);
            }
            Err(error) => end(reply, Some(Failure::engine(&error))),
        }
    }

    async fn verify(&self, random_ports: u32, reply: Reply) {
        let probing = self.probing.begin();
        let scene = match self.scene(random_ports).await {
            Ok(scene) => scene,
            Err(error) => {
                end(&reply, Some(Failure { message: engine_words(&error), hint: None, exit_code: 3 }));
                return;
            }
        };
        let looking = self.removed.clone();
        tokio::spawn(async move {
            // A look at the network that began before would take the pretended neighbour's addresses for the host's.
            drop(looking.lock().await);
            let verified = tokio::task::spawn_blocking(move || scene.run()).await;
            drop(probing);
            match verified {
                Ok(Ok(verified)) => {
                    let _ = reply.send(Event::Verified(Box::new(verified)));
                    end(&reply, None);
                }
                Ok(Err(error)) => {
                    end(&reply, Some(Failure { message: format!("the report can't be written: {error}"), hint: None, exit_code: 70 }));
                }
                // It panicked, which the daemon's log tells.
                Err(_) => end(&reply, Some(Failure { message: "verifying ended early".to_owned(), hint: None, exit_code: 70 })),
            }
        });
    }
}
