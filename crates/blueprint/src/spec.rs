//! The typed blueprint: what was written, with the place of each value. No reference is resolved here, no default is
//! filled in but those that the format itself defines.

use moat_model::{NativeRuntime, ServiceKind, Span, Spanned};

/// A text scalar and its place; numbers and words keep their source text (`3.10`).
pub type Text = Spanned<String>;

/// A whole blueprint file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blueprint {
    /// Services of every list, in file order: root, `ungrouped`, then environments.
    pub services: Vec<ServiceSpec>,
    /// Databases of every list.
    pub databases: Vec<DatabaseSpec>,
    /// Environment groups of every list.
    pub env_groups: Vec<EnvGroupSpec>,
    /// Environments of projects.
    pub environments: Vec<EnvironmentSpec>,
    /// `previews` of the root (or `previewsEnabled`, `previewsExpireAfterDays`).
    pub previews: Option<Spanned<PreviewsSpec>>,
    /// `buildSources` of the root, of `ungrouped` and of projects.
    pub build_sources: Vec<BuildSourceSpec>,
}

/// Where a resource is listed: an index into [`Blueprint::environments`], or none for the root and `ungrouped`.
pub type EnvironmentIndex = Option<usize>;

/// An environment of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentSpec {
    /// The project's name.
    pub project: Text,
    /// Its own name.
    pub name: Text,
    /// `networking.isolation: enabled`.
    pub isolated: bool,
    /// `permissions.protection: enabled`.
    pub protected: bool,
}

/// One entry of a `services` list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// JSON-pointer-like place, such as `services/0`.
    pub pointer: String,
    /// The whole entry's place.
    pub span: Span,
    /// Where it is listed.
    pub environment: EnvironmentIndex,
    /// `name`.
    pub name: Text,
    /// `type` (with `redis` read as `keyvalue`).
    pub kind: Spanned<TypeSpec>,
    /// `runtime` (or `env`); none for a Key Value.
    pub runtime: Option<Spanned<RuntimeSpec>>,
    /// `plan` in its canonical spelling (`pro plus`).
    pub plan: Option<Text>,
    /// `region`.
    pub region: Option<Text>,
    /// `buildSource`: the name of an entry of `buildSources`.
    pub build_source: Option<Text>,
    /// `repo`.
    pub repo: Option<Text>,
    /// `repo` is another repository than the blueprint's own.
    pub elsewhere: bool,
    /// `branch`.
    pub branch: Option<Text>,
    /// `rootDir`.
    pub root_dir: Option<Text>,
    /// `buildCommand`; blank is none.
    pub build_command: Option<Text>,
    /// `startCommand`; blank is none.
    pub start_command: Option<Text>,
    /// `preDeployCommand`; blank is none.
    pub pre_deploy_command: Option<Text>,
    /// `initialDeployHook` (or `afterFirstDeployCommand`).
    pub initial_deploy_hook: Option<Text>,
    /// `schedule`.
    pub schedule: Option<Text>,
    /// `autoDeployTrigger` (or `autoDeploy`): `commit`, `checksPass` or `off`.
    pub auto_deploy_trigger: Option<Text>,
    /// `domains` and `domain`.
    pub domains: Vec<Text>,
    /// `renderSubdomainPolicy: disabled`.
    pub subdomain_disabled: Option<Spanned<bool>>,
    /// `healthCheckPath`.
    pub health_check_path: Option<Text>,
    /// `maxShutdownDelaySeconds`, 1–300.
    pub max_shutdown_delay_seconds: Option<Spanned<u32>>,
    /// `maintenanceMode`.
    pub maintenance_mode: Option<Spanned<MaintenanceSpec>>,
    /// `ipAllowList`; none is "not written", empty blocks everything outside.
    pub ip_allow_list: Option<Spanned<Vec<AllowEntry>>>,
    /// `dockerCommand`.
    pub docker_command: Option<Text>,
    /// `dockerfilePath`.
    pub dockerfile_path: Option<Text>,
    /// `dockerContext`.
    pub docker_context: Option<Text>,
    /// `image.url` and the credential's name.
    pub image: Option<ImageSpec>,
    /// `registryCredential.fromRegistryCreds.name`.
    pub registry_credential: Option<Text>,
    /// `numInstances`, from 1.
    pub num_instances: Option<Spanned<u32>>,
    /// `scaling`.
    pub scaling: Option<Spanned<ScalingSpec>>,
    /// `buildFilter`.
    pub build_filter: Option<Spanned<BuildFilterSpec>>,
    /// `disk`.
    pub disk: Option<Spanned<DiskSpec>>,
    /// `staticPublishPath`.
    pub static_publish_path: Option<Text>,
    /// `headers` of a static site.
    pub headers: Vec<HeaderSpec>,
    /// `routes` of a static site.
    pub routes: Vec<RouteSpec>,
    /// `previews` (or `pullRequestPreviewsEnabled`, `previewPlan`).
    pub previews: Option<Spanned<PreviewsSpec>>,
    /// `maxmemoryPolicy`.
    pub maxmemory_policy: Option<Text>,
    /// `persistenceMode`.
    pub persistence_mode: Option<Text>,
    /// `envVars`.
    pub env_vars: Vec<EnvVarSpec>,
    /// `x-moat`.
    pub moat: Option<MoatSpec>,
    /// Published fields that were written and are honoured nowhere on one machine: (key, place). Each got a diagnostic.
    pub unhonoured: Vec<Text>,
}

