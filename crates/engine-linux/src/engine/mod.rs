//! [`LinuxEngine`]: steps to what happens on this machine.

mod command;
mod exec;
pub mod folder;
pub mod leftovers;
mod reconnect;
mod start;
mod stop;

use crate::cgroup::{Controllers, Layout};
use crate::lower::sandbox::{HOST_ETC, Machine};
use crate::monitor::files::ProcessId;
use crate::paths::Paths;
use crate::ranges::Ranges;
use crate::toolchain::{self, Toolchain};
use crate::{Config, cgroup, rootless};
use folder::Look;
use moat_engine::{Capabilities, Engine, EngineError, StepOutcome};
use moat_image::Cancel;
use moat_model::state::{InstancePhase, Listener, ObservedState};
use moat_model::{InstanceId, NativeRuntime, Secret, ServiceId};
use moat_net_linux::Network;
use moat_planner::Step;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The embedded engine. Clones share everything.
#[derive(Clone)]
pub struct LinuxEngine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub paths: Paths,
    pub machine: Machine,
    pub runtime: PathBuf,
    pub network: Network,
    pub ranges: Ranges,
    pub pass_env: BTreeMap<String, Secret>,
    /// Instances this process is making now.
    pub starting: Mutex<BTreeSet<InstanceId>>,
    /// Held for reading while a control group may be made, for writing while the parent group is removed.
    pub groups: tokio::sync::RwLock<()>,
    /// Held while old releases are removed.
    pub removing: Mutex<()>,
    toolchains: Mutex<Toolchains>,
}

impl LinuxEngine {
    /// Prepares the folders and looks at the machine. Fails when the OCI runtime is missing or a folder can't be made.
    pub fn open(config: Config) -> Result<Self, EngineError> {
        let base = rootless::groups().map_err(|error| EngineError::new("look for control groups", error.to_string()).caused_by(error))?;
        let paths = Paths::make(&config.run_dir, &config.state_dir)?.below(base.clone().unwrap_or_default());
        let runtime = match &config.oci_runtime {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => return Err(EngineError::new("find the OCI runtime", format!("`{}` is not a file", path.display()))),
            None => toolchain::program("crun")
                .ok_or_else(|| EngineError::new("find the OCI runtime", "`crun` is not installed").hint("apt-get install crun"))?,
        };
        crate::floors::runtime(&runtime).map_err(|why| {
            EngineError::new("use the OCI runtime", format!("`{}`: {why}", runtime.display()))
                .hint("apt-get install crun, of a newer release (or unset MOAT_OCI_RUNTIME)")
        })?;
        let shortcut = config.shortcut;
        let network = Network::open(moat_net_linux::Config { run_dir: paths.run().to_owned(), shortcut })
            .map_err(|error| network_error("open the network", error))?;
        let machine = machine(&config, base.as_deref())?;
        let pass_env =
            config.pass_env.iter().filter_map(|key| std::env::var(key).ok().map(|value| (key.clone(), Secret::new(value)))).collect();
        let inner = Inner {
            config,
            paths,
            machine,
            runtime,
            network,
            ranges: Ranges::new(),
            pass_env,
            starting: Mutex::default(),
            groups: tokio::sync::RwLock::default(),
            removing: Mutex::default(),
            toolchains: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The network half.
    pub fn network(&self) -> &Network {
        &self.inner.network
    }

    /// The log of an instance, in the form that [`crate::log`] describes. Kept after the instance has ended.
    pub fn log_path(&self, id: &InstanceId) -> PathBuf {
        self.inner.paths.log(id)
    }

    /// How long a process has run; nothing for one that has ended, or that can't be looked at.
    pub fn age(&self, pid: u32) -> Option<Duration> {
        ProcessId::of(i32::try_from(pid).ok()?).ok()?.map(ProcessId::age)
    }

    /// Bytes that a service's disk takes now.
    pub async fn disk_use(&self, service: &ServiceId, name: &str) -> Result<u64, EngineError> {
        let (service, name) = (service.clone(), name.to_owned());
        self.blocking(move |inner| {
            let folder = inner.paths.disk(&service, &name);
            crate::tree::size(&folder)
                .map_err(|error| EngineError::new("measure a disk", format!("`{}`: {error}", folder.display())).caused_by(error))
        })
        .await
    }

    /// A handle of an instance's network namespace, while it lives.
    pub async fn instance_ns(&self, id: &InstanceId) -> Result<OwnedFd, EngineError> {
        let id = id.clone();
        self.blocking(move |inner| namespace(inner, &id)).await
    }

    /// Runs what blocks on a thread of its own.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|error| EngineError::new("run a task", error.to_string()))?
    }

    /// The same for what pulls or loads images: that ends soon after nobody waits for it any more.
    pub(crate) async fn bringing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Cancel) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let cancel = Cancel::default();
        let _waits = Waits(cancel.clone());
        self.blocking(move |inner| work(inner, &cancel)).await
    }

    /// Waits until a monitor has ended.
    pub(crate) async fn monitor_ends(&self, look: &Look) -> Result<(), EngineError> {
        let fail = |error: std::io::Error| EngineError::new("wait for a monitor", error.to_string()).caused_by(error);
        let Some(monitor) = look.monitor else { return Ok(()) };
        let pidfd = match crate::sys::pidfd_open(nix::unistd::Pid::from_raw(monitor.pid)) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        if monitor.alive().map_err(fail)? {
            crate::sys::ended(pidfd).await.map_err(fail)?;
        }
        Ok(())
    }
}

