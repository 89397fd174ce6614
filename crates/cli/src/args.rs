//! What can be typed.

use clap::{Args, Parser, Subcommand, ValueEnum};
use moat_daemon::protocol::EventKind;
use moat_model::Slug;
use std::path::PathBuf;

/// Runs a team's services on a machine it owns, with private networking that is private by construction.
#[derive(Debug, Parser)]
#[command(name = "moat", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// How to answer.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a blueprint, or what changed of it.
    Up(UpArgs),
    /// Stop a blueprint's services, or everything that Moat runs here.
    Down(DownArgs),
    /// Show what runs.
    Ps,
    /// Show what services wrote.
    Logs(LogsArgs),
    /// Run a command inside a service's instance; its exit code is the command's.
    Exec(ExecArgs),
    /// Show, load and remove images.
    #[command(subcommand)]
    Image(ImageVerb),
    /// Deploy by `git push`.
    #[command(subcommand)]
    Git(GitVerb),
    /// Show deploys, past and present.
    Deploys {
        /// Only of this service.
        service: Option<String>,
    },
    /// Change what is being deployed.
    #[command(subcommand)]
    Deploy(DeployVerb),
    /// Go back to an earlier release of a service.
    Rollback {
        /// The service.
        service: String,
        /// The deploy that brought the release (`moat deploys`); the last that differs from what runs unless said.
        deploy: Option<String>,
    },
    /// Start a service anew with the release that it has, one instance at a time.
    Restart {
        /// The service.
        service: String,
    },
    /// Run so many instances of a service, whatever its blueprint says.
    Scale {
        /// The service.
        service: String,
        /// How many; without it, as many as the blueprint says.
        instances: Option<u32>,
    },
    /// Stop a service until it is resumed.
    Suspend {
        /// The service.
        service: String,
    },
    /// Deploy a suspended service again.
    Resume {
        /// The service.
        service: String,
    },
    /// Let a page answer the public instead of a web service, which goes on running.
    Maintenance {
        /// The service.
        service: String,
        /// Whether.
        mode: Mode,
        /// The page, an HTML file; Moat's own unless said.
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
    },
    /// Run a command in an instance of its own, with a service's release and environment, or a cron job now. Its exit code is
    /// the command's.
    Run(RunArgs),
    /// Show and change the variables of a service or an environment group.
    #[command(subcommand)]
    Env(EnvVerb),
    /// Copy everything to one sealed file, while it runs: what services keep, what they are, and all secrets.
    Backup(BackupArgs),
    /// Bring back what a backup holds: the data of services that are here, or a whole machine on an empty one.
    Restore(RestoreArgs),
    /// Snapshots of disks; one is taken each day and kept for a week.
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Show who reaches whom.
    Reach(ReachArgs),
    /// Say whether one peer reaches another, and by which rule.
    Explain(ExplainArgs),
    /// Show the flows that were denied.
    Denied,
    /// Show what happened: deploys, ends of instances, denied flows, repairs.
    Events(EventsArgs),
    /// Prove the private network by real connection attempts.
    Verify(VerifyArgs),
    /// Say everything that is wrong with blueprints.
    Check(CheckArgs),
    /// Show what `up` would do.
    Plan(UpArgs),
    /// Print the JSON Schema of blueprints.
    Schema,
    /// Run in the foreground, for a service manager; goes on when nothing is to run.
    Serve,
    /// Have systemd run `moat serve`, from now on and after a reboot.
    Install(InstallArgs),
    /// Undo `install`. What runs goes on, and the state stays.
    Uninstall,
    /// Show and change the settings of the ingress.
    Ingress {
        /// Have another process serve in the place of the one that does; no connection is dropped.
        #[arg(long, exclusive = true)]
        restart: bool,
        /// What to change: `https-redirect=off`, `hsts=31536000`, `proxy-protocol=203.0.113.0/24`.
        #[arg(value_name = "SETTING=VALUE")]
        set: Vec<String>,
    },
    /// Show, add and remove certificates for HTTPS.
    #[command(subcommand)]
    Cert(CertVerb),
    /// Have this machine trust the certificates that Moat makes for names below `localhost`.
    Trust {
        /// Print the authority's certificate and change nothing.
        #[arg(long)]
        print: bool,
    },
    /// Show what services do and use, as it changes: requests, times, errors, CPU, memory.
    Top(TopArgs),
    /// Print what services do and use as Prometheus reads it. The same is at `/metrics` of `metrics.sock` in the run folder.
    Metrics,
    /// Show custom domains, what DNS must say of them, and what it says now.
    Domains,
    /// Show what this machine can do, and what to install.
    Doctor,
    /// Go on as another program: no workload, connection or name is touched.
    Upgrade(UpgradeArgs),
    /// Print completions for a shell.
    Completions(CompletionsArgs),
}

