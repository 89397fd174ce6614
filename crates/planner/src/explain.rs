//! A verdict in words, and peers as people write them.

use crate::reach::verdict;
use moat_model::state::Public;
use moat_model::{DenyReason, DesiredState, Egress, Endpoint, Peer, Proto, RuleId, Service, ServiceKind, Slug, Verdict};
use serde::Serialize;

/// A verdict and why, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Who opens the flow.
    pub from: Peer,
    /// To whom.
    pub to: Peer,
    /// On which port; none is any.
    pub port: Option<Endpoint>,
    /// What is so.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The reason alone, a fragment: `both are in …`.
    pub why: String,
    /// One line: `allow: mailer → catalog:8080/tcp by same-network: both are in …`.
    pub sentence: String,
    /// What to know or to do about it, a fragment each.
    pub hints: Vec<String>,
}

/// Says whether `from` may open a flow to `to`, by which rule or for what reason.
pub fn explain(state: &DesiredState, from: &Peer, to: &Peer, port: Option<Endpoint>) -> Explanation {
    let verdict = verdict(state, from, to, port);
    let target = match port {
        Some(endpoint) => format!("{to}:{}/{}", endpoint.port, endpoint.proto),
        None => to.to_string(),
    };
    let scene = Scene { state, from, to, source: service_of(state, from), target: service_of(state, to), port };
    let (head, why, hints) = match verdict {
        Verdict::Allow { by } => (format!("allow: {from} → {target} by {}", rule_word(by)), scene.why_allowed(by), scene.allow_hints(by)),
        Verdict::Deny { because } => {
            (format!("deny: {from} → {target} by {}", reason_word(because)), scene.why_denied(because), scene.deny_hints(because))
        }
    };
    let sentence = format!("{head}: {why}");
    Explanation { from: from.clone(), to: to.clone(), port, verdict, why, sentence, hints }
}

fn service_of<'a>(state: &'a DesiredState, peer: &Peer) -> Option<&'a Service> {
    match peer {
        Peer::Service(slug) | Peer::Build(slug) => state.services.get(slug),
        Peer::Internet | Peer::Ingress | Peer::Host => None,
    }
}

/// The word of a rule, as JSON and the log have it.
pub const fn rule_word(rule: RuleId) -> &'static str {
    match rule {
        RuleId::SameNetwork => "same-network",
        RuleId::SameEnvironment => "same-environment",
        RuleId::AllowFrom => "allow-from",
        RuleId::BuildToDatastore => "build-to-datastore",
        RuleId::WebIngress => "web-ingress",
        RuleId::PublicWeb => "public-web",
        RuleId::PublicSite => "public-site",
        RuleId::PublicListener => "public-listener",
        RuleId::DatabaseIngress => "database-ingress",
        RuleId::PublicDatabase => "public-database",
        RuleId::DefaultEgress => "default-egress",
        RuleId::EgressRange => "egress-range",
    }
}

/// The word of a reason, as JSON and the log have it.
pub const fn reason_word(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::UnknownPeer => "unknown-peer",
        DenyReason::ReceivesNothing => "receives-nothing",
        DenyReason::SendsNothing => "sends-nothing",
        DenyReason::OtherNetwork => "other-network",
        DenyReason::IsolatedEnvironment => "isolated-environment",
        DenyReason::NotInAllowFrom => "not-in-allow-from",
        DenyReason::ReservedPort => "reserved-port",
        DenyReason::NotPublic => "not-public",
        DenyReason::NotHttpPort => "not-http-port",
        DenyReason::HostIsOutside => "host-is-outside",
        DenyReason::NeverTheHost => "never-the-host",
        DenyReason::EgressClosed => "egress-closed",
        DenyReason::NeverPrivateEgress => "never-private-egress",
        DenyReason::BuildReachesDatastoresOnly => "build-reaches-datastores-only",
        DenyReason::NotOnTheNetwork => "not-on-the-network",
    }
}

struct Scene<'a> {
    state: &'a DesiredState,
    from: &'a Peer,
    to: &'a Peer,
    source: Option<&'a Service>,
    target: Option<&'a Service>,
    port: Option<Endpoint>,
}

