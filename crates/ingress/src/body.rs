//! Bodies that stream through.

use crate::bell::Bell;
use crate::heads;
use crate::pool::{Flight, Sender};
use crate::received::{BodyError, Received, Upload};
use crate::site::Content;
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

/// A request's body on its way to an instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// A client's.
    Client(Received<Incoming>),
    /// None: of a request that is sent again, or of a WebSocket's opening.
    Empty,
}

impl RequestBody {
    /// How far it is; none of one that is empty.
    pub fn upload(&self) -> Option<Arc<Upload>> {
        match self {
            Self::Client(body) => body.upload(),
            Self::Empty => None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Client(body) => Pin::new(body).poll_frame(context),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// A response's body on its way to the client: an instance's, a file's, or a page.
pub(crate) type ResponseBody = Either<Relay, Either<Content, Full<Bytes>>>;

/// An instance's response body. When it has ended, its connection is kept for the next request; when it is dropped
/// before, the connection is closed.
#[derive(Debug)]
pub(crate) struct Relay {
    body: Incoming,
    lease: Option<(Flight, Sender)>,
    /// Why it broke off, and what rings when that is told: all that is not sent by then is thrown away.
    broken: Option<(hyper::Error, Arc<Bell>)>,
}

/// Rings once the task's turn is over and what it wrote is sent.
fn after_this_turn() -> Arc<Bell> {
    let bell = Arc::new(Bell::new());
    // It has rung from the beginning.
    bell.enter();
    bell.leave();
    let waker = Arc::clone(&bell).into();
    let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
    bell
}

impl Relay {
    pub fn new(body: Incoming, flight: Flight, sender: Sender) -> Self {
        let mut relay = Self { body, lease: Some((flight, sender)), broken: None };
        relay.settle(false);
        relay
    }

    /// Gives the connection back once the body has `ended`: one without a known length does not say so by itself.
    fn settle(&mut self, ended: bool) {
        if (ended || self.body.is_end_stream())
            && let Some((flight, sender)) = self.lease.take()
        {
            flight.keep(sender);
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, lease, broken } = &mut *self;
        if let Some((_, bell)) = broken {
            // Others may have it asked before.
            bell.wakes(context.waker());
            if !bell.has_rung() {
                return Poll::Pending;
            }
            return Poll::Ready(broken.take().map(|(error, _)| Err(error)));
        }
        let mut take = |context: &mut Context<'_>| Pin::new(&mut *body).poll_frame(context);
        let mut polled = match lease {
            Some((_, sender)) => sender.poll(context, take),
            None => take(context),
        };
        match &mut polled {
            Poll::Ready(None) => self.settle(true),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    heads::trailers(trailers);
                }
                // Nothing follows them, and nobody asks for it.
                let ended = frame.is_trailers();
                self.settle(ended);
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        match polled {
            Poll::Ready(Some(Err(error))) => {
                // Its connection is of no use.
                let bell = after_this_turn();
                bell.wakes(context.waker());
                (self.lease, self.broken) = (None, Some((error, bell)));
                Poll::Pending
            }
            polled @ (Poll::Ready(_) | Poll::Pending) => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