/// Arguments of `up` and `plan`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The blueprint.
    #[arg(default_value = "render.yaml")]
    pub file: PathBuf,
    /// Return once everything is ready and leave it running.
    #[arg(long, short)]
    pub detach: bool,
    /// Where the ingress listens. One that listens elsewhere already stays there, unless another address is said, which is
    /// refused.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", env = "MOAT_LISTEN")]
    pub listen: String,
    /// Where the ingress listens for HTTPS, from now on, or `off`; unless ever said, it does not.
    #[arg(long, value_name = "ADDRESS:PORT|off", env = "MOAT_LISTEN_TLS")]
    pub listen_tls: Option<String>,
    /// Give a value that the blueprint asks for; `SERVICE.KEY=VALUE` for one service only.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Give values from a file of KEY=VALUE lines.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Hand a variable of this shell to builds, such as PIP_INDEX_URL.
    #[arg(long, value_name = "NAME")]
    pub pass_env: Vec<String>,
    /// How many seconds each instance may take until it is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub start_timeout: u64,
    /// Stop services that the blueprint no longer names, and forget variables that it no longer names. What they kept on
    /// disks stays in the state folder, and comes back with the name.
    #[arg(long)]
    pub prune: bool,
}

/// Arguments of `down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The blueprint, or the name of a repository that is pushed to; without it, everything that Moat runs here.
    pub file: Option<PathBuf>,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Only this service.
    pub service: Option<String>,
    /// The same as SERVICE.
    #[arg(long = "service", value_name = "NAME", conflicts_with = "service")]
    pub named: Option<String>,
    /// Go on with what is written from now on.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N lines of each instance.
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
    /// Only what was written since then: so long ago (`10m`, `2h`, `3d`), or a time (`2026-11-21T13:00:00Z`).
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
    /// Only lines that this regular expression is found in.
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    pub grep: Option<String>,
    /// Only of this instance (`moat ps`); of one that is gone as well.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// The access log of the ingress instead (`moat ingress access-log=json`); with SERVICE, its lines of JSON only.
    #[arg(long, conflicts_with_all = ["since", "instance"])]
    pub access: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only this service.
    pub service: Option<String>,
    /// Show it once, of the next interval, and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only what happened to this service.
    #[arg(long, value_name = "SERVICE", value_parser = slug)]
    pub service: Option<Slug>,
    /// Only of this kind, such as deploy-failed, instance-exited or denied.
    #[arg(long, value_name = "KIND")]
    pub kind: Option<EventKind>,
    /// Only what happened since then: so long ago (`10m`, `2h`, `3d`), or a time (`2026-11-21T13:00:00Z`).
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
    /// Only the last N.
    #[arg(short = 'n', long = "last", value_name = "N")]
    pub last: Option<usize>,
    /// Go on with what happens from now on.
    #[arg(long, short)]
    pub follow: bool,
}

fn slug(text: &str) -> Result<Slug, String> {
    Slug::new(text).map_err(|error| error.to_string())
}

