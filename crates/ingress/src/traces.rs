//! Traces by OpenTelemetry: one span for each request, sent to a collector by OTLP over HTTP.
//!
//! A request that comes as part of a trace (W3C Trace Context) goes on as part of it; what of it is recorded here is decided by the
//! trace's id and the share asked for, so that no client can have more recorded, and all who go by that share agree.
//!
//! Invariant: a request never waits for a collector. Spans that come faster than they can be sent are dropped.

use crate::arrival::Arrival;
use crate::meters::Known;
use arc_swap::ArcSwapOption;
use http::request::Parts;
use http::{Method, Version, header};
use moat_model::Slug;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a collector may take to answer.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// What a collector's answer is read of, bytes.
const MOST_ANSWER: u64 = 64 * 1024;
/// What others say of a trace; written by nobody where nobody did.
const TRACESTATE: &str = "tracestate";
/// The whole, in [`TraceTarget::share`].
pub const WHOLE: u32 = 1_000_000;

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceTarget {
    /// Where a collector takes traces by OTLP over HTTP without TLS, an address with port and path:
    /// `http://127.0.0.1:4318/v1/traces`.
    pub url: String,
    /// How many of a million traces are recorded.
    pub share: u32,
}

/// Everything that records traces. The default records none.
#[derive(Debug, Default)]
pub struct Traces {
    to: ArcSwapOption<Running>,
    sendings: Arc<Sendings>,
}

#[derive(Debug)]
struct Running {
    target: TraceTarget,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// What became of sending.
#[derive(Debug, Default)]
struct Sendings {
    done: AtomicU64,
    failed: AtomicU64,
    /// The last one failed, which was said.
    failing: AtomicBool,
}

impl Traces {
    /// Records for this collector from now on; `None` ends it. What was recorded before is still sent.
    ///
    /// # Errors
    /// For an address that is none, or where no thread can be started.
    pub fn set(&self, target: Option<&TraceTarget>) -> io::Result<()> {
        if self.to.load().as_deref().map(|running| &running.target) == target {
            return Ok(());
        }
        let next = target.map(|target| Running::new(target, &self.sendings)).transpose()?;
        let before = self.to.swap(next.map(Arc::new));
        if let Some(before) = before {
            // It waits for the collector.
            std::thread::Builder::new().name("traces-end".to_owned()).spawn(move || drop(before.provider.shutdown()))?;
        }
        Ok(())
    }

    /// Sends what is recorded and records no more. It blocks, for so long at most.
    pub fn end(&self, within: Duration) {
        if let Some(running) = self.to.swap(None) {
            // What could not be sent was said.
            let _ = running.provider.shutdown_with_timeout(within);
        }
    }

    /// How often spans were sent, and how often that failed.
    pub fn sendings(&self) -> (u64, u64) {
        (self.sendings.done.load(Ordering::Relaxed), self.sendings.failed.load(Ordering::Relaxed))
    }

    /// Begins the span of a request, whose headers say from now on that it is part of the trace.
    pub(crate) fn begin(&self, head: &mut Parts, arrival: &Arrival, id: &str) -> Option<Box<RequestSpan>> {
        let running = self.to.load();
        let running = running.as_deref()?;
        let propagator = TraceContextPropagator::new();
        let parent = propagator.extract_with_context(&Context::new(), &HeaderExtractor(&head.headers));
        let span =
            running.tracer.span_builder(name_of(&head.method)).with_kind(SpanKind::Server).start_with_context(&running.tracer, &parent);
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        propagator.inject_context(&context, &mut HeaderInjector(&mut head.headers));
        if head.headers.get(TRACESTATE).is_some_and(header::HeaderValue::is_empty) {
            head.headers.remove(TRACESTATE);
        }
        if !span.is_recording() {
            return None;
        }
        let mut span = RequestSpan { span };
        span.describe(head, arrival, id);
        Some(Box::new(span))
    }
}

impl Running {
    fn new(target: &TraceTarget, sendings: &Arc<Sendings>) -> io::Result<Self> {
        let client = Client { agent: agent(), url: target.url.clone(), sendings: Arc::clone(sendings) };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&target.url)
            .with_timeout(SEND_LIMIT)
            .build()
            .map_err(io::Error::other)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(Resource::builder_empty().with_service_name("moat-ingress").build())
            .with_sampler(Sampler::TraceIdRatioBased(f64::from(target.share) / f64::from(WHOLE)))
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("moat-ingress");
        Ok(Self { target: target.clone(), provider, tracer })
    }
}

