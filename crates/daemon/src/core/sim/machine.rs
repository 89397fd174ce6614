//! The machine and what serves on it, as daemons see them.

use super::programs::Program;
use super::world::World;
use crate::dataplane::PlaneError;
use crate::machine::{Doing, HealthCheck, Machine, Plane, Tell, Unwell};
use crate::protocol::Failure;
use jiff::{SignedDuration, Timestamp};
use moat_dataplane::message::Measures;
use moat_dataplane::{CertificateSet, Config, Doors, HostState};
use moat_engine::{Engine as _, EngineError, StepOutcome};
use moat_engine_linux::{
    BuildRequest, DatastoreRequest, ImageBuildRequest, LinuxEngine, Origin, Prepared, Provided, Prune, Published, PullRequest, Release,
    SiteRequest, Usage,
};
use moat_ingress::LogFormat;
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, Listener, ObservedInstance, ObservedState, PostgresWorkload, Source, StaticWorkload};
use moat_model::{Endpoint, InstanceId, Proto, ServiceId};
use moat_planner::Step;
use moat_testkit::{Fault, now};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The first day of a world.
pub(super) const DAY_ONE: i64 = 1_700_000_000;

impl World {
    async fn apply_step(&self, step: &Step) -> Result<StepOutcome, EngineError> {
        let name = match step {
            Step::EnsureRouter => "make the router".to_owned(),
            Step::SetPolicy { .. } => "set the policy".to_owned(),
            Step::StartInstance { instance } => format!("start {} ({:?})", instance.id, instance.purpose),
            Step::StopInstance { id, .. } => format!("stop {id}"),
            Step::RemoveRouter => "remove the router".to_owned(),
        };
        self.step(&name).await;
        let pause = match step {
            Step::SetPolicy { .. } | Step::EnsureRouter | Step::RemoveRouter => Duration::ZERO,
            Step::StartInstance { .. } => self.inner().pause(100),
            Step::StopInstance { .. } => {
                let mut inner = self.inner();
                let pause = inner.pause(1500);
                // Most end when they are told to, before what is left of them is removed.
                let at = inner.time() + pause / 2;
                let Step::StopInstance { id, .. } = step else { unreachable!() };
                if let Some(program) = inner.programs.get_mut(id) {
                    program.ends = Some(program.ends.map_or((at, 143), |(ends, code)| if ends < at { (ends, code) } else { (at, 143) }));
                }
                pause
            }
        };
        tokio::time::sleep(pause).await;
        self.settle();
        self.step(&name).await;
        let fault = {
            let mut inner = self.inner();
            let is_hook = matches!(step, Step::StartInstance { instance } if instance.command.as_deref() == Some("hook"));
            let hook_fails = is_hook && std::mem::take(&mut inner.hook_fails);
            let any = inner.fails(30).then(|| *inner.rng.pick(&[Fault::Before, Fault::Half, Fault::After]));
            any.or(hook_fails.then_some(Fault::Before))
        };
        if let Step::StartInstance { instance } = step {
            self.judge_start(instance);
        }
        self.engine.script([fault]);
        let result = now(self.engine.apply(step));
        self.tell(format!(
            "{name}{}{}",
            fault.map(|f| format!(", fault {f:?}")).unwrap_or_default(),
            if result.is_ok() { "" } else { ": failed" }
        ));
        match step {
            Step::StartInstance { instance } if fault != Some(Fault::Half) && self.engine.spec(&instance.id).is_some() => {
                let mut inner = self.inner();
                let time = inner.time();
                let program = Program::of(instance, time, &mut inner.rng);
                inner.programs.entry(instance.id.clone()).or_insert(program);
                inner.starts.push((instance.slug.clone(), instance.purpose, time));
                inner.hooks += usize::from(instance.command.as_deref() == Some("hook"));
            }
            Step::StopInstance { id, .. } if self.engine.spec(id).is_none() => {
                self.inner().programs.remove(id);
            }
            Step::SetPolicy { .. } => self.judge_policy(),
            Step::StartInstance { .. } | Step::StopInstance { .. } | Step::EnsureRouter | Step::RemoveRouter => {}
        }
        self.judge_rotation(&name);
        self.step(&name).await;
        result
    }

    async fn ended(&self, id: &InstanceId) -> InstancePhase {
        loop {
            self.settle();
            let due = self.inner().programs.get(id).and_then(|program| program.ends);
            let due = due.map(|(at, _)| at.saturating_sub(self.time()));
            tokio::select! {
                biased;
                phase = self.engine.wait(id) => return phase.unwrap_or(InstancePhase::Lost),
                () = tokio::time::sleep(due.unwrap_or(Duration::from_secs(5))) => {}
            }
        }
    }

    async fn takes(&self, what: &str, most: u64) {
        self.step(what).await;
        let pause = self.inner().pause(most);
        tokio::time::sleep(pause).await;
        self.step(what).await;
    }
}

/// What a look gives where nothing can be looked at.
fn unseen() -> EngineError {
    EngineError::new("look", "an injected fault: too many open files")
}

