//! What every test starts from: an engine with its own folders, in a network and mount namespace of its own.

use moat_engine::{Engine, EngineError};
use moat_engine_linux::{BuildRequest, Config, LinuxEngine, ServerImages};
use moat_model::net::{NetworkId, Ula};
use moat_model::policy::SourceEntry;
use moat_model::state::{ExitReport, InstancePhase, KeyValueWorkload, NativeWorkload, Persistence, PostgresWorkload, Workload};
use moat_model::{Egress, InstanceId, Limits, LinkName, NativeRuntime, Purpose, Secret, ServiceId, Slug, ZoneId};
use moat_planner::Step;
use moat_planner::plan::InstanceSpec;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

static NEXT: AtomicU16 = AtomicU16::new(1);

pub struct Bed {
    pub engine: LinuxEngine,
    pub state: PathBuf,
    pub run: PathBuf,
    pub source: PathBuf,
    _folder: tempfile::TempDir,
}

/// Runs a test in namespaces of its own, and checks that nothing is left of it.
pub fn test(body: impl AsyncFnOnce(&Bed) + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to make sandboxes");
        return;
    }
    // A thread of its own: only it moves to the new namespaces, and the tasks of the runtime it drives with it.
    std::thread::scope(|scope| {
        let done = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let bed = runtime.block_on(async { Bed::new() });
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    bed.engine.apply(&Step::EnsureRouter).await.unwrap();
                    body(&bed).await;
                });
            }));
            // Cleaned up after a failure as well; what is left is only judged after a success.
            runtime.block_on(async {
                for id in bed.engine.observe().await.unwrap().instances.into_keys() {
                    bed.stop(&id, 0).await;
                }
                bed.engine.apply(&Step::RemoveRouter).await.unwrap();
                if let Err(panic) = outcome {
                    resume_unwind(panic);
                }
                let left = bed.engine.leftovers().await.unwrap();
                assert!(left.is_empty(), "{left:?}");
                assert_eq!(fs::read_dir(bed.run.join("crun")).unwrap().count(), 0, "the runtime's state is left");
            });
        });
        if let Err(panic) = done.join() {
            resume_unwind(panic);
        }
    });
}

