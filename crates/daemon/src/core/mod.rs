//! The loop: takes one message at a time, changes what should be, and reconciles.
//!
//! * [`requests`] – what the command line asks.
//! * [`public`] – host names, certificates and settings of the public side.
//! * [`pushes`] – which push is deployed, and by which services.
//! * [`acme`] – certificates that a server gives by itself.
//! * [`denials`] – denied flows.
//! * [`deploys`] – a service's way from source to live.
//! * [`reconcile`] – desired against observed, through a plan.
//! * [`instances`] – what became of started instances.
//! * [`settings`], [`scaling`] – how many instances run, and whether the service is open.
//! * [`variables`] – the values of its variables.
//! * [`copies`] – backups, restores and snapshots.
//! * [`runs`] – one-off commands and cron runs; [`hooks`] – commands of first deploys.
//! * [`upgrade`] – another program takes over.
//! * [`record`] – what is written down.
//! * [`load`] – what services do and use.
//! * [`drift`] – where a blueprint and what runs differ.
//! * [`ports`] – ports that were given out and that nobody listens on.
//! * [`sleep`] – free web services that nobody asks for.
//! * [`sites`] – the releases of static sites that are served.
//!
//! Invariant: nothing here blocks for long; what takes time runs as a task and reports with a [`Msg`].

mod acme;
mod copies;
mod databases;
mod denials;
mod deploys;
mod disks;
mod drift;
mod hooks;
mod instances;
mod load;
mod maintenance;
mod ports;
mod public;
mod pushes;
mod reconcile;
mod record;
mod requests;
mod resume;
mod runs;
mod scaling;
mod settings;
mod sites;
mod sleep;
mod trace;
pub(crate) mod upgrade;
mod upkeep;
mod variables;

#[cfg(test)]
mod sim;

pub(crate) use public::public_names;

use crate::Paths;
use crate::autoscale::Scaler;
use crate::dataplane::DataPlane;
use crate::deploy::{Ask, Deploy, Deployed};
use crate::handed::Handed;
use crate::machine::plane::Served;
use crate::machine::{Machine, Plane};
use crate::protocol::{DiskUse, Event, Request, ServicePhase, ServiceState};
use crate::ready::Readiness;
use crate::reply::Reply;
use crate::server::DaemonError;
use crate::state::{Durable, Found, State};
use moat_engine::EngineError;
use moat_engine_linux::{LinuxEngine, Prepared, Provided, Usage};
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, Listener};
use moat_model::{AddressPair, DesiredState, InstanceId, NetworkId, Purpose, Slug};
use moat_store::{EventKind, EventLog};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio::time::Instant;

/// How often the loop looks at everything.
const RESTS: Rests = Rests { busy: Duration::from_secs(1), quiet: Duration::from_secs(5) };
/// A daemon that has nothing to run ends after this long.
const IDLE_FOR: Duration = Duration::from_secs(5);