fn never<'a, T: Send + 'a>(what: &'static str) -> Doing<'a, Result<T, EngineError>> {
    Box::pin(async move { Err(EngineError::new(what, "no blueprint of the simulation asks for it")) })
}

impl Machine for World {
    fn now(&self) -> Timestamp {
        let inner = self.inner();
        let day = Timestamp::from_second(DAY_ONE + inner.off).unwrap();
        day + SignedDuration::try_from(inner.time()).unwrap()
    }

    fn observe(&self) -> Doing<'_, Result<ObservedState, EngineError>> {
        Box::pin(async {
            self.step("observe").await;
            if self.inner().blinks(6) {
                self.tell("what runs can't be seen");
                return Err(unseen());
            }
            Ok(self.observed())
        })
    }
    fn apply<'a>(&'a self, step: &'a Step) -> Doing<'a, Result<StepOutcome, EngineError>> {
        Box::pin(self.apply_step(step))
    }
    fn wait<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<InstancePhase, EngineError>> {
        Box::pin(async move {
            if self.inner().blinks(3) {
                return Err(unseen());
            }
            let phase = self.ended(id).await;
            if self.inner().blinks(3) { Err(unseen()) } else { Ok(phase) }
        })
    }
    fn age(&self, found: &ObservedInstance) -> Duration {
        let inner = self.inner();
        let time = inner.time();
        inner.programs.get(&found.id).map_or(Duration::ZERO, |program| time.saturating_sub(program.began))
    }
    fn policy(&self) -> Arc<NetPolicy> {
        Arc::new(now(self.engine.observe()).unwrap().policy)
    }

    fn listeners<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<Vec<Listener>, EngineError>> {
        Box::pin(async move {
            self.settle();
            let mut inner = self.inner();
            if inner.blinks(3) {
                return Err(unseen());
            }
            let time = inner.time();
            let Some(program) = inner.programs.get(id) else { return Err(EngineError::new("look", "it does not run")) };
            let endpoint = Endpoint { proto: Proto::Tcp, port: program.port };
            let listens = program.is_listening(time) && !id.as_str().starts_with("mill");
            Ok(listens.then_some(Listener { endpoint, loopback_only: false }).into_iter().collect())
        })
    }
    fn ask_health<'a>(&'a self, id: &'a InstanceId, _to: SocketAddr, _check: HealthCheck<'a>) -> Doing<'a, Result<(), Unwell>> {
        Box::pin(async move {
            let mut inner = self.inner();
            if inner.blinks(3) {
                return Err(Unwell::NotAsked("an injected fault".to_owned()));
            }
            let time = inner.time();
            let healthy = inner.programs.get(id).is_some_and(|program| program.is_listening(time) && !program.is_sick(time));
            if healthy { Ok(()) } else { Err(Unwell::Answer("answered 503".to_owned())) }
        })
    }
    fn ask_postgres<'a>(&'a self, _id: &'a InstanceId, _to: SocketAddr, _server: &'a PostgresWorkload) -> Doing<'a, Result<(), String>> {
        Box::pin(async { Err("no blueprint of the simulation asks for it".to_owned()) })
    }
    fn connections<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<usize, EngineError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            let time = inner.time();
            if inner.blinks(3) {
                return Err(unseen());
            }
            let Some(program) = inner.programs.get(id) else { return Err(EngineError::new("look", "it does not run")) };
            Ok(usize::from(program.connected > time))
        })
    }
    fn usage(&self, _ids: Vec<InstanceId>) -> Doing<'_, Result<Vec<(InstanceId, Usage)>, EngineError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn disk_use<'a>(&'a self, _service: &'a ServiceId, _name: &'a str) -> Doing<'a, Result<u64, EngineError>> {
        Box::pin(async { Ok(1) })
    }
    fn log_path(&self, id: &InstanceId) -> PathBuf {
        Path::new("/nowhere").join(id.as_str())
    }

    fn prepare_release(&self, request: BuildRequest, _tell: Tell) -> Doing<'_, Result<Prepared, EngineError>> {
        Box::pin(async move {
            self.takes("prepare", 300).await;
            let mut inner = self.inner();
            if inner.fails(30) {
                return Err(EngineError::new("prepare", "an injected fault"));
            }
            let name = format!("{}-{:.16}", request.slug, request.build_fingerprint);
            let cached = inner.sealed.contains(&name);
            Ok(Release { name, cached, commit: None }.into())
        })
    }
    fn prepare_image(&self, _request: ImageBuildRequest, _tell: Tell) -> Doing<'_, Result<Release, EngineError>> {
        never("prepare an image")
    }
    fn prepare_site(&self, _request: SiteRequest, _tell: Tell) -> Doing<'_, Result<Prepared, EngineError>> {
        never("prepare a site")
    }
    fn pull_image(&self, _request: PullRequest, _tell: Tell) -> Doing<'_, Result<(Release, Option<EngineError>), EngineError>> {
        never("pull an image")
    }
    fn provide_datastore(&self, _request: DatastoreRequest, _tell: Tell) -> Doing<'_, Result<Provided, EngineError>> {
        Box::pin(async {
            self.takes("provide a datastore", 100).await;
            if self.inner().fails(30) {
                return Err(EngineError::new("provide a datastore", "an injected fault"));
            }
            Ok(Provided { origin: Origin::Machine, said: Vec::new() })
        })
    }
    fn seal_release<'a>(&'a self, name: &'a str) -> Doing<'a, Result<(), EngineError>> {
        Box::pin(async move {
            self.takes("seal", 100).await;
            let mut inner = self.inner();
            if inner.fails(30) {
                return Err(EngineError::new("seal", "an injected fault"));
            }
            inner.sealed.insert(name.to_owned());
            Ok(())
        })
    }
    fn seal_image<'a>(&'a self, _name: &'a str) -> Doing<'a, Result<String, EngineError>> {
        never("seal an image")
    }
    fn seal_site<'a>(&'a self, _name: &'a str, _site: &'a StaticWorkload) -> Doing<'a, Result<Published, EngineError>> {
        never("seal a site")
    }
    fn is_sealed(&self, name: &str) -> bool {
        self.inner().sealed.contains(name)
    }
    fn site_folder<'a>(&'a self, _name: &'a str) -> Doing<'a, Result<PathBuf, EngineError>> {
        never("serve a site")
    }
    fn changed_files(
        &self,
        _repository: PathBuf,
        _from: BTreeSet<String>,
        _to: String,
    ) -> Doing<'_, Result<BTreeMap<String, Vec<String>>, EngineError>> {
        never("compare commits")
    }
    fn collect_garbage<'a>(&'a self, keep: &'a BTreeSet<String>) -> Doing<'a, Result<(), EngineError>> {
        Box::pin(async move {
            self.step("collect garbage").await;
            let observed = self.observed();
            let used: BTreeSet<String> =
                observed.instances.keys().filter_map(|id| self.engine.spec(id)).filter_map(|spec| spec.release).collect();
            self.inner().sealed.retain(|name| keep.contains(name) || used.contains(name));
            Ok(())
        })
    }
    fn prune_images<'a>(&'a self, _keep: &'a BTreeSet<String>, _prune: Prune) -> Doing<'a, Result<(usize, u64), EngineError>> {
        Box::pin(async { Ok((0, 0)) })
    }
    fn image_notices<'a>(&'a self, _id: &'a str, _disk: Option<PathBuf>) -> Doing<'a, Vec<String>> {
        Box::pin(async { Vec::new() })
    }
    fn collect_fetched(&self, _sources: Vec<Source>, _services: BTreeSet<ServiceId>) -> Doing<'_, Result<(), EngineError>> {
        Box::pin(async { Ok(()) })
    }

    fn linux(&self) -> Option<&LinuxEngine> {
        None
    }
}