/// A time, or how long ago.
fn since(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = text.parse::<jiff::Span>().ok().and_then(|ago| jiff::Zoned::now().checked_sub(ago.abs()).ok());
    ago.map(|time| time.timestamp()).ok_or_else(|| "write it as `10m`, `2h`, `3d` or `2026-11-21T13:00:00Z`".to_owned())
}

/// A regular expression.
fn pattern(text: &str) -> Result<String, String> {
    regex_lite::Regex::new(text).map(|_| text.to_owned()).map_err(|error| format!("it is no regular expression: {error}"))
}

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Print the unit and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not start it now.
    #[arg(long)]
    pub no_start: bool,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The service, or SERVICE/INSTANCE.
    pub target: String,
    /// The command.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// What can be done with deploys.
#[derive(Debug, Subcommand)]
pub enum DeployVerb {
    /// End the deploy of a service that is under way. What ran before goes on; a deploy that waits is next.
    Cancel {
        /// The service.
        service: String,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// On.
    On,
    /// Off.
    Off,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The service.
    pub service: String,
    /// Return as soon as it is started; its output is in `moat logs`.
    #[arg(long, short)]
    pub detach: bool,
    /// The command; several words are taken as they are, a single one is read by a shell. None runs a cron job now.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// What can be done with variables.
#[derive(Debug, Subcommand)]
pub enum EnvVerb {
    /// Show the variables of a service or an environment group.
    List {
        #[command(flatten)]
        owner: EnvOwner,
        /// With their values.
        #[arg(long)]
        show: bool,
    },
    /// Print the value of a variable.
    Get {
        #[command(flatten)]
        owner: EnvOwner,
        /// The variable.
        key: String,
    },
    /// Give variables values, and deploy what they change. They stay until they are taken away, or their blueprint writes others.
    Set {
        #[command(flatten)]
        owner: EnvOwner,
        /// Each variable. Without `=`, its value is read from standard input.
        #[arg(required = true, value_name = "KEY=VALUE")]
        values: Vec<String>,
    },
    /// Take variables away, and deploy what that changes.
    Unset {
        #[command(flatten)]
        owner: EnvOwner,
        /// Each variable.
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub enum CertVerb {
    /// Show the certificates that clients get.
    List,
    /// Show a certificate from now on, instead of another one for the same names.
    Add {
        /// For these host names; all that it is for unless said.
        hosts: Vec<String>,
        /// The certificate and those that signed it, PEM.
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// Its private key, PEM.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Show a certificate no longer.
    Remove {
        /// One of its host names.
        host: String,
    },
}

/// Whose variables.
#[derive(Debug, Args)]
pub struct EnvOwner {
    /// The service; with `--group`, the environment group.
    #[arg(value_name = "SERVICE|GROUP")]
    pub name: String,
    /// It is an environment group: every service that uses it is deployed.
    #[arg(long)]
    pub group: bool,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file, which must not be there, or a folder, where it gets a name of its own.
    pub file: PathBuf,
    /// Only the data of this service: a disk, a database or a Key Value. Can be said several times.
    #[arg(long, value_name = "SERVICE")]
    pub service: Vec<String>,
    /// Put the key into the file: whoever has the file then needs nothing else to read it. Without it, keep a copy of the key
    /// (`key` in the state folder) somewhere else.
    #[arg(long)]
    pub with_key: bool,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup.
    pub file: PathBuf,
    /// Only the data of this service. Can be said several times.
    #[arg(long, value_name = "SERVICE")]
    pub service: Vec<String>,
    /// The key that it is sealed with, where that is neither this machine's nor in the backup.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// What can be done with disks.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Show the snapshots of a service.
    Snapshots {
        /// The service.
        service: String,
    },
    /// Take a snapshot of a service's disk now.
    Snapshot {
        /// The service.
        service: String,
    },
    /// Replace what a service keeps by a snapshot. What is there now becomes a snapshot itself.
    Restore {
        /// The service.
        service: String,
        /// The snapshot (`moat disk snapshots`).
        snapshot: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Show the images that are here.
    List,
    /// Take the images of a `docker save` archive or an OCI layout (a folder or an archive).
    Load {
        /// The archive or folder.
        path: PathBuf,
    },
    /// Remove the images that nothing runs.
    Prune,
}

/// What can be done with repositories that are pushed to.
#[derive(Debug, Subcommand)]
pub enum GitVerb {
    /// Make a repository here whose pushes are deployed, or change how they are; inside a work tree also its remote `moat`.
    Init(GitInitArgs),
    /// Show the repositories, and which commit of each runs.
    List,
    /// Deploy what was pushed last, whatever `autoDeployTrigger`, `buildFilter` and the commit's message say.
    Deploy {
        /// The repository.
        name: String,
        /// Only these services; without any, all.
        services: Vec<String>,
        /// Stop services that the blueprint no longer names, and forget variables that it no longer names.
        #[arg(long)]
        prune: bool,
    },
    /// Remove a repository whose services are down.
    Remove {
        /// The repository.
        name: String,
    },
    /// Takes a push, as git asks for it.
    #[command(hide = true)]
    Receive {
        /// The repository.
        folder: PathBuf,
    },
    /// What git calls before and after it takes a push.
    #[command(hide = true)]
    Hook {
        /// Which.
        hook: Hook,
    },
}

/// Hooks of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// May refuse.
    PreReceive,
    /// Deploys.
    PostReceive,
}

/// Arguments of `git init`. What is not given stays as it was.
#[derive(Debug, Args)]
pub struct GitInitArgs {
    /// The blueprint's path in the repository; `render.yaml` unless said.
    pub file: Option<PathBuf>,
    /// The repository's name; that of the work tree's folder unless said.
    #[arg(long)]
    pub name: Option<String>,
    /// The branch that is deployed; `main` unless said, or the branch of the work tree where that has no `main`.
    #[arg(long)]
    pub branch: Option<String>,
    /// A URL by which the blueprint calls this very repository (`repo`), besides the work tree's remotes.
    #[arg(long, value_name = "URL")]
    pub repo: Vec<String>,
    /// Where the ingress listens; 127.0.0.1:8080 unless said.
    #[arg(long, value_name = "ADDRESS:PORT", env = "MOAT_LISTEN")]
    pub listen: Option<String>,
    /// Give a value that the blueprint asks for; `SERVICE.KEY=VALUE` for one service only.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Give values from a file of KEY=VALUE lines.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Hand a variable of this shell, as it is now, to builds.
    #[arg(long, value_name = "NAME")]
    pub pass_env: Vec<String>,
    /// How many seconds each instance may take until it is ready; 900 unless said.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub start_timeout: Option<u64>,
}

/// Arguments of `reach`.
#[derive(Debug, Args)]
pub struct ReachArgs {
    /// A blueprint that need not run; without it, what runs here.
    #[arg(long, short)]
    pub file: Option<PathBuf>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Who: a service, `internet`, `ingress`, `host`, or `build:SERVICE`.
    pub from: String,
    /// Whom: a service, `internet` or `host`, with `:PORT`, `:PORT/udp` or nothing.
    pub to: String,
    /// Show the way a packet takes through the filter.
    #[arg(long)]
    pub trace: bool,
    /// A blueprint that need not run; without it, what runs here.
    #[arg(long, short, conflicts_with = "trace")]
    pub file: Option<PathBuf>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Show every pair, not only those that disagree.
    #[arg(long)]
    pub all: bool,
    /// How many random ports to try for each pair.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub random_ports: u32,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The blueprints.
    #[arg(default_value = "render.yaml")]
    pub files: Vec<PathBuf>,
    /// Explain a code, such as E0101.
    #[arg(long, value_name = "CODE")]
    pub explain: Option<String>,
}

/// Arguments of `upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// The program; this one unless said. It has to stay where it is, but where Moat is installed (`moat install`): there it takes
    /// the place of the installed one.
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}
