//! What is known of a request while it runs, and noted when it is over.

use crate::arrival::Arrival;
use crate::compress::Outgoing;
use crate::counters::Counters;
use crate::database::AllVisits;
use crate::log::{Line, Log};
use crate::meters::{Known, Meters};
use crate::traces::{RequestSpan, Traces};
use http::StatusCode;
use http::header;
use http::request::Parts;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use jiff::Timestamp;
use moat_model::Slug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Everything that is noted of requests. The default writes no log and records no traces.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// The numbers.
    pub meters: Arc<Meters>,
    /// The access log.
    pub log: Arc<Log>,
    /// The traces.
    pub traces: Arc<Traces>,
    /// The numbers of databases.
    pub visits: Arc<AllVisits>,
}

/// A request or tunnel that is not over until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<Counters>);

impl Open {
    pub fn new(counters: Arc<Counters>) -> Self {
        counters.open(1);
        Self(counters)
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open(-1);
    }
}

/// One request, noted when it is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    open: Open,
    began: Instant,
    /// How long its answer took to begin; none of one that has none.
    took: Option<Duration>,
    /// Where a log is written.
    line: Option<(Box<Line>, Arc<Log>)>,
    /// Where it is recorded.
    span: Option<Box<RequestSpan>>,
    /// Bytes of its answer's body.
    sent: u64,
}

impl Exchange {
    /// Where traces are recorded, the head says from now on which one it is part of.
    pub fn new(records: &Records, head: &mut Parts, arrival: &Arrival, id: &str) -> Self {
        let span = records.traces.begin(head, arrival, id);
        let line = || Line {
            at: Timestamp::now(),
            client: arrival.client,
            secure: arrival.secure,
            method: head.method.clone(),
            host: head.headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()).unwrap_or_default(),
            path: head.uri.path().to_owned(),
            version: head.version,
            id: id.to_owned(),
            service: None,
            instance: None,
            // Unless there is an answer, as nginx has it.
            status: GONE,
            sent: 0,
            took: Default::default(),
            failure: None,
        };
        let line = records.log.is_on().then(|| (Box::new(line()), Arc::clone(&records.log)));
        Self { open: Open::new(Arc::clone(records.meters.nobody())), began: Instant::now(), took: None, line, span, sent: 0 }
    }

    /// It is for this service.
    pub fn service(&mut self, service: &Slug, counters: &Arc<Counters>) {
        self.count(counters);
        if let Some((line, _)) = &mut self.line {
            line.service = Some(service.clone());
        }
        if let Some(span) = &mut self.span {
            span.service(service);
        }
    }

    /// It is sent to this instance.
    pub fn instance(&mut self, known: &Known) {
        self.count(&known.counters);
        if let Some((line, _)) = &mut self.line {
            line.instance = Some(known.clone());
        }
        if let Some(span) = &mut self.span {
            span.instance(known);
        }
    }

    fn count(&mut self, counters: &Arc<Counters>) {
        if !Arc::ptr_eq(&self.open.0, counters) {
            self.open = Open::new(Arc::clone(counters));
        }
    }

    /// Whose numbers it is part of.
    pub fn counters(&self) -> &Arc<Counters> {
        self.open.counters()
    }

    /// Why it could not be passed on.
    pub fn failed(&mut self, why: &impl ToString) {
        if let Some((line, _)) = &mut self.line {
            line.failure = Some(why.to_string());
        }
        if let Some(span) = &mut self.span {
            span.failed(&why.to_string());
        }
    }

    /// Its answer begins.
    pub fn answered(&mut self, status: StatusCode) {
        let took = self.began.elapsed();
        self.took = Some(took);
        self.counters().answered(status.as_u16(), took);
        if let Some((line, _)) = &mut self.line {
            line.status = status.as_u16();
        }
        if let Some(span) = &mut self.span {
            span.answered(status.as_u16());
        }
    }

    fn sent(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        self.counters().sent(bytes);
        self.sent += bytes;
    }
}

/// A client that went away before its answer.
const GONE: u16 = 499;

impl Drop for Exchange {
    fn drop(&mut self) {
        let lasted = self.began.elapsed();
        if self.took.is_none() {
            self.counters().answered(GONE, lasted);
        }
        if let Some(span) = &mut self.span {
            if self.took.is_none() {
                span.gone();
            }
            span.sent(self.sent);
        }
        if let Some((mut line, log)) = self.line.take() {
            line.sent = self.sent;
            line.took = (self.took.unwrap_or(lasted), lasted);
            log.take(line);
        }
    }
}

/// An answer's body, whose request is over when it is.
pub(crate) struct Recorded {
    body: Outgoing,
    exchange: Exchange,
}

impl Recorded {
    pub fn new(body: Outgoing, exchange: Exchange) -> Self {
        Self { body, exchange }
    }
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = <Outgoing as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.exchange.sent(data.len());
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
