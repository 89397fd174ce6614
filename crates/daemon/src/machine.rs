//! What the loop works with: a machine that runs instances, builds releases and tells the time, and what serves on it.
//!
//! * [`Machine`] – the engine's steps, releases, looks from inside instances, the time of day; [`linux`] is this machine.
//! * [`Plane`] – ingress and DNS; [`plane`] is the data plane's process.
//!
//! Invariant: the loop does nothing to the world but through these two and the durable state, so that a machine in memory shows all of it.

mod linux;
pub mod plane;

use crate::dataplane::PlaneError;
use crate::protocol::Failure;
use jiff::Timestamp;
use moat_dataplane::message::Measures;
use moat_dataplane::{CertificateSet, Config, Doors};
use moat_engine::{EngineError, StepOutcome};
use moat_engine_linux::{
    BuildRequest, DatastoreRequest, ImageBuildRequest, LinuxEngine, Prepared, Provided, Prune, Published, PullRequest, Release,
    SiteRequest, Usage,
};
use moat_ingress::LogFormat;
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, Listener, ObservedInstance, ObservedState, PostgresWorkload, Source, StaticWorkload};
use moat_model::{InstanceId, ProxyHeader, ServiceId};
use moat_planner::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What an instance is asked for.
#[derive(Debug, Clone, Copy)]
pub struct HealthCheck<'a> {
    /// Its service's host name.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// What its server expects a connection to begin with.
    pub proxy_header: Option<ProxyHeader>,
}

/// Why an instance was not found healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwell {
    /// By what it answered, or since it did not answer: in words.
    Answer(String),
    /// It could not be asked, by no fault of its own: in words.
    NotAsked(String),
}

/// Something under way.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who is told how far something is, in words.
pub type Tell = Box<dyn Fn(String) + Send>;

/// What runs instances and makes releases. The methods are [`moat_engine::Engine`]'s and [`LinuxEngine`]'s, where they are described.
pub trait Machine: Send + Sync {
    /// The time of day; it may jump, as a machine's does. What takes time is counted by [`tokio::time::Instant`] instead.
    fn now(&self) -> Timestamp;

    /// What runs.
    fn observe(&self) -> Doing<'_, Result<ObservedState, EngineError>>;
    /// Applies one step.
    fn apply<'a>(&'a self, step: &'a Step) -> Doing<'a, Result<StepOutcome, EngineError>>;
    /// Waits until an instance has ended.
    fn wait<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<InstancePhase, EngineError>>;
    /// How long the program of an instance that was found has run; nothing where that is not known.
    fn age(&self, found: &ObservedInstance) -> Duration;
    /// The policy that holds.
    fn policy(&self) -> Arc<NetPolicy>;