/// Everything that can happen.
pub enum Msg {
    /// Somebody asks; events go to the channel.
    Request(Box<Request>, Reply),
    /// How far the pull of a service's image is, in words.
    Pulling(Slug, String),
    /// Something about the data plane that people should know.
    PlaneSaid(String),
    /// Something about a service that people should know.
    Said(Slug, String),
    /// The pushed commit of a blueprint was compared with the commits that run: the files that differ from each.
    Compared(PathBuf, String, Result<BTreeMap<String, Vec<String>>, EngineError>),
    /// A backup, a restore or a snapshot has something to report.
    Copied(u64, Result<copies::Copied, crate::protocol::Failure>),
    /// These disks are to have a snapshot.
    SnapshotsDue(Vec<Slug>),
    /// Disks were measured.
    Disks(Vec<(Slug, DiskUse)>),
    /// A deploy's release was prepared (or could not be).
    Prepared(Slug, String, Result<Prepared, EngineError>),
    /// Who provides the server of a datastore with this fingerprint.
    Provided(Slug, String, Result<Provided, EngineError>),
    /// A build's release was sealed.
    Sealed(Slug, String, Result<String, EngineError>),
    /// `StartInstance` came back.
    Started(InstanceId, Result<(), EngineError>),
    /// A program ended.
    Ended(InstanceId, InstancePhase),
    /// `StopInstance` came back; after an error it is tried again.
    Stopped(InstanceId, Result<(), EngineError>),
    /// What a readiness check saw.
    Checked(InstanceId, Readiness),
    /// An instance's health check fails for so long that it is to be started anew; why.
    Unhealthy(InstanceId, String),
    /// What instances use.
    Used(Vec<(InstanceId, Usage)>),
    /// A timer fired: back-off, start window, cron.
    Wake,
    /// What the regular upkeep found: repairs and denied flows.
    Upkeep {
        /// Repairs and failures, in words.
        said: Vec<(EventKind, String)>,
        /// Denied flows, all that are remembered.
        denied: Vec<moat_net_linux::DeniedFlow>,
        /// Instances that had too many flows open.
        crowds: Vec<moat_net_linux::Crowd>,
        /// New ones of the denied flows are probes of our own.
        probes: bool,
    },
    /// Become another program, which lies at this path and is open here; who asked is told when that fails.
    Become(PathBuf, std::fs::File, Reply),
    /// End everything this process runs, leaving the workloads.
    Leave,
    /// Something came of asking a server for a certificate.
    Acme(acme::News),
    /// Somebody asks for these services, which sleep.
    Wanted(BTreeSet<Slug>),
    /// What services that may sleep were asked for.
    Looked(sleep::Look),
    /// A maintenance page was asked for at this address.
    Page(String, Result<maintenance::Fetched, String>),
}

impl Msg {
    /// Whether what should run, or what does, may be different after it.
    const fn is_news(&self) -> bool {
        !matches!(self, Self::Upkeep { .. })
    }
}

/// An instance that this daemon started or adopted.
pub struct Live {
    /// Its service.
    pub slug: Slug,
    /// What for.
    pub purpose: Purpose,
    /// Addresses.
    pub address: AddressPair,
    /// What it is made of.
    pub fingerprint: String,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Whether it ever did.
    pub was_ready: bool,
    /// It is being stopped.
    pub stopping: bool,
    /// `StartInstance` came back.
    pub started: bool,
    /// Sockets it listens on.
    pub listeners: Vec<Listener>,
    /// The port its HTTP server listens on.
    pub http_port: Option<u16>,
    /// Since when.
    pub since: Instant,
    /// The last thing seen while waiting, in words.
    pub seen: Option<String>,
    /// Ends the readiness checks.
    pub checks: Option<tokio::task::AbortHandle>,
    /// It takes no new connections, and stops once those that it has are over, or when this is dropped.
    pub draining: Option<tokio::sync::oneshot::Sender<()>>,
    /// Why it could not be stopped yet.
    pub stop_failed: Option<String>,
    /// What it had used when that was looked at last.
    pub usage: Option<(Instant, Usage)>,
    /// Held while it is being started: what is stopped before waits, so that a start never comes after its stop.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

impl Live {
    /// It takes no more connections.
    fn retire(&mut self) {
        self.stopping = true;
        self.ready = false;
        if let Some(checks) = self.checks.take() {
            checks.abort();
        }
    }
}

/// How often a service ended on its own, and until when it is left alone.
#[derive(Default)]
pub struct Backoff {
    /// Starts after unwanted ends.
    pub restarts: u32,
    /// Not before.
    pub until: Option<Instant>,
}

/// Source, destination, protocol number and port of a denied flow.
pub(crate) type FlowKey = (std::net::IpAddr, std::net::IpAddr, u8, u16);

/// How many verifications run. While one does, the network is left as it is, and what the filter denies are probes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probing(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Probing {
    pub(crate) fn now(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst) > 0
    }
    /// Begins one; it ends when the guard is dropped.
    pub(crate) fn begin(&self) -> ProbingGuard {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        ProbingGuard(self.clone())
    }
}

/// Ends a verification when dropped.
pub(crate) struct ProbingGuard(Probing);

