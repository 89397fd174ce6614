//! What the command line and the daemon say to each other.
//!
//! One connection carries the daemon's [`GREETING`], one [`Request`] and then [`Event`]s until [`Event::End`], each a line, all but
//! the first of JSON.

mod copies;
mod load;
mod public;
mod service;

use crate::drift::Drift;
use moat_model::state::{InstancePhase, Listener};
use moat_model::{AddressPair, Purpose, Secret, ServiceKind, Slug};
pub use moat_store::{EventFilter, EventKind, NewEvent, Recorded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use copies::{SnapshotKind, SnapshotRow};
pub use load::{InstanceLoad, Load, ServiceLoad};
pub use moat_ingress::{Counted, Counters};
pub use public::{CertificateRow, CertificateVerb, DomainRow, Domains};
pub use service::{DeployRow, DiskUse, OpenPort, OpenProtocol, ServiceVerb, Variable};

/// What a daemon says first. The kernel takes connections for a socket whose process is just being killed: only who is greeted
/// has found a daemon.
pub const GREETING: &str = "moat";

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// Answers `End` at once.
    Ping,
    /// Runs a blueprint (or what changed of it). Progress comes as events, with the output of builds and pre-deploy commands as
    /// [`Event::Log`]; `End` when all is ready or something failed.
    Up(UpRequest),
    /// Stops a blueprint's services, or everything.
    Down {
        /// The blueprint file; none is everything.
        file: Option<PathBuf>,
    },
    /// What runs: answers one [`Event::Status`].
    Status,
    /// Log lines, from the kept files and then live.
    Logs {
        /// Only of this service.
        service: Option<Slug>,
        /// Goes on until the connection ends.
        follow: bool,
        /// How many last lines of each instance to start with; none is all.
        tail: Option<usize>,
        /// Only of services of this blueprint.
        file: Option<PathBuf>,
        /// Which of their lines.
        #[serde(default)]
        filter: LogFilter,
    },
    /// The desired state, for `reach` and `explain`: answers one [`Event::Desired`].
    Desired,
    /// Runs the probes: answers one [`Event::Verified`].
    Verify {
        /// Random ports for each pair.
        random_ports: u32,
    },
    /// What `up` would do: answers one [`Event::Planned`].
    Plan(UpRequest),
    /// Which way a packet would take: answers one [`Event::Traced`].
    Trace {
        /// From.
        from: String,
        /// To, with a port.
        to: String,
    },
    /// Denied flows so far: answers one [`Event::Denied`].
    Denied,
    /// Removes the images that nothing runs: answers one [`Event::Pruned`].
    PruneImages,
    /// What people ask of one service, by its name or slug.
    Service {
        /// The service.
        service: String,
        /// What.
        #[serde(flatten)]
        verb: ServiceVerb,
    },
    /// Past and present deploys: answers one [`Event::Deploys`].
    Deploys {
        /// Only of this service, by its name or slug.
        service: Option<String>,
    },
    /// Becomes another program: hangs up when it does, and ends with an error when it can't.
    Upgrade {
        /// An absolute path.
        program: PathBuf,
    },
    /// What happened: answers one [`Event::Recorded`] each.
    Events {
        /// Only to this service.
        service: Option<Slug>,
        /// Only of this kind.
        kind: Option<EventKind>,
        /// Not before this time, in milliseconds since 1970.
        since: Option<i64>,
        /// Only so many, the last ones.
        last: Option<usize>,
        /// Goes on until the connection ends.
        follow: bool,
    },
    /// The daemon ends and leaves everything running, for another one that takes its place. One of `moat serve` refuses.
    Leave,
    /// The variables of an environment group: answers one [`Event::Variables`].
    GroupVariables {
        /// Its name.
        group: String,
        /// With their values.
        show: bool,
    },
    /// Sets variables of an environment group, or takes them away, and deploys who uses it.
    SetGroupVariables {
        /// Its name.
        group: String,
        /// New values by key; none takes the variable away.
        values: BTreeMap<String, Option<Secret>>,
    },
    /// Copies what services keep to an archive: answers one [`Event::BackedUp`].
    Backup {
        /// The archive, absolute; nothing may be there.
        file: PathBuf,
        /// Of these services, by name or slug; none is all, and everything that another machine needs to run them.
        services: Vec<String>,
        /// Puts the key into the archive.
        with_key: bool,
    },
    /// Brings back what an archive holds: answers one [`Event::Restored`].
    Restore {
        /// The archive, absolute.
        file: PathBuf,
        /// The file of the key that it is sealed with, absolute; none is this machine's own, or the one in the archive.
        key: Option<PathBuf>,
        /// Of these services; none is all that it holds.
        services: Vec<String>,
    },
    /// The settings of the ingress, after some are changed: answers one [`Event::Ingress`].
    Ingress {
        /// What to change, by setting.
        set: Vec<(String, String)>,
    },
    /// What people ask of certificates.
    Certificate(CertificateVerb),
    /// The certificate of this machine's own authority: answers one [`Event::Authority`].
    Authority,
    /// Public host names and what DNS says of them: answers one [`Event::Domains`].
    Domains,
    /// What services do and use: answers one [`Event::Load`].
    Load,
    /// The same as Prometheus reads it: answers one [`Event::Metrics`].
    Metrics,
    /// Lines of the access log: answers [`Event::AccessLines`].
    AccessLog {
        /// Only of this service, by its slug.
        service: Option<String>,
        /// Goes on until the connection ends.
        follow: bool,
        /// Only so many, the last ones.
        tail: Option<usize>,
        /// Those that this regular expression is found in.
        grep: Option<String>,
    },
    /// Another process serves the public and answers names; connections go on where they are. Answers one [`Event::Ingress`].
    RestartIngress,
}

