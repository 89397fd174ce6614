//! The client's side of the OCI distribution specification: manifests and blobs of one repository at one host.
//!
//! Invariants: credentials go to the registry and to the token service it names, never along a redirect to another host; a registry
//! that is spoken to over TLS can't lead to a place without it.

mod challenge;

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use self::challenge::{Challenge, encode};
use crate::credentials::Credentials;

/// Where a repository is served, and by which scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port.
    pub(crate) host: String,
    /// Without TLS.
    pub(crate) plain: bool,
    /// The repository at that host.
    pub(crate) repository: String,
}

/// A connection to one repository. Clones of its agent share connections; it is used by several threads.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    /// The `Authorization` header that the registry accepted last.
    authorization: Mutex<Option<String>>,
}

/// Why a request has no usable answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// 404, or a code of the specification that says so.
    Missing,
    /// 401 or 403, after authenticating if there was something to authenticate with.
    Denied(String),
    /// May go well another time.
    Passing { reason: String, wait: Option<Duration> },
    /// Goes wrong each time.
    Lasting(String),
}

/// A manifest as it was received.
pub(crate) struct Received {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How long a connection may be silent before it counts as broken.
const SILENCE: Duration = Duration::from_secs(30);

/// An agent that trusts the certificates of this machine and uses the proxy of its environment.
pub(crate) fn agent(plain: bool, direct: bool) -> Agent {
    let roots: Vec<_> = if plain {
        Vec::new()
    } else {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate of this machine can't be read");
        }
        found.certs.iter().map(|certificate| ureq::tls::Certificate::from_der(certificate).to_owned()).collect()
    };
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(roots.into_iter().into())
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .https_only(!plain)
        .http_status_as_error(false)
        .user_agent(concat!("moat/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .input_buffer_size(256 << 10);
    if direct {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

impl Client {
    pub(crate) fn new(agent: Agent, endpoint: Endpoint, credentials: Option<Credentials>) -> Self {
        Self { agent, endpoint, credentials, authorization: Mutex::new(None) }
    }

    pub(crate) fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// Gets a manifest or an index by tag or digest, of at most `limit` bytes. Its digest is not checked here.
    pub(crate) fn manifest(&self, selector: &str, limit: u64) -> Result<Received, Fault> {
        let mut response = self.get(&format!("manifests/{selector}"), Some(ACCEPT), None)?;
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = read(&mut response, limit)?;
        Ok(Received { media_type, bytes })
    }

    /// Gets a whole small blob.
    pub(crate) fn small_blob(&self, digest: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        read(&mut self.get(&format!("blobs/{digest}"), None, None)?, limit)
    }

    /// Opens a blob at an offset. The answer says where its bytes start: at 0 when the registry knows no ranges.
    pub(crate) fn blob(&self, digest: &str, from: u64) -> Result<(u64, ureq::BodyReader<'static>), Fault> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.get(&format!("blobs/{digest}"), None, range.as_deref())?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let said = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let start = said.and_then(|text| text.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                start
                    .filter(|start| *start == from)
                    .ok_or_else(|| Fault::Lasting(format!("it sends another range than was asked for ({said:?})")))?
            }
            _ => 0,
        };
        Ok((start, response.into_body().into_reader()))
    }

    /// One request, authenticated when the registry wants that. 200 and 206 come back, all else is a fault.
    fn get(&self, path: &str, accept: Option<&str>, range: Option<&str>) -> Result<Response<Body>, Fault> {
        let scheme = if self.endpoint.plain { "http" } else { "https" };
        let uri = format!("{scheme}://{}/v2/{}/{path}", self.endpoint.host, self.endpoint.repository);
        let mut tried = false;
        loop {
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut request = self.agent.get(&uri);
            for (name, value) in [(header::ACCEPT, accept), (header::RANGE, range), (header::AUTHORIZATION, authorization.as_deref())] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            let mut response = request.call().map_err(fault)?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !tried => {
                    tried = true;
                    self.authenticate(&response)?;
                }
                _ => return Err(self.refused(&mut response)),
            }
        }
    }

    /// Finds what the registry's challenge asks for and keeps it for the next request.
    fn authenticate(&self, response: &Response<Body>) -> Result<(), Fault> {
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let authorization = match Challenge::parse(headers) {
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Basic { user, password }) => basic(user, password),
                Some(Credentials::Bearer(_) | Credentials::Refresh(_)) => {
                    return Err(Fault::Denied("it wants a user and a password, and the credentials are a token".into()));
                }
                None => return Err(Fault::Denied("it wants a user and a password, and there are no credentials".into())),
            },
            Some(Challenge::Bearer { realm, service, scope }) => match &self.credentials {
                Some(Credentials::Bearer(token)) => format!("Bearer {token}"),
                _ => format!("Bearer {}", self.token(&realm, service.as_deref(), scope.as_deref())?),
            },
            None => return Err(Fault::Denied("it asks for a kind of credentials that Moat does not know".into())),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(())
    }

