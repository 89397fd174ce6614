//! Connections from clients.

use crate::pool::Pool;
use crate::proxy::Proxy;
use crate::{Dial, RouteTable};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
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
    /// For a request's whole head, and for the next request on a kept connection.
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
    /// The longest head of a request, bytes (431 above it).
    pub max_head: usize,
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
        }
    }
}

/// Serves `listener` until `stop` resolves: then accepts no more, lets requests under way end (10 s at most), and ends
/// tunnels.
///
/// # Errors
/// When the listener itself is broken; a shortage of descriptors or memory is waited out.
pub async fn serve<D: Dial>(
    listener: TcpListener,
    routes: Arc<RouteTable>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(listener, routes, dial, stop, Settings::default()).await
}

/// [`serve`] with other limits.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with<D: Dial>(
    listener: TcpListener,
    routes: Arc<RouteTable>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
    settings: Settings,
) -> io::Result<()> {
    let (stopped, stopping) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let (drain_wait, keep_tunnels) = (settings.drain_wait, settings.keep_tunnels);
    let pool = Arc::new(Pool::default());
    let tunnels = watch::Sender::new(0);
    let mut open_tunnels = tunnels.subscribe();
    let held = Semaphore::new(settings.max_held);
    let proxy = Arc::new(Proxy { routes, dial, pool: Arc::clone(&pool), settings, stopping, cutting, tunnels, held });
    let mut connections = JoinSet::new();
    let mut sweep = interval(Duration::from_secs(1));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(stop);
    let ended = loop {
        let accepted = tokio::select! {
            () = &mut stop => break Ok(()),
            _ = sweep.tick() => {
                pool.sweep();
                continue;
            }
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < proxy.settings.max_connections => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                connections.spawn(converse(Arc::clone(&proxy), stream, from.ip()));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    drop(listener);
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

async fn converse<D: Dial>(proxy: Arc<Proxy<D>>, stream: TcpStream, client: IpAddr) {
    // Without it a small response waits for the client's acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%client, %error, "a client's connection ended at once");
        return;
    }
    let mut stopping = proxy.stopping.clone();
    let service = {
        let proxy = Arc::clone(&proxy);
        service_fn(move |request| {
            let proxy = Arc::clone(&proxy);
            async move { Ok::<_, Infallible>(proxy.handle(request, client).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(proxy.settings.header_wait)
        .max_header_size(proxy.settings.max_head)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = async { end(&mut stopping).await; sleep(proxy.settings.linger).await } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}

/// Resolves when serving ends.
pub(crate) async fn end(stopping: &mut watch::Receiver<bool>) {
    // A closed channel means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
