//! Compression of what a service did not compress: zstd, brotli or gzip, as the client likes.
//!
//! [`choose`] is pure: the headers of request and response give a coding, or none. [`Compressed`] is the body: it holds nothing
//! back when the service pauses, and no more than some pieces of the body and its encoder's window.

use crate::body::ResponseBody;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::io::{self, Write as _};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is shorter gains nothing, bytes.
const SHORTEST: u64 = 1024;
/// So much is given to an encoder for a unit of the task's budget, bytes: others wait for the thread meanwhile.
const PIECE: usize = 8 << 10;
/// So much is gathered before it is sent, bytes, unless the service pauses.
const GATHERED: usize = 16 << 10;
/// Levels at which the processor is not what a client waits for.
const GZIP: u32 = 5;
const BROTLI: u32 = 4;
const ZSTD: i32 = 3;
/// The windows of brotli and zstd, powers of two: an encoder takes some four times as much.
const WINDOW: u32 = 18;

/// A content coding (RFC 9110 §8.4.1; zstd: RFC 8878).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

impl Coding {
    /// The preferred one first.
    const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// What a client takes (RFC 9110 §12.5.3): of what it likes best, what is best here.
pub(crate) fn liked(asked: &HeaderMap) -> Option<Coding> {
    let mut weights = [None; Coding::ALL.len()];
    let mut any = None;
    for part in listed(asked, &header::ACCEPT_ENCODING) {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default();
        let weight = words.find_map(|word| word.strip_prefix("q=").or_else(|| word.strip_prefix("Q=")));
        // What is no weight is none.
        let weight: f32 = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        if name == "*" {
            any = Some(weight);
        }
        for (coding, place) in Coding::ALL.into_iter().zip(&mut weights) {
            if name.eq_ignore_ascii_case(coding.name()) {
                *place = Some(weight);
            }
        }
    }
    let weighed = Coding::ALL.into_iter().zip(weights).map(|(coding, weight)| (coding, weight.or(any).unwrap_or(0.0)));
    let best = weighed.filter(|(_, weight)| *weight > 0.0).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(coding, _)| coding)
}

/// The members of a header that is a list.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Whether it is worth it for this kind of content. Events are none: each is small, and wanted at once.
fn is_text(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = [
        "application/javascript",
        "application/json",
        "application/wasm",
        "application/x-javascript",
        "application/x-ndjson",
        "application/xml",
        "font/otf",
        "font/ttf",
        "image/bmp",
        "image/x-icon",
        "image/vnd.microsoft.icon",
    ];
    let is_kind = kind.starts_with("text/") || kind.ends_with("+json") || kind.ends_with("+xml") || known.contains(&kind.as_str());
    is_kind && kind != "text/event-stream" && !kind.starts_with("application/grpc")
}

/// What says of a response that its very bytes are meant.
const OF_BYTES: [HeaderName; 2] = [header::CONTENT_ENCODING, header::CONTENT_RANGE];
const DIGESTS: [&str; 3] = ["content-digest", "digest", "content-md5"];

/// Whether a response to a request by this method may be compressed at all.
pub(crate) fn may_be(method: &Method, response: &Response<ResponseBody>) -> bool {
    let headers = response.headers();
    *method != Method::HEAD
        && !matches!(response.status(), StatusCode::PARTIAL_CONTENT | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && !response.status().is_informational()
        && !OF_BYTES.iter().any(|name| headers.contains_key(name))
        && !DIGESTS.iter().any(|name| headers.contains_key(*name))
        && !listed(headers, &header::CACHE_CONTROL).any(|word| word.eq_ignore_ascii_case("no-transform"))
        && headers.get(header::CONTENT_TYPE).is_some_and(is_text)
        && response.body().size_hint().exact().is_none_or(|length| length >= SHORTEST)
}

/// Compresses a response by a client's liking, where there is a place for one more.
pub(crate) fn compressed(mut response: Response<ResponseBody>, liked: Option<Coding>, places: &Arc<Semaphore>) -> Response<Outgoing> {
    // Another client may get other bytes, whatever this one gets.
    vary(response.headers_mut());
    let place = liked.and_then(|coding| Some((coding, Arc::clone(places).try_acquire_owned().ok()?)));
    let encoder = place.and_then(|(coding, place)| Some((coding, Encoder::new(coding).ok()?, place)));
    match encoder {
        Some((coding, encoder, place)) => {
            announce(response.headers_mut(), coding);
            response.map(|body| Outgoing::Compressed(Box::new(Compressed::new(body, encoder, place))))
        }
        None => response.map(Outgoing::Plain),
    }
}

/// Makes the headers those of the compressed response.
fn announce(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    // The same content in other bytes (RFC 9110 §8.8.1).
    let tag = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).map(|tag| [b"W/", tag.as_bytes()].concat());
    if let Some(tag) = tag.and_then(|tag| HeaderValue::from_bytes(&tag).ok()) {
        headers.insert(header::ETAG, tag);
    }
}

