//! `GET /metrics` over a Unix socket of its own: HTTP, for whoever may ask the daemon.

use crate::core::Msg;
use crate::protocol::{Event, Request};
use crate::{access, metrics};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// A client that says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers what one client asks.
pub async fn converse(stream: UnixStream, tx: mpsc::UnboundedSender<Msg>) {
    let allowed = access::may_ask(&stream).await;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let tx = tx.clone();
        async move { Ok::<_, Infallible>(answer(&request, allowed, &tx).await) }
    });
    let served =
        http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(PATIENCE).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a conversation about metrics ended");
    }
}

async fn answer(request: &hyper::Request<Incoming>, allowed: bool, tx: &mpsc::UnboundedSender<Msg>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &str| {
        let mut response = Response::new(Full::from(format!("{text}\n")));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    if !allowed {
        return plain(StatusCode::FORBIDDEN, access::REFUSAL);
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only `/metrics` is here");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (reply, mut events) = crate::reply::channel();
    // When the loop has ended, no event comes.
    let _ = tx.send(Msg::Request(Box::new(Request::Metrics), reply));
    while let Some(event) = events.recv().await {
        if let Event::Metrics { text } = event {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::TYPE));
            return response;
        }
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, "Moat is ending")
}
