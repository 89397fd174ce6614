//! An engine with folders of its own, and instances of a policy of many services.

use crate::failure::{Doing, Failure, Outcome};
use crate::net::policy;
use crate::process::Moat;
use moat_engine::{Engine, EngineError};
use moat_engine_linux::{BuildRequest, Config, LinuxEngine, ServerImages};
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

/// An engine whose network is there and whose policy names [`MOST`] instances, each of a service of its own.
pub struct Site {
    /// What its calls run in.
    pub runtime: Runtime,
    /// The engine.
    pub engine: LinuxEngine,
    /// Its run folder.
    pub run_dir: PathBuf,
}

/// An engine's error in words.
pub trait Words<T> {
    /// The same with its text as the failure.
    fn words(self) -> Outcome<T>;
}

impl<T> Words<T> for Result<T, EngineError> {
    fn words(self) -> Outcome<T> {
        self.map_err(|error| Failure::new(error.to_string()))
    }
}

impl Site {
    /// Opens the engine below `home` and makes the network.
    pub fn open(home: &Path) -> Outcome<Self> {
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
            server_images: ServerImages::default(),
            shortcut: true,
            own_exe,
        };
        let engine = runtime.block_on(async { LinuxEngine::open(config) }).words()?;
        let site = Self { runtime, engine, run_dir };
        site.apply(&Step::EnsureRouter)?;
        site.apply(&Step::SetPolicy { policy: policy::of(MOST).into() })?;
        Ok(site)
    }

    /// Copies the folder of a program as a finished release; its name, and a workload that lacks nothing but a command.
    pub fn release(&self, program: &Path) -> Outcome<(String, NativeWorkload)> {
        let workload = NativeWorkload {
            runtime: NativeRuntime::Python,
            version: None,
            source: program.parent().unwrap_or(program).to_owned().into(),
            root_dir: PathBuf::new(),
            build_command: None,
            pre_deploy_command: None,
            initial_deploy_hook: None,
            start_command: String::new(),
            schedule: None,
            disk: None,
        };
        let request = BuildRequest {
            service: service()?,
            slug: slug()?,
            source: workload.source.clone(),
            root_dir: PathBuf::new(),
            build_fingerprint: String::new(),
            runtime: workload.runtime,
            version: None,
            commands: Vec::new(),
            env: BTreeMap::new(),
        };
        let name = self.runtime.block_on(async {
            let release = self.engine.prepare_release(request, |_| ()).await.words()?.release;
            self.engine.seal_release(&release.name).await.words()?;
            Ok(release.name)
        })?;
        Ok((name, workload))
    }

    /// Instance `number` of the policy. Its limits are those of a service in the blueprint's format that has half a processor.
    pub fn spec(number: u16, workload: Workload, release: &str) -> Outcome<InstanceSpec> {
        let address = policy::instance(number).ok_or_else(|| Failure::new("no such address"))?;
        let service = service()?;
        Ok(InstanceSpec {
            id: InstanceId::new(format!("{service}-{number:05}")).doing("name the instance")?,
            service,
            slug: slug()?,
            purpose: Purpose::Serve,
            fingerprint: "1".to_owned(),
            address,
            link: LinkName::of(address.v4),
            workload,
            command: None,
            env: BTreeMap::new(),
            secret_files: BTreeMap::new(),
            limits: Limits { memory_bytes: 512 << 20, cpu_millis: 500, pids: 256 },
            release: Some(release.to_owned()),
        })
    }

    /// Applies a step.
    pub fn apply(&self, step: &Step) -> Outcome {
        self.runtime.block_on(self.engine.apply(step)).words().map(drop)
    }

    /// Starts an instance; its id.
    pub fn start(&self, spec: InstanceSpec) -> Outcome<InstanceId> {
        let id = spec.id.clone();
        self.apply(&Step::StartInstance { instance: Box::new(spec) })?;
        Ok(id)
    }

    /// Waits for the end of an instance, which is then removed; what it has said.
    pub fn end(&self, id: &InstanceId) -> Outcome<String> {
        self.runtime.block_on(self.engine.wait(id)).words()?;
        let log = fs::read_to_string(self.engine.log_path(id)).doing("read the log")?;
        self.stop(id)?;
        Ok(log)
    }

    /// Stops and removes an instance.
    pub fn stop(&self, id: &InstanceId) -> Outcome {
        self.apply(&Step::StopInstance { id: id.clone(), grace_seconds: 1 })
    }

    /// Removes the network.
    pub fn close(self) -> Outcome {
        self.apply(&Step::RemoveRouter)
    }
}

fn slug() -> Outcome<Slug> {
    Slug::new("hello").doing("name the service")
}

fn service() -> Outcome<ServiceId> {
    ServiceId::new(format!("srv-{:020}", 0)).doing("name the service")
}