/// Which lines of logs are wanted; nothing said is all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// Of the instance with this id.
    pub instance: Option<String>,
    /// Not before this time: RFC 3339, UTC, with microseconds.
    pub since: Option<String>,
    /// Those whose text this regular expression is found in.
    pub grep: Option<String>,
}

/// `up`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpRequest {
    /// The blueprint, absolute.
    pub file: PathBuf,
    /// Its text as it was checked.
    pub text: String,
    /// Values of `sync: false` and of groups outside the file: `KEY` or `SERVICE.KEY`.
    pub given: BTreeMap<String, Secret>,
    /// Contents of `x-moat.secretFiles` by path as written.
    pub files: BTreeMap<String, Secret>,
    /// Where the ingress listens.
    pub listen: String,
    /// Where it listens for HTTPS; none is as it was.
    #[serde(default)]
    pub listen_tls: Option<String>,
    /// Seconds that a service may take until it listens.
    pub start_timeout_seconds: u64,
    /// Host variables handed to builds.
    pub pass_env: Vec<String>,
    /// Repository facts for `RENDER_GIT_*`: branch, commit, `user/repo`.
    pub git: [String; 3],
    /// Git remotes of the blueprint's folder: a `repo` that is one of them means this folder.
    pub remotes: Vec<String>,
    /// Stops what the blueprint names no longer, and gives up the values of variables it names no longer.
    #[serde(default)]
    pub prune: bool,
    /// What was pushed; none where the source is a folder. Pushes of one blueprint wait for each other, and of those that wait
    /// only the last is deployed.
    #[serde(default)]
    pub pushed: Option<Pushed>,
}

impl UpRequest {
    /// What `moat up` asks for a blueprint of a folder where nothing else is said: no values, no repository, no remotes.
    pub fn new(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
            given: BTreeMap::new(),
            files: BTreeMap::new(),
            listen: "127.0.0.1:8080".to_owned(),
            listen_tls: None,
            start_timeout_seconds: 900,
            pass_env: Vec::new(),
            git: Default::default(),
            remotes: Vec::new(),
            prune: false,
            pushed: None,
        }
    }
}

/// A commit that was pushed to a repository of this machine. Which one it is, [`UpRequest::git`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The repository, a bare one.
    pub repository: PathBuf,
    /// Why it is deployed.
    pub cause: Cause,
    /// Commits that services keep, by their names as written. The daemon's to fill in.
    #[serde(default)]
    pub pins: BTreeMap<String, String>,
}

