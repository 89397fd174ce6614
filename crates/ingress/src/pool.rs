//! Connections to instances: which instance is next, connections kept alive, and how many requests each one serves.

use crate::body::RequestBody;
use crate::failure::Failure;
use crate::link::{Link, Sent};
use crate::shared::{Call, Shared};
use crate::socket::{Heard, Sign};
use crate::{Dial, Settings, silence};
use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// What is spoken with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speak {
    /// HTTP/1.1: one request at a time.
    One,
    /// HTTP/2 by prior knowledge (RFC 9113 §3.3): many requests at once.
    Two,
}

/// A connection to an instance.
#[derive(Debug)]
pub(crate) enum Sender {
    /// Of HTTP/1.1: this request's alone.
    One(Box<Link>),
    /// Of HTTP/2: shared.
    Two(Call),
}

impl Sender {
    /// Sends a request whose answer may take so long once the request was sent; one of which nothing left comes back with the error.
    pub async fn send(&mut self, request: Request<RequestBody>, wait: Duration) -> Sent {
        match self {
            Self::One(link) => link.send(request, wait).await,
            Self::Two(call) => call.send(request, wait).await,
        }
    }

    /// Whether anything came from the instance since the last request was sent. Of a shared connection nobody knows for whom.
    pub fn has_heard(&self) -> bool {
        match self {
            Self::One(link) => link.has_heard(),
            Self::Two(_) => true,
        }
    }

    /// Has a shared connection get no more requests: those that run on it go on.
    pub fn give_up(&self) {
        if let Self::Two(call) = self {
            call.give_up();
        }
    }

    /// Has it run by a task of its own, where the request's runs it until now.
    pub fn detach(&mut self) {
        if let Self::One(link) = self {
            link.detach();
        }
    }

    /// Polls what comes over it.
    pub fn poll<T>(&mut self, context: &mut Context<'_>, mut take: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        match self {
            Self::One(link) => link.poll(context, take),
            Self::Two(_) => take(context),
        }
    }
}

/// How long an unused connection is kept: below the 5 s after which common servers (Node, uvicorn) close theirs.
const KEEP: Duration = Duration::from_secs(4);
/// How fresh a kept connection must be for a request that can't be sent twice.
const FRESH: Duration = Duration::from_secs(1);
/// Unused connections kept for one instance: with fewer, clients that ask at once make new ones all the time.
const KEEP_MOST: usize = 512;
/// What is read ahead of an instance's answer for a client that does not take it; the longest head of an answer, too.
const AHEAD: usize = 64 * 1024;
/// How long a connection may take to become free after its response ended (the request's body may still be on its way).
const SETTLE: Duration = Duration::from_secs(5);

/// All instances that requests run on, or ran on a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    instances: Mutex<HashMap<SocketAddr, Arc<Instance>>>,
}

#[derive(Debug, Default)]
struct Instance {
    in_flight: AtomicUsize,
    idle: Mutex<Vec<Idle>>,
    /// Connections of HTTP/2, and when each was seen in use last.
    shared: Mutex<Vec<(Arc<Shared>, Instant)>>,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

/// One request (or tunnel) that runs on an instance, counted until dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    instance: Arc<Instance>,
    /// Its connection speaks for one client: it is not kept.
    alone: bool,
}

impl Pool {
    /// The one of two random candidates that serves fewer requests. `None` without candidates.
    pub fn choose(&self, candidates: &[SocketAddr], random: impl FnOnce() -> u64) -> Option<SocketAddr> {
        if let [only] = candidates {
            return Some(*only);
        }
        let (first, second) = two(candidates.len(), random())?;
        let (first, second) = (*candidates.get(first)?, *candidates.get(second)?);
        let instances = lock(&self.instances);
        let load = |address| instances.get(address).map_or(0, |instance| instance.in_flight.load(Ordering::Relaxed));
        Some(if load(&second) < load(&first) { second } else { first })
    }

    /// Counts a request.
    pub fn enter(&self, address: SocketAddr) -> Flight {
        let instance = Arc::clone(lock(&self.instances).entry(address).or_default());
        instance.in_flight.fetch_add(1, Ordering::Relaxed);
        Flight { instance, alone: false }
    }

    /// Closes connections that were unused for too long, and forgets instances without any.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut closed = Vec::new();
        lock(&self.instances).retain(|_, instance| {
            let mut idle = lock(&instance.idle);
            closed.extend(idle.extract_if(.., |entry| now.saturating_duration_since(entry.since) > KEEP || entry.link.is_closed()));
            let mut shared = lock(&instance.shared);
            shared.retain_mut(|(shared, since)| {
                if calls(shared) > 0 {
                    *since = now;
                }
                !shared.is_spent() && now.saturating_duration_since(*since) <= KEEP
            });
            // Requests are counted under the lock of all instances: none begins here meanwhile.
            Arc::strong_count(instance) > 1 || !idle.is_empty() || !shared.is_empty()
        });
    }
}

/// How many calls run on a connection.
fn calls(shared: &Arc<Shared>) -> usize {
    // One is the pool's own.
    Arc::strong_count(shared) - 1
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    fn put(&self, link: Box<Link>) {
        link.rest();
        let mut idle = lock(&self.idle);
        if idle.len() < KEEP_MOST {
            idle.push(Idle { link, since: Instant::now() });
        }
    }
}

