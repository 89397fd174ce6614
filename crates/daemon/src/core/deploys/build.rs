//! From source to a release: preparing, tools, the build, sealing, the pre-deploy command.

use super::super::{Core, Msg};
use super::{engine_words, first_line};
use crate::deploy::{Deploy, DeployPhase, PreDeploy, Work};
use crate::machine::Tell;
use crate::protocol::ServicePhase;
use moat_engine::EngineError;
use moat_engine_linux::{MissingTool, Prepared, Provided};
use moat_model::state::Workload;
use moat_model::{InstanceId, Purpose, Service, ServiceKind, Slug};
use std::time::Duration;

/// Builds that run at once; more only makes each slower on a small machine.
const BUILDS_AT_ONCE: usize = 2;
const BUILD_LIMIT: Duration = Duration::from_hours(2);
const PRE_DEPLOY_LIMIT: Duration = Duration::from_mins(30);

impl Core {
    /// Hands on how far a pull is.
    pub(super) fn pull_teller(&self, slug: &Slug) -> Tell {
        let (tx, slug) = (self.tx.clone(), slug.clone());
        // Nobody listens any more only when the daemon ends.
        Box::new(move |text| drop(tx.send(Msg::Pulling(slug.clone(), text))))
    }

    /// How far the pull of a deploy's image is.
    pub(in super::super) fn pulling(&mut self, slug: &Slug, text: String) {
        if self.deploys.get(slug).is_some_and(|deploy| deploy.phase == DeployPhase::Preparing) {
            self.set_phase(slug, ServicePhase::Building, Some(text));
        }
    }

    pub(in super::super) fn prepared(&mut self, slug: &Slug, id: &str, result: Result<Prepared, EngineError>) {
        let due = |d: &&mut Deploy| d.phase == DeployPhase::Preparing && d.id == id;
        let Some(deploy) = self.deploys.get_mut(slug).filter(due) else { return };
        match result {
            Err(error) => self.fail_deploy(slug, &engine_words(&error), None),
            Ok(prepared) => {
                let sealed = prepared.release.cached;
                deploy.release = Some(prepared.release.name);
                deploy.commit = prepared.release.commit;
                deploy.tools = prepared.tools;
                deploy.go(if sealed { DeployPhase::Built } else { DeployPhase::Waiting });
                if !sealed {
                    self.tell_begun(slug);
                    self.set_phase(slug, ServicePhase::Waiting, None);
                }
                for text in prepared.notices {
                    self.notice(Some(slug), text);
                }
            }
        }
    }

    /// Who runs a datastore's server is known. One of another definition than the deploy's was asked for earlier.
    pub(in super::super) fn provided(&mut self, slug: &Slug, fingerprint: &str, result: Result<Provided, EngineError>) {
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
    pub(in super::super) fn sealed(&mut self, slug: &Slug, name: &str, result: Result<String, EngineError>) {
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
    pub(in super::super) async fn step_deploys(&mut self) {
        for slug in self.deploys.keys().cloned().collect::<Vec<_>>() {
            let Some(deploy) = self.deploys.get(&slug) else { continue };
            match deploy.phase.clone() {
                DeployPhase::Waiting => self.try_build(&slug).await,
                DeployPhase::Built => self.after_build(&slug).await,
                DeployPhase::Preparing
                | DeployPhase::Installing(_)
                | DeployPhase::SealingTool(_)
                | DeployPhase::Building(_)
                | DeployPhase::Sealing
                    if deploy.since.elapsed() > BUILD_LIMIT =>
                {
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
        let (workload, disk) = (deploy.service.workload.clone(), super::kept_by(&deploy.service));
        let (engine, tx, slug) = (self.engine.clone(), self.tx.clone(), slug.clone());
        let work = tokio::spawn(async move {
            let result = match workload {
                Workload::Image(_) => {
                    let result = engine.seal_image(&name).await;
                    if let Ok(id) = &result {
                        for text in engine.image_notices(id, disk).await {
                            let _ = tx.send(Msg::Said(slug.clone(), text));
                        }
                    }
                    result
                }
                Workload::Static(site) => engine.seal_site(&name, &site).await.map(|published| {
                    for text in crate::core::sites::notices(&site, &published) {
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
        deploy.work = Some(Work::of(&work));
    }

    /// A build, pre-deploy or job instance ended.
    pub(in super::super) fn sandbox_ended(&mut self, slug: &Slug, purpose: Purpose, id: &InstanceId, code: Option<i32>, why: &str) {
        if purpose == Purpose::PreDeploy {
            self.pre_deploy_ended(slug, id, code);
        }
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
        let unchanged =
            deploy.previous.as_ref().is_some_and(|p| p.good && p.release == release && p.service.fingerprint == service.fingerprint);
        match service.workload.pre_deploy_command() {
            Some(command) if !unchanged => {
                let known = self.durable.pre_deploys.get(slug);
                let known = known.filter(|run| run.release == release && run.fingerprint == service.fingerprint).cloned();
                let id = match known {
                    Some(run) if run.done => return self.start_serving(slug),
                    // An earlier daemon started it.
                    Some(run) if self.live.get(&run.instance).is_some_and(|live| !live.stopping) => run.instance,
                    Some(_) | None => match self.start_pre_deploy(&service, release).await {
                        Ok(id) => id,
                        Err(why) => return self.fail_deploy(slug, &why, None),
                    },
                };
                if let Some(deploy) = self.deploys.get_mut(slug) {
                    deploy.go(DeployPhase::PreDeploy(id));
                }
                self.set_phase(slug, ServicePhase::PreDeploy, Some(first_line(command)));
            }
            _ => self.start_serving(slug),
        }
    }

    async fn start_pre_deploy(&mut self, service: &Service, release: Option<String>) -> Result<InstanceId, String> {
        self.forget_pre_deploy(&service.slug);
        let instance = self.start_sandbox(service, Purpose::PreDeploy, release.clone(), None).await?;
        let run = PreDeploy { instance: instance.clone(), fingerprint: service.fingerprint.clone(), release, done: false };
        self.durable.pre_deploys.insert(service.slug.clone(), run);
        self.save();
        Ok(instance)
    }

    /// Notes how a pre-deploy command ended: one that failed runs again when its deploy is asked for again.
    fn pre_deploy_ended(&mut self, slug: &Slug, id: &InstanceId, code: Option<i32>) {
        let Some(run) = self.durable.pre_deploys.get_mut(slug).filter(|run| run.instance == *id) else { return };
        if code == Some(0) {
            run.done = true;
        } else {
            self.durable.pre_deploys.remove(slug);
        }
        self.save();
    }

    /// The deploy that a pre-deploy command was of is over, or another one runs for it.
    pub(super) fn forget_pre_deploy(&mut self, slug: &Slug) {
        if let Some(run) = self.durable.pre_deploys.remove(slug) {
            self.stop_instance(&run.instance, 1);
        }
    }
}