impl Scene<'_> {
    fn why_allowed(&self, rule: RuleId) -> String {
        let region = self.target.or(self.source).map_or("", |s| s.region.as_str());
        let to = self.to;
        match rule {
            RuleId::SameNetwork if self.from == to => format!("instances of one service are in one network, {region}"),
            RuleId::SameNetwork => format!("both are in network {region} and neither environment is closed"),
            RuleId::SameEnvironment => {
                format!("both are in {}, which is closed to everything else", self.target.map_or_else(String::new, environment))
            }
            RuleId::AllowFrom => format!("`x-moat.allowFrom` of {to} names it"),
            RuleId::BuildToDatastore => format!("builds and pre-deploy commands reach the datastores of their own network, {region}"),
            RuleId::WebIngress => "a web service receives HTTP from the ingress".to_owned(),
            RuleId::PublicWeb => "a web service receives HTTP from anywhere, through the ingress".to_owned(),
            RuleId::PublicSite => "the ingress serves a static site's files to everyone".to_owned(),
            RuleId::PublicListener => "the ingress listens for everyone who reaches its address".to_owned(),
            RuleId::DatabaseIngress => "it is open to clients from outside, who come through the ingress by TLS".to_owned(),
            RuleId::PublicDatabase => {
                let listed = self.target.and_then(|service| service.public.allow.as_ref());
                let listed: Vec<String> = listed.into_iter().flatten().map(ToString::to_string).collect();
                let asked = self.target.is_some_and(|service| service.kind == ServiceKind::KeyValue);
                let way = if asked { "TLS and its password" } else { "TLS" };
                format!("its `ipAllowList` names {}, who come through the ingress by {way}, and this machine lets them", listed.join(", "))
            }
            RuleId::DefaultEgress => "what is not private, link-local, metadata or this machine is open".to_owned(),
            RuleId::EgressRange => {
                let ranges = match self.source.map(|s| &s.egress) {
                    Some(Egress::Ranges(ranges)) => ranges.iter().map(ToString::to_string).collect(),
                    Some(Egress::None | Egress::Internet) | None => Vec::new(),
                };
                format!("`x-moat.egress` lists {}, and nothing else is open", ranges.join(", "))
            }
        }
    }

    fn why_denied(&self, reason: DenyReason) -> String {
        let (from, to) = (self.from, self.to);
        let region = |s: Option<&Service>| s.map_or_else(String::new, |s| s.region.clone());
        match reason {
            DenyReason::UnknownPeer => {
                let known = |peer: &Peer| crate::reach::End::of(self.state, peer).is_some();
                let unknown = if known(from) { to } else { from };
                format!("there is no {unknown} here")
            }
            DenyReason::ReceivesNothing => match (to, self.target) {
                (Peer::Service(_), Some(service)) => format!("{to} is a {}, which receives nothing", service.kind.phrase()),
                _ => format!("{to} receives nothing"),
            },
            DenyReason::SendsNothing => {
                format!("{from} is a {}, which opens no connections", self.source.map_or("datastore", |s| s.kind.phrase()))
            }
            DenyReason::OtherNetwork => {
                format!("{from} is in network {}, {to} in {}, and nothing crosses networks", region(self.source), region(self.target))
            }
            DenyReason::IsolatedEnvironment => {
                let closed = [self.source, self.target].into_iter().flatten().find(|s| s.environment.as_ref().is_some_and(|e| e.isolated));
                format!(
                    "{} is closed against everything outside it",
                    closed.map_or_else(|| "one of their environments".to_owned(), environment)
                )
            }
            DenyReason::NotInAllowFrom => {
                let names = self
                    .target
                    .and_then(|s| s.allow_from.as_ref())
                    .map(|names| names.iter().map(Slug::as_str).collect::<Vec<_>>().join(", "))
                    .unwrap_or_default();
                if names.is_empty() {
                    format!("`x-moat.allowFrom` of {to} names nobody")
                } else {
                    format!("`x-moat.allowFrom` of {to} names only {names}")
                }
            }
            DenyReason::ReservedPort => {
                let port = self.port.map(|p| p.port).or(self.target.and_then(|s| s.port)).unwrap_or_default();
                format!("port {port} is reserved on every private network")
            }
            DenyReason::NotPublic => match self.target {
                Some(Service { public: Public { open: true, .. }, port: Some(port), .. }) => {
                    format!("from outside only port {port}/tcp of {to} is open")
                }
                Some(service) => format!("{to} is a {}, which has no public address", service.kind.phrase()),
                None => format!("{from} opens connections to web services only"),
            },
            DenyReason::NotHttpPort => match self.target.and_then(|s| s.port) {
                Some(http) => format!("from outside only the HTTP port of {to}, {http}/tcp, is open"),
                None => format!("{to} has no HTTP port"),
            },
            DenyReason::HostIsOutside => "processes of this machine are outside every private network".to_owned(),
            DenyReason::NeverTheHost => "nothing on a private network reaches the machine it runs on".to_owned(),
            DenyReason::EgressClosed => format!("`x-moat.egress` of {from} is `none`"),
            DenyReason::NeverPrivateEgress => "private, link-local and metadata addresses are never reached".to_owned(),
            DenyReason::BuildReachesDatastoresOnly => {
                format!(
                    "builds and pre-deploy commands reach datastores only, and {to} is a {}",
                    self.target.map_or("service", |s| s.kind.phrase())
                )
            }
            DenyReason::NotOnTheNetwork => match self.target {
                Some(service) if service.kind == ServiceKind::Static => {
                    format!("{to} is a static site: files that the ingress serves, with no address on any private network")
                }
                Some(_) | None => format!("{from} belongs to a static site, which is on no private network: it reaches the internet only"),
            },
        }
    }

    fn allow_hints(&self, rule: RuleId) -> Vec<String> {
        let mut hints = Vec::new();
        match rule {
            RuleId::SameNetwork | RuleId::SameEnvironment | RuleId::AllowFrom | RuleId::BuildToDatastore => {
                if let (Some(target), Some(asked)) = (self.target, self.port)
                    && let Some(usual) = target.port
                    && asked.port != usual
                {
                    hints.push(format!("the policy is open on every port; `{}` is expected to listen on {usual}", target.slug));
                }
                if rule == RuleId::SameNetwork && self.port.is_none() {
                    hints.push("write `x-moat: { allowFrom: […] }` at the receiver to narrow this".to_owned());
                }
            }
            RuleId::PublicWeb | RuleId::PublicSite => {
                hints.push("only by HTTP and its host name; no packet from outside enters the private network".to_owned());
            }
            RuleId::DefaultEgress | RuleId::EgressRange => {
                hints.push("never to private, link-local or metadata addresses, nor to this machine".to_owned());
            }
            RuleId::PublicDatabase => {
                let is_keyvalue = self.target.is_some_and(|service| service.kind == ServiceKind::KeyValue);
                let (setting, all) = if is_keyvalue { ("keyvalue", "Key Values") } else { ("postgres", "databases") };
                hints.push(format!("any other address is refused; `moat ingress {setting}=off` closes all {all}"));
            }
            RuleId::WebIngress | RuleId::DatabaseIngress | RuleId::PublicListener => {}
        }
        hints
    }

    fn deny_hints(&self, reason: DenyReason) -> Vec<String> {
        let to = self.to;
        match reason {
            DenyReason::UnknownPeer => {
                let names: Vec<&str> = self.state.services.keys().map(Slug::as_str).collect();
                let unknown = if crate::reach::End::of(self.state, self.from).is_some() { to } else { self.from };
                let wanted = unknown.to_string();
                match crate::names::closest(&wanted, names.iter().copied()) {
                    Some(name) => vec![format!("did you mean `{name}`?")],
                    None => vec!["`moat ps` lists the services".to_owned()],
                }
            }
            DenyReason::ReceivesNothing if self.target.is_some_and(|s| s.kind == ServiceKind::Worker) && matches!(to, Peer::Service(_)) => {
                vec!["make it a private service (`type: pserv`) if it should receive traffic".to_owned()]
            }
            DenyReason::OtherNetwork => vec!["a network is one region: give both the same `region`".to_owned()],
            DenyReason::IsolatedEnvironment => {
                vec!["`networking.isolation: disabled` opens the environment; a public URL works in any case".to_owned()]
            }
            DenyReason::NotInAllowFrom => vec![format!("add `{}` to `x-moat.allowFrom` of `{to}`", self.from)],
            DenyReason::ReservedPort => vec!["listen on another port".to_owned()],
            DenyReason::NotPublic if self.target.is_some_and(|s| s.kind == ServiceKind::Pserv) => {
                vec!["make it a web service (`type: web`) if it should be public".to_owned()]
            }
            DenyReason::NotPublic if self.target.is_some_and(|s| s.kind.is_datastore() && !s.public.open) => {
                let setting = if self.target.is_some_and(|s| s.kind == ServiceKind::KeyValue) { "keyvalue" } else { "postgres" };
                let way = format!("`moat ingress {setting}=ADDRESS:PORT`");
                vec![format!("name clients in its `ipAllowList`, and say {way}, if they should come from outside")]
            }
            DenyReason::NotHttpPort => vec!["set `PORT` to the port that serves HTTP".to_owned()],
            DenyReason::HostIsOutside if self.target.is_some_and(|s| s.kind.is_public()) && matches!(to, Peer::Service(_)) => {
                vec!["its public URL works from here as from anywhere".to_owned()]
            }
            DenyReason::HostIsOutside if matches!(to, Peer::Service(_)) => vec![format!("`moat exec {to} -- …` runs a command inside")],
            DenyReason::EgressClosed => vec!["write `internet` or a list of ranges instead".to_owned()],
            DenyReason::BuildReachesDatastoresOnly => vec!["do it when the service starts".to_owned()],
            DenyReason::NotOnTheNetwork if self.port.is_some() && *self.from == Peer::Internet => {
                vec!["ask without a port: its public URL works from anywhere".to_owned()]
            }
            DenyReason::ReceivesNothing
            | DenyReason::NotOnTheNetwork
            | DenyReason::SendsNothing
            | DenyReason::NotPublic
            | DenyReason::HostIsOutside
            | DenyReason::NeverTheHost
            | DenyReason::NeverPrivateEgress => Vec::new(),
        }
    }
}

