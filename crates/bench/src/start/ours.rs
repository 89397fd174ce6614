//! Moat's own starts: the engine's step, from its call to the program's first instruction.

use super::hello;
use crate::failure::{Doing, Failure, Outcome};
use crate::net::policy;
use crate::process::Moat;
use moat_engine::{Engine, EngineError};
use moat_engine_linux::{BuildRequest, Config, LinuxEngine};
use moat_model::state::{NativeWorkload, Workload};
use moat_model::{InstanceId, Limits, LinkName, NativeRuntime, Purpose, ServiceId, Slug};
use moat_planner::Step;
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::runtime::Runtime;

/// How many instances the policy names.
pub const MOST: u16 = 500;

/// An engine with folders of its own and the measured program as a finished release.
pub struct Ours {
    runtime: Runtime,
    engine: LinuxEngine,
    workload: NativeWorkload,
    run_dir: PathBuf,
    release: String,
    slug: Slug,
    service: ServiceId,
}

/// An engine's error in words.
trait Words<T> {
    fn words(self) -> Outcome<T>;
}

impl<T> Words<T> for Result<T, EngineError> {
    fn words(self) -> Outcome<T> {
        self.map_err(|error| Failure::new(error.to_string()))
    }
}

impl Ours {
    /// Opens the engine, makes the network, and copies `program`'s folder as a release.
    pub fn new(home: &Path, program: &Path) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().doing("start the runtime")?;
        let own_exe = match Moat::find()? {
            Some(moat) => moat.path().to_owned(),
            None => std::env::current_exe().doing("find this program")?,
        };
        let run_dir = home.join("run");
        let config = Config {
            state_dir: home.join("state"),
            run_dir: run_dir.clone(),
            oci_runtime: None,
            pass_env: Vec::new(),
            mirrors: Vec::new(),
            own_exe,
        };
        let engine = runtime.block_on(async { LinuxEngine::open(config) }).words()?;
        let workload = NativeWorkload {
            runtime: NativeRuntime::Python,
            version: None,
            source: program.parent().unwrap_or(program).to_owned().into(),
            root_dir: PathBuf::new(),
            build_command: None,
            pre_deploy_command: None,
            initial_deploy_hook: None,
            start_command: "./hello".to_owned(),
            schedule: None,
            disk: None,
        };
        let slug = Slug::new("hello").doing("name the service")?;
        let service = ServiceId::new(format!("srv-{:020}", 0)).doing("name the service")?;
        let request = BuildRequest {
            service: service.clone(),
            slug: slug.clone(),
            source: workload.source.clone(),
            root_dir: PathBuf::new(),
            build_fingerprint: String::new(),
            runtime: workload.runtime,
            version: None,
        };
        let release = runtime.block_on(async {
            engine.apply(&Step::EnsureRouter).await.words()?;
            engine.apply(&Step::SetPolicy { policy: policy::of(MOST).into() }).await.words()?;
            let release = engine.prepare_release(request).await.words()?;
            engine.seal_release(&release.name).await.words()?;
            Ok(release.name)
        })?;
        Ok(Self { runtime, engine, workload, run_dir, release, slug, service })
    }

    fn spec(&self, number: u16, command: &str) -> Outcome<InstanceSpec> {
        let address = policy::instance(number).ok_or_else(|| Failure::new("no such address"))?;
        let workload = NativeWorkload { start_command: command.to_owned(), ..self.workload.clone() };
        Ok(InstanceSpec {
            id: InstanceId::new(format!("{}-{number:05}", self.service)).doing("name the instance")?,
            service: self.service.clone(),
            slug: self.slug.clone(),
            purpose: Purpose::Serve,
            fingerprint: "1".to_owned(),
            address,
            link: LinkName::of(address.v4),
            workload: Workload::Native(workload),
            command: None,
            env: BTreeMap::new(),
            secret_files: BTreeMap::new(),
            limits: Limits { memory_bytes: 512 << 20, cpu_millis: 500, pids: 256 },
            release: Some(self.release.clone()),
        })
    }

    fn apply(&self, step: &Step) -> Outcome {
        self.runtime.block_on(self.engine.apply(step)).words().map(drop)
    }

    /// Milliseconds from the call of the step to the first instruction.
    pub fn start(&self, number: u16) -> Outcome<f64> {
        let spec = self.spec(number, "./hello")?;
        let id = spec.id.clone();
        let step = Step::StartInstance { instance: Box::new(spec) };
        let asked = hello::now()?;
        self.apply(&step)?;
        self.runtime.block_on(self.engine.wait(&id)).words()?;
        let log = fs::read_to_string(self.engine.log_path(&id)).doing("read the log")?;
        self.stop(&id)?;
        Ok(hello::millis(asked, hello::first(&log)?))
    }

    /// Starts an instance that goes on for ever; its id and the pid of its monitor.
    pub fn idle(&self, number: u16) -> Outcome<(InstanceId, u32)> {
        let spec = self.spec(number, "exec ./hello idle")?;
        let id = spec.id.clone();
        self.apply(&Step::StartInstance { instance: Box::new(spec) })?;
        let seen = self.runtime.block_on(self.engine.observe()).words()?;
        let monitor =
            seen.instances.get(&id).and_then(|instance| instance.monitor_pid).ok_or_else(|| Failure::new("an idle instance has ended"))?;
        Ok((id, monitor))
    }

    /// Stops and removes an instance.
    pub fn stop(&self, id: &InstanceId) -> Outcome {
        self.apply(&Step::StopInstance { id: id.clone(), grace_seconds: 1 })
    }

    /// What the OCI runtime was told of an instance that lives.
    pub fn bundle(&self, id: &InstanceId) -> Outcome<serde_json::Value> {
        let path = self.run_dir.join("instances").join(id.as_str()).join("bundle/config.json");
        let bytes = fs::read(&path).doing(format_args!("read `{}`", path.display()))?;
        serde_json::from_slice(&bytes).doing("read a bundle")
    }

    /// Removes the network.
    pub fn close(self) -> Outcome {
        self.apply(&Step::RemoveRouter)
    }
}
