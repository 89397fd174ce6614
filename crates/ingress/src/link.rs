//! A connection of HTTP/1.1 to an instance, run by the task of the request that it carries: no other task is woken for an answer,
//! and none is while the connection is unused.
//!
//! Where the task may wait for something else meanwhile (a request's body is still on its way, or bytes go both ways), the
//! connection gets a task of its own.

use crate::alarm::Alarm;
use crate::bell::Bell;
use crate::body::RequestBody;
use crate::received::Upload;
use crate::socket::Sign;
use http::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::unconstrained;
use tokio::time::Instant;

/// What a connection does until it ends.
type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// So often a connection is run at once; others wait for the thread.
const TURNS: usize = 8;

/// Takes nothing of the budget of a request's task, which [`TURNS`] bounds. A task of its own has its own.
fn poll_once(run: &mut Run, context: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(run.as_mut())).poll(context)
}

/// The connection.
pub(crate) struct Link {
    sender: http1::SendRequest<RequestBody>,
    /// None once it has ended, or has a task of its own.
    run: Option<Run>,
    bell: Arc<Bell>,
    waker: Waker,
    /// Rings when an answer is late.
    late: Alarm,
    /// Whether the instance said anything since the last request.
    heard: Sign,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("sender", &self.sender).field("runs", &self.run.is_some()).finish_non_exhaustive()
    }
}

/// When the last of a request was sent that began then.
pub(crate) fn moved(upload: Option<&Upload>, began: Instant) -> Instant {
    upload.map_or(began, |upload| upload.moved().max(began))
}

/// An answer was not there in time.
#[derive(Debug)]
pub(crate) struct Late;

/// What comes of sending a request: an answer, or the request with the error where nothing of it left.
pub(crate) type Sent = Result<Result<Response<Incoming>, TrySendError<Request<RequestBody>>>, Late>;

impl Link {
    /// A connection; `heard` is set by its socket.
    pub fn new(sender: http1::SendRequest<RequestBody>, run: impl Future<Output = ()> + Send + 'static, heard: Sign) -> Self {
        let bell = Arc::new(Bell::new());
        let waker = Arc::clone(&bell).into();
        Self { sender, run: Some(Box::pin(run)), bell, waker, late: Alarm::default(), heard }
    }

    /// Whether the instance said anything since the last request was sent.
    pub fn has_heard(&self) -> bool {
        self.heard.is_so()
    }

    /// Whether it is open and carries nothing.
    pub fn is_ready(&mut self) -> bool {
        if self.bell.has_rung() {
            self.turn();
        }
        self.sender.is_ready()
    }

    /// Whether it has ended.
    pub fn is_closed(&mut self) -> bool {
        if self.bell.has_rung() {
            self.turn();
        }
        self.sender.is_closed()
    }

    /// Resolves when it carries nothing any more: of a connection that has a task of its own.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        self.sender.ready().await
    }

    /// Nobody is woken by it: it is not used.
    pub fn rest(&self) {
        self.bell.wakes_nobody();
    }

    /// Runs it once.
    fn turn(&mut self) {
        if let Some(run) = &mut self.run {
            self.bell.enter();
            if poll_once(run, &mut Context::from_waker(&self.waker)).is_ready() {
                self.run = None;
            }
            self.bell.leave();
        }
    }

    /// Has it run by a task of its own.
    pub fn detach(&mut self) {
        if let Some(run) = self.run.take() {
            tokio::spawn(run);
        }
    }

    /// Runs it until it gives something: `take` is asked again after each turn.
    pub fn poll<T>(&mut self, context: &mut Context<'_>, mut take: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let Self { run, bell, waker, .. } = self;
        if run.is_none() {
            return take(context);
        }
        bell.wakes(context.waker());
        for _ in 0..TURNS {
            if bell.enter()
                && let Some(running) = run
                && poll_once(running, &mut Context::from_waker(waker)).is_ready()
            {
                *run = None;
                return take(context);
            }
            // Only a turn can change what it finds, and it is asked after each: nothing needs to wake anybody.
            let taken = take(&mut Context::from_waker(Waker::noop()));
            if bell.leave() || taken.is_ready() {
                return taken;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends a request whose answer may take so long once the request was sent.
    ///
    /// # Errors
    /// As that of `try_send_request` of hyper; or it is late.
    pub async fn send(&mut self, request: Request<RequestBody>, wait: Duration) -> Sent {
        let (upload, began) = (request.body().upload(), Instant::now());
        self.heard.set(false);
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        poll_fn(|context| {
            if let Poll::Ready(answer) = self.poll(context, |context| answer.as_mut().poll(context)) {
                return Poll::Ready(Ok(answer));
            }
            self.late.poll(context, || moved(upload.as_deref(), began) + wait).map(|()| Err(Late))
        })
        .await
    }
}
