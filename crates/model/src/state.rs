//! Desired and observed state.

use crate::policy::NetPolicy;
use crate::{
    AddressPair, Egress, Endpoint, InstanceId, Limits, LinkName, NativeRuntime, NetworkId, Secret, ServiceId, ServiceKind, Slug, ZoneId,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Counts the desired states; an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// All that should run, with every choice made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DesiredState {
    /// Its number.
    pub generation: Generation,
    /// Services by slug (unique in the workspace).
    pub services: BTreeMap<Slug, Service>,
}

/// An environment of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EnvironmentRef {
    /// Project name as written.
    pub project: String,
    /// Environment name as written.
    pub name: String,
    /// `networking.isolation: enabled`.
    pub isolated: bool,
}

/// One service, resolved: references replaced by values, addresses chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Stable id.
    pub id: ServiceId,
    /// Name as written.
    pub name: String,
    /// Internal host name and sub-domain.
    pub slug: Slug,
    /// Type.
    pub kind: ServiceKind,
    /// The blueprint file it came from (absolute path).
    pub blueprint: PathBuf,
    /// Region word, `oregon` unless said.
    pub region: String,
    /// Its private network.
    pub network: NetworkId,
    /// Its environment, if any.
    pub environment: Option<EnvironmentRef>,
    /// Its policy zone.
    pub zone: ZoneId,
    /// Service address; `None` for what receives nothing.
    pub vip: Option<AddressPair>,
    /// The expected main port: `PORT` or 10000 for web and private services, 6379 for a Key Value, 5432 for a database.
    pub port: Option<u16>,
    /// Services that have `port` in a variable of theirs (`fromService` with `port`, `hostport`, or `PORT` as `envVarKey`).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub port_given_to: BTreeSet<Slug>,
    /// `x-moat.allowFrom`: slugs that may reach it; `None` is the open default.
    pub allow_from: Option<BTreeSet<Slug>>,
    /// `x-moat.egress`.
    pub egress: Egress,
    /// How many instances should be ready (cron jobs: 0, their runs are started by schedule).
    pub instances: u32,
    /// `x-moat.start`: how several instances start.
    #[serde(default)]
    pub start: StartOrder,
    /// Limits of each instance.
    pub limits: Limits,
    /// What runs.
    pub workload: Workload,
    /// Environment of the run time, references resolved, defaults included.
    pub env: BTreeMap<String, Secret>,
    /// Environment of the build (no `NODE_ENV`, no `WEB_CONCURRENCY`).
    pub build_env: BTreeMap<String, Secret>,
    /// Keys of `env` written in the blueprint (the others are defaults).
    pub written_keys: BTreeSet<String>,
    /// File name to content, shown at `/etc/secrets/NAME` and in the service's root folder.
    pub secret_files: BTreeMap<String, Secret>,
    /// Path that must answer 2xx or 3xx before an instance is ready.
    pub health_check_path: Option<String>,
    /// Seconds between SIGTERM and SIGKILL, 1–300.
    pub max_shutdown_delay_seconds: u32,
    /// `scaling`: how many instances run follows the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// `maintenanceMode.enabled`: the ingress answers instead of the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
    /// How the world reaches a web service or static site.
    #[serde(default, skip_serializing_if = "Public::is_default")]
    pub public: Public,
    /// Fingerprint of everything an instance is made of; a changed one means a new instance.
    pub fingerprint: String,
    /// Fingerprint of everything the build is made of, but the source text.
    pub build_fingerprint: String,
}

