//! One connection from a client: who it is from, TLS, and then HTTP/1.1 or HTTP/2 until it ends.

use crate::arrival::Arrival;
use crate::clock::Clock;
use crate::cork::Cork;
use crate::preface::{Proxied, Rewound, is_http2, proxied, read_until};
use crate::proxy::Proxy;
use crate::serve::end;
use crate::tls::{ACME_PROTOCOL, HTTP2, Tls};
use crate::together::{Running, Together};
use crate::{Dial, Settings, heads, silence};
use http::HeaderValue;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Requests of one HTTP/2 connection that its client may take back before it is looked at how many it takes back.
const TAKEN_BACK: usize = 100;
/// What one request of HTTP/2 holds of an answer that its client does not take. There may be `max_streams` on each connection.
const UNSENT: usize = 64 * 1024;

/// Why a connection ended before its first request.
#[derive(Debug, thiserror::Error)]
enum Unmet {
    #[error("it said nothing in time")]
    Late,
    #[error("it ended at once")]
    Ended,
    #[error("it broke off")]
    Broken(#[source] io::Error),
    #[error(transparent)]
    NotProxied(#[from] crate::preface::NotProxied),
}

/// Serves a connection until it ends.
pub(crate) async fn converse<D: Dial>(proxy: Arc<Proxy<D>>, stream: TcpStream, from: SocketAddr, tls: Option<Arc<Tls>>) {
    let _connected = proxy.records.meters.connected(tls.is_some());
    if let Err(error) = silence::prepare(&stream) {
        tracing::debug!(client = %from, %error, "a client's connection ended at once");
        return;
    }
    let mut stopping = proxy.stopping.clone();
    let met = tokio::select! {
        met = timeout(proxy.settings.header_wait, meet(&proxy, stream, from, tls)) => met.unwrap_or(Err(Unmet::Late)),
        () = lingered(&mut stopping, &proxy.settings) => return,
    };
    match met {
        Ok(Some(Met { io, arrival, http2 })) => match (io, http2) {
            (Io::Plain(io), false) => one(proxy, io, arrival).await,
            (Io::Plain(io), true) => two(proxy, io, arrival).await,
            (Io::Tls(io), false) => one(proxy, io, arrival).await,
            (Io::Tls(io), true) => two(proxy, io, arrival).await,
        },
        // All that was wanted was the certificate.
        Ok(None) => {}
        Err(error) => tracing::debug!(client = %from, %error, "a client's connection ended before its first request"),
    }
}

enum Io {
    Plain(Rewound<TcpStream>),
    Tls(Box<tokio_rustls::server::TlsStream<Rewound<TcpStream>>>),
}

struct Met {
    io: Io,
    arrival: Arrival,
    http2: bool,
}

/// Reads what comes before the first request. `None` for a connection that is over then.
async fn meet<D: Dial>(proxy: &Proxy<D>, mut stream: TcpStream, from: SocketAddr, tls: Option<Arc<Tls>>) -> Result<Option<Met>, Unmet> {
    let mut ends = (canonical(from), canonical(stream.local_addr().map_err(Unmet::Broken)?));
    let mut read = Vec::new();
    if proxy.routes.load().policy.proxies.iter().any(|net| net.contains(&ends.0.ip())) {
        let (header, mut rest) =
            read_until(&mut stream, read, |bytes| proxied(bytes).transpose()).await.map_err(Unmet::Broken)?.ok_or(Unmet::Ended)?;
        let Proxied { length, client: said } = header?;
        rest.drain(..length);
        read = rest;
        ends = said.map_or(ends, |(from, to)| (canonical(from), canonical(to)));
    }
    let (client, to) = ends;
    let arrival = Arrival { port: client.port(), to, ..Arrival::plain(client.ip()) };
    let Some(tls) = tls else {
        let (http2, read) = read_until(&mut stream, read, is_http2).await.map_err(Unmet::Broken)?.ok_or(Unmet::Ended)?;
        return Ok(Some(Met { io: Io::Plain(Rewound::new(read, stream)), arrival, http2 }));
    };
    let stream = tls.acceptor().accept(Rewound::new(read, stream)).await.map_err(Unmet::Broken)?;
    let (_, session) = stream.get_ref();
    let protocol = session.alpn_protocol();
    if protocol == Some(ACME_PROTOCOL) {
        return Ok(None);
    }
    let http2 = protocol == Some(HTTP2);
    let name = session.server_name().map(|name| name.to_ascii_lowercase().into());
    Ok(Some(Met { io: Io::Tls(Box::new(stream)), arrival: Arrival { secure: true, name, ..arrival }, http2 }))
}

/// An IPv4 address as one, however a socket for both families tells it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Resolves when a connection is to end because serving does.
async fn lingered(stopping: &mut watch::Receiver<bool>, settings: &Settings) {
    end(stopping).await;
    sleep(settings.linger).await;
}

/// What every request of a connection has in common.
pub(crate) fn known(arrival: Arrival) -> (Arrival, HeaderValue) {
    let address = heads::address_of(&arrival);
    (arrival, address)
}

/// HTTP/1.1.
async fn one<D: Dial>(proxy: Arc<Proxy<D>>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, arrival: Arrival) {
    let mut stopping = proxy.stopping.clone();
    let client = arrival.client;
    let service = {
        let (proxy, arrival) = (Arc::clone(&proxy), Arc::new(known(arrival)));
        service_fn(move |request| {
            let (proxy, arrival) = (Arc::clone(&proxy), Arc::clone(&arrival));
            async move { Ok::<_, Infallible>(proxy.handle(request, &arrival).await) }
        })
    };
    let wait = proxy.settings.header_wait;
    let clock = Clock::default();
    let mut alarm = pin!(sleep(wait));
    let connection = http1::Builder::new()
        .timer(clock.clone())
        .header_read_timeout(wait)
        .max_header_size(proxy.settings.max_head)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut ends = pin!(lingered(&mut stopping, &proxy.settings));
    let mut ending = false;
    let result = loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => break result,
            () = &mut ends, if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = alarm.as_mut() => alarm.as_mut().reset(clock.look(wait)),
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}

/// HTTP/2.
async fn two<D: Dial>(proxy: Arc<Proxy<D>>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, arrival: Arrival) {
    let mut stopping = proxy.stopping.clone();
    let client = arrival.client;
    let settings = &proxy.settings;
    let streams = Arc::new(Streams::default());
    let service = {
        let (proxy, arrival, streams) = (Arc::clone(&proxy), Arc::new(known(arrival)), Arc::clone(&streams));
        service_fn(move |request: hyper::Request<Incoming>| {
            let (proxy, arrival, stream) = (Arc::clone(&proxy), Arc::clone(&arrival), Streams::begin(&streams));
            async move {
                let response = proxy.handle(request, &arrival).await;
                stream.answered();
                Ok::<_, Infallible>(response)
            }
        })
    };
    let (io, requests) = (Cork::new(io), Together::default());
    let connection = http2::Builder::new(requests.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX))
        .max_send_buf_size(UNSENT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io.clone()), service);
    let mut connection = pin!(connection);
    let mut running = Running::new(requests, io);
    let mut ends = pin!(async {
        tokio::select! {
            () = lingered(&mut stopping, settings) => {}
            () = streams.idle(settings.header_wait) => {}
        }
    });
    let mut ending = false;
    let result = loop {
        tokio::select! {
            biased;
            result = poll_fn(|context| running.poll(connection.as_mut(), context)) => break result,
            () = &mut ends, if !ending => {
                ending = true;
                if streams.begun.load(Ordering::Relaxed) == 0 {
                    // It never asked for anything; saying goodbye takes a client that answers.
                    return;
                }
                connection.as_mut().graceful_shutdown();
                running.again();
            }
            () = streams.abused.notified() => {
                tracing::info!(%client, "a client takes most of its requests back: its connection is closed");
                return;
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}

/// What the requests of one HTTP/2 connection do.
#[derive(Debug, Default)]
struct Streams {
    begun: AtomicUsize,
    running: AtomicUsize,
    /// Reset by the client before there was an answer (CVE-2023-44487).
    taken_back: AtomicUsize,
    abused: Notify,
}

/// A request that runs until this is dropped.
struct Stream {
    streams: Arc<Streams>,
    answered: bool,
}

impl Streams {
    fn begin(streams: &Arc<Self>) -> Stream {
        streams.begun.fetch_add(1, Ordering::Relaxed);
        streams.running.fetch_add(1, Ordering::Relaxed);
        Stream { streams: Arc::clone(streams), answered: false }
    }

    /// Resolves when no request began for so long, and none waits for its answer.
    async fn idle(&self, wait: Duration) {
        loop {
            let seen = self.begun.load(Ordering::Relaxed);
            sleep(wait).await;
            if self.running.load(Ordering::Relaxed) == 0 && self.begun.load(Ordering::Relaxed) == seen {
                return;
            }
        }
    }
}

impl Stream {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.running.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            let taken_back = self.streams.taken_back.fetch_add(1, Ordering::Relaxed) + 1;
            if taken_back > TAKEN_BACK && taken_back * 2 > self.streams.begun.load(Ordering::Relaxed) {
                self.streams.abused.notify_one();
            }
        }
    }
}
