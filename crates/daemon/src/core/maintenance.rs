//! Pages of `maintenanceMode.uri`: what another address answers with is shown instead of a service in maintenance mode.
//!
//! A page is fetched when the mode is turned on and again each minute, and shown as it was last: clients never wait for the other
//! address, and it is not asked by them. Only public addresses are asked, so that no page shows what only this machine may read.

use super::{Core, Msg};
use moat_model::{Service, ServiceKind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Between two fetches of a page.
const EVERY: Duration = Duration::from_mins(1);
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(15);
/// How long a page may be, bytes.
const LONGEST: u64 = 1 << 20;
/// How often a page may lead elsewhere.
const MOVES: u32 = 5;
/// What the ingress answers with.
const UNAVAILABLE: u16 = 503;

/// A page as another address had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// HTML.
    text: String,
    /// The status, where it was an error: then it is the answer's, too.
    error: Option<u16>,
}

/// Pages by address.
pub(crate) type Pages = BTreeMap<String, Known>;

/// What is known of one.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// As it was last.
    page: Option<Fetched>,
    /// When it was asked for last.
    asked: Option<Instant>,
    /// It is being asked for.
    asking: bool,
    /// Why it could not be had, which was said.
    failed: Option<String>,
}

impl Core {
    /// What the ingress answers with instead of a service in maintenance mode: a page (a blank one is the ingress' own) and a
    /// status.
    pub(crate) fn maintenance_answer(&self, service: &Service) -> Option<(String, u16)> {
        let own = self.maintenance(service)?;
        let elsewhere = service.public.maintenance_page.as_ref().filter(|_| own.trim().is_empty());
        let fetched = elsewhere.and_then(|uri| self.pages.get(uri)?.page.as_ref());
        Some(fetched.map_or((own, UNAVAILABLE), |page| (page.text.clone(), page.error.unwrap_or(UNAVAILABLE))))
    }

    /// Asks for pages that are to be shown and are not known or old; forgets others.
    pub(super) fn fetch_pages(&mut self) {
        let shown =
            |service: &&Service| service.kind == ServiceKind::Web && self.maintenance(service).is_some_and(|own| own.trim().is_empty());
        let wanted: BTreeSet<String> =
            self.desired.services.values().filter(shown).filter_map(|service| service.public.maintenance_page.clone()).collect();
        self.pages.retain(|uri, _| wanted.contains(uri));
        for uri in wanted {
            let known = self.pages.entry(uri.clone()).or_default();
            if known.asking || known.asked.is_some_and(|asked| asked.elapsed() < EVERY) {
                continue;
            }
            (known.asking, known.asked) = (true, Some(Instant::now()));
            let tx = self.tx.clone();
            tokio::task::spawn_blocking(move || {
                let result = fetch(&uri).map_err(|error| error.to_string());
                let _ = tx.send(Msg::Page(uri, result));
            });
            self.wake_in(EVERY);
        }
    }

    /// A page was fetched, or could not be: then it stays as it was.
    pub(super) fn page_fetched(&mut self, uri: &str, result: Result<Fetched, String>) {
        let Some(known) = self.pages.get_mut(uri) else { return };
        known.asking = false;
        match result {
            Ok(page) => (known.page, known.failed) = (Some(page), None),
            Err(why) => {
                let new = known.failed.replace(why.clone()).as_ref() != Some(&why);
                if new {
                    self.notice(None, format!("the maintenance page `{uri}` can't be had: {why}; it is asked for again each minute"));
                }
            }
        }
    }
}

/// Names of public addresses only.
#[derive(Debug)]
struct Public(DefaultResolver);

impl Resolver for Public {
    fn resolve(&self, uri: &Uri, config: &ureq::config::Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        let mut public = self.empty();
        for address in found.iter().filter(|address| !moat_dns::is_private(address.ip())) {
            public.push(*address);
        }
        if public.is_empty() {
            return Err(ureq::Error::Other("it is at no public address".into()));
        }
        Ok(public)
    }
}

fn fetch(uri: &str) -> Result<Fetched, ureq::Error> {
    let roots = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<_> = roots.iter().map(|certificate| ureq::tls::Certificate::from_der(certificate).to_owned()).collect();
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(roots.into_iter().into())
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(LIMIT))
        .http_status_as_error(false)
        .max_redirects(MOVES)
        .proxy(None)
        .user_agent(concat!("moat/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), Public(DefaultResolver::default()));
    let mut response = agent.get(uri).call()?;
    let status = response.status();
    let text = response.body_mut().with_config().limit(LONGEST).lossy_utf8(true).read_to_string()?;
    Ok(Fetched { text, error: (status.is_client_error() || status.is_server_error()).then_some(status.as_u16()) })
}

#[cfg(test)]
mod tests {
    use super::fetch;

    #[test]
    fn only_public_addresses_are_asked() {
        for uri in
            ["http://127.0.0.1:1/", "http://localhost:1/", "http://169.254.169.254/latest/", "http://[::1]/", "http://10.64.0.3:7000/"]
        {
            let error = fetch(uri).unwrap_err().to_string();
            assert!(error.contains("no public address"), "{uri}: {error}");
        }
    }
}
