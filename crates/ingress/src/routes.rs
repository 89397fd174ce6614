//! Which host name leads to which instances: plain data that is swapped in as a whole ([`RouteTable`]).

use crate::{Limiter, Meter, Site};
use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;
use moat_model::{ProxyHeader, Slug};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Every public host name. A look-up costs the same for ten and for ten thousand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// Lower-case host name, without port and without a trailing dot; or `*.` and the rest of one, which stands for every name
    /// with one label more that is not here itself.
    pub hosts: HashMap<String, Route>,
    /// Answers to servers of certificates that look whether a name is served here (RFC 8555 §8.3), by token.
    pub proofs: HashMap<String, String>,
    /// What holds for every host.
    pub policy: Policy,
}

/// What holds for every host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Proxies whose connections begin with a PROXY header, which says for whom they speak.
    pub proxies: Vec<IpNet>,
    /// Proxies whose `X-Forwarded-*` headers say for whom they ask, and how that one asked.
    pub trusted: Vec<IpNet>,
    /// `Strict-Transport-Security` of answers over TLS (RFC 6797).
    pub hsts: Option<HeaderValue>,
    /// Answers are compressed for clients that like it, where their service did not.
    pub compress: bool,
    /// The longest body of a request, bytes: 413 above it; none is any length. A gRPC call is a stream of messages, not such a body.
    pub max_body: Option<u64>,
    /// How long a client may send nothing more of a body over HTTP/1.1, and take nothing of what waits for it; none is for ever.
    pub client_idle: Option<Duration>,
    /// Connections of one client at once, an IPv4 address or the /64 of an IPv6 address; none is any number.
    pub max_client_connections: Option<usize>,
}

impl From<HashMap<String, Route>> for Routes {
    fn from(hosts: HashMap<String, Route>) -> Self {
        Self { hosts, ..Self::default() }
    }
}

impl Routes {
    fn is_asleep(&self, service: &Slug) -> bool {
        self.hosts.values().any(|route| route.service == *service && route.state == RouteState::Asleep)
    }

    /// Where a host name leads.
    pub fn find(&self, host: &str) -> Option<&Route> {
        self.hosts.get(host).or_else(|| {
            let (_, rest) = host.split_once('.')?;
            self.hosts.get(&format!("*.{rest}"))
        })
    }
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The web service or static site, for pages and logs.
    pub service: Slug,
    /// HTTP addresses of its ready instances; none for a static site.
    pub upstreams: Vec<SocketAddr>,
    /// Those of `upstreams` whose connections begin with a PROXY header, and with which.
    pub announced: Vec<(SocketAddr, ProxyHeader)>,
    /// What is done with requests.
    pub state: RouteState,
    /// Clients that may ask; none is everybody.
    pub allow: Option<Arc<[IpNet]>>,
    /// The port of HTTPS that clients without TLS are sent to (301).
    pub https: Option<u16>,
    /// What its requests are counted by.
    pub meter: Meter,
    /// How many requests each client may send; none is any number.
    pub limit: Option<Arc<Limiter>>,
}

impl Route {
    /// A route for everybody, with or without TLS, counted for itself.
    pub fn new(service: Slug, upstreams: Vec<SocketAddr>, state: RouteState) -> Self {
        Self { service, upstreams, announced: Vec::new(), state, allow: None, https: None, meter: Meter::default(), limit: None }
    }

    /// The PROXY header that a connection to an instance begins with.
    pub(crate) fn announced(&self, to: SocketAddr) -> Option<ProxyHeader> {
        self.announced.iter().find(|(address, _)| *address == to).map(|(_, version)| *version)
    }

    /// Whether a client may ask.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.allow.as_ref().is_none_or(|allow| allow.iter().any(|net| net.contains(&client)))
    }
}

/// What a route does with requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteState {
    /// Yes, to `upstreams`.
    Live,
    /// No: another host name of the same service is the one to use (301).
    Moved {
        /// The other name.
        host: String,
    },
    /// No: the files of this release answer.
    Site(Arc<Site>),
    /// No instance is ready: 503.
    NoInstance {
        /// Why, for the page: `the first deploy is still building`.
        reason: String,
    },
    /// No instance is ready, and one is about to be (its only instance is being replaced): requests wait for it, within
    /// [`Settings::hold_wait`](crate::Settings::hold_wait), and get 503 then.
    Held {
        /// Why, for the page of a request that waited in vain.
        reason: String,
    },
    /// It sleeps, since nobody asked for it for a while: a request has it woken ([`RouteTable::wanted`]) and waits as one of
    /// [`Self::Held`] does.
    Asleep,
    /// The owner suspended the service: 503.
    Suspended,
    /// The owner lets a page answer instead of the service, which goes on running.
    Maintenance {
        /// The page, HTML; a blank one is the ingress' own.
        page: Arc<str>,
        /// The status: 503, or that of an error of where the page is.
        status: StatusCode,
    },
}

/// The routes in force. Whoever holds requests back waits for the next ones.
#[derive(Debug)]
pub struct RouteTable {
    now: ArcSwap<Routes>,
    changes: watch::Sender<()>,
    /// Services that sleep, and that somebody asked for since they do.
    wanted: watch::Sender<BTreeSet<Slug>>,
}

impl RouteTable {
    /// A table with these routes.
    pub fn new(routes: Routes) -> Self {
        Self { now: ArcSwap::from_pointee(routes), changes: watch::channel(()).0, wanted: watch::Sender::default() }
    }

    /// Puts these routes in force: they hold for every request from now on.
    pub fn set(&self, routes: Routes) {
        let before = self.now.swap(Arc::new(routes));
        self.wanted.send_if_modified(|wanted| {
            // One that a request of before its waking asks for late is forgotten, too.
            wanted.retain(|service| before.is_asleep(service) && self.now.load().is_asleep(service));
            false
        });
        self.changes.send_replace(());
    }

    /// Services that sleep and that somebody asked for, told anew with each who asks.
    pub fn wanted(&self) -> watch::Receiver<BTreeSet<Slug>> {
        self.wanted.subscribe()
    }

    /// Has a service woken.
    pub(crate) fn rouse(&self, service: &Slug) {
        // Told again where it was asked for already: who heard of it may not have listened then.
        self.wanted.send_modify(|wanted| {
            wanted.insert(service.clone());
        });
    }

    /// The routes in force.
    pub fn load(&self) -> Arc<Routes> {
        self.now.load_full()
    }

    /// Tells of each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