/// Says that it depends on what a client takes.
fn vary(headers: &mut HeaderMap) {
    if !listed(headers, &header::VARY).any(|name| name == "*" || name.eq_ignore_ascii_case("accept-encoding")) {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD)?;
                encoder.window_log(WINDOW)?;
                Self::Zstd(encoder)
            }
            Coding::Brotli => Self::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI, WINDOW))),
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
            Self::Brotli(encoder) => encoder.write_all(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
        }
    }

    /// What is ready to be sent.
    fn made(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
        }
    }
}

/// A body as the client gets it.
pub(crate) enum Outgoing {
    Plain(ResponseBody),
    Compressed(Box<Compressed>),
}

/// A body that is compressed while it passes.
pub(crate) struct Compressed {
    body: ResponseBody,
    /// None once all was sent.
    encoder: Option<Encoder>,
    /// What of the body is not encoded yet.
    rest: Bytes,
    /// Something was written since the last flush.
    unsent: bool,
    /// What follows the body.
    trailers: Option<Frame<Bytes>>,
    _place: OwnedSemaphorePermit,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Compressed {
    fn new(body: ResponseBody, encoder: Encoder, place: OwnedSemaphorePermit) -> Self {
        Self { body, encoder: Some(encoder), rest: Bytes::new(), unsent: false, trailers: None, _place: place }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(self.trailers.take().map(Ok)) };
            if !self.rest.is_empty() {
                ready!(pin!(tokio::task::consume_budget()).poll(context));
                let piece = self.rest.split_to(self.rest.len().min(PIECE));
                encoder.write(&piece)?;
                self.unsent = true;
                if encoder.made().len() >= GATHERED {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(encoder.made()).into()))));
                }
                continue;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.unsent => {
                    encoder.flush()?;
                    self.unsent = false;
                    let made = std::mem::take(encoder.made());
                    return if made.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(made.into())))) };
                }
                Poll::Pending => return Poll::Pending,
            };
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.rest = data,
                end => {
                    self.trailers = end.and_then(Result::err);
                    let Some(encoder) = self.encoder.take() else { return Poll::Ready(None) };
                    return Poll::Ready(Some(Ok(Frame::data(encoder.finish()?.into()))));
                }
            }
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Plain(body) => Pin::new(body).poll_frame(context),
            Self::Compressed(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Compressed(body) => body.encoder.is_none() && body.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Compressed(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use http_body_util::{BodyExt as _, Either, Full};

    fn of(text: &str) -> ResponseBody {
        Either::Right(Either::Right(Full::new(Bytes::from(text.to_owned()))))
    }

    #[test]
    fn what_clients_like() {
        for (accept, want) in [
            ("", None),
            ("identity", None),
            ("gzip", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip, br", Some(Coding::Brotli)),
            ("gzip;q=1.0, br;q=0.5", Some(Coding::Gzip)),
            ("gzip ; q=0.8 , br;q=0.9", Some(Coding::Brotli)),
            ("BR;q=0.1", Some(Coding::Brotli)),
            ("*", Some(Coding::Zstd)),
            ("*;q=0, gzip", Some(Coding::Gzip)),
            ("zstd;q=0, *", Some(Coding::Brotli)),
            ("*;q=0.5, gzip", Some(Coding::Gzip)),
            ("br;q=x, zstd;q=nan", None),
            ("br;q=0.000", None),
        ] {
            let asked = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(liked(&asked), want, "{accept}");
        }
        assert_eq!(liked(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_left_as_it_is() {
        let long = "x".repeat(1024);
        for (status, headers, text, want) in [
            (200, &[("content-type", "text/html; charset=utf-8")][..], &*long, true),
            (404, &[("content-type", "application/problem+json")], &*long, true),
            (200, &[("content-type", "Image/SVG+XML")], &*long, true),
            (200, &[("content-type", "text/html")], &long[1..], false),
            (200, &[("content-type", "image/png")], &*long, false),
            (200, &[], &*long, false),
            (200, &[("content-type", "text/event-stream; charset=utf-8")], &*long, false),
            (200, &[("content-type", "text/css"), ("content-encoding", "br")], &*long, false),
            (200, &[("content-type", "text/css"), ("content-encoding", "identity")], &*long, false),
            (206, &[("content-type", "text/css")], &*long, false),
            (200, &[("content-type", "text/css"), ("content-range", "bytes 0-999/2000")], &*long, false),
            (200, &[("content-type", "text/css"), ("cache-control", "public, No-Transform")], &*long, false),
            (200, &[("content-type", "text/css"), ("content-digest", "sha-256=:x:")], &*long, false),
            (200, &[("content-type", "application/grpc+json")], &*long, false),
            (204, &[("content-type", "text/css")], &*long, false),
            (304, &[("content-type", "text/css")], &*long, false),
        ] {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            let response = response.body(of(text)).unwrap();
            assert_eq!(may_be(&Method::GET, &response), want, "{status} {headers:?}");
            assert!(!may_be(&Method::HEAD, &response));
        }
    }

    #[test]
    fn headers() {
        let places = Arc::new(Semaphore::new(1));
        let response = || {
            let response = Response::builder().header("etag", "\"a\"").header("content-length", "1000").header("accept-ranges", "bytes");
            response.header("vary", "accept, origin").body(of("text")).unwrap()
        };
        let shown = |response: &Response<Outgoing>| {
            let mut got: Vec<String> =
                response.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            got.sort();
            got
        };
        let first = compressed(response(), Some(Coding::Zstd), &places);
        assert_eq!(shown(&first), ["content-encoding: zstd", "etag: W/\"a\"", "vary: accept, origin", "vary: accept-encoding"]);
        let plain = ["accept-ranges: bytes", "content-length: 1000", "etag: \"a\"", "vary: accept, origin", "vary: accept-encoding"];
        assert_eq!(shown(&compressed(response(), Some(Coding::Zstd), &places)), plain, "there is no place");
        drop(first);
        assert_eq!(shown(&compressed(response(), None, &places)), plain);
        let mut again = HeaderMap::from_iter([(header::VARY, HeaderValue::from_static("Accept-Encoding"))]);
        vary(&mut again);
        assert_eq!(again.get_all(header::VARY).iter().count(), 1);
    }

    #[tokio::test]
    async fn what_packs_well_does_not_hold_the_thread() {
        let places = Arc::new(Semaphore::new(1));
        let mut packed = compressed(Response::new(of(&"0".repeat(64 << 20))), Some(Coding::Zstd), &places).into_body();
        assert!(packed.frame().now_or_never().is_none(), "64 MiB at once");
        assert!(packed.frame().await.unwrap().unwrap().is_data());
    }

    #[tokio::test]
    async fn what_is_unpacked_is_what_was_packed() {
        let text = "Lorem ipsum dolor sit amet. ".repeat(20_000);
        let places = Arc::new(Semaphore::new(1));
        for coding in Coding::ALL {
            let packed = compressed(Response::new(of(&text)), Some(coding), &places).into_body().collect().await.unwrap().to_bytes();
            assert!(packed.len() * 10 < text.len(), "{coding:?}: {}", packed.len());
            let mut unpacked = Vec::new();
            match coding {
                Coding::Gzip => io::copy(&mut flate2::read::GzDecoder::new(&*packed), &mut unpacked),
                Coding::Zstd => io::copy(&mut zstd::stream::read::Decoder::new(&*packed).unwrap(), &mut unpacked),
                Coding::Brotli => io::copy(&mut brotli::Decompressor::new(&*packed, 4096), &mut unpacked),
            }
            .unwrap();
            assert!(unpacked == text.as_bytes(), "{coding:?}");
        }
    }
}
