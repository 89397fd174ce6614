//! Certificates that a server gives by itself, one name after the other, long before they end.
//!
//! What failed is asked again after a while that triples, up to a day, over restarts too: servers count failures. A server that was
//! asked too often is left alone for all names, for as long as it says. Ways to prove a name take turns.
//!
//! Invariant: whatever a server does, asking it comes to an end.

use super::public::is_local;
use super::{Core, Msg};
use crate::public::{Asked, StoredCertificate};
use moat_certs::{Acme, AcmeError, Again, Directory, Facts, Pair, Shown, Way};
use moat_model::Secret;
use moat_store::EventKind;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a server may take for one answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take until there is a certificate.
const DONE_WITHIN: Duration = Duration::from_mins(5);
/// After the first failure.
const AGAIN: i64 = 5 * 60;
/// After many.
const AGAIN_MOST: i64 = 24 * 3600;
/// After a server said that it was asked too often, and not for how long.
const TOO_OFTEN: i64 = 3600;
/// The shortest and the longest that what it says is believed.
const SAID: (i64, i64) = (60, 30 * 24 * 3600);

/// What came of asking a server.
#[derive(Debug)]
pub enum News {
    /// There is an account with this directory.
    Account(Directory, Secret),
    /// The server was told of this directory's contact, or not.
    Contact(Directory, Result<(), AcmeError>),
    /// Show this.
    Prove(Shown),
    /// A name has a certificate of the server with this URL, or none.
    Certificate(String, String, Result<Pair, AcmeError>),
}

/// When a certificate that was just given is to be had anew: once two thirds of its time are over. Where that comes much sooner than
/// it should, a clock is wrong, and nobody is asked in a loop.
fn renew_at(facts: &Facts, now: i64) -> i64 {
    let (since, until) = (facts.since.as_second(), facts.until.as_second());
    let renew = until - (until - since) / 3;
    if renew > now && renew - now >= (renew - since) / 2 { renew } else { renew.max(now + TOO_OFTEN) }
}

/// How many seconds a server wants to be left alone for.
fn left_alone(again: Option<Again>, now: jiff::Timestamp) -> i64 {
    again.map_or(TOO_OFTEN, |again| again.seconds(now).clamp(SAID.0, SAID.1))
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
        let now = self.engine.now().as_second();
        // Longer than it can be is a clock that was wrong.
        let rests = self.durable.signing.pauses.get(&directory.url).is_some_and(|until| (1..=AGAIN_MOST).contains(&(until - now)));
        if rests {
            return;
        }
        let kept = self.durable.signing.accounts.get(&directory.url).cloned();
        if let Some(kept) = kept.as_ref().filter(|_| self.is_contact_due(&directory, now)) {
            self.shown.asking = true;
            let (kept, tx) = (kept.clone(), self.tx.clone());
            tokio::spawn(async move {
                let outcome = in_time(tell_contact(&directory, &kept)).await;
                let _ = tx.send(Msg::Acme(News::Contact(directory, outcome)));
            });
            return;
        }
        let given = self.given();
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
        self.shown.asking = true;
        let tx = self.tx.clone();
        tokio::spawn(async move {
            let outcome = in_time(ask(&directory, kept, &name, way, &tx)).await;
            let _ = tx.send(Msg::Acme(News::Certificate(directory.url, name, outcome)));
        });
    }

    /// Whether a server with an account is to be told whom it may write to.
    fn is_contact_due(&self, directory: &Directory, now: i64) -> bool {
        let told = self.durable.signing.contacts.get(&directory.url);
        let refused = self.shown.contact_refused.as_ref();
        told != Some(&directory.contact) && refused.is_none_or(|(refused, until)| refused != directory || *until <= now)
    }

    pub(super) fn acme_news(&mut self, news: News) {
        match news {
            News::Account(directory, account) => {
                self.durable.signing.accounts.insert(directory.url.clone(), account);
                self.durable.signing.contacts.insert(directory.url, directory.contact);
                self.save();
            }
            News::Contact(directory, outcome) => self.contact_told(directory, outcome),
            News::Prove(shown) => self.shown.prove(Some(shown)),
            News::Certificate(url, name, outcome) => {
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
                        let renew = Some(renew_at(&facts, now));
                        let stored = StoredCertificate { names: vec![name.clone()], pair, renew };
                        self.durable.certificates.insert(name, stored);
                    }
                    Err(error) => {
                        let failures = self.durable.asked.get(&name).map_or(0, |asked| asked.failures).saturating_add(1);
                        let wait = pause(failures).max(self.leave_alone(&url, &error).unwrap_or_default());
                        let why = crate::chain(&error);
                        self.durable.asked.insert(name.clone(), Asked { failures, next: now + wait, why: Some(why.clone()) });
                        self.wake_after(wait);
                        self.problem(None, format!("`{name}` got no certificate: {why}; tried again in {} minutes", wait / 60));
                    }
                }
                self.certificates_changed();
            }
        }
    }

    /// Notes whether a server knows whom it may write to.
    fn contact_told(&mut self, directory: Directory, outcome: Result<(), AcmeError>) {
        self.shown.asking = false;
        let whom = directory.contact.clone().unwrap_or_else(|| "nobody".to_owned());
        match outcome {
            Ok(()) => {
                self.notice(None, format!("the server of certificates was told to write to {whom}"));
                self.durable.signing.contacts.insert(directory.url, directory.contact);
            }
            Err(error) => {
                let wait = self.leave_alone(&directory.url, &error).unwrap_or(TOO_OFTEN);
                let why = crate::chain(&error);
                self.problem(
                    None,
                    format!("the server of certificates was not told to write to {whom}: {why}; tried again in {} minutes", wait / 60),
                );
                self.shown.contact_refused = Some((directory, self.engine.now().as_second() + wait));
                self.wake_after(wait);
            }
        }
        self.certificates_changed();
    }

    /// Leaves a server alone that was asked too often: no name is asked for until then, a day at most, since it may have meant this
    /// one only. How many seconds it said.
    fn leave_alone(&mut self, url: &str, error: &AcmeError) -> Option<i64> {
        let AcmeError::TooOften { again, .. } = error else { return None };
        let now = self.engine.now();
        let wait = left_alone(*again, now);
        self.durable.signing.pauses.insert(url.to_owned(), now.as_second() + wait.min(AGAIN_MOST));
        self.wake_after(wait.min(AGAIN_MOST));
        Some(wait)
    }

    fn wake_after(&self, seconds: i64) {
        self.wake_in(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
    }
}

