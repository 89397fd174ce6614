//! The public side: under which names services are reached, by which certificates, and what people set about that.

use super::Core;
use super::requests::{Reply, end};
use crate::blueprints::{DOMAIN, NO_HTTPS};
use crate::protocol::{CertificateRow, CertificateVerb, DomainRow, Domains, Event, Failure, UpRequest};
use crate::public::{OWN_LIMIT, StoredCertificate};
use jiff::Timestamp;
use moat_certs::{Authority, AuthorityError, Directory, Facts, Pair, Proof};
use moat_dataplane::{CertificateSet, Doors, NamedCertificate};
use moat_model::{Secret, Service, Slug};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The certificates that were made here, and for what they were shown last.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// By name; with the time for the next.
    local: BTreeMap<String, (Pair, Timestamp)>,
    /// The names of last time; none asks to look again.
    names: Option<BTreeSet<String>>,
    /// Why none can be made, as it was said.
    said: Option<String>,
    /// What a server of certificates looks for now, and who waits until it is shown.
    proof: Option<(Proof, Option<oneshot::Sender<()>>)>,
    /// A server is being asked.
    pub(super) asking: bool,
    /// The contact that a server was not told of, by its directory, and until when that is not tried again.
    pub(super) contact_refused: Option<(Directory, i64)>,
    /// When it was looked last whether one is to be.
    looked: Option<Instant>,
}

/// Between two looks for certificates that are due, while nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Shown {
    /// Shows a proof instead of the one before.
    pub(super) fn prove(&mut self, proof: Option<moat_certs::Shown>) {
        self.proof = proof.map(|(proof, done)| (proof, Some(done)));
        self.names = None;
    }

    /// Whether it was not looked just now which certificates are due.
    pub(super) fn is_time_to_ask(&mut self) -> bool {
        let is_time = self.names.is_none() || self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if is_time {
            self.looked = Some(Instant::now());
        }
        is_time
    }

    /// What a server of certificates is answered.
    pub(crate) fn proofs(&self) -> BTreeMap<String, String> {
        self.proof.iter().map(|(proof, _)| (proof.token.clone(), proof.answer.clone())).collect()
    }

    /// Tells who waits for it that what is to be shown is shown.
    pub(super) fn proofs_hold(&mut self) {
        if let Some(done) = self.proof.as_mut().and_then(|(_, done)| done.take()) {
            // Who asked may be gone.
            let _ = done.send(());
        }
    }
}

/// The public names of a service, each with the one that it sends clients to; its sub-domain first.
pub(crate) fn public_names(service: &Service) -> Vec<(String, Option<String>)> {
    if !service.kind.is_public() {
        return Vec::new();
    }
    let own = (!service.public.no_subdomain).then(|| (subdomain(service), None));
    own.into_iter().chain(service.public.domains.iter().map(|domain| (domain.name.clone(), domain.moved_to.clone()))).collect()
}

pub(super) fn subdomain(service: &Service) -> String {
    format!("{}.{DOMAIN}", service.slug)
}

/// The host name that health checks ask for: a custom domain, else the sub-domain; the bare name of what is not public.
pub(crate) fn host_name(service: &Service) -> String {
    if !service.kind.is_public() {
        return service.slug.to_string();
    }
    let custom = service.public.domains.iter().find(|domain| domain.moved_to.is_none() && !domain.name.starts_with('*'));
    custom.map_or_else(|| subdomain(service), |domain| domain.name.clone())
}

/// Whether Moat's own authority vouches for a name.
pub(super) fn is_local(name: &str) -> bool {
    name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'))
}

/// Certificates by each of their names.
pub(super) struct Given<'a>(HashMap<&'a str, &'a StoredCertificate>);

impl<'a> Given<'a> {
    /// The one that is shown for a name: one for the very name before one for all of its kind.
    pub(super) fn find(&self, name: &str) -> Option<&'a StoredCertificate> {
        let of_its_kind = || self.0.get(format!("*.{}", name.split_once('.')?.1).as_str());
        self.0.get(name).or_else(of_its_kind).copied()
    }
}