impl Drop for ProbingGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// The loop's state.
pub struct Core {
    pub(crate) paths: Paths,
    pub(crate) engine: Arc<dyn Machine>,
    pub(crate) durable: Durable,
    pub(crate) state: State,
    pub(crate) writing: record::Writing,
    /// Goes on when there is nothing to run.
    pub(crate) serves: bool,
    rests: Rests,
    pub(crate) desired: DesiredState,
    pub(crate) deploys: BTreeMap<Slug, Deploy>,
    /// The deploy of each service that waits for its turn.
    pub(crate) next: BTreeMap<Slug, Ask>,
    /// How many instances services should have that follow their load.
    pub(crate) scalers: BTreeMap<Slug, Scaler>,
    /// When use is measured next; none while it is.
    pub(crate) use_due: Option<Instant>,
    /// One-off commands and cron runs that somebody watches.
    pub(crate) runs: BTreeMap<InstanceId, runs::Watched>,
    /// When these are looked at again.
    pub(crate) runs_due: Option<Instant>,
    /// What the time of day was when cron jobs were looked at last.
    pub(crate) cron_seen: Option<jiff::Timestamp>,
    pub(crate) live: BTreeMap<InstanceId, Live>,
    pub(crate) backoff: BTreeMap<Slug, Backoff>,
    /// When a service came last that nothing had answered for, by private network.
    pub(crate) came: BTreeMap<NetworkId, Instant>,
    pub(crate) phases: BTreeMap<Slug, ServiceState>,
    /// How full disks were when they were measured last.
    pub(crate) disks: BTreeMap<Slug, DiskUse>,
    /// When disks are measured next; none while they are.
    pub(crate) disks_due: Option<Instant>,
    pub(crate) copies: copies::Copies,
    pub(crate) sites: sites::Sites,
    pub(crate) shown: public::Shown,
    pub(crate) idle: sleep::Idle,
    /// Maintenance pages that are at other addresses.
    pub(crate) pages: maintenance::Pages,
    pub(crate) dataplane: Box<dyn Plane>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) followers: Vec<Reply>,
    pub(crate) tx: mpsc::UnboundedSender<Msg>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) denied: BTreeMap<FlowKey, denials::Denied>,
    pub(crate) denials: denials::Budget,
    pub(crate) probing: Probing,
    /// Whether what somebody else changed of the network is mended, or only told.
    pub(crate) mends: bool,
    /// Held while the upkeep works on the network; true once the network is being removed, so that nothing repairs it.
    pub(crate) removed: Arc<Mutex<bool>>,
    pub(crate) policy: Arc<NetPolicy>,
    /// Services whose hook of the first deploy is due, and jobs of such hooks that are being started.
    pub(crate) hooks_due: BTreeMap<Slug, Instant>,
    pub(crate) hooks: BTreeSet<InstanceId>,
    pub(crate) closing: BTreeSet<Slug>,
    pub(crate) sweep: bool,
    pub(crate) sweep_fetched: bool,
    /// Who waits for a push that is not accepted yet, by blueprint.
    pub(crate) pushers: BTreeMap<PathBuf, Reply>,
    /// Blueprints whose pushed commit is being compared.
    pub(crate) comparing: BTreeSet<PathBuf>,
    /// Logs of builds and pre-deploy commands that run.
    pub(crate) tails: BTreeMap<InstanceId, (PathBuf, crate::logs::Tail)>,
    /// When these are looked at again.
    pub(crate) tails_due: Option<Instant>,
    pub(crate) last_said: Option<String>,
    pub(crate) leaving: bool,
    /// When the network is opened again that could not be opened.
    open_due: Option<Instant>,
    /// Why it could not be.
    not_open: Option<String>,
}

/// The longest that the loop rests although nobody tells it anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rests {
    /// While something goes on.
    pub(crate) busy: Duration,
    /// While nothing does.
    pub(crate) quiet: Duration,
}