/// Ingress and DNS of a world.
pub(super) struct Desk {
    pub(super) world: Arc<World>,
    pub(super) serving: bool,
}

impl Plane for Desk {
    fn listening(&self) -> Option<SocketAddr> {
        self.serving.then(|| SocketAddr::from(([127, 0, 0, 1], 8080)))
    }
    fn listening_https(&self) -> Option<SocketAddr> {
        None
    }
    fn listen<'a>(&'a mut self, _http: &'a str, _https: Option<&'a str>) -> Doing<'a, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
    fn listen_databases(&mut self, _at: Doors<SocketAddr>) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
    fn is_serving(&self) -> bool {
        self.serving
    }
    fn ensure(&mut self) -> Doing<'_, Result<(), PlaneError>> {
        self.serving = true;
        Box::pin(async { Ok(()) })
    }
    fn replace(&mut self) -> Doing<'_, Result<(), PlaneError>> {
        Box::pin(async { Ok(()) })
    }
    fn show(&self, _certificates: CertificateSet) {}
    fn log(&mut self, _format: Option<LogFormat>) {}
    fn measure(&self) -> Doing<'static, Option<Measures>> {
        // Nobody asks for anything, but where that is said.
        Box::pin(async { Some(Measures::default()) })
    }
    fn resolvers(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
    fn publish(&mut self, config: Config) -> Doing<'_, bool> {
        Box::pin(async move {
            if !self.serving {
                return false;
            }
            self.world.step("publish").await;
            let mut inner = self.world.inner();
            let (generation, hosts) = (config.stamp.generation, config.hosts);
            if generation < inner.published {
                inner.wrong("an older generation is published");
            }
            inner.published = generation;
            let asleep = hosts.values().filter(|host| host.state == HostState::Asleep);
            inner.asleep = asleep.map(|host| host.service.clone()).collect();
            inner.upstreams = hosts.into_values().map(|host| (host.service, host.upstreams.into_iter().collect())).collect();
            !inner.deaf
        })
    }
    fn releases_in_use(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }
    fn root(&self) -> &Path {
        Path::new("/nowhere")
    }
    fn pid(&self) -> Option<u32> {
        None
    }
    fn stop(&mut self) -> Doing<'_, ()> {
        self.serving = false;
        Box::pin(async {})
    }
}
