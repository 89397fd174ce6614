//! One connection from a client: who it is from, TLS, and then HTTP/1.1 or HTTP/2 until it ends.

use crate::arrival::Arrival;
use crate::clients::Place;
use crate::clock::Clock;
use crate::cork::Cork;
use crate::preface::{Proxied, Rewound, is_http2, proxied, read_until};
use crate::proxy::Proxy;
use crate::record::Recorded;
use crate::serve::end;
use crate::socket::{Paced, Sign};
use crate::tls::{ACME_PROTOCOL, HTTP2, Tls};
use crate::together::{Running, Taken, Together};
use crate::{Dial, Settings, heads, silence};
use http::HeaderValue;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Requests of one HTTP/2 connection that its client may take back before it is looked at how many it takes back.
const TAKEN_BACK: usize = 100;
/// What one request of HTTP/2 holds of an answer that its client does not take. There may be `max_streams` on each connection.
const UNSENT: usize = 64 * 1024;
/// What one request of HTTP/2 may have sent of its body that its instance does not take.
const UNTAKEN: u32 = 1 << 20;
/// The same of all requests of a connection: several that are not taken don't hold up the others.
const UNTAKEN_IN_ALL: u32 = 4 * UNTAKEN;

/// Why a connection ended before its first request.
#[derive(Debug, thiserror::Error)]
enum Unmet {
    #[error("it said nothing in time")]
    Late,
    #[error("it ended at once")]
    Ended,
    #[error("it broke off")]
    Broken(#[source] io::Error),
    #[error("its client has as many connections as it may have")]
    Crowded,
    #[error(transparent)]
    NotProxied(#[from] crate::preface::NotProxied),
}

/// Who a connection is from, the address as instances read it, and the client's place.
type Known = Arc<(Arrival, HeaderValue, Arc<Place>)>;

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
        Ok(Some(Met { io, arrival, http2, waits, place })) => match (io, http2) {
            (Io::Plain(io), false) => one(proxy, io, known(arrival, place), waits).await,
            (Io::Plain(io), true) => two(proxy, io, known(arrival, place)).await,
            (Io::Tls(io), false) => one(proxy, io, known(arrival, place), waits).await,
            (Io::Tls(io), true) => two(proxy, io, known(arrival, place)).await,
        },
        // All that was wanted was the certificate.
        Ok(None) => {}
        Err(error) => tracing::debug!(client = %from, %error, "a client's connection ended before its first request"),
    }
}

enum Io {
    Plain(Rewound<Paced>),
    Tls(Box<tokio_rustls::server::TlsStream<Rewound<Paced>>>),
}

struct Met {
    io: Io,
    arrival: Arrival,
    http2: bool,
    /// Whether something waits for the client to take it.
    waits: Sign,
    /// One of those that the client may have.
    place: Place,
}