    /// The sockets an instance listens on.
    fn listeners<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<Vec<Listener>, EngineError>>;
    /// One GET from inside an instance's namespace.
    fn ask_health<'a>(&'a self, id: &'a InstanceId, to: SocketAddr, check: HealthCheck<'a>) -> Doing<'a, Result<(), Unwell>>;
    /// One session of a database from inside its instance's namespace.
    fn ask_postgres<'a>(&'a self, id: &'a InstanceId, to: SocketAddr, server: &'a PostgresWorkload) -> Doing<'a, Result<(), String>>;
    /// Connections that an instance has taken from others.
    fn connections<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<usize, EngineError>>;
    /// What instances use.
    fn usage(&self, ids: Vec<InstanceId>) -> Doing<'_, Result<Vec<(InstanceId, Usage)>, EngineError>>;
    /// Bytes that a disk takes.
    fn disk_use<'a>(&'a self, service: &'a ServiceId, name: &'a str) -> Doing<'a, Result<u64, EngineError>>;
    /// An instance's log.
    fn log_path(&self, id: &InstanceId) -> PathBuf;

    /// Copies the source of a native service.
    fn prepare_release(&self, request: BuildRequest, tell: Tell) -> Doing<'_, Result<Prepared, EngineError>>;
    /// Copies the source of an image.
    fn prepare_image(&self, request: ImageBuildRequest, tell: Tell) -> Doing<'_, Result<Release, EngineError>>;
    /// Copies the source of a static site.
    fn prepare_site(&self, request: SiteRequest, tell: Tell) -> Doing<'_, Result<Prepared, EngineError>>;
    /// Pulls an image; an error instead of which the image that is here was taken.
    fn pull_image(&self, request: PullRequest, tell: Tell) -> Doing<'_, Result<(Release, Option<EngineError>), EngineError>>;
    /// Chooses who provides a datastore's server.
    fn provide_datastore(&self, request: DatastoreRequest, tell: Tell) -> Doing<'_, Result<Provided, EngineError>>;
    /// Finishes a release.
    fn seal_release<'a>(&'a self, name: &'a str) -> Doing<'a, Result<(), EngineError>>;
    /// Finishes an image: its id.
    fn seal_image<'a>(&'a self, name: &'a str) -> Doing<'a, Result<String, EngineError>>;
    /// Finishes a site.
    fn seal_site<'a>(&'a self, name: &'a str, site: &'a StaticWorkload) -> Doing<'a, Result<Published, EngineError>>;
    /// Whether a release is finished.
    fn is_sealed(&self, name: &str) -> bool;
    /// The folder of a finished site.
    fn site_folder<'a>(&'a self, name: &'a str) -> Doing<'a, Result<PathBuf, EngineError>>;
    /// The files that differ between commits.
    fn changed_files(
        &self,
        repository: PathBuf,
        from: BTreeSet<String>,
        to: String,
    ) -> Doing<'_, Result<BTreeMap<String, Vec<String>>, EngineError>>;
    /// Removes releases but these.
    fn collect_garbage<'a>(&'a self, keep: &'a BTreeSet<String>) -> Doing<'a, Result<(), EngineError>>;
    /// Removes images but these and those that are left to stay.
    fn prune_images<'a>(&'a self, keep: &'a BTreeSet<String>, prune: Prune) -> Doing<'a, Result<(usize, u64), EngineError>>;
    /// What people should know of an image that a service with a disk there is about to run.
    fn image_notices<'a>(&'a self, id: &'a str, disk: Option<PathBuf>) -> Doing<'a, Vec<String>>;
    /// Removes fetched sources but these.
    fn collect_fetched(&self, sources: Vec<Source>, services: BTreeSet<ServiceId>) -> Doing<'_, Result<(), EngineError>>;

    /// The engine of this kernel, for what looks at its network: upkeep, probes, traces. A machine in memory has none.
    fn linux(&self) -> Option<&LinuxEngine>;
}

/// What serves: ingress and DNS.
pub trait Plane: Send {
    /// Where the ingress listens.
    fn listening(&self) -> Option<SocketAddr>;
    /// Where it listens for HTTPS.
    fn listening_https(&self) -> Option<SocketAddr>;
    /// Takes the ingress' addresses; others than before are refused. Without one for HTTPS that stays as it was.
    fn listen<'a>(&'a mut self, http: &'a str, https: Option<&'a str>) -> Doing<'a, Result<(), Failure>>;
    /// Where clients of databases come to from now on; it holds with the next [`ensure`](Self::ensure).
    fn listen_databases(&mut self, at: Doors<SocketAddr>) -> Doing<'_, Result<(), Failure>>;
    /// Whether it serves.
    fn is_serving(&self) -> bool;
    /// Has it serve in the router of now.
    fn ensure(&mut self) -> Doing<'_, Result<(), PlaneError>>;
    /// Has another process serve in the place of the one that does.
    fn replace(&mut self) -> Doing<'_, Result<(), PlaneError>>;
    /// Has these certificates shown from now on.
    fn show(&self, certificates: CertificateSet);
    /// Has the access log written so from now on.
    fn log(&mut self, format: Option<LogFormat>);
    /// What it counted since its process began; none where it does not answer.
    fn measure(&self) -> Doing<'static, Option<Measures>>;
    /// Has everything served by this from now on; whether it is by now.
    fn publish(&mut self, config: Config) -> Doing<'_, bool>;
    /// The machine's resolvers.
    fn resolvers(&self) -> Vec<SocketAddr>;
    /// The releases of sites that requests may still be answered from.
    fn releases_in_use(&self) -> BTreeSet<String>;
    /// The folder below which every release is.
    fn root(&self) -> &Path;
    /// The process that accepts connections.
    fn pid(&self) -> Option<u32>;
    /// Ends it.
    fn stop(&mut self) -> Doing<'_, ()>;
}