pub fn config(state: &Path, run: &Path) -> Config {
    Config {
        state_dir: state.to_owned(),
        run_dir: run.to_owned(),
        oci_runtime: None,
        pass_env: vec!["PIP_INDEX_URL".to_owned()],
        mirrors: Vec::new(),
        server_images: ServerImages::default(),
        shortcut: true,
        own_exe: PathBuf::from(env!("CARGO_BIN_EXE_moat-monitor-test")),
    }
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (state, run, source) = (folder.path().join("state"), folder.path().join("run"), folder.path().join("source"));
        fs::create_dir(&source).unwrap();
        Self { engine: LinuxEngine::open(config(&state, &run)).unwrap(), state, run, source, _folder: folder }
    }

    /// Another engine over the same folders: what a restarted daemon sees.
    pub fn reopen(&self) -> LinuxEngine {
        LinuxEngine::open(self.config()).unwrap()
    }

    pub fn config(&self) -> Config {
        config(&self.state, &self.run)
    }

    /// A file of the source.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.source.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A service that runs a command.
    pub fn native(&self, runtime: NativeRuntime, start: &str) -> InstanceSpec {
        let workload = Workload::Native(NativeWorkload {
            runtime,
            version: None,
            source: self.source.clone().into(),
            root_dir: PathBuf::new(),
            build_command: None,
            pre_deploy_command: None,
            initial_deploy_hook: None,
            start_command: start.to_owned(),
            schedule: None,
            disk: None,
        });
        spec("app", workload)
    }

    pub fn key_value(persistence: Persistence) -> InstanceSpec {
        spec("cache", Workload::KeyValue(KeyValueWorkload { maxmemory_policy: "noeviction".to_owned(), persistence }))
    }

    pub fn postgres(major: Option<u16>) -> InstanceSpec {
        let server = PostgresWorkload {
            major,
            database: "Shop-1".to_owned(),
            user: "owner".to_owned(),
            password: Secret::new("a-very-secret-word"),
        };
        let mut spec = spec("orders", Workload::Postgres(server));
        spec.env.clear();
        spec
    }

    /// Copies the source and seals it as it is.
    pub async fn release(&self, spec: &mut InstanceSpec) {
        let Workload::Native(native) = &spec.workload else { panic!("nothing to build") };
        let request = BuildRequest {
            service: spec.service.clone(),
            slug: spec.slug.clone(),
            source: native.source.clone(),
            root_dir: native.root_dir.clone(),
            build_fingerprint: format!("{:?}", native.build_command),
            runtime: native.runtime,
            version: native.version.clone(),
            commands: native.build_command.iter().cloned().collect(),
            env: spec.env.clone(),
        };
        let release = self.engine.prepare_release(request, |_| ()).await.unwrap().release;
        if !release.cached {
            if native.build_command.is_some() {
                let build = crate::bed::spec("app", spec.workload.clone());
                let build = InstanceSpec { purpose: Purpose::Build, release: Some(release.name.clone()), env: spec.env.clone(), ..build };
                self.start(&build).await.unwrap();
                let report = self.end(&build.id).await;
                assert_eq!(report.code, 0, "{report:?}: {:?}", self.log(&build.id));
                self.stop(&build.id, 0).await;
            }
            self.engine.seal_release(&release.name).await.unwrap();
        }
        spec.release = Some(release.name);
    }

    pub async fn start(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        self.permit(spec).await;
        self.engine.apply(&Step::StartInstance { instance: Box::new(spec.clone()) }).await.map(|_| ())
    }

    /// Adds the instance to the policy: it sends, and it receives from everyone.
    pub async fn permit(&self, spec: &InstanceSpec) {
        let mut policy = (*self.engine.network().policy()).clone();
        let zone = ZoneId(1);
        let entry = SourceEntry {
            link: spec.link.clone(),
            address: spec.address,
            zone: Some(zone),
            egress: Egress::Internet,
            service: spec.service.clone(),
        };
        policy.sources.insert(spec.id.clone(), entry);
        policy.receivers.insert((zone, spec.address));
        self.engine.apply(&Step::SetPolicy { policy: policy.into() }).await.unwrap();
    }

    pub async fn stop(&self, id: &InstanceId, grace_seconds: u32) {
        self.engine.apply(&Step::StopInstance { id: id.clone(), grace_seconds }).await.unwrap();
    }

    /// Waits for the end.
    pub async fn end(&self, id: &InstanceId) -> ExitReport {
        match self.engine.wait(id).await.unwrap() {
            InstancePhase::Exited(report) => report,
            other @ (InstancePhase::Preparing | InstancePhase::Running | InstancePhase::Lost) => panic!("{other:?}"),
        }
    }

    /// Runs a command from start to end; its report and its output.
    pub async fn run(&self, mut spec: InstanceSpec) -> (ExitReport, Vec<String>) {
        if matches!(spec.workload, Workload::Native(_)) && spec.release.is_none() {
            self.release(&mut spec).await;
        }
        self.start(&spec).await.unwrap();
        let report = self.end(&spec.id).await;
        let lines = self.log(&spec.id);
        self.stop(&spec.id, 0).await;
        (report, lines)
    }

    /// What a shell command prints.
    pub async fn shell(&self, command: &str) -> Vec<String> {
        let (report, lines) = self.run(self.native(NativeRuntime::Python, command)).await;
        assert_eq!(report.code, 0, "{report:?}: {lines:?}");
        lines
    }

    pub fn log(&self, id: &InstanceId) -> Vec<String> {
        moat_engine_linux::log::read(&self.engine.log_path(id)).unwrap().into_iter().map(|line| line.text).collect()
    }

    /// Waits until the log holds a line.
    pub async fn logged(&self, id: &InstanceId, line: &str) {
        until(|| self.engine.log_path(id).exists() && self.log(id).iter().any(|l| l == line)).await;
    }
}

/// Waits for a condition; gives up after 30 s.
pub async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}

pub fn spec(slug: &str, workload: Workload) -> InstanceSpec {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let address = NetworkId::new(0).unwrap().instance(Ula([0xfd00, 1, 2]), number);
    let service = ServiceId::new(format!("srv-{slug}")).unwrap();
    InstanceSpec {
        id: InstanceId::new(format!("{service}-{number:05}")).unwrap(),
        service,
        slug: Slug::new(slug).unwrap(),
        purpose: Purpose::Serve,
        fingerprint: "f".to_owned(),
        address,
        link: LinkName::of(address.v4),
        workload,
        command: None,
        env: BTreeMap::from([("PORT".to_owned(), Secret::new("10000"))]),
        secret_files: BTreeMap::new(),
        limits: Limits { memory_bytes: 256 << 20, cpu_millis: 1000, pids: 100 },
        release: None,
    }
}

/// Whether a file below the folder holds a text.
pub fn holds(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holds(&path, text));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes())) {
            found.push(path);
        }
    }
    found
}