fn environment(service: &Service) -> String {
    service.environment.as_ref().map_or_else(|| "no environment".to_owned(), |e| format!("environment {}/{}", e.project, e.name))
}

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no peer: {why}; write `NAME`, `NAME:PORT`, `NAME:PORT/udp`, `internet`, `ingress`, `host` or `build:NAME`")]
pub struct PeerError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Reads a peer as people write it: `catalog`, `catalog:8080`, `catalog:53/udp`, `internet`, `ingress`, `host`,
/// `build:catalog` (or, as it is printed, `build of catalog`).
pub fn parse_peer(text: &str) -> Result<(Peer, Option<Endpoint>), PeerError> {
    let error = |why| PeerError { text: text.to_owned(), why };
    let trimmed = text.trim();
    let build = trimmed.strip_prefix("build of ").or_else(|| {
        let rest = trimmed.strip_prefix("build:")?;
        // `build:8080` is port 8080 of a service that is called `build`.
        (!rest.starts_with(|c: char| c.is_ascii_digit()) || rest.contains(':')).then_some(rest)
    });
    let rest = build.unwrap_or(trimmed);
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => {
            (name, Some(endpoint(port).ok_or_else(|| error("a port is 1 to 65535, with `/tcp` or `/udp` after it or nothing"))?))
        }
        None => (rest, None),
    };
    let slug = || Slug::new(name.to_ascii_lowercase()).map_err(|e| error(e.why));
    let peer = match (build, name) {
        (Some(_), _) => Peer::Build(slug()?),
        (None, "internet") => Peer::Internet,
        (None, "ingress") => Peer::Ingress,
        (None, "host") => Peer::Host,
        (None, _) => Peer::Service(slug()?),
    };
    Ok((peer, port))
}

fn endpoint(text: &str) -> Option<Endpoint> {
    let (port, proto) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Proto::Tcp),
        Some((port, "udp")) => (port, Proto::Udp),
        Some(_) => return None,
    };
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    Some(Endpoint { proto, port })
}