/// `type`, with what the format names and Moat does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeSpec {
    /// A type that runs.
    Kind(ServiceKind),
    /// `type: web` with `runtime: static`.
    StaticSite,
    /// `type: workflow`.
    Workflow,
}

/// `runtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeSpec {
    /// Over a toolchain.
    Native(NativeRuntime),
    /// A Dockerfile.
    Docker,
    /// A published image.
    Image,
    /// A static site.
    Static,
}

/// `maintenanceMode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceSpec {
    /// `enabled`.
    pub enabled: bool,
    /// `uri`.
    pub uri: Option<Text>,
}

/// An entry of `ipAllowList`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowEntry {
    /// `source`, an address or CIDR.
    pub source: Text,
    /// `description`.
    pub description: Option<Text>,
}

/// `image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
    /// `url`.
    pub url: Text,
    /// `creds.fromRegistryCreds.name`.
    pub credential: Option<Text>,
}

/// `scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScalingSpec {
    /// `minInstances`.
    pub min: u32,
    /// `maxInstances`.
    pub max: u32,
    /// `targetMemoryPercent`.
    pub memory_percent: Option<u32>,
    /// `targetCPUPercent`.
    pub cpu_percent: Option<u32>,
}

/// `buildFilter`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildFilterSpec {
    /// `paths`.
    pub paths: Vec<Text>,
    /// `ignoredPaths`.
    pub ignored_paths: Vec<Text>,
}

/// `disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// `name`.
    pub name: Text,
    /// `mountPath`.
    pub mount_path: Text,
    /// `sizeGB`, 10 unless said.
    pub size_gb: u32,
}

/// An entry of `headers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderSpec {
    /// `path`.
    pub path: Text,
    /// `name`.
    pub name: Text,
    /// `value`.
    pub value: Text,
}

/// An entry of `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// `type: redirect` (else rewrite).
    pub redirect: bool,
    /// `source`.
    pub source: Text,
    /// `destination`.
    pub destination: Text,
}

/// An entry of `envVars`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVarSpec {
    /// JSON-pointer-like place.
    pub pointer: String,
    /// The entry's place.
    pub span: Span,
    /// What it says.
    pub source: EnvSource,
    /// `previewValue`: the value in a preview environment.
    pub preview_value: Option<Text>,
    /// `displayName`: the question's label where the value is asked for.
    pub display_name: Option<Text>,
    /// `description`: what the value is for.
    pub description: Option<Text>,
    /// `sensitive: true`: asked for without showing what is typed.
    pub sensitive: bool,
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvSource {
    /// `key` + `value` (source text kept).
    Value {
        /// `key`.
        key: Text,
        /// `value`.
        value: Text,
    },
    /// `key` + `generateValue: true`: 256 random bits in base64, made once.
    Generate {
        /// `key`.
        key: Text,
    },
    /// `key` + `sync: false`, or only `key`: asked for.
    Ask {
        /// `key`.
        key: Text,
    },
    /// `key` + `fromDatabase`.
    Database {
        /// `key`.
        key: Text,
        /// `name`.
        name: Text,
        /// `property`, checked.
        property: Spanned<DatabaseProperty>,
    },
    /// `key` + `fromService`.
    Service {
        /// `key`.
        key: Text,
        /// `name`.
        name: Text,
        /// `type` as written, when it is.
        kind: Option<Text>,
        /// `property` or `envVarKey`, checked for spelling only.
        what: Spanned<ServiceProperty>,
    },
    /// `fromGroup`.
    Group {
        /// The group's name.
        name: Text,
    },
}

