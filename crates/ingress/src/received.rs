//! A request's body on its way: counted, within its limits, and how far it is.

use crate::alarm::Alarm;
use crate::counters::Counters;
use crate::heads;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// How much of a body is taken, and how long it may pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Bytes; none is any number.
    pub most: Option<u64>,
    /// While an instance waits for more; none waits for ever.
    pub pause: Option<Duration>,
}

/// Why a body did not come whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It is longer than it may be.
    #[error("it is longer than {0} bytes")]
    Long(u64),
    /// Nothing of it came for too long.
    #[error("nothing of it came for {} s", .0.as_secs())]
    Paused(Duration),
}

/// How far a body is.
#[derive(Debug)]
pub(crate) struct Upload(Mutex<Progress>);

#[derive(Debug)]
struct Progress {
    moved: Instant,
    is_over: bool,
}

impl Upload {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the last part of it went to the instance.
    pub fn moved(&self) -> Instant {
        self.lock().moved
    }

    /// Whether nothing of it comes any more.
    pub fn is_over(&self) -> bool {
        self.lock().is_over
    }
}

/// A body.
#[derive(Debug)]
pub(crate) struct Received<B> {
    body: B,
    counters: Arc<Counters>,
    limits: Limits,
    bytes: u64,
    /// Since when more of it is waited for.
    paused: Option<Instant>,
    late: Alarm,
    /// None of a body that is empty.
    upload: Option<Arc<Upload>>,
}

impl<B: Body> Received<B> {
    pub fn new(body: B, counters: &Arc<Counters>, limits: Limits) -> Self {
        let upload = || Arc::new(Upload(Mutex::new(Progress { moved: Instant::now(), is_over: false })));
        let upload = (!body.is_end_stream()).then(upload);
        Self { body, counters: Arc::clone(counters), limits, bytes: 0, paused: None, late: Alarm::default(), upload }
    }

    /// Counts by others from now on.
    pub fn count_by(&mut self, counters: &Arc<Counters>) {
        self.counters = Arc::clone(counters);
    }
}

impl<B> Received<B> {
    /// How far it is; none of one that is empty.
    pub fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }

    fn moved(&self, is_over: bool) {
        if let Some(upload) = &self.upload {
            *upload.lock() = Progress { moved: Instant::now(), is_over };
        }
    }

    /// Whether more of it was waited for too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> Option<Duration> {
        let pause = self.limits.pause?;
        let since = *self.paused.get_or_insert_with(Instant::now);
        self.late.poll(context, || since + pause).is_ready().then_some(pause)
    }
}

impl<B> Drop for Received<B> {
    fn drop(&mut self) {
        self.moved(true);
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(mut next) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.is_late(context).map_or(Poll::Pending, |pause| Poll::Ready(Some(Err(BodyError::Paused(pause)))));
        };
        self.paused = None;
        self.moved(false);
        if let Some(Ok(frame)) = &mut next {
            if let Some(data) = frame.data_ref() {
                let length = u64::try_from(data.len()).unwrap_or_default();
                self.counters.received(length);
                self.bytes += length;
                if let Some(most) = self.limits.most.filter(|most| self.bytes > *most) {
                    return Poll::Ready(Some(Err(BodyError::Long(most))));
                }
            } else if let Some(trailers) = frame.trailers_mut() {
                heads::trailers(trailers);
            }
        }
        Poll::Ready(next.map(|frame| frame.map_err(BodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