/// Why a pushed commit is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The push itself: each service's `autoDeployTrigger`, `buildFilter` and `rootDir` count.
    Push,
    /// Somebody asked for it.
    Asked {
        /// By name or slug; empty is all.
        services: Vec<String>,
    },
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A service went into another state.
    Service(ServiceState),
    /// A line that a service or its build wrote.
    Log(LogLine),
    /// Something people should know: a repair, a denied flow, a notice about a service.
    Notice {
        /// The service it is about.
        service: Option<Slug>,
        /// In words.
        text: String,
    },
    /// Values nobody gave; nothing was changed.
    Missing {
        /// Each.
        values: Vec<MissingValue>,
    },
    /// What is wrong with the blueprint; nothing was changed. Each is rendered text.
    Refused {
        /// Code, place and words of each.
        diagnostics: Vec<RefusedDiagnostic>,
    },
    /// What runs.
    Status(Status),
    /// The desired state.
    Desired {
        /// As resolved; secrets are masked.
        state: Box<moat_model::DesiredState>,
    },
    /// What `up` would do.
    Planned {
        /// The plan.
        plan: Box<moat_planner::Plan>,
        /// The state it leads to, secrets masked.
        state: Box<moat_model::DesiredState>,
    },
    /// What the probes saw.
    Verified(Box<Verified>),
    /// A packet's way.
    Traced {
        /// Steps, in words.
        steps: Vec<String>,
        /// Whether it arrives.
        delivered: bool,
    },
    /// Denied flows.
    Denied {
        /// Each, with counts.
        flows: Vec<DeniedFlow>,
    },
    /// Images were removed.
    Pruned {
        /// How many.
        images: usize,
        /// Bytes of their files.
        bytes: u64,
    },
    /// Another push came before this one's turn, and is deployed instead; `End` follows.
    Superseded {
        /// Its commit.
        commit: String,
    },
    /// Deploys, oldest first.
    Deploys {
        /// Each.
        deploys: Vec<DeployRow>,
    },
    /// Variables of a service, by key.
    Variables {
        /// Each.
        variables: Vec<Variable>,
    },
    /// A command or a run has an instance of its own, and, once there is a code, has ended.
    Run {
        /// The instance.
        instance: String,
        /// Its exit code.
        code: Option<i32>,
        /// How it ended, in words.
        why: Option<String>,
    },
    /// The request is done.
    End {
        /// Why it failed, when it did.
        error: Option<Failure>,
    },
    /// Something that happened.
    Recorded(Recorded),
    /// How a blueprint differs from what runs; before `Planned`.
    Drift {
        /// Each difference.
        differences: Vec<Drift>,
    },
    /// A backup was made.
    BackedUp {
        /// The archive.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// The services whose data is in it.
        services: Vec<Slug>,
    },
    /// What services keep was brought back.
    Restored {
        /// Of these services.
        services: Vec<Slug>,
        /// The snapshot that the content before became.
        aside: String,
    },
    /// Snapshots of a service, oldest first.
    Snapshots {
        /// Each.
        snapshots: Vec<SnapshotRow>,
    },
    /// The settings of the ingress.
    Ingress {
        /// Each with its value.
        settings: Vec<(String, String)>,
    },
    /// Certificates.
    Certificates {
        /// Each.
        certificates: Vec<CertificateRow>,
    },
    /// The certificate of this machine's own authority.
    Authority {
        /// PEM.
        certificate: String,
    },
    /// Public host names.
    Domains(Domains),
    /// What services do and use.
    Load(Box<Load>),
    /// Lines of the access log.
    AccessLines {
        /// As they are written.
        text: String,
    },
    /// The same in the text format of OpenMetrics.
    Metrics {
        /// The text.
        text: String,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// In words.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Which exit code fits: 1 refused or failed, 2 usage or blueprint, 3 engine.
    pub exit_code: u8,
}

impl Failure {
    /// A failure of the engine.
    pub fn engine(error: &moat_engine::EngineError) -> Self {
        Self { message: error.to_string(), hint: error.hint.clone(), exit_code: 3 }
    }
    /// A refusal.
    pub fn refused(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, exit_code: 1 }
    }
}

/// A diagnostic that stopped `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusedDiagnostic {
    /// The file.
    pub file: PathBuf,
    /// The code.
    pub code: String,
    /// The severity word.
    pub severity: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// As a person reads it, with the source line.
    pub rendered: String,
}

/// A value that `sync: false` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MissingValue {
    /// The service or group.
    pub owner: String,
    /// The variable.
    pub key: String,
    /// What the blueprint says about it.
    pub label: Option<String>,
    /// Line in the blueprint.
    pub line: u32,
}

/// One line of output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// The service.
    pub service: Slug,
    /// The instance.
    pub instance: String,
    /// RFC 3339, UTC.
    pub time: String,
    /// `stdout`, `stderr` or `moat`.
    pub stream: String,
    /// The text without its line end.
    pub text: String,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// The service.
    pub service: Slug,
    /// Its kind.
    pub kind: ServiceKind,
    /// The phase.
    pub phase: ServicePhase,
    /// More, in words: what it waits for, why it failed.
    pub detail: Option<String>,
    /// The last log lines, when it failed.
    pub last_lines: Vec<String>,
}

