//! Where an image comes from: the mirrors of its registry in their order, then the registry itself.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::options::{Cancel, PullOptions};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::Descriptor;
use crate::reference::{Reference, api_host};
use crate::registry::{Client, Endpoint, Fault, Received, agent};

/// How often something that may pass is tried, without any progress in between.
pub(super) const ATTEMPTS: usize = 5;
/// The longest that a registry's `Retry-After` is obeyed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The places an image may come from.
pub(super) struct Origin {
    reference: Reference,
    /// The registry itself is the last.
    clients: Vec<Client>,
    /// The one that answered last.
    best: AtomicUsize,
    cancel: Cancel,
}

impl Origin {
    pub(super) fn new(reference: &Reference, options: &PullOptions) -> Result<Self, ImageError> {
        let mut clients = Vec::new();
        for mirror in options.mirrors.iter().filter(|mirror| mirror.registry == reference.registry()) {
            let location = mirror.location.trim_end_matches('/');
            let (host, prefix) = location.split_once('/').unwrap_or((location, ""));
            let repository = format!("{prefix}/{}", reference.repository());
            let repository = repository.trim_start_matches('/');
            let credentials = options.docker_config.credentials(host, repository)?;
            clients.push(client(host, repository, credentials, options));
        }
        let credentials = match &options.credentials {
            Some(given) => Some(given.clone()),
            None => options.docker_config.credentials(reference.registry(), reference.repository())?,
        };
        clients.push(client(reference.api_host(), reference.repository(), credentials, options));
        Ok(Self { reference: reference.clone(), clients, best: AtomicUsize::new(0), cancel: options.cancel.clone() })
    }

    /// A manifest or index that has the digest expected.
    pub(super) fn manifest(&self, selector: &str, expected: Option<&Digest>, limit: u64) -> Result<Received, ImageError> {
        self.each(|client| {
            let received = client.manifest(selector, limit)?;
            check(expected, &received.bytes).map(|()| received)
        })
    }

    /// The config, verified.
    pub(super) fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        self.each(|client| {
            let bytes = client.small_blob(&descriptor.digest.to_string(), descriptor.size)?;
            check(Some(&descriptor.digest), &bytes).map(|()| bytes)
        })
    }

    /// Asks the best place first, then the others; faults that may pass are retried. The last place's fault is the error.
    fn each<T>(&self, mut ask: impl FnMut(&Client) -> Result<T, Fault>) -> Result<T, ImageError> {
        let start = self.best.load(Ordering::Relaxed);
        let mut last = None;
        for offset in 0..self.clients.len() {
            let index = (start + offset) % self.clients.len();
            let Some(client) = self.clients.get(index) else { continue };
            // A mirror that does not answer is not waited for.
            let attempts = if index + 1 == self.clients.len() { ATTEMPTS } else { 1 };
            for attempt in 0..attempts {
                if self.cancel.is_set() {
                    return Err(ImageError::Cancelled);
                }
                match ask(client) {
                    Ok(answer) => {
                        self.best.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(fault) => {
                        let passing = matches!(fault, Fault::Passing { .. });
                        tracing::debug!(host = client.host(), fault = fault.words(), "a registry does not answer as hoped");
                        if passing && attempt + 1 < attempts {
                            pause(attempt, &fault, &self.cancel);
                        }
                        last = Some((index, fault));
                        if !passing {
                            break;
                        }
                    }
                }
            }
        }
        Err(match last {
            Some((index, fault)) => self.error(index, fault),
            None => ImageError::Registry { registry: self.reference.registry().to_owned(), reason: "there is no place to ask".into() },
        })
    }

    /// The place to download from in an attempt: another one each time.
    pub(super) fn client(&self, attempt: usize) -> (usize, &Client) {
        let index = (self.best.load(Ordering::Relaxed) + attempt) % self.clients.len();
        // There is always the registry itself.
        (index, &self.clients[index])
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn error(&self, index: usize, fault: Fault) -> ImageError {
        let host = self.clients.get(index).map_or_else(String::new, |client| client.host().to_owned());
        let registry = if index + 1 == self.clients.len() { self.reference.registry().to_owned() } else { host };
        match fault {
            Fault::Missing => ImageError::NotFound { reference: Box::new(self.reference.clone()), registry },
            Fault::Denied(reason) => ImageError::Denied { reference: Box::new(self.reference.clone()), registry, reason },
            Fault::Passing { reason, .. } | Fault::Lasting(reason) => ImageError::Registry { registry, reason },
        }
    }
}

fn client(host: &str, repository: &str, credentials: Option<crate::credentials::Credentials>, options: &PullOptions) -> Client {
    let loopback = is_loopback(host);
    let plain = loopback || options.plain_http.contains(host);
    let endpoint = Endpoint { host: api_host(host).to_owned(), plain, repository: repository.to_owned() };
    Client::new(agent(plain, loopback), endpoint, credentials)
}

fn check(expected: Option<&Digest>, bytes: &[u8]) -> Result<(), Fault> {
    let actual = Digest::of(bytes);
    match expected {
        Some(expected) if *expected != actual => {
            Err(Fault::Lasting(format!("it sends content with the digest `{actual}` for `{expected}`")))
        }
        _ => Ok(()),
    }
}

/// Whether a host (with or without port) is this machine.
fn is_loopback(host: &str) -> bool {
    if let Some(v6) = host.strip_prefix('[') {
        return v6.split(']').next().and_then(|address| address.parse::<Ipv6Addr>().ok()).is_some_and(|address| address.is_loopback());
    }
    let name = host.split(':').next().unwrap_or(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Waits before another attempt: as long as the registry says, else longer each time. A cancelled pull does not wait.
pub(super) fn pause(attempt: usize, fault: &Fault, cancel: &Cancel) {
    let wait = match fault {
        Fault::Passing { wait: Some(wait), .. } => (*wait).min(PATIENCE),
        Fault::Passing { wait: None, .. } | Fault::Missing | Fault::Denied(_) | Fault::Lasting(_) => {
            Duration::from_millis(200 << attempt.min(6))
        }
    };
    let end = Instant::now() + wait;
    while !cancel.is_set() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, want) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.1", true),
            ("[::1]:5000", true),
            ("[::2]:5000", false),
            ("localhost.example.com:5000", false),
            ("127.0.0.1.example.com", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
    }
}