/// How the world reaches a web service or static site, and a database or Key Value. The default: by its sub-domain, for everybody;
/// a database or Key Value not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Public {
    /// `domains`, and the other one of each pair of `www.NAME` and `NAME`.
    pub domains: Vec<Domain>,
    /// `renderSubdomainPolicy: disabled`: only its domains answer.
    pub no_subdomain: bool,
    /// `ipAllowList`: clients that may ask; `None` is everybody, or nobody where it is a database or Key Value.
    pub allow: Option<Vec<IpNet>>,
    /// A web service with `plan: free`, which sleeps while nobody asks for it where people set that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub free: bool,
    /// `x-moat.proxyProtocol`: connections to its instances begin with the client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_header: Option<ProxyHeader>,
    /// `maintenanceMode.uri`: what is shown while the ingress answers instead of a web service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance_page: Option<String>,
    /// A database or Key Value is reached from outside, through the ingress, by the clients in `allow`: this machine is set so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
}

impl Public {
    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The version of the PROXY header that a connection of the ingress begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// A custom domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Host name in lower case; `*.` and the rest of one stands for every name with one label more.
    pub name: String,
    /// The name that it sends clients to: the listed one of a pair.
    pub moved_to: Option<String>,
}

/// Between how many instances a service has, and how busy each should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// The fewest.
    pub min: u32,
    /// The most.
    pub max: u32,
    /// Per cent of its CPU limit that an instance should use, 1–90.
    pub cpu_percent: Option<u32>,
    /// Per cent of its memory limit that an instance should use, 1–90.
    pub memory_percent: Option<u32>,
}

/// How several instances of a service start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartOrder {
    /// All at once.
    #[default]
    Together,
    /// Each once those before it are ready: a system that looks for its peers when it starts finds them.
    OneByOne,
}

/// What a service's instances run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum Workload {
    /// A program over a toolchain of this machine.
    Native(NativeWorkload),
    /// An image, published or built from a Dockerfile.
    Image(ImageWorkload),
    /// A Redis-compatible server.
    KeyValue(KeyValueWorkload),
    /// A PostgreSQL server.
    Postgres(PostgresWorkload),
    /// Files that the ingress serves.
    Static(StaticWorkload),
}

/// A program over a toolchain of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeWorkload {
    /// Language.
    pub runtime: NativeRuntime,
    /// Version asked for by `PYTHON_VERSION` and the like.
    pub version: Option<String>,
    /// The source (its root is the repository's).
    pub source: Source,
    /// Working folder below it, relative and clean (no `..`), empty for the root.
    pub root_dir: PathBuf,
    /// Build command, if any.
    pub build_command: Option<String>,
    /// Run before each deploy in a sandbox of its own.
    pub pre_deploy_command: Option<String>,
    /// Run once after the first successful deploy.
    pub initial_deploy_hook: Option<String>,
    /// Start command (a cron job's command).
    pub start_command: String,
    /// Cron expression, UTC.
    pub schedule: Option<String>,
    /// A disk: (name, mount path, size in bytes).
    pub disk: Option<Disk>,
}

/// An image, published or built from a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageWorkload {
    /// Where it comes from.
    pub origin: ImageOrigin,
    /// `user:password` of the registry of the image, or of the images that a Dockerfile builds on, where the blueprint names a
    /// credential.
    pub credential: Option<Secret>,
    /// `dockerCommand`: runs instead of the image's own command, after its entry point.
    pub command: Option<String>,
    /// Run before each deploy in a sandbox of its own.
    pub pre_deploy_command: Option<String>,
    /// Run once after the first successful deploy.
    pub initial_deploy_hook: Option<String>,
    /// Cron expression, UTC.
    pub schedule: Option<String>,
    /// A disk.
    pub disk: Option<Disk>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageOrigin {
    /// A registry: the reference as written.
    Published(String),
    /// A build of this machine.
    Dockerfile(Dockerfile),
}

/// What an image is built from. Paths below the source are as written: relative, `..` may lead back to the source's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dockerfile {
    /// The source (its root is the repository's).
    pub source: Source,
    /// `rootDir`, relative and clean, empty for the root.
    pub root_dir: PathBuf,
    /// The file, below `root_dir`, or below the source where there is none.
    pub file: PathBuf,
    /// The folder that `COPY` reads, below `root_dir`, or below the source where there is none.
    pub context: PathBuf,
}