/// Ends what it was made for when it is dropped: with the future that waits for that.
struct Waits(Cancel);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// What tells a program's file from one that took its place: device, inode, bytes, when it was written.
type Stamp = (u64, u64, u64, i64, i64);

/// By language and the version asked for.
type Toolchains = HashMap<(NativeRuntime, Option<String>), (Toolchain, Stamp)>;

fn stamp(program: &Path) -> Option<Stamp> {
    let about = fs::metadata(program).ok()?;
    Some((about.dev(), about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
}

impl Inner {
    /// The toolchain of a language, found once, and again when its program is another.
    pub fn toolchain(&self, runtime: NativeRuntime, wanted: Option<&str>) -> Result<Toolchain, EngineError> {
        let key = (runtime, wanted.map(str::to_owned));
        if let Some((known, was)) = self.toolchains.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && stamp(&known.program).is_some_and(|is| is == *was)
        {
            return Ok(known.clone());
        }
        let found = toolchain::resolve(runtime, wanted)?;
        if let Some(is) = stamp(&found.program) {
            self.toolchains.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (found.clone(), is));
        }
        Ok(found)
    }
}

pub(crate) fn network_error(doing: &str, error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        message = format!("{message}: {why}");
        cause = why.source();
    }
    EngineError::new(doing, message).caused_by(error)
}

fn machine(config: &Config, base: Option<&str>) -> Result<Machine, EngineError> {
    let (_, open_files) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| EngineError::new("read the limits", error.to_string()).caused_by(error))?;
    let folders = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
    let usr_merge = folders
        .into_iter()
        .filter(|name| Path::new("/").join(name).exists())
        .map(|name| (name.to_owned(), fs::read_link(Path::new("/").join(name)).ok()))
        .collect();
    let own_exe = fs::canonicalize(&config.own_exe).map_err(|error| {
        EngineError::new("find moat's own program", format!("`{}`: {error}", config.own_exe.display())).caused_by(error)
    })?;
    Ok(Machine {
        arch: std::env::consts::ARCH,
        open_files: open_files.min(1_048_576),
        limits: match base {
            // A process elsewhere can put none of its children there.
            Some(base) => rootless::has_joined(base).then(|| rootless::controllers(base)),
            None => (!rootless::inside()).then_some(Controllers::ALL),
        },
        swap_accounting: cgroup::counts_swap(),
        usr_merge,
        etc: HOST_ETC.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
        bash: Path::new("/bin/bash").exists(),
        authorities: ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"]
            .into_iter()
            .map(PathBuf::from)
            .find(|file| file.is_file()),
        own_exe,
        libraries: libraries(),
    })
}

/// The dynamic linker and the libraries of this very process, the linker first; nothing where it is linked statically.
fn libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped: BTreeSet<&Path> = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5)).map(Path::new).collect();
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let mut found: Vec<PathBuf> =
        mapped.into_iter().filter(|path| path.is_absolute() && name(path).contains(".so") && path.is_file()).map(Path::to_owned).collect();
    found.sort_by_key(|path| !name(path).starts_with("ld-"));
    if found.first().is_some_and(|first| name(first).starts_with("ld-")) { found } else { Vec::new() }
}