/// What a loop works with.
pub(crate) struct Parts {
    pub(crate) paths: Paths,
    pub(crate) engine: Arc<dyn Machine>,
    pub(crate) dataplane: Box<dyn Plane>,
    pub(crate) durable: Durable,
    pub(crate) state: State,
    pub(crate) writing: record::Writing,
    pub(crate) serves: bool,
    pub(crate) rests: Rests,
}

/// A request that is answered when something has come about.
pub struct Waiting {
    pub(crate) reply: Reply,
    pub(crate) until: Until,
}

/// What a request waits for.
pub enum Until {
    /// No deploy of this service waits or is under way, and as many instances run as should.
    Service {
        /// The service.
        slug: Slug,
    },
    /// Every service of this blueprint is live or failed.
    Settled {
        /// The blueprint.
        file: PathBuf,
    },
    /// No instance of these services is left.
    Gone {
        /// The services.
        services: BTreeSet<Slug>,
        /// Whether the router and the daemon go too.
        everything: bool,
    },
}

impl Core {
    /// Reads the durable state, adopts what runs, and returns a loop that is ready to go.
    pub async fn load(
        paths: Paths,
        engine: LinuxEngine,
        tx: mpsc::UnboundedSender<Msg>,
        handed: Handed,
        serves: bool,
    ) -> Result<Self, DaemonError> {
        let Found { state, durable, said } = State::open(&paths.state)?;
        let (tell, written) = watch::channel(0);
        let opened = EventLog::open(&EventLog::path(&paths.state), moat_store::events::Bounds::default(), move |count| {
            tell.send_replace(count);
        });
        // No event is worth a daemon that does not start.
        let (log, begun) = match opened {
            Ok(opened) => {
                let text = |aside: PathBuf| format!("the log of events was damaged: a new one was begun; `{}` is the old", aside.display());
                (opened.log, opened.damaged.map(text))
            }
            Err(error) => (EventLog::none(), Some(format!("no events are recorded: {}", crate::chain(&error)))),
        };
        let begun = begun.map(|text| (EventKind::Problem, text));
        let folder = paths.state.canonicalize().unwrap_or_else(|_| paths.state.clone());
        let plane = DataPlane::new(paths.run.clone(), folder.join("releases"), handed, tx.clone());
        let dataplane = Box::new(Served::new(plane, engine.network().clone()));
        let (engine, writing) = (Arc::new(engine), record::Writing::new(log, written));
        let parts = Parts { paths, engine, dataplane, durable, state, writing, serves, rests: RESTS };
        Self::of(parts, tx, [said, begun].into_iter().flatten()).await.map_err(DaemonError::Blind)
    }

    /// A loop of these parts, that has adopted what runs; people are told what was found. Fails where what runs can't be seen.
    async fn of(
        parts: Parts,
        tx: mpsc::UnboundedSender<Msg>,
        found: impl Iterator<Item = (EventKind, String)>,
    ) -> Result<Self, EngineError> {
        let Parts { paths, engine, dataplane, durable, state, writing, serves, rests } = parts;
        let (events, _) = broadcast::channel(8192);
        let mut core = Self {
            policy: engine.policy(),
            paths,
            engine,
            desired: DesiredState::default(),
            deploys: BTreeMap::new(),
            next: BTreeMap::new(),
            scalers: BTreeMap::new(),
            use_due: Some(Instant::now()),
            runs: BTreeMap::new(),
            runs_due: None,
            cron_seen: None,
            live: BTreeMap::new(),
            backoff: BTreeMap::new(),
            came: BTreeMap::new(),
            phases: BTreeMap::new(),
            disks: BTreeMap::new(),
            disks_due: Some(Instant::now()),
            copies: copies::Copies::default(),
            sites: sites::Sites::default(),
            shown: public::Shown::default(),
            idle: sleep::Idle::default(),
            pages: maintenance::Pages::default(),
            dataplane,
            events,
            followers: Vec::new(),
            tx,
            waiting: Vec::new(),
            denied: BTreeMap::new(),
            denials: denials::Budget::default(),
            probing: Probing::default(),
            mends: true,
            removed: Arc::default(),
            durable,
            state,
            writing,
            serves,
            rests,
            hooks_due: BTreeMap::new(),
            hooks: BTreeSet::new(),
            closing: BTreeSet::new(),
            sweep: false,
            sweep_fetched: false,
            pushers: BTreeMap::new(),
            comparing: BTreeSet::new(),
            tails: BTreeMap::new(),
            tails_due: None,
            last_said: None,
            leaving: false,
            open_due: None,
            not_open: None,
        };
        core.record(
            EventKind::DaemonStarted,
            None,
            format!("Moat {} began to work", env!("CARGO_PKG_VERSION")),
            json!({ "pid": std::process::id() }),
        );
        for (kind, text) in found {
            core.tell(kind, None, text);
        }
        let settled = match core.engine.linux() {
            Some(engine) => engine.settle_snapshots().await,
            None => Ok(()),
        };
        if let Err(error) = settled {
            core.problem(None, format!("what an earlier restore or snapshot left can't be put in order: {error}"));
        }
        match core.adopt().await {
            Ok(()) => Ok(core),
            Err(error) => {
                core.problem(None, format!("can't see what runs: {}; Moat ends, and what runs goes on", deploys::engine_words(&error)));
                Err(error)
            }
        }
    }