impl ImageWorkload {
    /// What it is built from; `None` for a published image.
    pub const fn dockerfile(&self) -> Option<&Dockerfile> {
        match &self.origin {
            ImageOrigin::Dockerfile(dockerfile) => Some(dockerfile),
            ImageOrigin::Published(_) => None,
        }
    }
}

impl Workload {
    /// Where its source is; none for what is built of none.
    pub fn source(&self) -> Option<&Source> {
        match self {
            Self::Native(native) => Some(&native.source),
            Self::Image(image) => image.dockerfile().map(|dockerfile| &dockerfile.source),
            Self::Static(site) => Some(&site.source),
            Self::KeyValue(_) | Self::Postgres(_) => None,
        }
    }

    /// Run before each deploy in a sandbox of its own.
    pub fn pre_deploy_command(&self) -> Option<&str> {
        match self {
            Self::Native(native) => native.pre_deploy_command.as_deref(),
            Self::Image(image) => image.pre_deploy_command.as_deref(),
            Self::Static(site) => site.pre_deploy_command.as_deref(),
            Self::KeyValue(_) | Self::Postgres(_) => None,
        }
    }

    /// Run once after the first successful deploy.
    pub fn initial_deploy_hook(&self) -> Option<&str> {
        match self {
            Self::Native(native) => native.initial_deploy_hook.as_deref(),
            Self::Image(image) => image.initial_deploy_hook.as_deref(),
            Self::KeyValue(_) | Self::Postgres(_) | Self::Static(_) => None,
        }
    }

    /// Cron expression, UTC.
    pub fn schedule(&self) -> Option<&str> {
        match self {
            Self::Native(native) => native.schedule.as_deref(),
            Self::Image(image) => image.schedule.as_deref(),
            Self::KeyValue(_) | Self::Postgres(_) | Self::Static(_) => None,
        }
    }

    /// The disk that a blueprint gives it; a datastore's own data is not one.
    pub const fn disk(&self) -> Option<&Disk> {
        match self {
            Self::Native(native) => native.disk.as_ref(),
            Self::Image(image) => image.disk.as_ref(),
            Self::KeyValue(_) | Self::Postgres(_) | Self::Static(_) => None,
        }
    }

    /// Whether it runs a release: something that is built or fetched first.
    pub const fn needs_release(&self) -> bool {
        matches!(self, Self::Native(_) | Self::Image(_) | Self::Static(_))
    }

    /// Whether it is a datastore of Moat's own making.
    pub const fn is_datastore(&self) -> bool {
        matches!(self, Self::KeyValue(_) | Self::Postgres(_))
    }
}

/// Files that a build publishes, and the rules they are served by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticWorkload {
    /// The source (its root is the repository's).
    pub source: Source,
    /// Working folder below it, relative and clean (no `..`), empty for the root.
    pub root_dir: PathBuf,
    /// Build command; without one the source's own files are published.
    pub build_command: Option<String>,
    /// Run before each deploy in a sandbox of its own.
    pub pre_deploy_command: Option<String>,
    /// `staticPublishPath`: below `root_dir`, as written; `..` may lead back to the source's root.
    pub publish_path: PathBuf,
    /// Versions of languages asked for by `NODE_VERSION` and the like.
    pub versions: BTreeMap<NativeRuntime, String>,
    /// `headers`, in order.
    pub headers: Vec<SiteHeader>,
    /// `routes`, in order.
    pub routes: Vec<SiteRoute>,
}

/// A response header of a static site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteHeader {
    /// The pattern of request paths, such as `/assets/*`.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A redirect or rewrite of a static site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRoute {
    /// The pattern of request paths, such as `/blog/:slug` or `/*`.
    pub source: String,
    /// What becomes of a request that matches and for which there is no file.
    pub action: SiteAction,
}