/// The span of one request, which is over when this is dropped. Names are those of OpenTelemetry's conventions for HTTP.
#[derive(Debug)]
pub(crate) struct RequestSpan {
    span: Span,
}

impl RequestSpan {
    fn describe(&mut self, head: &Parts, arrival: &Arrival, id: &str) {
        let version = match head.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let known = name_of(&head.method);
        self.span.set_attributes([
            KeyValue::new("http.request.method", if known == OTHER { "_OTHER" } else { known }),
            // Without its query, which carries secrets too often.
            KeyValue::new("url.path", head.uri.path().to_owned()),
            KeyValue::new("url.scheme", arrival.scheme()),
            KeyValue::new("network.protocol.version", version),
            KeyValue::new("client.address", arrival.client.to_canonical().to_string()),
            KeyValue::new("moat.request.id", id.to_owned()),
        ]);
        if known == OTHER {
            self.span.set_attribute(KeyValue::new("http.request.method_original", head.method.as_str().to_owned()));
        }
        if let Some(host) = head.headers.get(header::HOST) {
            self.span.set_attribute(KeyValue::new("server.address", text(host)));
        }
        if let Some(agent) = head.headers.get(header::USER_AGENT) {
            self.span.set_attribute(KeyValue::new("user_agent.original", text(agent)));
        }
    }

    pub fn service(&mut self, service: &Slug) {
        self.span.set_attribute(KeyValue::new("moat.service", service.to_string()));
    }

    pub fn instance(&mut self, instance: &Known) {
        self.span.set_attribute(KeyValue::new("moat.instance", instance.id.to_string()));
    }

    pub fn failed(&mut self, why: &str) {
        self.span.set_status(Status::error(why.to_owned()));
    }

    pub fn answered(&mut self, status: u16) {
        self.span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            // Says nothing where there is a description already.
            self.span.set_status(Status::error(""));
            self.span.set_attribute(KeyValue::new("error.type", status.to_string()));
        }
    }

    /// Its client went away before there was an answer.
    pub fn gone(&mut self) {
        self.span.set_attribute(KeyValue::new("error.type", "client_gone"));
    }

    /// Bytes of the answer's body.
    pub fn sent(&mut self, bytes: u64) {
        self.span.set_attribute(KeyValue::new("http.response.body.size", i64::try_from(bytes).unwrap_or(i64::MAX)));
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.span.end();
    }
}

/// What a span of a method that nobody knows is called.
const OTHER: &str = "HTTP";

/// A span's name: the method, where it is one of the known ones, so that clients can't invent names.
fn name_of(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| method == known).unwrap_or(OTHER)
}

/// Looks up no name and needs no certificate: the process that serves sees no file of the machine.
fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(SEND_LIMIT))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(concat!("moat/", env!("CARGO_PKG_VERSION")))
        .build();
    config.new_agent()
}

/// Sends, in the thread that collects spans.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    url: String,
    sendings: Arc<Sendings>,
}

impl Client {
    fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        let body = body.with_config().limit(MOST_ANSWER).read_to_vec()?;
        Ok(http::Response::from_parts(head, Bytes::from(body)))
    }

    /// Counts, and says when it begins to fail and when it works again.
    fn note(&self, result: &Result<http::Response<Bytes>, HttpError>) {
        let why = match result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it says {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let counter = if why.is_none() { &self.sendings.done } else { &self.sendings.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let failed_before = self.sendings.failing.swap(why.is_some(), Ordering::Relaxed);
        match why {
            Some(why) if !failed_before => tracing::warn!(url = self.url, why, "traces can't be sent; they are dropped until they can"),
            None if failed_before => tracing::info!(url = self.url, "traces are sent again"),
            _ => {}
        }
    }
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
    {
        Box::pin(async move {
            let result = self.send(request);
            self.note(&result);
            result
        })
    }
}
