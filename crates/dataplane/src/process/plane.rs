//! What the process serves by, and its conversations with daemons.

use super::dial::RouterDial;
use super::shown::Shown;
use crate::channel::Channel;
use crate::message::{Hello, Measures, Order, PROTOCOL, ROLE, Report};
use crate::{CertificateSet, Config, DatabaseHost, Host, HostState, SiteFiles, Sockets, Stamp};
use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode};
use moat_dns::Zones;
use moat_ingress::{
    Database, DatabaseKind, Databases, Limiter, Listeners, LogFiles, LogFormat, Policy, Records, Route, RouteState, RouteTable, Routes,
    Rules, Settings, Site, Tls,
};
use moat_model::Slug;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long connections may go on after another process took over.
const DRAIN_LIMIT: Duration = Duration::from_hours(1);
/// How long a kept connection may bring another request meanwhile: as long as unused ones are kept anyway.
const LINGER: Duration = Duration::from_secs(30);
/// Between two looks at folders that are served no longer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The access log is begun anew when it is longer, bytes.
const LOG_MOST: u64 = 32 << 20;

/// Where the process is in its life; only ever goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Fresh,
    Serving,
    Draining,
    Stopped,
}

/// The process' state.
pub struct Plane {
    routes: Arc<RouteTable>,
    zones: Arc<ArcSwap<Zones>>,
    resolvers: Arc<ArcSwap<Vec<SocketAddr>>>,
    dial: Arc<RouterDial>,
    records: Records,
    tls: Arc<Tls>,
    databases: watch::Sender<Arc<Databases>>,
    /// Where the folders of sites are.
    base: PathBuf,
    phase: watch::Sender<Phase>,
    holds: watch::Sender<BTreeSet<PathBuf>>,
    state: Mutex<State>,
}

struct State {
    stamp: Option<Stamp>,
    /// None once others accept in its place.
    sockets: Option<Sockets>,
    /// Sites by host name.
    sites: BTreeMap<String, (SiteFiles, Arc<Site>)>,
    /// How often clients asked, by service, where that counts.
    limits: BTreeMap<Slug, Arc<Limiter>>,
    /// Certificates that are shown.
    shown: Shown,
    /// Sites of before that requests may still read.
    leaving: Vec<(PathBuf, Weak<Site>)>,
}

impl Plane {
    pub fn new(sockets: Sockets, dial: RouterDial, base: PathBuf, tls: Tls, records: Records) -> Self {
        Self {
            routes: Arc::new(RouteTable::new(Routes::default())),
            zones: Arc::default(),
            resolvers: Arc::default(),
            dial: Arc::new(dial),
            records,
            tls: Arc::new(tls),
            databases: watch::Sender::default(),
            base,
            phase: watch::Sender::new(Phase::Fresh),
            holds: watch::Sender::default(),
            state: Mutex::new(State {
                stamp: None,
                sockets: Some(sockets),
                sites: BTreeMap::new(),
                limits: BTreeMap::new(),
                shown: Shown::default(),
                leaving: Vec::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let on = to > *phase;
            *phase = to.max(*phase);
            on
        });
    }

    /// Resolves in this phase or a later one.
    fn reached(&self, wanted: Phase) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.subscribe();
        async move {
            // An error means that the process ends.
            let _ = phase.wait_for(|phase| *phase >= wanted).await;
        }
    }