/// What comes of an attempt, which has failed when it takes too long.
async fn in_time<T>(attempt: impl Future<Output = Result<T, AcmeError>>) -> Result<T, AcmeError> {
    timeout(DONE_WITHIN, attempt).await.unwrap_or(Err(AcmeError::Late(DONE_WITHIN)))
}

/// Has a server write to whom its directory says.
async fn tell_contact(directory: &Directory, kept: &Secret) -> Result<(), AcmeError> {
    let (acme, _) = Acme::open(directory, Some(kept), ANSWERS_WITHIN).await?;
    acme.set_contact(directory.contact.as_deref()).await
}

async fn ask(
    directory: &Directory,
    kept: Option<Secret>,
    name: &str,
    way: Way,
    tx: &mpsc::UnboundedSender<Msg>,
) -> Result<Pair, AcmeError> {
    let (acme, new) = Acme::open(directory, kept.as_ref(), ANSWERS_WITHIN).await?;
    if let Some(account) = new {
        // Nobody listens any more only when the daemon ends.
        let _ = tx.send(Msg::Acme(News::Account(directory.clone(), account)));
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
        const DAY: i64 = 86400;
        let facts = |since: i64, until: i64| {
            let at = |second| Timestamp::from_second(second).unwrap();
            Facts { names: Vec::new(), since: at(since), until: at(until), issuer: String::new() }
        };
        for (since, until, now, want) in [
            (0, 90 * DAY, 0, 60 * DAY),
            (0, 90 * DAY, DAY, 60 * DAY),
            // Servers whose certificates last a minute are asked as often.
            (1000, 1060, 1000, 1040),
            (1000, 1060, 1015, 1040),
            // A clock that is wrong: it would be due at once, or nearly.
            (0, 90 * DAY, 60 * DAY, 60 * DAY + TOO_OFTEN),
            (0, 90 * DAY, 60 * DAY - 1, 60 * DAY - 1 + TOO_OFTEN),
            (0, 90 * DAY, 100 * DAY, 100 * DAY + TOO_OFTEN),
            (90 * DAY, 0, 0, 30 * DAY),
            (90 * DAY, 0, 50 * DAY, 50 * DAY + TOO_OFTEN),
        ] {
            assert_eq!(renew_at(&facts(since, until), now), want, "{since} {until} {now}");
        }
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_says() {
        let now = Timestamp::from_second(1000).unwrap();
        let after = |seconds| Some(Again::In(Duration::from_secs(seconds)));
        for (again, want) in [
            (None, TOO_OFTEN),
            (after(7200), 7200),
            (Some(Again::At(Timestamp::from_second(8200).unwrap())), 7200),
            (after(0), SAID.0),
            (Some(Again::At(Timestamp::from_second(1).unwrap())), SAID.0),
            (after(u64::MAX), SAID.1),
        ] {
            assert_eq!(left_alone(again, now), want, "{again:?}");
        }
    }

    /// Time is tokio's: what waits for a server alone has it go on.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_has_failed_before_long() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = Directory { url: format!("https://{}/dir", silent.local_addr().unwrap()), contact: None, root: None };
        let (tx, _rx) = mpsc::unbounded_channel();
        let began = tokio::time::Instant::now();
        let asked = timeout(Duration::from_hours(9), in_time(ask(&directory, None, "shop.example.com", Way::Http, &tx)));
        let error = asked.await.expect("it waits for ever").unwrap_err();
        assert!(error.to_string().contains("did not answer within 30 s"), "{error}");
        // One that goes on answering, and is never done.
        let error = in_time(std::future::pending::<Result<(), AcmeError>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "the server of certificates was not done within 5 minutes");
        assert!(began.elapsed() < Duration::from_mins(6), "{:?}", began.elapsed());
    }
}
