//! The requests of one connection of HTTP/2, run by the task of the connection: many are begun by one read, and many answers leave
//! by one write.

use crate::bell::Bell;
use crate::cork::Cork;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::AsyncWrite;
use tokio::task::unconstrained;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// So often everything is run at once; other connections wait for the thread.
const TURNS: usize = 8;

/// Takes the requests that hyper begins.
#[derive(Clone, Default)]
pub(crate) struct Together(Arc<Mutex<Vec<Request>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Together {
    fn execute(&self, request: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(request));
    }
}

impl Together {
    fn take(&self) -> Vec<Request> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
                while let Poll::Ready(Some(())) = self.requests.poll_next_unpin(&mut context) {}
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