    /// Handles messages until everything is down or the process is told to leave.
    pub async fn run(mut self, mut rx: mpsc::UnboundedReceiver<Msg>) {
        self.resume().await;
        let upkeep = self.start_upkeep();
        let (mut idle_since, mut looked) = (Instant::now(), Instant::now());
        loop {
            let rests = if self.is_quiet() { self.rests.quiet } else { self.rests.busy };
            let mut news = false;
            match tokio::time::timeout(rests.saturating_sub(looked.elapsed()), rx.recv()).await {
                Ok(Some(msg)) => {
                    if matches!(msg, Msg::Request(..)) {
                        idle_since = Instant::now();
                    }
                    news |= msg.is_news();
                    self.handle(msg).await;
                }
                Ok(None) => break,
                Err(_) => news = true,
            }
            if !self.is_idle() {
                idle_since = Instant::now();
            } else if !self.serves && idle_since.elapsed() > IDLE_FOR {
                tracing::info!("nothing to run: ending");
                self.remove_everything().await;
                break;
            }
            // One reconcile for everything that waits: a burst of messages is one change.
            while let Ok(msg) = rx.try_recv() {
                news |= msg.is_news();
                self.handle(msg).await;
            }
            if news {
                self.advance().await;
                looked = Instant::now();
            }
            if self.leaving {
                break;
            }
            if self.serves {
                // Without systemd there is nobody to tell.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
        // The data plane goes on, for the next daemon, unless all was removed.
        upkeep.abort();
        // Nobody is greeted any more who would not be heard.
        let _ = std::fs::remove_file(self.paths.socket());
        self.save();
        let _ = self.state.keep_copy();
        self.record(EventKind::DaemonStopped, None, "Moat ended; what runs goes on", json!({}));
    }

    /// Whether there is nothing to run and nobody to answer: a blueprint was refused, or a second daemon was started in a race.
    fn is_idle(&self) -> bool {
        self.durable.blueprints.is_empty()
            && self.live.is_empty()
            && self.waiting.is_empty()
            && self.durable.queued.is_empty()
            && self.copies.is_empty()
    }

    /// Whether everything runs as it should and nobody waits for anything.
    fn is_quiet(&self) -> bool {
        let calm = |live: &Live| live.purpose == Purpose::Serve && live.ready && !live.stopping;
        !self.is_idle()
            && self.deploys.is_empty()
            && self.next.is_empty()
            && self.closing.is_empty()
            && self.comparing.is_empty()
            && self.waiting.is_empty()
            && self.durable.queued.is_empty()
            && self.copies.is_empty()
            && self.live.values().all(calm)
    }

    async fn handle(&mut self, msg: Msg) {
        match msg {
            Msg::Request(request, reply) => self.request(*request, reply).await,
            Msg::Pulling(slug, text) => self.pulling(&slug, text),
            Msg::PlaneSaid(text) => self.notice(None, text),
            Msg::Said(slug, text) => self.notice(Some(&slug), text),
            Msg::Compared(file, commit, changed) => self.compared(&file, &commit, changed).await,
            Msg::Disks(found) => self.disks_measured(found),
            Msg::Copied(id, result) => self.copied(id, result),
            Msg::SnapshotsDue(due) => self.snapshots_due(due),
            Msg::Prepared(slug, id, result) => self.prepared(&slug, &id, result),
            Msg::Provided(slug, fingerprint, result) => self.provided(&slug, &fingerprint, result),
            Msg::Sealed(slug, name, result) => self.sealed(&slug, &name, result),
            Msg::Started(id, result) => self.started(&id, result),
            Msg::Ended(id, phase) => self.ended(&id, &phase),
            Msg::Stopped(id, result) => self.stopped(&id, result),
            Msg::Checked(id, readiness) => self.checked(&id, readiness),
            Msg::Unhealthy(id, why) => self.unhealthy(&id, &why),
            Msg::Used(found) => self.used(&found),
            Msg::Wake => {}
            Msg::Upkeep { said, denied, crowds, probes } => self.upkeep(said, &denied, &crowds, probes),
            Msg::Become(program, file, reply) => self.r#become(&program, &file, &reply),
            Msg::Leave => self.leaving = true,
            Msg::Acme(news) => self.acme_news(news),
            Msg::Page(uri, result) => self.page_fetched(&uri, result),
            Msg::Wanted(services) => self.wanted_by_clients(&services),
            Msg::Looked(look) => self.looked(look),
        }
    }

    /// Moves deploys on, starts due cron runs, reconciles, answers who waited.
    async fn advance(&mut self) {
        self.go_on_opening().await;
        self.go_on_writing();
        self.go_on_closing();
        self.begin_waiting();
        self.step_deploys().await;
        self.run_due_cron().await;
        self.go_on_copying().await;
        self.measure_disks();
        self.measure_use();
        self.settle_sleep();
        self.look_for_idle();
        self.settle_early_ends();
        self.reconcile().await;
        self.settle_deploys();
        self.start_hooks().await;
        self.open_sites().await;
        // Before the sweep, so that no request is answered from what it removes.
        self.ask_for_certificates();
        self.fetch_pages();
        if self.publish_views().await {
            self.shown.proofs_hold();
        }
        self.sweep_releases().await;
        self.sweep_fetched().await;
        self.tell_build_logs();
        self.tell_runs();
        self.begin_waiting();
        self.answer_waiting().await;
        // After the answer to whom these waited for.
        self.go_on_with_pushes();
    }

    pub(crate) fn say(&mut self, event: Event) {
        self.followers.retain(|follower| follower.send(event.clone()).is_ok());
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    pub(crate) fn set_phase(&mut self, slug: &Slug, phase: ServicePhase, detail: Option<String>) {
        self.set_phase_with(slug, phase, detail, Vec::new());
    }

    pub(crate) fn set_phase_with(&mut self, slug: &Slug, phase: ServicePhase, detail: Option<String>, last_lines: Vec<String>) {
        let Some(kind) = self.service_kind(slug) else { return };
        let state = ServiceState { service: slug.clone(), kind, phase, detail, last_lines };
        if self.phases.get(slug) != Some(&state) {
            self.phases.insert(slug.clone(), state.clone());
            self.say(Event::Service(state));
        }
    }

    fn service_kind(&self, slug: &Slug) -> Option<moat_model::ServiceKind> {
        self.desired
            .services
            .get(slug)
            .map(|s| s.kind)
            .or_else(|| self.durable.deployed.get(slug).map(|d| d.service.kind))
            .or_else(|| self.phases.get(slug).map(|p| p.kind))
    }

    pub(crate) fn wake_in(&self, delay: Duration) {
        let tx = self.tx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = tx.send(Msg::Wake);
        });
    }

    pub(crate) fn deployed(&self, slug: &Slug) -> Option<&Deployed> {
        self.durable.deployed.get(slug)
    }
}