impl Core {
    pub(super) fn names(&self) -> BTreeMap<String, (Slug, Option<String>)> {
        let all = self.desired.services.values();
        all.flat_map(|service| public_names(service).into_iter().map(|(name, to)| (name, (service.slug.clone(), to)))).collect()
    }

    /// Gives the port of HTTPS that clients of a name without TLS are sent to.
    pub(crate) fn to_https(&self) -> impl Fn(&str) -> Option<u16> + '_ {
        let redirects = !self.durable.public.no_https_redirect;
        let by_https = self.by_https();
        move |name| by_https(name).filter(|_| redirects)
    }

    /// Where HTTPS is listened for once a request is accepted.
    pub(super) fn https_door(&self, up: &UpRequest) -> Option<String> {
        match up.listen_tls.as_deref() {
            Some(NO_HTTPS) => None,
            Some(address) => Some(address.to_owned()),
            None => self.https_as_before(),
        }
    }

    /// Gives the port of HTTPS where it is spoken by a certificate of a name.
    pub(super) fn by_https(&self) -> impl Fn(&str) -> Option<u16> + '_ {
        let listening = self.dataplane.listening_https();
        let there = listening.map(|address| (address.port(), self.given()));
        move |name| {
            let (port, given) = there.as_ref()?;
            (self.shown.local.contains_key(name) || given.find(name).is_some()).then_some(*port)
        }
    }

    /// The certificates that people and servers gave.
    pub(super) fn given(&self) -> Given<'_> {
        let all = self.durable.certificates.values();
        Given(all.flat_map(|stored| stored.names.iter().map(move |name| (name.as_str(), stored))).collect())
    }

    /// Has the data plane show the certificates that the public names of now have.
    pub(crate) fn show_certificates(&mut self) {
        if self.dataplane.listening_https().is_none() && self.durable.public.doors() == Doors::default() {
            return;
        }
        let now = self.engine.now();
        // Clients that ask for no name get that of `localhost`.
        let names: BTreeSet<String> = self.names().into_keys().chain(self.database_names()).chain([DOMAIN.to_owned()]).collect();
        let is_due = self.shown.local.values().any(|(_, renew)| *renew <= now);
        if self.shown.names.as_ref() == Some(&names) && !is_due {
            return;
        }
        self.shown.local.retain(|name, (_, renew)| names.contains(name) && *renew > now);
        for name in names.iter().filter(|name| is_local(name)) {
            if !self.shown.local.contains_key(name)
                && let Err(error) = self.make_local(name, now)
            {
                let text = format!("`{name}` has no certificate: {}", crate::chain(&error));
                if self.shown.said.replace(text.clone()).as_ref() != Some(&text) {
                    self.problem(None, text);
                }
            }
        }
        let given = self.given();
        let local = self.shown.local.iter().filter(|(name, _)| given.find(name).is_none());
        let local = local.map(|(name, (pair, _))| named(vec![name.clone()], pair));
        let stored = self.durable.certificates.values().map(|stored| named(stored.names.clone(), &stored.pair));
        let shown = local.chain(stored).collect();
        let proof = self.shown.proof.as_ref().and_then(|(proof, _)| Some(named(vec![proof.name.clone()], proof.certificate.as_ref()?)));
        self.dataplane.show(CertificateSet { shown, proofs: proof.into_iter().collect() });
        self.shown.names = Some(names);
    }

    fn make_local(&mut self, name: &str, now: Timestamp) -> Result<(), AuthorityError> {
        let made = self.local_authority(now)?.issue(name, now)?;
        self.shown.local.insert(name.to_owned(), made);
        Ok(())
    }

    /// The authority of this machine; made when it is needed first.
    fn local_authority(&mut self, now: Timestamp) -> Result<Authority, AuthorityError> {
        if let Some(authority) = &self.durable.signing.authority {
            return Ok(authority.clone());
        }
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "this machine".to_owned());
        let authority = Authority::make(&machine, now)?;
        self.durable.signing.authority = Some(authority.clone());
        self.save();
        Ok(authority)
    }

    /// Where people find a service. `by_https`: what [`Self::by_https`] gives.
    pub(super) fn public_url(&self, service: &Service, by_https: impl Fn(&str) -> Option<u16>) -> String {
        let name = public_names(service).into_iter().next().map_or_else(|| subdomain(service), |(name, _)| name);
        if let Some(port) = by_https(&name) {
            return if port == 443 { format!("https://{name}") } else { format!("https://{name}:{port}") };
        }
        let port = self.dataplane.listening().map_or(80, |address| address.port());
        if port == 80 { format!("http://{name}") } else { format!("http://{name}:{port}") }
    }

    /// Changes settings of the ingress, all or none, and shows them.
    pub(super) async fn ingress(&mut self, set: &[(String, String)], reply: &Reply) {
        let mut settings = self.durable.public.clone();
        for (key, value) in set {
            let key = match self.own_limit(key, value) {
                Ok(key) => key,
                Err(failure) => return end(reply, Some(failure)),
            };
            if let Err((message, hint)) = settings.set(&key, value) {
                return end(reply, Some(Failure { message, hint: Some(hint), exit_code: 2 }));
            }
        }
        if settings != self.durable.public {
            // While nothing is served, that waits for the first `up`.
            if self.dataplane.is_serving() && settings.doors() != self.durable.public.doors() {
                if let Err(failure) = self.dataplane.listen_databases(settings.doors()).await {
                    return end(reply, Some(failure));
                }
                if let Err(error) = self.dataplane.ensure().await {
                    return end(reply, Some(Failure { message: crate::chain(&error), hint: None, exit_code: 3 }));
                }
            }
            self.durable.public = settings;
            self.open_databases();
            self.certificates_changed();
        }
        let _ = reply.send(Event::Ingress { settings: self.durable.public.rows() });
        end(reply, None);
    }

    /// Has another process serve instead of the one that does.
    pub(super) async fn restart_ingress(&mut self, reply: &Reply) {
        if !self.dataplane.is_serving() {
            let hint = "it begins with the first `moat up`".to_owned();
            return end(reply, Some(Failure::refused("the ingress does not serve", Some(hint))));
        }
        let failure = |error| Failure { message: crate::chain(&error), hint: Some("the one that served goes on".to_owned()), exit_code: 3 };
        let outcome = self.dataplane.replace().await;
        let _ = reply.send(Event::Ingress { settings: self.durable.public.rows() });
        end(reply, outcome.err().map(failure));
    }

    /// A setting with the service in it by its slug; refused where there is none that is public. What was set of one that is gone can be
    /// taken back.
    fn own_limit(&self, key: &str, value: &str) -> Result<String, Failure> {
        let Some(name) = key.strip_prefix(OWN_LIMIT).filter(|_| value != "default") else { return Ok(key.to_owned()) };
        let slug = self.find(name)?;
        match self.desired.services.get(&slug).map(|service| service.kind) {
            Some(kind) if !kind.is_public() => {
                Err(Failure::refused(format!("`{slug}` is a {}: clients don't ask it", kind.phrase()), None))
            }
            Some(_) | None => Ok(format!("{OWN_LIMIT}{slug}")),
        }
    }

    pub(super) fn authority(&mut self, reply: &Reply) {
        match self.local_authority(self.engine.now()) {
            Ok(authority) => {
                let _ = reply.send(Event::Authority { certificate: authority.certificate().to_owned() });
                end(reply, None);
            }
            Err(error) => end(reply, Some(Failure { message: crate::chain(&error), hint: None, exit_code: 3 })),
        }
    }

    pub(super) fn certificate(&mut self, verb: CertificateVerb, reply: &Reply) {
        let outcome = match verb {
            CertificateVerb::List => Ok(()),
            CertificateVerb::Add { names, chain, key } => self.add_certificate(&names, chain, key),
            CertificateVerb::Remove { name } => self.remove_certificate(&name),
        };
        if let Err(failure) = outcome {
            return end(reply, Some(failure));
        }
        let row = |names: Vec<String>, source: &str, chain: &str| {
            let facts = Facts::of(chain).ok()?;
            Some(CertificateRow { names, source: source.to_owned(), issuer: facts.issuer, until: facts.until.to_string() })
        };
        let stored = self.durable.certificates.values();
        let stored = stored.filter_map(|stored| row(stored.names.clone(), stored.source(), &stored.pair.chain));
        let given = self.given();
        let local = self.shown.local.iter().filter(|(name, _)| given.find(name).is_none());
        let local = local.filter_map(|(name, (pair, _))| row(vec![name.clone()], "local", &pair.chain));
        let _ = reply.send(Event::Certificates { certificates: stored.chain(local).collect() });
        end(reply, None);
    }

    fn add_certificate(&mut self, names: &[String], chain: String, key: Secret) -> Result<(), Failure> {
        let refused = |message: String, hint: &str| Failure { message, hint: Some(hint.to_owned()), exit_code: 2 };
        let hint = "give a PEM file with the certificate and those that signed it, and one with its private key";
        let facts = Facts::of(&chain).map_err(|error| refused(error.to_string(), hint))?;
        moat_ingress::Certificate::from_pem(&chain, key.expose()).map_err(|error| refused(crate::chain(&error), hint))?;
        let names: Vec<String> =
            if names.is_empty() { facts.names.clone() } else { names.iter().map(|name| name.to_ascii_lowercase()).collect() };
        if let Some(other) = names.iter().find(|name| !facts.covers(name)) {
            return Err(refused(format!("the certificate is not for `{other}`"), &format!("it is for {}", facts.names.join(", "))));
        }
        let Some(first) = names.first().cloned() else {
            return Err(refused("the certificate is for no host name".to_owned(), "browsers look for names in it (subjectAltName)"));
        };
        if facts.until <= self.engine.now() {
            return Err(refused(format!("the certificate ended at {}", facts.until), "give one that still holds"));
        }
        for stored in self.durable.certificates.values_mut() {
            stored.names.retain(|name| !names.contains(name));
        }
        self.durable.certificates.retain(|_, stored| !stored.names.is_empty());
        self.durable.certificates.insert(first, StoredCertificate { names, pair: Pair { chain, key }, renew: None });
        self.certificates_changed();
        Ok(())
    }

    fn remove_certificate(&mut self, name: &str) -> Result<(), Failure> {
        let name = name.to_ascii_lowercase();
        let Some(key) = self.durable.certificates.iter().find(|(_, stored)| stored.names.contains(&name)).map(|(key, _)| key.clone())
        else {
            return Err(Failure::refused(
                format!("nobody gave a certificate for `{name}`"),
                Some("`moat cert list` shows them".to_owned()),
            ));
        };
        self.durable.certificates.remove(&key);
        self.certificates_changed();
        Ok(())
    }

    pub(super) fn certificates_changed(&mut self) {
        self.save();
        self.shown.names = None;
    }

    /// Says of each custom domain what DNS must say and what it says.
    pub(super) fn domains(&self, reply: Reply) {
        let names = self.names().into_iter().filter(|(name, _)| !is_local(name));
        let given = self.given();
        let rows: Vec<DomainRow> = names
            .map(|(name, (service, moved_to))| {
                let certificate = given.find(&name).map(|stored| stored.source().to_owned());
                let problem = self.durable.asked.get(&name).and_then(|asked| asked.why.clone());
                let (found, wanted) = (Vec::new(), Vec::new());
                DomainRow { name, service, moved_to, certificate, problem, found, wanted, error: None, good: false }
            })
            .collect();
        let network = self.engine.linux().map(|engine| engine.network().clone());
        let resolvers = self.dataplane.resolvers();
        let said = self.durable.public.public_addresses.clone();
        tokio::spawn(async move {
            let own = match &network {
                Some(network) => network.outward_addresses().await.unwrap_or_default(),
                None => BTreeSet::new(),
            };
            let Reached { good, wanted, hint } = reached(&said, own);
            let mut answered = Vec::new();
            for mut row in rows {
                // Any name of a wildcard does.
                let asked = row.name.strip_prefix("*.").map_or_else(|| row.name.clone(), |rest| format!("moat.{rest}"));
                row.wanted = wanted.iter().map(ToString::to_string).collect();
                match moat_dns::lookup(&resolvers, &asked).await {
                    Ok(found) => {
                        row.good = found.iter().any(|address| good.contains(address));
                        row.found = found.iter().map(ToString::to_string).collect();
                    }
                    Err(error) => row.error = Some(crate::chain(&error)),
                }
                answered.push(row);
            }
            let hint = hint.filter(|_| answered.iter().any(|row| !row.good));
            let _ = reply.send(Event::Domains(Domains { domains: answered, hint }));
            end(&reply, None);
        });
    }
}