impl LinuxEngine {
    /// What instances have used and use; those of which that is not known are left out.
    pub async fn usage(&self, ids: Vec<InstanceId>) -> Result<Vec<(InstanceId, cgroup::Usage)>, EngineError> {
        self.blocking(move |inner| {
            let of = |id: InstanceId| cgroup::usage(&inner.paths.cgroup(id.as_str())).map(|usage| (id, usage));
            Ok(ids.into_iter().filter_map(of).collect())
        })
        .await
    }

    /// How many TCP connections an instance has taken from others and not finished.
    pub async fn connections(&self, id: &InstanceId) -> Result<usize, EngineError> {
        let ns = self.instance_ns(id).await?;
        self.blocking(move |_| moat_net_linux::ports::accepted(&ns).map_err(|error| network_error("read the open connections", error)))
            .await
    }
}

impl Engine for LinuxEngine {
    async fn observe(&self) -> Result<ObservedState, EngineError> {
        let instances = self.blocking(folder::observe_all).await?;
        let router = self.inner.network.router_ns().is_ok();
        Ok(ObservedState { router, instances, policy: (*self.inner.network.policy()).clone() })
    }

    async fn apply(&self, step: &Step) -> Result<StepOutcome, EngineError> {
        match step {
            Step::EnsureRouter => {
                self.remove_half_made().await?;
                self.inner.network.ensure_router().await.map(changed).map_err(|error| network_error("make the private network", error))
            }
            Step::SetPolicy { policy } => self
                .inner
                .network
                .set_policy(Arc::clone(policy))
                .await
                .map(changed)
                .map_err(|error| network_error("set the network policy", error)),
            Step::StartInstance { instance } => self.start(instance).await,
            Step::StopInstance { id, grace_seconds } => self.stop(id, *grace_seconds).await,
            Step::RemoveRouter => {
                self.remove_half_made().await?;
                let outcome = self
                    .inner
                    .network
                    .remove_router()
                    .await
                    .map(changed)
                    .map_err(|error| network_error("remove the private network", error))?;
                let _alone = self.inner.groups.write().await;
                cgroup::remove_parent(&self.inner.paths.cgroup_parent())?;
                Ok(outcome)
            }
        }
    }

    async fn wait(&self, id: &InstanceId) -> Result<InstancePhase, EngineError> {
        loop {
            let Some(look) = folder::look(&self.inner, id)? else { return Ok(InstancePhase::Lost) };
            match look.phase {
                InstancePhase::Exited(_) | InstancePhase::Lost => return Ok(look.phase),
                InstancePhase::Preparing if look.monitor.is_none() => tokio::time::sleep(Duration::from_millis(20)).await,
                InstancePhase::Preparing | InstancePhase::Running => self.monitor_ends(&look).await?,
            }
        }
    }

    async fn listeners(&self, id: &InstanceId) -> Result<Vec<Listener>, EngineError> {
        let id = id.clone();
        let look = move |inner: &Inner| {
            let found = moat_net_linux::ports::listeners(&namespace(inner, &id)?);
            found.map_err(|error| network_error("read the listening sockets", error))
        };
        self.blocking(look).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            limits: self.inner.machine.limits.is_some_and(|limits| limits.missing().is_empty()) && cgroup::layout() != Layout::Missing,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            user_namespaces: Path::new("/proc/self/ns/user").exists(),
        }
    }
}

/// The network namespace of an instance that runs.
fn namespace(inner: &Inner, id: &InstanceId) -> Result<OwnedFd, EngineError> {
    let doing = format!("enter the network of `{id}`");
    let look = folder::look(inner, id)?.ok_or_else(|| EngineError::new(&doing, "there is no such instance"))?;
    let monitor = look.monitor.ok_or_else(|| EngineError::new(&doing, "the instance does not run"))?;
    let ns = fs::File::open(format!("/proc/{}/ns/net", monitor.pid));
    let ns = ns.map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))?;
    // Still the same process, so the namespace was its own.
    let same = monitor.alive().map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))?;
    if same { Ok(ns.into()) } else { Err(EngineError::new(doing, "the instance has just ended")) }
}

fn changed(changed: bool) -> StepOutcome {
    if changed { StepOutcome::Changed } else { StepOutcome::Unchanged }
}
