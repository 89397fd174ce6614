//! Certificates that a server gives by itself, one name after the other, long before they end.
//!
//! What failed is asked again after a while that triples, up to a day, over restarts too: servers count failures. Ways to prove a
//! name take turns.

use super::public::is_local;
use super::{Core, Msg};
use crate::public::{Asked, StoredCertificate};
use moat_certs::{Acme, AcmeError, Directory, Facts, Pair, Shown, Way};
use moat_model::Secret;
use moat_store::EventKind;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;

/// After the first failure.
const AGAIN: i64 = 5 * 60;
/// After many.
const AGAIN_MOST: i64 = 24 * 3600;
/// After a server said that it was asked too often.
const TOO_OFTEN: i64 = 3600;

/// What came of asking a server.
#[derive(Debug)]
pub enum News {
    /// There is an account with this directory.
    Account(String, Secret),
    /// Show this.
    Prove(Shown),
    /// A name has a certificate, or none.
    Certificate(String, Result<Pair, AcmeError>),
}

/// When a certificate is to be had anew: once two thirds of its time are over.
fn renew_at(facts: &Facts) -> i64 {
    let (since, until) = (facts.since.as_second(), facts.until.as_second());
    until - (until - since) / 3
}

/// How long to wait after so many failures.
fn pause(failures: u32) -> i64 {
    (1..failures.min(16)).fold(AGAIN, |pause, _| (pause * 3).min(AGAIN_MOST))
}

impl Core {
    /// Asks for the certificate that is due first, unless one is being asked for.
    pub(super) fn ask_for_certificates(&mut self) {
        let Some(directory) = self.durable.public.directory().filter(|_| !self.shown.asking && self.dataplane.is_serving()) else { return };
        if !self.shown.is_time_to_ask() {
            return;
        }
        let (now, given) = (self.engine.now().as_second(), self.given());
        let due = |name: &String| {
            let asked = self.durable.asked.get(name);
            // One that people gave is theirs to renew.
            let certificate = given.find(name).map_or(Some(0), |stored| stored.renew)?;
            Some(certificate.max(asked.map_or(0, |asked| asked.next)))
        };
        // One for all names of a kind is given for a proof in DNS only.
        let names = self.names().into_keys().filter(|name| !is_local(name) && !name.starts_with('*'));
        let first = names.filter_map(|name| Some((due(&name)?, name))).min();
        let Some((_, name)) = first.filter(|(due, _)| *due <= now) else { return };
        let failures = self.durable.asked.get(&name).map_or(0, |asked| asked.failures);
        let turn = if self.dataplane.listening_https().is_some() && failures % 2 == 1 { Way::Tls } else { Way::Http };
        let way = self.durable.public.acme_proof.unwrap_or(turn);
        let kept = self.durable.signing.accounts.get(&directory.url).cloned();
        self.shown.asking = true;
        let tx = self.tx.clone();
        tokio::spawn(async move {
            let outcome = ask(&directory, kept, &name, way, &tx).await;
            let _ = tx.send(Msg::Acme(News::Certificate(name, outcome)));
        });
    }

    pub(super) fn acme_news(&mut self, news: News) {
        match news {
            News::Account(url, account) => {
                self.durable.signing.accounts.insert(url, account);
                self.save();
            }
            News::Prove(shown) => self.shown.prove(Some(shown)),
            News::Certificate(name, outcome) => {
                self.shown.asking = false;
                self.shown.prove(None);
                let now = self.engine.now().as_second();
                let read = outcome.and_then(|pair| match Facts::of(&pair.chain) {
                    Ok(facts) => Ok((pair, facts)),
                    Err(error) => Err(AcmeError::Server(error.to_string())),
                });
                match read {
                    // Somebody gave one meanwhile, which is the one to show.
                    Ok(_) if self.given().find(&name).is_some_and(|stored| stored.renew.is_none()) => {}
                    Ok((pair, facts)) => {
                        self.durable.asked.remove(&name);
                        self.record(EventKind::Notice, None, format!("`{name}` has a new certificate"), json!({ "name": name }));
                        // Where a clock is wrong it is not asked in a loop.
                        let renew = Some(renew_at(&facts).max(now + TOO_OFTEN));
                        let stored = StoredCertificate { names: vec![name.clone()], pair, renew };
                        self.durable.certificates.insert(name, stored);
                    }
                    Err(error) => {
                        let asked = self.durable.asked.entry(name.clone()).or_default();
                        let failures = asked.failures.saturating_add(1);
                        let mut wait = pause(failures);
                        if matches!(error, AcmeError::TooOften(_)) {
                            wait = wait.max(TOO_OFTEN);
                        }
                        let why = crate::chain(&error);
                        *asked = Asked { failures, next: now + wait, why: Some(why.clone()) };
                        self.wake_in(Duration::from_secs(u64::try_from(wait).unwrap_or_default()));
                        self.problem(None, format!("`{name}` got no certificate: {why}; tried again in {} minutes", wait / 60));
                    }
                }
                self.certificates_changed();
            }
        }
    }
}

async fn ask(
    directory: &Directory,
    kept: Option<Secret>,
    name: &str,
    way: Way,
    tx: &mpsc::UnboundedSender<Msg>,
) -> Result<Pair, AcmeError> {
    let (acme, new) = Acme::open(directory, kept.as_ref()).await?;
    if let Some(account) = new {
        // Nobody listens any more only when the daemon ends.
        let _ = tx.send(Msg::Acme(News::Account(directory.url.clone(), account)));
    }
    let (show, mut shown) = mpsc::unbounded_channel();
    let order = acme.order(name, way, &show);
    tokio::pin!(order);
    loop {
        tokio::select! {
            outcome = &mut order => return outcome,
            Some(proof) = shown.recv() => {
                let _ = tx.send(Msg::Acme(News::Prove(proof)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn pauses_triple_up_to_a_day() {
        let pauses: Vec<i64> = (1..=8).map(pause).map(|seconds| seconds / 60).collect();
        assert_eq!(pauses, [5, 15, 45, 135, 405, 1215, 1440, 1440]);
        assert_eq!(pause(u32::MAX), AGAIN_MOST);
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_time_is_left() {
        let day = |n: i64| Timestamp::from_second(n * 86400).unwrap();
        let facts = Facts { names: Vec::new(), since: day(0), until: day(90), issuer: String::new() };
        assert_eq!(renew_at(&facts), 60 * 86400);
    }
}