/// Reads what comes before the first request. `None` for a connection that is over then.
async fn meet<D: Dial>(proxy: &Proxy<D>, mut stream: TcpStream, from: SocketAddr, tls: Option<Arc<Tls>>) -> Result<Option<Met>, Unmet> {
    let mut ends = (canonical(from), canonical(stream.local_addr().map_err(Unmet::Broken)?));
    let mut read = Vec::new();
    let (of_proxy, mut most, idle) = {
        let policy = &proxy.routes.load().policy;
        let of_proxy = policy.proxies.iter().any(|net| net.contains(&ends.0.ip()));
        (of_proxy, policy.max_client_connections, policy.client_idle)
    };
    let enter = |client, most| proxy.clients.enter(client, most).ok_or(Unmet::Crowded);
    // One too many ends before anything of it is read.
    let early = if of_proxy { None } else { Some(enter(ends.0.ip(), most)?) };
    if of_proxy {
        let (header, mut rest) =
            read_until(&mut stream, read, |bytes| proxied(bytes).transpose()).await.map_err(Unmet::Broken)?.ok_or(Unmet::Ended)?;
        let Proxied { length, client: said } = header?;
        rest.drain(..length);
        read = rest;
        // What a proxy does for itself is not held against anybody.
        most = most.filter(|_| said.is_some());
        ends = said.map_or(ends, |(from, to)| (canonical(from), canonical(to)));
    }
    let (client, to) = ends;
    let place = match early {
        Some(place) => place,
        None => enter(client.ip(), most)?,
    };
    let mut stream = Paced::new(stream, idle);
    let waits = stream.waits();
    let arrival = Arrival { port: client.port(), to, ..Arrival::plain(client.ip()) };
    let Some(tls) = tls else {
        let (http2, read) = read_until(&mut stream, read, is_http2).await.map_err(Unmet::Broken)?.ok_or(Unmet::Ended)?;
        return Ok(Some(Met { io: Io::Plain(Rewound::new(read, stream)), arrival, http2, waits, place }));
    };
    let stream = tls.acceptor().accept(Rewound::new(read, stream)).await.map_err(Unmet::Broken)?;
    let (_, session) = stream.get_ref();
    let protocol = session.alpn_protocol();
    if protocol == Some(ACME_PROTOCOL) {
        return Ok(None);
    }
    let http2 = protocol == Some(HTTP2);
    let name = session.server_name().map(|name| name.to_ascii_lowercase().into());
    Ok(Some(Met { io: Io::Tls(Box::new(stream)), arrival: Arrival { secure: true, name, ..arrival }, http2, waits, place }))
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
fn known(arrival: Arrival, place: Place) -> Known {
    let address = heads::address_of(&arrival);
    Arc::new((arrival, address, Arc::new(place)))
}

/// HTTP/1.1.
async fn one<D: Dial>(proxy: Arc<Proxy<D>>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, known: Known, waits: Sign) {
    let mut stopping = proxy.stopping.clone();
    let client = known.0.client;
    let service = {
        let proxy = Arc::clone(&proxy);
        service_fn(move |request| {
            let (proxy, known) = (Arc::clone(&proxy), Arc::clone(&known));
            async move { Ok::<_, Infallible>(proxy.handle(request, &known).await) }
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
            () = alarm.as_mut() => alarm.as_mut().reset(clock.look(wait, waits.is_so())),
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}

/// HTTP/2.
async fn two<D: Dial>(proxy: Arc<Proxy<D>>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, known: Known) {
    let mut stopping = proxy.stopping.clone();
    let client = known.0.client;
    let settings = &proxy.settings;
    let streams = Arc::new(Streams::default());
    let idle_limit = proxy.routes.load().policy.client_idle;
    let (io, requests) = (Cork::new(io), Together::default());
    let service = {
        let (proxy, streams, requests) = (Arc::clone(&proxy), Arc::clone(&streams), requests.clone());
        service_fn(move |request: hyper::Request<Incoming>| {
            let (proxy, known, stream) = (Arc::clone(&proxy), Arc::clone(&known), Streams::begin(&streams));
            let taken = Arc::new(Taken::default());
            // What this function gives is begun before the next request comes.
            if let Some(limit) = idle_limit {
                requests.limit_next(Arc::clone(&taken), limit);
            }
            async move {
                let response = proxy.handle(request, &known).await;
                stream.answered();
                Ok::<_, Infallible>(response.map(|body| Given { body, taken }))
            }
        })
    };
    let connection = http2::Builder::new(requests.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX))
        .max_send_buf_size(UNSENT)
        .initial_stream_window_size(UNTAKEN)
        .initial_connection_window_size(UNTAKEN_IN_ALL)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io.clone()), service);
    let mut connection = pin!(connection);
    let mut running = Running::new(requests.clone(), io.clone());
    let mut ends = pin!(async {
        tokio::select! {
            () = lingered(&mut stopping, settings) => {}
            () = idle(&requests, settings.header_wait) => {}
        }
    });
    let mut left = pin!(left(&requests, &io, settings.header_wait));
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
            // One that does not answer would be waited for for ever.
            () = &mut left, if ending => return,
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

/// Resolves when no request ran, began or ended for so long, the bodies of answers too.
async fn idle(requests: &Together, wait: Duration) {
    let mut seen = requests.counts();
    loop {
        sleep(wait).await;
        let (begun, ended) = requests.counts();
        if begun == ended && seen == (begun, ended) {
            return;
        }
        seen = (begun, ended);
    }
}

/// Resolves when nothing runs for a client that was told goodbye, and it has taken nothing more for so long.
async fn left<I: AsyncWrite + Unpin>(requests: &Together, io: &Cork<I>, wait: Duration) {
    let mut seen = None;
    loop {
        let (begun, ended) = requests.counts();
        let now = (begun, io.sent());
        if begun == ended && seen == Some(now) {
            return;
        }
        seen = Some(now);
        sleep(wait).await;
    }
}

/// An answer's body, which says when a part of it waits for its client.
struct Given {
    body: Recorded,
    taken: Arc<Taken>,
}

impl Body for Given {
    type Data = Bytes;
    type Error = <Recorded as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.taken.asked();
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_data()
        {
            self.taken.gave();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the requests of one HTTP/2 connection do.
#[derive(Debug, Default)]
struct Streams {
    begun: AtomicUsize,
    /// Reset by the client before there was an answer (CVE-2023-44487).
    taken_back: AtomicUsize,
    abused: Notify,
}

/// A request until its answer begins.
struct Stream {
    streams: Arc<Streams>,
    answered: bool,
}

impl Streams {
    fn begin(streams: &Arc<Self>) -> Stream {
        streams.begun.fetch_add(1, Ordering::Relaxed);
        Stream { streams: Arc::clone(streams), answered: false }
    }
}

impl Stream {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.answered {
            let taken_back = self.streams.taken_back.fetch_add(1, Ordering::Relaxed) + 1;
            if taken_back > TAKEN_BACK && taken_back * 2 > self.streams.begun.load(Ordering::Relaxed) {
                self.streams.abused.notify_one();
            }
        }
    }
}