fn named(names: Vec<String>, pair: &Pair) -> NamedCertificate {
    NamedCertificate { names, chain: pair.chain.clone(), key: pair.key.clone() }
}

/// Where clients get to this machine.
#[derive(Debug, PartialEq, Eq)]
struct Reached {
    /// A name that has one of these leads here.
    good: BTreeSet<IpAddr>,
    /// What DNS should say, any of it; empty where that is not known here.
    wanted: BTreeSet<IpAddr>,
    /// What people should say about it.
    hint: Option<String>,
}

/// `said`: what people have set; `own`: the machine's addresses by which others may come to it.
fn reached(said: &[IpAddr], own: BTreeSet<IpAddr>) -> Reached {
    if !said.is_empty() {
        let said: BTreeSet<IpAddr> = said.iter().copied().collect();
        return Reached { good: said.clone(), wanted: said, hint: None };
    }
    let wanted: BTreeSet<IpAddr> = own.iter().copied().filter(|address| !moat_dns::is_private(*address)).collect();
    let private: Vec<String> = own.difference(&wanted).map(ToString::to_string).collect();
    let what = match private.as_slice() {
        [] if own.is_empty() => Some("this machine has no address of its own".to_owned()),
        // IPv6 is hardly ever translated: a machine may have a public address of it beside.
        [_, ..] if !wanted.iter().any(IpAddr::is_ipv4) => Some(format!("this machine has private addresses ({})", private.join(", "))),
        _ => None,
    };
    let fix = "where clients come by another, which a router or a cloud passes on to it, say `moat ingress public-address=ADDRESS`";
    Reached { good: own, wanted, hint: what.map(|what| format!("{what}: {fix}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_clients_get_to_a_machine() {
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        for (own, wanted, hint) in [
            (&["203.0.113.7", "10.0.0.5"][..], &["203.0.113.7"][..], None),
            (&["203.0.113.7", "fd00::5"], &["203.0.113.7"], None),
            (&["2a00:1450::6"], &["2a00:1450::6"], None),
            (&["172.31.5.6"], &[], Some("private addresses (172.31.5.6)")),
            (&["172.31.5.6", "2a00:1450::6"], &["2a00:1450::6"], Some("private addresses (172.31.5.6)")),
            (&["100.64.0.5", "fd00::5"], &[], Some("private addresses (100.64.0.5, fd00::5)")),
            (&[], &[], Some("no address of its own")),
        ] {
            let got = reached(&[], set(own));
            assert_eq!((&got.good, &got.wanted), (&set(own), &set(wanted)), "{own:?}");
            assert_eq!(got.hint.is_some(), hint.is_some());
            assert!(hint.is_none_or(|hint| got.hint.as_ref().is_some_and(|text| text.contains(hint) && text.contains("public-address="))));
        }
        let said = ["198.51.100.1".parse().unwrap()];
        let got = reached(&said, set(&["172.31.5.6"]));
        assert_eq!(got, Reached { good: set(&["198.51.100.1"]), wanted: set(&["198.51.100.1"]), hint: None });
    }
}
