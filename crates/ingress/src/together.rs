//! The requests of one connection of HTTP/2, run by the task of the connection: many are begun by one read, and many answers leave
//! by one write.

use crate::alarm::Alarm;
use crate::bell::Bell;
use crate::cork::Cork;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::task::unconstrained;
use tokio::time::Instant;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// So often everything is run at once; other connections wait for the thread.
const TURNS: usize = 8;

/// Takes the requests that hyper begins. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Together(Arc<All>);

#[derive(Default)]
struct All {
    new: Mutex<New>,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

#[derive(Default)]
struct New {
    requests: Vec<Request>,
    /// What is known of the one that is begun next.
    next: Option<(Arc<Taken>, Duration)>,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Together {
    fn execute(&self, request: F) {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        let mut new = self.lock();
        let request: Request = match new.next.take() {
            Some((taken, limit)) => Box::pin(while_taken(request, taken, limit)),
            None => Box::pin(request),
        };
        new.requests.push(request);
    }
}

impl Together {
    fn lock(&self) -> MutexGuard<'_, New> {
        self.0.new.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request that is begun next ends when its client takes nothing of its answer for so long.
    pub fn limit_next(&self, taken: Arc<Taken>, limit: Duration) {
        self.lock().next = Some((taken, limit));
    }

    /// Those that were begun since this was asked last; of each that ends [`Self::ended`] is to be told.
    pub fn take(&self) -> Vec<Request> {
        mem::take(&mut self.lock().requests)
    }

    /// Whether none was begun since they were taken.
    pub fn is_empty(&self) -> bool {
        self.lock().requests.is_empty()
    }

    /// One has ended.
    pub fn ended(&self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were begun, and how many of them have ended, their answers' bodies too.
    pub fn counts(&self) -> (usize, usize) {
        (self.0.begun.load(Ordering::Relaxed), self.0.ended.load(Ordering::Relaxed))
    }
}

/// Whether a part of an answer waits for its client to take it.
#[derive(Debug, Default)]
pub(crate) struct Taken(AtomicUsize);

impl Taken {
    /// A part was given.
    pub fn gave(&self) {
        self.step(1);
    }

    /// The next one is asked for.
    pub fn asked(&self) {
        self.step(0);
    }

    /// Odd while one waits.
    fn step(&self, parity: usize) {
        let now = self.0.load(Ordering::Relaxed);
        if now % 2 != parity {
            self.0.store(now.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Which part waits.
    fn waiting(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|part| part % 2 == 1)
    }
}

/// Runs a request until it ends, or until a part of its answer has waited for so long. What is dropped then resets its stream.
async fn while_taken(request: impl Future<Output = ()>, taken: Arc<Taken>, limit: Duration) {
    let mut request = pin!(request);
    let mut wait: Option<(usize, Instant)> = None;
    let mut late = Alarm::default();
    poll_fn(|context| {
        if request.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(part) = taken.waiting() else { return Poll::Pending };
        let (_, since) = match wait {
            Some(wait) if wait.0 == part => wait,
            _ => *wait.insert((part, Instant::now())),
        };
        let late = late.poll(context, || since + limit);
        if late.is_ready() {
            tracing::debug!("a client takes nothing of an answer: it ends");
        }
        late
    })
    .await;
}

/// A part of the task.
struct Part {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Part {
    fn new() -> Self {
        let bell = Arc::new(Bell::new());
        Self { waker: Arc::clone(&bell).into(), bell }
    }
}

/// A connection's requests, and what they wait for.
pub(crate) struct Running<I> {
    new: Together,
    requests: FuturesUnordered<Request>,
    io: Cork<I>,
    connection: Part,
    all: Part,
}

impl<I: AsyncWrite + Unpin> Running<I> {
    pub fn new(new: Together, io: Cork<I>) -> Self {
        Self { new, requests: FuturesUnordered::new(), io, connection: Part::new(), all: Part::new() }
    }

    /// Has the connection run although nothing came for it.
    pub fn again(&self) {
        self.connection.waker.wake_by_ref();
    }

    /// Runs the connection and its requests until the connection ends.
    pub fn poll<C: Future>(&mut self, mut connection: Pin<&mut C>, context: &mut Context<'_>) -> Poll<C::Output> {
        for part in [&self.connection, &self.all] {
            part.bell.wakes(context.waker());
        }
        let mut quiet = false;
        for _ in 0..TURNS {
            if self.connection.bell.enter()
                && let Poll::Ready(ended) = connection.as_mut().poll(&mut Context::from_waker(&self.connection.waker))
            {
                // What can't be sent now is lost with the connection.
                let _ = self.io.poll_send(context);
                return Poll::Ready(ended);
            }
            let new = self.new.take();
            if self.all.bell.enter() || !new.is_empty() {
                self.requests.extend(new);
                let mut context = Context::from_waker(&self.all.waker);
                while let Poll::Ready(Some(())) = self.requests.poll_next_unpin(&mut context) {
                    self.new.ended();
                }
            }
            quiet = self.connection.bell.leave() & self.all.bell.leave();
            if quiet {
                break;
            }
        }
        if !quiet {
            context.waker().wake_by_ref();
        }
        // By the connection's waker: it may wait for the same room.
        // What is gathered leaves even if the requests took all of the task's budget.
        let mut context = Context::from_waker(&self.connection.waker);
        let mut send = pin!(unconstrained(poll_fn(|context| self.io.poll_send(context))));
        if let Poll::Ready(Err(_)) = send.as_mut().poll(&mut context) {
            // It is told when it reads.
            self.again();
        }
        Poll::Pending
    }
}