/// What a rule of a static site does. Each text may hold `*` and `:name`, which stand for what the pattern matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteAction {
    /// 301 to a path or URL.
    Redirect(String),
    /// Serves another path of the site under the same URL.
    Rewrite(String),
    /// Passes the request on to another public service, through the ingress as any request from outside.
    Pass {
        /// Its slug.
        service: Slug,
        /// The path there, with or without a query.
        path: String,
    },
}

/// Where a service's source is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A folder of this machine, as it lies there.
    Folder(PathBuf),
    /// A git repository: of elsewhere, fetched for each deploy, or one of this machine that is pushed to.
    Repository {
        /// Its URL, as written.
        url: String,
        /// The branch; none is the repository's default one.
        branch: Option<String>,
        /// This commit, in hexadecimal, and no other; none is the newest of the branch.
        #[serde(default)]
        commit: Option<String>,
    },
}

impl<T: Into<PathBuf>> From<T> for Source {
    fn from(folder: T) -> Self {
        Self::Folder(folder.into())
    }
}

/// A persistent folder of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name.
    pub name: String,
    /// Absolute path in the instance.
    pub mount_path: PathBuf,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// A Redis-compatible server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValueWorkload {
    /// `maxmemory-policy` of the server.
    pub maxmemory_policy: String,
    /// How data is kept.
    pub persistence: Persistence,
}

/// How a Key Value keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Persistence {
    /// Append-only file, synced every second, plus snapshots.
    JournalSnapshot,
    /// Snapshots.
    Snapshot,
    /// Nothing is kept.
    Off,
}

/// A PostgreSQL server with one database and the user that owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresWorkload {
    /// Major version asked for, such as 15. Without one the data's own counts, and for new data the newest that is there.
    pub major: Option<u16>,
    /// Name of the database in the server, at most 63 bytes.
    pub database: String,
    /// Name of the user who owns it, at most 63 bytes.
    pub user: String,
    /// The user's password.
    pub password: Secret,
}

/// What an instance runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Serves (or works) until stopped.
    Serve,
    /// Runs the build command.
    Build,
    /// Runs the pre-deploy command.
    PreDeploy,
    /// One run of a cron job.
    Cron,
    /// A one-off job.
    Job,
}

/// What an engine found of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceId,
    /// The service's slug when it was started.
    pub slug: Slug,
    /// What it runs for.
    pub purpose: Purpose,
    /// The fingerprint it was made of.
    pub fingerprint: String,
    /// Its addresses.
    pub address: AddressPair,
    /// Its link in the router namespace.
    pub link: LinkName,
    /// Whether it runs.
    pub phase: InstancePhase,
    /// The host's pid of its monitor, while that lives.
    pub monitor_pid: Option<u32>,
    /// The host's pid of its first process, while that lives.
    pub pid: Option<u32>,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "phase")]
pub enum InstancePhase {
    /// The monitor lives, the program does not run yet.
    Preparing,
    /// The program runs.
    Running,
    /// It ended.
    Exited(ExitReport),
    /// The monitor vanished without a report (killed, reboot).
    Lost,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Exit code; 128 + signal for a signal, as shells say it.
    pub code: i32,
    /// The signal, when one ended it.
    pub signal: Option<i32>,
    /// Killed for memory.
    pub oom: bool,
    /// Why it never ran, when the sandbox could not be made.
    pub error: Option<String>,
}

/// What an engine found running.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ObservedState {
    /// Whether the router namespace exists and is whole.
    pub router: bool,
    /// Instances by id.
    pub instances: BTreeMap<InstanceId, ObservedInstance>,
    /// The policy last applied, as the engine remembers it.
    pub policy: NetPolicy,
}

/// A socket that a service listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// Protocol and port.
    pub endpoint: Endpoint,
    /// Bound to loopback only, so that nobody else reaches it.
    pub loopback_only: bool,
}
