//! Requests to a server of certificates. Each is answered in time or has failed, and what a refusal says of coming again is kept,
//! which the protocol's library does neither.

use crate::AcmeError;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// The longest answer, bytes.
const LONGEST: usize = 1 << 20;

/// When a server lets one ask again (`Retry-After`, RFC 9110 §10.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After so long.
    In(Duration),
    /// At this time.
    At(Timestamp),
}

impl Again {
    /// Seconds from now until then; 0 when it is past.
    pub fn seconds(self, now: Timestamp) -> i64 {
        match self {
            Self::In(wait) => i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            Self::At(time) => time.as_second().saturating_sub(now.as_second()).max(0),
        }
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Self::In(Duration::from_secs(seconds)));
        }
        let time: SystemTime = httpdate::parse_http_date(text).ok()?;
        Timestamp::try_from(time).ok().map(Self::At)
    }
}

/// The last answer's status and when it lets one come again, if it was a refusal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusal(Arc<Mutex<Option<Refused>>>);

type Refused = (StatusCode, Option<Again>);

impl Refusal {
    fn note(&self, status: StatusCode, headers: &HeaderMap) {
        let refused = status.is_client_error() || status.is_server_error();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refused.then(|| (status, Again::read(headers)));
    }

    /// What came of asking, with what the server said of coming again.
    pub fn explain(&self, error: AcmeError) -> AcmeError {
        let refusal = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((status, again)) = refusal else { return error };
        let is_busy = status == StatusCode::TOO_MANY_REQUESTS || (status == StatusCode::SERVICE_UNAVAILABLE && again.is_some());
        match (error, is_busy) {
            (AcmeError::TooOften { why, .. }, _) | (AcmeError::Server(why), true) => AcmeError::TooOften { why, again },
            (error, _) => error,
        }
    }
}

/// A client of HTTPS.
pub(crate) struct Asker {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    patience: Duration,
    refusal: Refusal,
}

impl Asker {
    /// One that trusts the authorities of this PEM file, else those of the machine. An answer may take so long.
    pub fn new(root: Option<&Path>, patience: Duration) -> Result<Self, AcmeError> {
        let builder = HttpsConnectorBuilder::new();
        let builder = match root {
            Some(path) => builder.with_tls_config(ClientConfig::builder().with_root_certificates(authorities(path)?).with_no_client_auth()),
            None => builder.try_with_platform_verifier().map_err(|error| AcmeError::Server(error.to_string()))?,
        };
        let connector = builder.https_only().enable_http1().enable_http2().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), patience, refusal: Refusal::default() })
    }

    /// What its last answer refused.
    pub fn refusal(&self) -> Refusal {
        self.refusal.clone()
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, AcmeError> {
    let unreadable = |why: String| AcmeError::Root { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))? {
        let added = certificate.map_err(|error| error.to_string()).and_then(|der| roots.add(der).map_err(|error| error.to_string()));
        added.map_err(unreadable)?;
    }
    if roots.is_empty() { Err(unreadable("there is no PEM certificate in it".to_owned())) } else { Ok(roots) }
}

impl HttpClient for Asker {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (asked, refusal, patience) = (self.client.request(request), self.refusal.clone(), self.patience);
        Box::pin(async move {
            let answer = async {
                let (parts, body) = asked.await.map_err(|error| Error::Other(error.into()))?.into_parts();
                let body = Limited::new(body, LONGEST).collect().await.map_err(Error::Other)?.to_bytes();
                Ok::<_, Error>((parts, body))
            };
            let silent = |_| Error::Other(format!("it did not answer within {} s", patience.as_secs()).into());
            let (parts, body) = timeout(patience, answer).await.map_err(silent)??;
            refusal.note(parts.status, &parts.headers);
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_come_again() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (text, want) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 22 Nov 2026 13:00:00 GMT", Some(3600)),
            ("Sun, 22 Nov 2026 11:00:00 GMT", Some(0)),
            ("99999999999999999999", None),
            ("18446744073709551615", Some(i64::MAX)),
            ("soon", None),
            ("", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(Again::read(&headers).map(|again| again.seconds(now)), want, "{text:?}");
        }
        assert_eq!(Again::read(&HeaderMap::new()), None);
    }
}
