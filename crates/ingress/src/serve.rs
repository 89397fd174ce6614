//! Accepting connections from clients, and ending with them.

use crate::connection::converse;
use crate::pool::Pool;
use crate::proxy::Proxy;
use crate::{Dial, Records, RouteTable, Tls};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How long to wait, and how much to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// For a TLS handshake and a request's whole head, and for the next request on a kept connection.
    pub header_wait: Duration,
    /// For a connection to an instance.
    pub connect_wait: Duration,
    /// For an instance's response head; the body after it may take any time.
    pub response_wait: Duration,
    /// For requests under way when serving stops.
    pub drain_wait: Duration,
    /// How long a kept connection may bring another request after serving stopped: such a request is answered, with
    /// `Connection: close`. With none, unused connections are closed at once, and a client that sends just then is cut off.
    pub linger: Duration,
    /// Whether tunnels (WebSocket) may go on for `drain_wait` too; else they end with serving.
    pub keep_tunnels: bool,
    /// For a ready instance of a service that is between two instances ([`RouteState::Held`](crate::RouteState::Held)).
    pub hold_wait: Duration,
    /// Requests that wait so at once; more are answered at once.
    pub max_held: usize,
    /// Client connections held at once; more wait to be accepted.
    pub max_connections: usize,
    /// The longest head of a request, bytes (431 above it; over HTTP/2 its stream is refused). At most 100 headers over HTTP/1.1.
    pub max_head: usize,
    /// Requests that one HTTP/2 connection carries at once.
    pub max_streams: u32,
    /// Answers that are compressed at once, each with some 1 MiB; others are sent as they are.
    pub max_compressed: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_wait: Duration::from_secs(30),
            connect_wait: Duration::from_secs(5),
            // The platform's own limit for a response.
            response_wait: Duration::from_mins(100),
            drain_wait: Duration::from_secs(10),
            linger: Duration::ZERO,
            keep_tunnels: false,
            hold_wait: Duration::from_mins(1),
            max_held: 1024,
            max_connections: 8192,
            max_head: 64 * 1024,
            max_streams: 128,
            max_compressed: 256,
        }
    }
}

/// Where clients connect.
#[derive(Debug)]
pub struct Listeners {
    /// HTTP.
    pub http: TcpListener,
    /// HTTPS, and the certificates shown there.
    pub https: Option<(TcpListener, Arc<Tls>)>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, https: None }
    }
}

impl Listeners {
    async fn accept(&self) -> (io::Result<(TcpStream, SocketAddr)>, Option<&Arc<Tls>>) {
        match &self.https {
            None => (self.http.accept().await, None),
            Some((https, tls)) => tokio::select! {
                accepted = self.http.accept() => (accepted, None),
                accepted = https.accept() => (accepted, Some(tls)),
            },
        }
    }
}

/// Serves until `stop` resolves: then accepts no more, lets requests under way end (10 s at most), and ends tunnels.
///
/// # Errors
/// When a listener itself is broken; a shortage of descriptors or memory is waited out.
pub async fn serve<D: Dial>(
    listeners: impl Into<Listeners>,
    routes: Arc<RouteTable>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(listeners, routes, dial, stop, Settings::default(), Records::default()).await
}

/// [`serve`] with other limits, and what is noted of requests.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with<D: Dial>(
    listeners: impl Into<Listeners>,
    routes: Arc<RouteTable>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
    settings: Settings,
    records: Records,
) -> io::Result<()> {
    let listeners = listeners.into();
    let (stopped, stopping) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let (drain_wait, keep_tunnels) = (settings.drain_wait, settings.keep_tunnels);
    let pool = Arc::new(Pool::default());
    let tunnels = watch::Sender::new(0);
    let mut open_tunnels = tunnels.subscribe();
    let held = Semaphore::new(settings.max_held);
    let compressing = Arc::new(Semaphore::new(settings.max_compressed));
    let tls = listeners.https.as_ref().map(|(_, tls)| Arc::clone(tls));
    let proxy = Arc::new(Proxy {
        routes,
        dial,
        pool: Arc::clone(&pool),
        settings,
        tls,
        stopping,
        cutting,
        tunnels,
        clients: Arc::default(),
        held,
        compressing,
        records,
    });
    let mut connections = JoinSet::new();
    let mut sweep = interval(Duration::from_secs(1));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(stop);
    let ended = loop {
        let (accepted, tls) = tokio::select! {
            () = &mut stop => break Ok(()),
            _ = sweep.tick() => {
                pool.sweep();
                continue;
            }
            Some(_) = connections.join_next() => continue,
            accepted = listeners.accept(), if connections.len() < proxy.settings.max_connections => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                connections.spawn(converse(Arc::clone(&proxy), stream, from, tls.cloned()));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    drop(listeners);
    stopped.send_replace(true);
    cut.send_replace(!keep_tunnels);
    let drained = async {
        while connections.join_next().await.is_some() {}
        // An error means that nobody is left to make one.
        let _ = open_tunnels.wait_for(|open| *open == 0).await;
    };
    // Those that take longer are cut when the set is dropped.
    let _ = timeout(drain_wait, drained).await;
    cut.send_replace(true);
    ended
}

/// Resolves when serving ends.
pub(crate) async fn end(stopping: &mut watch::Receiver<bool>) {
    // A closed channel means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
