//! Sockets: datagrams and streams from instances, and the forwarder behind them.
//!
//! One task per socket handed in. Local answers are given in that task; a lookup outside runs in a task of its own
//! under [`limits`]. Sockets towards upstream are made in the network namespace of the calling thread.

mod forward;
mod limits;
mod stream;

use crate::{Answer, Transport, Zones, answer};
use arc_swap::ArcSwap;
use limits::Limits;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a loop rests after its socket failed (too many open files, no memory).
const REST: Duration = Duration::from_millis(50);

/// What all tasks share.
struct Server {
    zones: Arc<ArcSwap<Zones>>,
    upstreams: Arc<ArcSwap<Vec<SocketAddr>>>,
    limits: Arc<Limits>,
    /// Index of the upstream that answered last: it is asked first.
    preferred: AtomicUsize,
}

/// Serves until `stop` resolves; then nothing is read any more, lookups under way are answered (some 10 s at most), and every
/// socket is closed.
///
/// * `udp`, `tcp`: bound sockets, made in the namespace that the instances reach.
/// * `zones`: read anew for each query, so a swap holds from the next query on.
/// * `upstreams`: the machine's resolvers, asked in order, the one that answered last first. With none, outside names
///   fail (SERVFAIL).
pub async fn serve(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    zones: Arc<ArcSwap<Zones>>,
    upstreams: Arc<ArcSwap<Vec<SocketAddr>>>,
    stop: impl Future<Output = ()>,
) {
    let server = Arc::new(Server { zones, upstreams, limits: Arc::default(), preferred: AtomicUsize::new(0) });
    let (stopped, stopping) = watch::channel(false);
    // Dropping the set ends every loop, and each loop its own tasks.
    let mut loops = JoinSet::new();
    for socket in udp {
        loops.spawn(datagrams(Arc::clone(&server), socket, stopping.clone()));
    }
    for listener in tcp {
        loops.spawn(stream::listen(Arc::clone(&server), listener, stopping.clone()));
    }
    stop.await;
    stopped.send_replace(true);
    while loops.join_next().await.is_some() {}
}

impl Server {
    /// Whether this address may ask at all, and has not asked too much just now.
    fn admits(&self, asker: IpAddr) -> bool {
        let zones = self.zones.load();
        zones.askers.contains_key(&asker) && self.limits.take(asker, zones.askers.len())
    }

    fn answer(&self, asker: IpAddr, query: &[u8], transport: Transport) -> Answer {
        answer(&self.zones.load(), asker, query, transport, random())
    }
}

/// Resolves when serving stops.
async fn end(stopping: &mut watch::Receiver<bool>) {
    // A closed channel means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// 64 unpredictable bits; message ids come from here too.
fn random() -> u64 {
    // The kernel's generator fails only before it was seeded once, at boot; the process' own seed covers that.
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::time::SystemTime::now())
    })
}

async fn datagrams(server: Arc<Server>, socket: UdpSocket, mut stopping: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    let mut lookups = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = lookups.join_next() => continue,
            () = end(&mut stopping) => break,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                rest("a DNS datagram can't be received", &error).await;
                continue;
            }
        };
        let asker = from.ip().to_canonical();
        if !server.admits(asker) {
            continue;
        }
        let query = buffer.get(..length).unwrap_or_default();
        match server.answer(asker, query, Transport::Udp) {
            Answer::Drop => {}
            Answer::Reply(reply) => send(&socket, &reply, from).await,
            Answer::Forward(query) => match server.limits.lookup(asker) {
                None => {
                    if let Some(reply) = query.failure() {
                        send(&socket, &reply, from).await;
                    }
                }
                Some(permit) => {
                    let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                    lookups.spawn(async move {
                        if let Some(reply) = forward::resolve(&server, query).await {
                            send(&socket, &reply, from).await;
                        }
                        drop(permit);
                    });
                }
            },
        }
    }
    while lookups.join_next().await.is_some() {}
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    // An instance that is gone is no fault of the server's.
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%to, %error, "a DNS reply can't be sent");
    }
}

async fn rest(what: &str, error: &io::Error) {
    tracing::warn!(%error, "{what}");
    tokio::time::sleep(REST).await;
}