    /// Asks the token service for a token to pull this repository.
    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Fault> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let pull = format!("repository:{}:pull", self.endpoint.repository);
        let scope = scope.unwrap_or(&pull);
        let mut query = format!("scope={}", encode(scope));
        if let Some(service) = service {
            query = format!("service={}&{query}", encode(service));
        }
        let mut response = match &self.credentials {
            Some(Credentials::Refresh(token)) => {
                let form = format!("grant_type=refresh_token&client_id=moat&{query}&refresh_token={}", encode(token));
                self.agent.post(realm).content_type("application/x-www-form-urlencoded").send(form).map_err(fault)?
            }
            other => {
                let mut request = self.agent.get(format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' }));
                if let Some(Credentials::Basic { user, password }) = other {
                    request = request.header(header::AUTHORIZATION, basic(user, password));
                }
                request.call().map_err(fault)?
            }
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(&mut response));
        }
        let answer: Answer = serde_json::from_slice(&read(&mut response, 1 << 20)?)
            .map_err(|_| Fault::Lasting(format!("its token service `{realm}` does not answer with a token")))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| Fault::Lasting(format!("its token service `{realm}` answers without a token")))
    }

    /// What a status other than success means.
    fn refused(&self, response: &mut Response<Body>) -> Fault {
        let status = response.status();
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let said = read(response, 64 << 10).ok().and_then(|body| told(&body));
        let with = |text: &str| said.as_ref().map_or_else(|| text.to_owned(), |said| format!("{text}: {said}"));
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Fault::Missing,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied(with(match &self.credentials {
                Some(_) => "the credentials are not accepted",
                None => "there are no credentials for it",
            })),
            StatusCode::TOO_MANY_REQUESTS => Fault::Passing { reason: with("it is asked too often (429)"), wait },
            StatusCode::REQUEST_TIMEOUT => Fault::Passing { reason: with("it says 408"), wait },
            status if status.is_server_error() => Fault::Passing { reason: with(&format!("it says {}", status.as_u16())), wait },
            status => Fault::Lasting(with(&format!("it says {}", status.as_u16()))),
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Reads a body of at most `limit` bytes.
fn read(response: &mut Response<Body>, limit: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| Fault::Passing { reason: format!("the connection breaks: {error}"), wait: None })?;
    if bytes.len() as u64 > limit {
        return Err(Fault::Lasting(format!("its answer is longer than the {limit} bytes allowed")));
    }
    Ok(bytes)
}

/// The registry's own words (distribution specification, *error codes*), shortened and on one line.
fn told(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = value.get("errors")?.get(0)?;
    let text = first.get("message").and_then(|text| text.as_str()).or_else(|| first.get("code").and_then(|code| code.as_str()))?;
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// Sorts the HTTP client's errors. Its words hold no headers, so no secret.
#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn fault(error: ureq::Error) -> Fault {
    use ureq::Error as E;
    if let E::Io(source) = &error {
        return if source.kind() == std::io::ErrorKind::InvalidData {
            Fault::Lasting(format!("{source} (is it a registry without TLS?)"))
        } else {
            Fault::Passing { reason: source.to_string(), wait: None }
        };
    }
    if let E::RequireHttpsOnly(place) = &error {
        return Fault::Lasting(format!("it leads away from TLS, to `{place}`"));
    }
    let reason = if matches!(error, E::HostNotFound) { "its host name is not found".into() } else { error.to_string() };
    if matches!(error, E::Timeout(_) | E::ConnectionFailed | E::BodyStalled | E::Protocol(_) | E::HostNotFound) {
        Fault::Passing { reason, wait: None }
    } else {
        Fault::Lasting(reason)
    }
}

impl Fault {
    /// The fault in a sentence about the registry.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Missing => "it has no such content".into(),
            Self::Denied(reason) | Self::Lasting(reason) | Self::Passing { reason, .. } => reason.clone(),
        }
    }
}