/// Phases of a service, in the order of a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServicePhase {
    /// Waits for datastores.
    Waiting,
    /// Its build runs.
    Building,
    /// Its pre-deploy command runs.
    PreDeploy,
    /// Instances start; not ready yet.
    Starting,
    /// All instances are ready; a cron job waits for its time.
    Live,
    /// A program ended and is started again after a while.
    Restarting,
    /// The deploy failed.
    Failed,
    /// It is being stopped.
    Stopping,
    /// Somebody suspended it: nothing of it runs.
    Suspended,
    /// Nobody asked for it for a while: nothing of it runs until somebody does.
    Sleeping,
}

impl ServicePhase {
    /// Whether a deploy ends here.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Live | Self::Failed | Self::Suspended | Self::Sleeping)
    }
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::PreDeploy => "pre-deploy",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Restarting => "restarting",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Suspended => "suspended",
            Self::Sleeping => "sleeping",
        }
    }
}

/// What runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Where the ingress listens, when it does.
    pub listen: Option<String>,
    /// Where it listens for HTTPS, when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_tls: Option<String>,
    /// Services by slug.
    pub services: Vec<ServiceStatus>,
    /// The daemon's pid.
    pub daemon_pid: u32,
    /// The pid of the data plane's process, which accepts the public connections.
    #[serde(default)]
    pub dataplane_pid: Option<u32>,
    /// The program that the daemon runs.
    #[serde(default)]
    pub program: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// One service of [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Where it is.
    pub state: ServiceState,
    /// Name as written.
    pub name: String,
    /// The blueprint file.
    pub blueprint: PathBuf,
    /// Public URL of a web service.
    pub url: Option<String>,
    /// Internal address `slug:port`.
    pub internal: Option<String>,
    /// Service address.
    pub address: Option<AddressPair>,
    /// When a cron job runs next, RFC 3339.
    pub next_run: Option<String>,
    /// The commit that runs, where its source comes from a git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Its disk, once it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUse>,
    /// What is wrong with it although it runs, and what to do, in words: a port that was given out and is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The ports at which its instances that take traffic can be reached on the private network.
    #[serde(default, rename = "openPorts")]
    pub open_ports: Vec<OpenPort>,
    /// How many instances it should have.
    #[serde(default)]
    pub wanted: u32,
    /// Whether the ingress answers instead of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
    /// Instances.
    pub instances: Vec<InstanceStatus>,
}

/// One instance of [`ServiceStatus`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Id.
    pub id: String,
    /// What it runs for.
    pub purpose: Purpose,
    /// Phase.
    pub phase: InstancePhase,
    /// Whether it takes traffic.
    pub ready: bool,
    /// It takes no new connections, and ends once those that it has are over.
    #[serde(default)]
    pub draining: bool,
    /// Addresses.
    pub address: AddressPair,
    /// The host's pid of its first process.
    pub pid: Option<u32>,
    /// Listening sockets.
    pub listeners: Vec<Listener>,
    /// How often its service was started again after an unwanted end.
    pub restarts: u32,
}

/// A denied flow, with names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeniedFlow {
    /// Who tried.
    pub from: String,
    /// Whom.
    pub to: String,
    /// Protocol word.
    pub proto: String,
    /// Port.
    pub port: u16,
    /// Packets dropped.
    pub packets: u64,
    /// The reason, as `explain` says it.
    pub because: String,
}

/// What the probes saw, for people; the whole report beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    /// Whether everything was proved to be as it should be.
    pub passed: bool,
    /// One line for each pair.
    pub pairs: Vec<VerifiedPair>,
    /// Attempts that came out otherwise than the matrix says, in words.
    pub disagreements: Vec<String>,
    /// Controls that failed, in words.
    pub failed_controls: Vec<String>,
    /// How many controls there were.
    pub controls: usize,
    /// Differences in the router or the host, in words.
    pub drift: Vec<String>,
    /// Packets and questions sent.
    pub probes: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// The report, as `moat_probe::Report` serialises.
    pub report: serde_json::Value,
}

/// All attempts of one pair.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifiedPair {
    /// Who tried.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Attempts that should arrive, and how many did.
    pub allowed: (usize, usize),
    /// Attempts that should not arrive, and how many did not.
    pub denied: (usize, usize),
    /// Attempts of which nothing can be said.
    pub unproven: usize,
    /// Whether everything is as it should be.
    pub agrees: bool,
}