    /// Serves, from the first configuration until it is told to end or has drained.
    pub async fn serve(&self) -> io::Result<()> {
        self.reached(Phase::Serving).await;
        let sockets = self.state().sockets.as_ref().map(Sockets::duplicate).transpose()?;
        let Some(Sockets { ingress, dns_udp, dns_tcp, https, databases, .. }) = sockets else { return Ok(()) };
        let https = https.map(|https| TcpListener::from_std(https.into())).transpose()?.map(|https| (https, Arc::clone(&self.tls)));
        let listeners = Listeners { http: TcpListener::from_std(ingress.into())?, https };
        let (udp, tcp) = (UdpSocket::from_std(dns_udp.into())?, TcpListener::from_std(dns_tcp.into())?);
        let settings = Settings { drain_wait: DRAIN_LIMIT, linger: LINGER, keep_tunnels: true, ..Settings::default() };
        let (routes, dial) = (Arc::clone(&self.routes), Arc::clone(&self.dial));
        let ingress = moat_ingress::serve_with(listeners, routes, dial, self.reached(Phase::Draining), settings, self.records.clone());
        let doors = [(DatabaseKind::Postgres, databases.postgres), (DatabaseKind::KeyValue, databases.keyvalue)];
        let mut databases = JoinSet::new();
        for (kind, listener) in doors.into_iter().filter_map(|(kind, listener)| Some((kind, listener?))) {
            let (listener, table) = (TcpListener::from_std(listener.into())?, self.databases.subscribe());
            let (tls, dial) = (Arc::clone(&self.tls), Arc::clone(&self.dial));
            let served = moat_ingress::serve_databases(listener, kind, table, tls, dial, self.reached(Phase::Draining), DRAIN_LIMIT);
            databases.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(?kind, %error, "clients of databases are accepted no more");
                }
            });
        }
        let (zones, resolvers) = (Arc::clone(&self.zones), Arc::clone(&self.resolvers));
        let names = moat_dns::serve(vec![udp], vec![tcp], zones, resolvers, self.reached(Phase::Draining));
        let look = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                self.look_at_folders();
                self.sweep();
            }
        };
        let names = tokio::spawn(names);
        tokio::select! {
            () = self.reached(Phase::Stopped) => {
                tracing::info!("the data plane was told to end");
                Ok(())
            }
            ended = async {
                let ended = ingress.await;
                // A broken listener must not end DNS in silence: the process ends, and the daemon starts another.
                if ended.is_ok() {
                    let _ = names.await;
                    while databases.join_next().await.is_some() {}
                }
                ended
            } => ended,
            () = look => Ok(()),
        }
    }

    /// Serves by this from now on.
    fn apply(&self, config: Config) -> Report {
        let mut state = self.state();
        if let Some(have) = state.stamp.filter(|have| *have > config.stamp) {
            return Report::Refused { have };
        }
        let mut sites = BTreeMap::new();
        let mut hosts = std::collections::HashMap::new();
        let mut limits: BTreeMap<Slug, Arc<Limiter>> = BTreeMap::new();
        for (name, host) in config.hosts {
            let Host { service, upstreams, announced, state: wanted, allow, https } = host;
            let become_state = match wanted {
                HostState::Live => RouteState::Live,
                HostState::Moved { host } => RouteState::Moved { host },
                HostState::Held { reason } => RouteState::Held { reason },
                HostState::NoInstance { reason } => RouteState::NoInstance { reason },
                HostState::Asleep => RouteState::Asleep,
                HostState::Suspended => RouteState::Suspended,
                HostState::Maintenance { page, status } => RouteState::Maintenance {
                    page: page.as_str().into(),
                    status: StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                },
                HostState::Site(files) => {
                    let open = state.sites.get(&name).filter(|(before, _)| *before == files).map(|(_, site)| Arc::clone(site));
                    match open.map_or_else(|| open_site(&self.base, &files), Ok) {
                        Ok(site) => {
                            sites.insert(name.clone(), (files, Arc::clone(&site)));
                            RouteState::Site(site)
                        }
                        Err(why) => {
                            tracing::error!(%service, "the site can't be served: {why}");
                            RouteState::NoInstance { reason: "its files can't be served".to_owned() }
                        }
                    }
                }
            };
            let instances = upstreams.iter().filter_map(|at| Some((*at, config.instances.get(&at.ip())?.as_str().into())));
            let meter = self.records.meters.of(&service, instances);
            let rate = config.public.limits.get(&service).copied().unwrap_or(config.public.limit);
            let limit = rate.map(|rate| {
                let before = || state.limits.get(&service).filter(|before| before.rate() == rate).cloned();
                let limit = limits.entry(service.clone()).or_insert_with(|| before().unwrap_or_else(|| Arc::new(Limiter::new(rate))));
                Arc::clone(limit)
            });
            hosts.insert(
                name,
                Route { limit, service, upstreams, announced, state: become_state, allow: allow.map(Into::into), https, meter },
            );
        }
        let database = |host: DatabaseHost| {
            let DatabaseHost { service, access, upstreams, allow } = host;
            let visitors = self.records.visits.of(&service);
            Database { service, access, upstreams, allow, visitors }
        };
        self.databases.send_replace(Arc::new(Databases(config.databases.into_iter().map(|(name, host)| (name, database(host))).collect())));
        if let Err(error) = self.records.traces.set(config.public.traces.as_ref()) {
            tracing::warn!(%error, "no traces are recorded");
        }
        self.zones.store(Arc::new(config.zones));
        self.resolvers.store(Arc::new(config.resolvers));
        let promise = config.public.hsts.and_then(|seconds| HeaderValue::try_from(format!("max-age={seconds}")).ok());
        let policy = Policy {
            proxies: config.public.proxies,
            trusted: config.public.trusted,
            hsts: promise,
            compress: config.public.compress,
            max_body: config.public.max_body,
            client_idle: config.public.client_idle.map(Duration::from_secs),
            max_client_connections: config.public.client_connections.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        };
        self.routes.set(Routes { hosts, proofs: config.proofs.into_iter().collect(), policy });
        state.limits = limits;
        let before = std::mem::replace(&mut state.sites, sites);
        let gone = before.into_values().map(|(files, site)| (files.folder, Arc::downgrade(&site)));
        state.leaving.extend(gone);
        state.stamp = Some(config.stamp);
        drop(state);
        self.look_at_folders();
        self.go(Phase::Serving);
        Report::Applied { stamp: config.stamp, holds: self.holds.borrow().clone() }
    }

    /// Shows these certificates from now on.
    fn show(&self, certificates: &CertificateSet) {
        let table = self.state().shown.update(certificates);
        self.tls.set(table);
    }

    /// Writes the access log so, to the first of these files, from now on.
    fn log(&self, format: Option<LogFormat>, files: Vec<OwnedFd>) {
        let mut files = files.into_iter().map(std::fs::File::from);
        let files = files.next().zip(files.next()).map(|(current, older)| LogFiles { current, older, most: LOG_MOST });
        if let Err(error) = self.records.log.set(format.zip(files)) {
            tracing::warn!(%error, "no access log is written");
        }
    }

    fn measures(&self) -> Measures {
        let Records { meters, log, traces, visits } = &self.records;
        Measures {
            series: meters.read(),
            connections: meters.connections(),
            log_lines: log.lines(),
            traces: traces.sendings(),
            visits: visits.read(),
        }
    }

    /// Forgets clients that did not ask for a while, and numbers of what is gone.
    fn sweep(&self) {
        self.records.meters.sweep();
        self.records.visits.sweep();
        let limits: Vec<_> = self.state().limits.values().cloned().collect();
        for limit in limits {
            limit.sweep();
        }
    }

    /// Tells of folders that nobody reads any more.
    fn look_at_folders(&self) {
        let mut state = self.state();
        state.leaving.retain(|(_, site)| site.strong_count() > 0);
        let served = state.sites.values().map(|(files, _)| files.folder.clone());
        let held: BTreeSet<PathBuf> = served.chain(state.leaving.iter().map(|(folder, _)| folder.clone())).collect();
        drop(state);
        self.holds.send_if_modified(|holds| {
            let changed = *holds != held;
            *holds = held;
            changed
        });
    }

    fn drain(&self) {
        self.state().sockets = None;
        // One that never served has nothing to end with.
        let fresh = *self.phase.borrow() == Phase::Fresh;
        self.go(if fresh { Phase::Stopped } else { Phase::Draining });
    }
}