/// `fromDatabase.property`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseProperty {
    /// `connectionString`.
    ConnectionString,
    /// `connectionPoolString`.
    ConnectionPoolString,
    /// `host`.
    Host,
    /// `port`.
    Port,
    /// `user`.
    User,
    /// `password`.
    Password,
    /// `database`.
    Database,
}

/// `fromService.property` or `fromService.envVarKey`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceProperty {
    /// `host`.
    Host,
    /// `port`.
    Port,
    /// `hostport`.
    HostPort,
    /// `slug`.
    Slug,
    /// `connectionString`.
    ConnectionString,
    /// `envVarKey: KEY`.
    EnvVar(String),
}

/// An entry of `envVarGroups`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvGroupSpec {
    /// JSON-pointer-like place.
    pub pointer: String,
    /// Where it is listed.
    pub environment: EnvironmentIndex,
    /// `name`.
    pub name: Text,
    /// `envVars`: values and generated values only (others got a diagnostic).
    pub env_vars: Vec<EnvVarSpec>,
}

/// An entry of `databases`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSpec {
    /// JSON-pointer-like place.
    pub pointer: String,
    /// The entry's place.
    pub span: Span,
    /// Where it is listed.
    pub environment: EnvironmentIndex,
    /// `name`.
    pub name: Text,
    /// `plan` in its canonical spelling.
    pub plan: Option<Text>,
    /// `region`.
    pub region: Option<Text>,
    /// `databaseName`.
    pub database_name: Option<Text>,
    /// `user`.
    pub user: Option<Text>,
    /// `postgresMajorVersion`, source text.
    pub postgres_major_version: Option<Text>,
    /// `diskSizeGB`.
    pub disk_size_gb: Option<Spanned<u32>>,
    /// `ipAllowList`.
    pub ip_allow_list: Option<Spanned<Vec<AllowEntry>>>,
    /// `readReplicas[].name`.
    pub read_replicas: Vec<Text>,
    /// `highAvailability.enabled`.
    pub high_availability: bool,
    /// `connectionPool: pgbouncer`.
    pub connection_pool: bool,
    /// `storageAutoscalingEnabled`.
    pub storage_autoscaling: bool,
    /// `previewPlan`.
    pub preview_plan: Option<Text>,
    /// `previewDiskSizeGB`.
    pub preview_disk_size_gb: Option<Spanned<u32>>,
    /// `databaseOptions`: (key, value) of server settings.
    pub options: Vec<(Text, Text)>,
}

/// `previews`, of the root or of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PreviewsSpec {
    /// `generation`: `off`, `manual` or `automatic`.
    pub generation: Option<Text>,
    /// `expireAfterDays`, root only.
    pub expire_after_days: Option<Spanned<u32>>,
    /// `plan` of the previews, services only.
    pub plan: Option<Text>,
    /// `numInstances` of the previews, services only.
    pub num_instances: Option<Spanned<u32>>,
}

/// An entry of `buildSources`: one build that several services share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildSourceSpec {
    /// JSON-pointer-like place.
    pub pointer: String,
    /// `name`.
    pub name: Text,
    /// `git.repo`.
    pub repo: Option<Text>,
    /// `git.runtime`.
    pub runtime: Option<Spanned<RuntimeSpec>>,
    /// `image`.
    pub image: Option<ImageSpec>,
}

/// `x-moat` of a service: what goes beyond the format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MoatSpec {
    /// `allowFrom`: names of services.
    pub allow_from: Option<Vec<Text>>,
    /// `egress`: `none`, `internet` or CIDRs.
    pub egress: Option<Spanned<moat_model::Egress>>,
    /// `secretFiles`: (file name, path of the content relative to the blueprint).
    pub secret_files: Vec<(Text, Text)>,
    /// `start`.
    pub start: Option<Spanned<moat_model::StartOrder>>,
    /// `proxyProtocol`.
    pub proxy_header: Option<Spanned<moat_model::ProxyHeader>>,
}