impl Flight {
    /// Its connection is used for nothing else.
    pub fn stay_alone(&mut self) {
        self.alone = true;
    }

    /// A kept connection that is still open. `replayable`: whether the request may be sent again when the instance
    /// closes the connection at this very moment.
    pub fn take(&self, speak: Speak, replayable: bool) -> Option<Sender> {
        if speak == Speak::Two {
            // Calls begin under this lock, so that no connection gets more than it has room for.
            let mut all = lock(&self.instance.shared);
            all.retain(|(shared, _)| !shared.is_spent());
            return all.iter().find(|(shared, _)| shared.has_room(calls(shared))).map(|(shared, _)| Sender::Two(Call::new(shared)));
        }
        let most = if replayable { KEEP } else { FRESH };
        let now = Instant::now();
        let mut idle = lock(&self.instance.idle);
        // The latest one is last.
        while let Some(mut entry) = idle.pop_if(|entry| now.saturating_duration_since(entry.since) <= most) {
            if entry.link.is_ready() {
                return Some(Sender::One(entry.link));
            }
        }
        None
    }

    /// Keeps the connection for the next request, once its response and its request have ended.
    pub fn keep(self, sender: Sender) {
        let Sender::One(mut link) = sender else { return };
        if link.is_ready() {
            if !self.alone {
                self.instance.put(link);
            }
            return;
        }
        link.detach();
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(SETTLE, link.ready()).await
                && !self.alone
            {
                self.instance.put(link);
            }
        });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.instance.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes a connection. `announce`: what it begins with, and that it is for nobody else.
pub(crate) async fn connect(
    dial: &impl Dial,
    flight: &Flight,
    address: SocketAddr,
    speak: Speak,
    announce: Option<&[u8]>,
    settings: &Settings,
) -> Result<Sender, Failure> {
    let port = address.port();
    let mut stream = timeout(settings.connect_wait, dial.dial(address))
        .await
        .map_err(|_| Failure::ConnectLate { port })?
        .map_err(|error| Failure::of_dial(error, port))?;
    silence::prepare(&stream).map_err(|error| Failure::of_dial(error, port))?;
    if let Some(header) = announce {
        stream.write_all(header).await.map_err(|error| Failure::of_dial(error, port))?;
    }
    match speak {
        Speak::One => {
            let heard = Sign::default();
            let io = TokioIo::new(Heard::new(stream, heard.clone()));
            let (sender, connection) = http1::Builder::new().max_buf_size(AHEAD).handshake(io).await.map_err(Failure::of_exchange)?;
            let run = async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%address, %error, "a connection to an instance ended");
                }
            };
            Ok(Sender::One(Box::new(Link::new(sender, run, heard))))
        }
        Speak::Two => {
            let shared = Shared::open(stream, address, settings).await?;
            let call = Call::new(&shared);
            if announce.is_none() {
                lock(&flight.instance.shared).push((shared, Instant::now()));
            }
            Ok(Sender::Two(call))
        }
    }
}

/// Two different indices below `count` (the same one when there is only one), evenly.
fn two(count: usize, random: u64) -> Option<(usize, usize)> {
    let pick = |random: u64, count: usize| usize::try_from((u128::from(random & 0xffff_ffff) * (count as u128)) >> 32).unwrap_or(0);
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let first = pick(random, count);
            let second = pick(random >> 32, count - 1);
            Some((first, if second >= first { second + 1 } else { second }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (0..count).map(|n| ([10, 64, 0, n], 10000).into()).collect()
    }

    /// A plain generator is enough to walk through the choices.
    fn randoms() -> impl Iterator<Item = u64> {
        std::iter::successors(Some(1u64), |last| Some(last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)))
            .map(|state| state.rotate_left(29) ^ (state >> 13))
    }

    #[test]
    fn the_choice_is_even_and_avoids_the_busy_one() {
        let pool = Arc::new(Pool::default());
        let candidates = addresses(5);
        assert_eq!(pool.choose(&[], || 1), None);
        assert_eq!(pool.choose(&candidates[..1], || u64::MAX), Some(candidates[0]));
        let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
        for random in randoms().take(5000) {
            *counts.entry(pool.choose(&candidates, || random).unwrap()).or_default() += 1;
        }
        assert!(counts.len() == 5 && counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");

        let busy = pool.enter(candidates[2]);
        assert!(randoms().take(1000).all(|random| pool.choose(&candidates, || random) != Some(candidates[2])), "never the only busy one");
        drop(busy);
        assert!(randoms().take(1000).any(|random| pool.choose(&candidates, || random) == Some(candidates[2])));
    }

    #[test]
    fn held_requests_spread_evenly() {
        let pool = Arc::new(Pool::default());
        let candidates = addresses(4);
        let _held: Vec<Flight> = randoms().take(400).map(|random| pool.enter(pool.choose(&candidates, || random).unwrap())).collect();
        let instances = lock(&pool.instances);
        let load = |address| instances[address].in_flight.load(Ordering::Relaxed);
        assert!(candidates.iter().all(|address| (90..=110).contains(&load(address))), "{instances:?}");
    }

    #[test]
    fn idle_instances_are_forgotten() {
        let pool = Arc::new(Pool::default());
        let held = pool.enter(addresses(1)[0]);
        pool.sweep();
        assert_eq!(lock(&pool.instances).len(), 1);
        drop(held);
        pool.sweep();
        assert_eq!(lock(&pool.instances).len(), 0);
    }
}