fn open_site(base: &Path, files: &SiteFiles) -> Result<Arc<Site>, String> {
    let rules = Rules::new(&files.headers, &files.routes, |slug| format!("{slug}.{}", files.domain)).map_err(|error| error.to_string())?;
    Site::open(&base.join(&files.folder), rules).map(Arc::new).map_err(|error| format!("`{}`: {error}", files.folder.display()))
}

/// Hears every daemon that comes.
pub async fn accept(plane: Arc<Plane>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let own = nix::unistd::geteuid().as_raw();
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
                    tokio::spawn(greet(Arc::clone(&plane), Channel::new(stream)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a daemon can't be heard");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn greet(plane: Arc<Plane>, mut channel: Channel) {
    let (hello, sockets) = {
        let state = plane.state();
        let hello = Hello {
            role: ROLE.to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            stamp: state.stamp,
            draining: *plane.phase.borrow() >= Phase::Draining,
            holds: plane.holds.borrow().clone(),
        };
        (hello, state.sockets.as_ref().map(Sockets::duplicate))
    };
    let sockets = match sockets.transpose() {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::warn!(%error, "the listening sockets can't be handed over");
            return;
        }
    };
    let fds = sockets.as_ref().map(Sockets::each).unwrap_or_default();
    if channel.send(&hello, &fds).await.is_ok() {
        drop(sockets);
        converse(plane, channel).await;
    }
}

/// Follows a daemon's orders until it is gone.
pub async fn converse(plane: Arc<Plane>, mut channel: Channel) {
    let mut holds = plane.holds.subscribe();
    let mut wanted = plane.routes.wanted();
    // What was asked for while no daemon heard it.
    wanted.mark_changed();
    loop {
        let order = tokio::select! {
            order = channel.receive::<Order>() => order,
            Ok(()) = holds.changed() => {
                let report = Report::Holds { holds: holds.borrow_and_update().clone() };
                if channel.send(&report, &[]).await.is_err() {
                    break;
                }
                continue;
            }
            Ok(()) = wanted.changed() => {
                let services = wanted.borrow_and_update().clone();
                if !services.is_empty() && channel.send(&Report::Wanted { services }, &[]).await.is_err() {
                    break;
                }
                continue;
            }
        };
        match order {
            Ok(Some((Order::Configure(config), _))) => {
                let report = plane.apply(*config);
                if channel.send(&report, &[]).await.is_err() {
                    break;
                }
            }
            Ok(Some((Order::Certificates(certificates), _))) => plane.show(&certificates),
            Ok(Some((Order::Log { format }, files))) => plane.log(format, files),
            Ok(Some((Order::Measure, _))) => {
                if channel.send(&Report::Measured(Box::new(plane.measures())), &[]).await.is_err() {
                    break;
                }
            }
            Ok(Some((Order::Drain, _))) => plane.drain(),
            Ok(Some((Order::Stop, _))) => plane.go(Phase::Stopped),
            // It has its sockets.
            Ok(Some((Order::Start { .. }, _))) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a conversation with a daemon broke");
                break;
            }
        }
    }
    // Nobody would ever configure it: who comes next starts another.
    if *plane.phase.borrow() == Phase::Fresh {
        plane.go(Phase::Stopped);
    }
}
