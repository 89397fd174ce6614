//! Connections from clients.

use crate::pool::Pool;
use crate::proxy::Proxy;
use crate::{Dial, Routes};
use arc_swap::ArcSwap;
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
use tokio::sync::watch;
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
    routes: Arc<ArcSwap<Routes>>,
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
    routes: Arc<ArcSwap<Routes>>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
    settings: Settings,
) -> io::Result<()> {
    let (stopped, stopping) = watch::channel(false);
    let drain_wait = settings.drain_wait;
    let pool = Arc::new(Pool::default());
    let proxy = Arc::new(Proxy { routes, dial, pool: Arc::clone(&pool), settings, stopping });
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
    // Those that take longer are cut when the set is dropped.
    let _ = timeout(drain_wait, async { while connections.join_next().await.is_some() {} }).await;
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
        () = end(&mut stopping) => {
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
