//! A service's way from source to live.

use super::{Core, Msg};
use crate::deploy::{Deploy, DeployPhase, Deployed};
use crate::protocol::ServicePhase;
use moat_engine::EngineError;
use moat_engine_linux::{
    BuildRequest, DatastoreRequest, ImageBuildRequest, MissingTool, Origin, Prepared, Provided, PullRequest, SiteRequest,
};
use moat_model::state::{ImageOrigin, ImageWorkload, Workload};
use moat_model::{Purpose, Service, ServiceKind, Slug};
use moat_store::EventKind;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Builds that run at once; more only makes each slower on a small machine.
const BUILDS_AT_ONCE: usize = 2;
const BUILD_LIMIT: Duration = Duration::from_hours(2);
const PRE_DEPLOY_LIMIT: Duration = Duration::from_mins(30);

impl Core {
    /// Begins a deploy of what the service should be, unless the same one is under way.
    pub(super) fn begin_deploy(&mut self, service: &Service, start_timeout: Duration) {
        let slug = service.slug.clone();
        if self.deploys.get(&slug).is_some_and(|d| d.service == *service && d.phase != DeployPhase::Starting) {
            return;
        }
        self.cancel_deploy(&slug);
        self.durable.deploying.insert(slug.clone());
        self.record(EventKind::DeployStarted, Some(&slug), "its deploy began", json!({ "fingerprint": service.fingerprint }));
        let deploy = Deploy {
            service: service.clone(),
            phase: DeployPhase::Preparing,
            release: None,
            tools: Vec::new(),
            commit: None,
            previous: self.durable.deployed.get(&slug).cloned(),
            start_timeout,
            since: Instant::now(),
        };
        match &service.workload {
            Workload::KeyValue(_) | Workload::Postgres(_) => {
                // What runs well is not moved to another server by a tag that moved, or by what was installed since.
                let before = deploy.previous.as_ref().filter(|p| p.good && p.service.fingerprint == service.fingerprint);
                let Some(request) = DatastoreRequest::of(service, before.map(|p| Origin::of(p.release.clone()))) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Starting, None);
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                let fingerprint = service.fingerprint.clone();
                tokio::spawn(async move {
                    let result = engine.provide_datastore(request, tell).await;
                    let _ = tx.send(Msg::Provided(slug, fingerprint, result));
                });
            }
            Workload::Image(ImageWorkload { origin: ImageOrigin::Published(name), credential, .. }) => {
                let request = PullRequest { image: name.clone(), credential: credential.clone() };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some(format!("pulling `{name}`")));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.pull_image(request, tell).await.map(|(release, instead_of)| {
                        if let Some(error) = instead_of {
                            let text = format!("{}; using the image that is here", engine_words(&error));
                            let _ = tx.send(Msg::Said(slug.clone(), text));
                        }
                        release.into()
                    });
                    let _ = tx.send(Msg::Prepared(slug, result));
                });
            }
            Workload::Image(_) => {
                let Some(request) = ImageBuildRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_image(request, tell).await.map(Prepared::from);
                    let _ = tx.send(Msg::Prepared(slug, result));
                });
            }
            Workload::Static(_) => {
                let Some(request) = SiteRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_site(request, tell).await;
                    let _ = tx.send(Msg::Prepared(slug, result));
                });
            }
            Workload::Native(_) => {
                let Some(request) = BuildRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_release(request, tell).await;
                    let _ = tx.send(Msg::Prepared(slug, result));
                });
            }
        }
    }

    /// Forgets a deploy under way and stops the sandbox that runs for it.
    pub(super) fn cancel_deploy(&mut self, slug: &Slug) {
        self.durable.deploying.remove(slug);
        let Some(deploy) = self.deploys.remove(slug) else { return };
        self.record(EventKind::DeployCancelled, Some(slug), "its deploy was given up", json!({}));
        if let Some(id) = deploy.sandbox().cloned() {
            self.stop_instance(&id, 1);
        }
    }

    /// Hands on how far a pull is.
    fn pull_teller(&self, slug: &Slug) -> impl Fn(String) + Send + 'static {
        let (tx, slug) = (self.tx.clone(), slug.clone());
        // Nobody listens any more only when the daemon ends.
        move |text| drop(tx.send(Msg::Pulling(slug.clone(), text)))
    }

    /// How far the pull of a deploy's image is.
    pub(super) fn pulling(&mut self, slug: &Slug, text: String) {
        if self.deploys.get(slug).is_some_and(|deploy| deploy.phase == DeployPhase::Preparing) {
            self.set_phase(slug, ServicePhase::Building, Some(text));
        }
    }

    pub(super) fn prepared(&mut self, slug: &Slug, result: Result<Prepared, EngineError>) {
        let Some(deploy) = self.deploys.get_mut(slug).filter(|d| d.phase == DeployPhase::Preparing) else { return };
        match result {
            Err(error) => self.fail_deploy(slug, &engine_words(&error), None),
            Ok(prepared) => {
                let sealed = prepared.release.cached;
                deploy.release = Some(prepared.release.name);
                deploy.commit = prepared.release.commit;
                deploy.tools = prepared.tools;
                deploy.go(if sealed { DeployPhase::Built } else { DeployPhase::Waiting });
                if !sealed {
                    self.set_phase(slug, ServicePhase::Waiting, None);
                }
                for text in prepared.notices {
                    self.notice(Some(slug), text);
                }
            }
        }
    }

    /// Who runs a datastore's server is known. One of another definition than the deploy's was asked for earlier.
    pub(super) fn provided(&mut self, slug: &Slug, fingerprint: &str, result: Result<Provided, EngineError>) {
        let due = |d: &&mut Deploy| d.phase == DeployPhase::Preparing && d.service.fingerprint == fingerprint;
        let Some(deploy) = self.deploys.get_mut(slug).filter(due) else { return };
        match result {
            Err(error) => self.fail_deploy(slug, &engine_words(&error), None),
            Ok(provided) => {
                deploy.release = provided.origin.release();
                for text in provided.said {
                    self.notice(Some(slug), text);
                }
                self.start_serving(slug);
            }
        }
    }

    /// The release that a deploy prepared as `name` is finished, under the name that it runs by.
    pub(super) fn sealed(&mut self, slug: &Slug, name: &str, result: Result<String, EngineError>) {
        if let Some(deploy) = self.deploys.get_mut(slug).filter(|d| d.phase == DeployPhase::SealingTool(name.to_owned())) {
            match result {
                Err(error) => self.fail_deploy(slug, &engine_words(&error), None),
                // Whoever waits for it looks whether it is there.
                Ok(_) => deploy.go(DeployPhase::Waiting),
            }
            return;
        }
        let Some(deploy) = self.deploys.get_mut(slug).filter(|d| d.phase == DeployPhase::Sealing && d.release.as_deref() == Some(name))
        else {
            return;
        };
        match result {
            Err(error) => self.fail_deploy(slug, &engine_words(&error), None),
            Ok(release) => {
                deploy.release = Some(release);
                deploy.go(DeployPhase::Built);
            }
        }
    }

    /// Moves every deploy as far as it can go now.
    pub(super) async fn step_deploys(&mut self) {
        for slug in self.deploys.keys().cloned().collect::<Vec<_>>() {
            let Some(deploy) = self.deploys.get(&slug) else { continue };
            match deploy.phase.clone() {
                DeployPhase::Waiting => self.try_build(&slug).await,
                DeployPhase::Built => self.after_build(&slug).await,
                DeployPhase::Installing(_) | DeployPhase::Building(_) if deploy.since.elapsed() > BUILD_LIMIT => {
                    self.fail_deploy(&slug, "the build took longer than 120 minutes", None);
                }
                DeployPhase::PreDeploy(_) if deploy.since.elapsed() > PRE_DEPLOY_LIMIT => {
                    self.fail_deploy(&slug, "the pre-deploy command took longer than 30 minutes", None);
                }
                DeployPhase::Preparing
                | DeployPhase::Installing(_)
                | DeployPhase::SealingTool(_)
                | DeployPhase::Building(_)
                | DeployPhase::Sealing
                | DeployPhase::PreDeploy(_)
                | DeployPhase::Starting => {}
            }
        }
    }

    async fn try_build(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get(slug) else { return };
        let service = deploy.service.clone();
        let does = match &service.workload {
            Workload::Native(native) => native.build_command.as_deref().map(first_line),
            Workload::Image(image) => image.dockerfile().map(|dockerfile| dockerfile.file.display().to_string()),
            Workload::Static(site) => site.build_command.as_deref().map(first_line),
            Workload::KeyValue(_) | Workload::Postgres(_) => return,
        };
        let Some(does) = does else {
            self.seal(slug);
            return;
        };
        if let Some(waits_for) = self.datastores_not_ready(&service) {
            self.set_phase(slug, ServicePhase::Waiting, Some(format!("for `{waits_for}`")));
            return;
        }
        let building = self.deploys.values().filter(|d| matches!(d.phase, DeployPhase::Installing(_) | DeployPhase::Building(_))).count();
        if building >= BUILDS_AT_ONCE {
            self.set_phase(slug, ServicePhase::Waiting, Some("for a free build place".to_owned()));
            return;
        }
        if let Some(tool) = deploy.tools.iter().find(|tool| !self.engine.is_sealed(&tool.release)).cloned() {
            self.install(slug, &service, tool).await;
            return;
        }
        let release = deploy.release.clone();
        let id = match self.start_sandbox(&service, Purpose::Build, release, None).await {
            Ok(id) => id,
            Err(why) => return self.fail_deploy(slug, &why, None),
        };
        if let Some(deploy) = self.deploys.get_mut(slug) {
            deploy.go(DeployPhase::Building(id));
        }
        self.set_phase(slug, ServicePhase::Building, Some(does));
    }

    /// Installs a tool of a build, unless another deploy does: then this one waits.
    async fn install(&mut self, slug: &Slug, service: &Service, tool: MissingTool) {
        let installs = |deploy: &Deploy| match &deploy.phase {
            DeployPhase::Installing(_) => {
                deploy.tools.iter().find(|tool| !self.engine.is_sealed(&tool.release)).is_some_and(|first| first.release == tool.release)
            }
            DeployPhase::SealingTool(name) => *name == tool.release,
            DeployPhase::Preparing
            | DeployPhase::Waiting
            | DeployPhase::Building(_)
            | DeployPhase::Sealing
            | DeployPhase::Built
            | DeployPhase::PreDeploy(_)
            | DeployPhase::Starting => false,
        };
        if self.deploys.values().any(installs) {
            self.set_phase(slug, ServicePhase::Waiting, Some(format!("for {}, which another build installs", tool.words)));
            return;
        }
        match self.start_sandbox(service, Purpose::Build, Some(tool.release), Some(tool.command)).await {
            Err(why) => self.fail_deploy(slug, &why, None),
            Ok(id) => {
                if let Some(deploy) = self.deploys.get_mut(slug) {
                    deploy.go(DeployPhase::Installing(id));
                }
                self.set_phase(slug, ServicePhase::Building, Some(format!("installing {}", tool.words)));
            }
        }
    }

    /// The datastore of the service's network that is being deployed and not ready, if any.
    fn datastores_not_ready(&self, service: &Service) -> Option<Slug> {
        if service.kind == ServiceKind::Static {
            // It reaches none.
            return None;
        }
        self.desired
            .services
            .values()
            .find(|other| other.kind.is_datastore() && other.network == service.network && self.deploys.contains_key(&other.slug))
            .map(|other| other.slug.clone())
    }

    fn seal(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get_mut(slug) else { return };
        let Some(name) = deploy.release.clone() else { return };
        deploy.go(DeployPhase::Sealing);
        let workload = deploy.service.workload.clone();
        let (engine, tx, slug) = (self.engine.clone(), self.tx.clone(), slug.clone());
        tokio::spawn(async move {
            let result = match workload {
                Workload::Image(_) => engine.seal_image(&name).await,
                Workload::Static(site) => engine.seal_site(&name, &site).await.map(|published| {
                    for text in super::sites::notices(&site, &published) {
                        let _ = tx.send(Msg::Said(slug.clone(), text));
                    }
                    name.clone()
                }),
                Workload::Native(_) | Workload::KeyValue(_) | Workload::Postgres(_) => {
                    engine.seal_release(&name).await.map(|()| name.clone())
                }
            };
            let _ = tx.send(Msg::Sealed(slug, name, result));
        });
    }

    /// A build, pre-deploy or job instance ended.
    pub(super) fn sandbox_ended(&mut self, slug: &Slug, purpose: Purpose, id: &moat_model::InstanceId, code: Option<i32>, why: &str) {
        let Some(deploy) = self.deploys.get_mut(slug).filter(|d| d.sandbox() == Some(id)) else { return };
        let installing = matches!(deploy.phase, DeployPhase::Installing(_));
        let tool = deploy.tools.iter().find(|tool| !self.engine.is_sealed(&tool.release)).filter(|_| installing).cloned();
        let what = match &tool {
            Some(tool) => format!("installation of {}", tool.words),
            None if purpose == Purpose::Build => "build".to_owned(),
            None => "pre-deploy command".to_owned(),
        };
        if let (Some(tool), Some(0)) = (&tool, code) {
            deploy.go(DeployPhase::SealingTool(tool.release.clone()));
            let (engine, tx, slug, name) = (self.engine.clone(), self.tx.clone(), slug.clone(), tool.release.clone());
            tokio::spawn(async move {
                let result = engine.seal_release(&name).await.map(|()| name.clone());
                let _ = tx.send(Msg::Sealed(slug, name, result));
            });
        } else if code == Some(0) {
            if purpose == Purpose::Build {
                self.seal(slug);
            } else {
                deploy.go(DeployPhase::Starting);
                self.start_serving(slug);
            }
        } else {
            let id = id.clone();
            self.fail_deploy(slug, &format!("its {what} {why}"), Some(&id));
        }
    }

    async fn after_build(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get(slug) else { return };
        let (service, release) = (deploy.service.clone(), deploy.release.clone());
        // Also before it starts: many programs end when their database does not answer at once.
        if let Some(waits_for) = self.datastores_not_ready(&service) {
            self.set_phase(slug, ServicePhase::Waiting, Some(format!("for `{waits_for}`")));
            return;
        }
        let new =
            Deployed { service: service.clone(), release: release.clone(), commit: deploy.commit.clone(), hook_ran: false, good: false };
        let unchanged = deploy.previous.as_ref().is_some_and(|p| p.good && p.fingerprint() == new.fingerprint());
        match service.workload.pre_deploy_command() {
            Some(command) if !unchanged => {
                let id = match self.start_sandbox(&service, Purpose::PreDeploy, release, None).await {
                    Ok(id) => id,
                    Err(why) => return self.fail_deploy(slug, &why, None),
                };
                if let Some(deploy) = self.deploys.get_mut(slug) {
                    deploy.go(DeployPhase::PreDeploy(id));
                }
                self.set_phase(slug, ServicePhase::PreDeploy, Some(first_line(command)));
            }
            _ => self.start_serving(slug),
        }
    }

    /// Makes the deploy's definition and release what runs; instances follow by reconciling.
    fn start_serving(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get_mut(slug) else { return };
        let before = deploy.previous.as_ref();
        let mut new = Deployed {
            service: deploy.service.clone(),
            release: deploy.release.clone(),
            commit: deploy.commit.clone(),
            hook_ran: before.is_some_and(|p| p.hook_ran),
            good: false,
        };
        new.good = before.is_some_and(|p| p.good && p.fingerprint() == new.fingerprint());
        deploy.go(DeployPhase::Starting);
        self.durable.deployed.insert(slug.clone(), new);
        self.backoff.remove(slug);
        self.save();
        self.set_phase(slug, ServicePhase::Starting, None);
    }

    /// Ends deploys whose instances are all ready, and those whose time is over.
    pub(super) fn settle_deploys(&mut self) {
        for slug in self.deploys.iter().filter(|(_, d)| d.phase == DeployPhase::Starting).map(|(slug, _)| slug.clone()).collect::<Vec<_>>()
        {
            let (Some(deploy), Some(deployed)) = (self.deploys.get(&slug), self.durable.deployed.get(&slug)) else { continue };
            let fingerprint = deployed.fingerprint();
            let wanted = usize::try_from(deployed.service.instances).unwrap_or(usize::MAX);
            let mine = || {
                self.live.values().filter(|l| l.slug == slug && l.purpose == Purpose::Serve && l.fingerprint == fingerprint && !l.stopping)
            };
            let ready = mine().filter(|l| l.ready).count();
            if deployed.service.kind == ServiceKind::Cron || ready >= wanted {
                self.deploy_is_live(&slug);
            } else if deploy.since.elapsed() > deploy.start_timeout {
                let seen = mine().find(|l| !l.ready).and_then(|l| l.seen.clone()).unwrap_or_else(|| "it did not get ready".to_owned());
                let id =
                    self.live.iter().find(|(_, l)| l.slug == slug && l.fingerprint == fingerprint && !l.ready).map(|(id, _)| id.clone());
                let seconds = deploy.start_timeout.as_secs();
                self.fail_deploy(&slug, &format!("not ready after {seconds} s: {seen}"), id.as_ref());
            } else {
                let seen = mine().find(|l| !l.ready).and_then(|l| l.seen.clone());
                self.set_phase(&slug, ServicePhase::Starting, seen);
                self.wake_in(Duration::from_secs(1));
            }
        }
    }

    fn deploy_is_live(&mut self, slug: &Slug) {
        self.deploys.remove(slug);
        self.durable.deploying.remove(slug);
        let mut hook = None;
        if let Some(deployed) = self.durable.deployed.get_mut(slug) {
            deployed.good = true;
            if deployed.service.workload.needs_release() && !deployed.hook_ran {
                deployed.hook_ran = true;
                let command = deployed.service.workload.initial_deploy_hook().map(str::to_owned);
                hook = command.map(|command| (deployed.service.clone(), deployed.release.clone(), command));
            }
        }
        self.save();
        let (release, commit) = self.deployed(slug).map(|d| (d.release.clone(), d.commit.clone())).unwrap_or_default();
        self.record(EventKind::DeploySucceeded, Some(slug), "its deploy is live", json!({ "release": release, "commit": commit }));
        self.set_phase(slug, ServicePhase::Live, None);
        self.sweep = true;
        self.sweep_fetched = true;
        if let Some((service, release, command)) = hook {
            self.notice(Some(slug), format!("running the initial deploy hook: {}", first_line(&command)));
            self.queue_job(service, release, command);
        }
    }

    /// Removes releases that nothing runs, once no deploy is under way. The loop waits for it, so that no deploy begins
    /// whose release would be taken for garbage.
    pub(super) async fn sweep_releases(&mut self) {
        if !self.sweep || !self.deploys.is_empty() {
            return;
        }
        self.sweep = false;
        let mut keep: BTreeSet<String> = self.durable.deployed.values().filter_map(|d| d.release.clone()).collect();
        keep.extend(self.releases_in_use());
        if let Err(error) = self.engine.collect_garbage(&keep).await {
            tracing::warn!(%error, "old releases can't be removed");
        }
        if let Err(error) = self.engine.prune_images(&keep, false).await {
            tracing::warn!(%error, "old images can't be removed");
        }
    }

    /// Removes what was fetched for services that are not there any more, once no deploy is under way.
    pub(super) async fn sweep_fetched(&mut self) {
        if !self.sweep_fetched || !self.deploys.is_empty() {
            return;
        }
        self.sweep_fetched = false;
        let services = || self.desired.services.values();
        let sources = services().filter_map(|service| service.workload.source().cloned()).collect();
        let built = services().filter(|service| ImageBuildRequest::of(service).is_some()).map(|service| service.id.clone());
        if let Err(error) = self.engine.collect_fetched(sources, built.collect()).await {
            tracing::warn!(%error, "old sources can't be removed");
        }
    }

    /// Keeps what ran before and says why the new one does not.
    pub(super) fn fail_deploy(&mut self, slug: &Slug, why: &str, instance: Option<&moat_model::InstanceId>) {
        let Some(deploy) = self.deploys.remove(slug) else { return };
        self.durable.deploying.remove(slug);
        if let Some(id) = deploy.sandbox().cloned() {
            self.stop_instance(&id, 1);
        }
        let last_lines = instance.map(|id| crate::logs::last_lines(&self.engine.log_path(id), 12)).unwrap_or_default();
        let kept = match (deploy.phase == DeployPhase::Starting, deploy.previous) {
            (true, Some(previous)) => {
                self.durable.deployed.insert(slug.clone(), previous);
                true
            }
            (true, None) => {
                self.durable.deployed.remove(slug);
                false
            }
            (false, previous) => previous.is_some(),
        };
        self.save();
        let detail = if kept { format!("{why}; what ran before stays") } else { why.to_owned() };
        self.record_of(
            EventKind::DeployFailed,
            Some(slug),
            instance,
            format!("its deploy failed: {detail}"),
            json!({ "why": why, "kept": kept }),
        );
        self.set_phase_with(slug, ServicePhase::Failed, Some(detail), last_lines);
    }
}

/// An engine's error with its hint, in one line.
pub(super) fn engine_words(error: &EngineError) -> String {
    match &error.hint {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    }
}

fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    if line.chars().count() > 60 { format!("{}…", line.chars().take(59).collect::<String>()) } else { line.to_owned() }
}
