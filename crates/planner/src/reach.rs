//! Who reaches whom: one pure function, [`verdict`], and the matrix of all its answers.
//!
//! Everything else that speaks about reachability (the packet filter's policy, names that are answered, `explain`, the
//! linter, the probes) is made from it or held against it by a test. Invariant: deny is the absence of an allow, and an
//! unknown peer is denied.
//!
//! Cells of the internet mean "through the ingress by HTTP": no packet from outside reaches an address of the private
//! network. The HTTP port of a web service is [`Service::port`](moat_model::Service); whoever finds another one puts it there.

use moat_model::net::RESERVED_PORTS;
use moat_model::{DenyReason, DesiredState, Egress, Endpoint, Peer, Proto, RuleId, Service, ServiceKind, Verdict};
use serde::Serialize;

const fn allow(by: RuleId) -> Verdict {
    Verdict::Allow { by }
}

const fn deny(because: DenyReason) -> Verdict {
    Verdict::Deny { because }
}

/// Whether `from` may open a flow to `to`, and why. Without a port: whether there is any port it may open a flow to.
///
/// Total: peers that are not in the state are denied as [`DenyReason::UnknownPeer`]. Pairs that Moat has no say in
/// (the host to the internet) are denied as well: nothing here allows them.
pub fn verdict(state: &DesiredState, from: &Peer, to: &Peer, port: Option<Endpoint>) -> Verdict {
    match (End::of(state, from), End::of(state, to)) {
        (Some(from), Some(to)) => judge(from, to, port),
        (None, _) | (_, None) => deny(DenyReason::UnknownPeer),
    }
}

/// Whether a service has build and pre-deploy sandboxes.
pub fn has_builds(service: &Service) -> bool {
    service.workload.needs_release()
}

/// The services whose names `asker` is answered: those it may reach and that have an address.
pub fn visible<'a>(state: &'a DesiredState, asker: &Peer) -> impl Iterator<Item = &'a Service> + use<'a> {
    let asker = End::of(state, asker);
    state
        .services
        .values()
        .filter(move |service| service.vip.is_some() && asker.is_some_and(|asker| judge(asker, End::Service(service), None).is_allowed()))
}

/// A peer, looked up.
#[derive(Clone, Copy)]
pub(crate) enum End<'a> {
    Internet,
    Ingress,
    Host,
    Service(&'a Service),
    Build(&'a Service),
}

impl<'a> End<'a> {
    pub(crate) fn of(state: &'a DesiredState, peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Internet => Some(Self::Internet),
            Peer::Ingress => Some(Self::Ingress),
            Peer::Host => Some(Self::Host),
            Peer::Service(slug) => state.services.get(slug).map(Self::Service),
            Peer::Build(slug) => state.services.get(slug).filter(|s| has_builds(s)).map(Self::Build),
        }
    }
}

pub(crate) fn judge(from: End<'_>, to: End<'_>, port: Option<Endpoint>) -> Verdict {
    match (from, to) {
        (End::Host | End::Internet, End::Ingress) => allow(RuleId::PublicListener),
        (End::Host, End::Internet | End::Host | End::Service(_) | End::Build(_)) => deny(DenyReason::HostIsOutside),
        (End::Internet | End::Ingress, End::Internet | End::Host) | (End::Ingress, End::Ingress) => deny(DenyReason::NotPublic),
        (End::Internet, End::Service(to)) => from_outside(to, port, RuleId::PublicWeb),
        (End::Ingress, End::Service(to)) => from_outside(to, port, RuleId::WebIngress),
        (End::Service(from), _) if !from.kind.sends() => deny(DenyReason::SendsNothing),
        (End::Service(_) | End::Build(_), End::Host | End::Ingress) => deny(DenyReason::NeverTheHost),
        (End::Internet | End::Ingress | End::Service(_) | End::Build(_), End::Build(_)) => deny(DenyReason::ReceivesNothing),
        (End::Service(from), End::Internet) => match &from.egress {
            Egress::None => deny(DenyReason::EgressClosed),
            Egress::Internet => allow(RuleId::DefaultEgress),
            Egress::Ranges(_) => allow(RuleId::EgressRange),
        },
        // Packages have to come from somewhere: `x-moat.egress` narrows what instances open, not what builds do.
        (End::Build(_), End::Internet) => allow(RuleId::DefaultEgress),
        (End::Service(from), End::Service(to)) => private(from, to, port, false),
        (End::Build(from), End::Service(to)) => private(from, to, port, true),
    }
}

fn from_outside(to: &Service, port: Option<Endpoint>, rule: RuleId) -> Verdict {
    match to.kind {
        ServiceKind::Web => {}
        // Its files are the ingress' own to read: there is nothing to connect to, and no port.
        ServiceKind::Static if rule == RuleId::PublicWeb && port.is_none() => return allow(RuleId::PublicSite),
        ServiceKind::Static => return deny(DenyReason::NotOnTheNetwork),
        ServiceKind::Postgres | ServiceKind::KeyValue if to.public.open => return from_outside_to_database(to, port, rule),
        ServiceKind::Pserv | ServiceKind::KeyValue | ServiceKind::Postgres => return deny(DenyReason::NotPublic),
        ServiceKind::Worker | ServiceKind::Cron => return deny(DenyReason::ReceivesNothing),
    }
    let Some(http) = to.port else { return deny(DenyReason::NotHttpPort) };
    let wanted = port.unwrap_or(Endpoint { proto: Proto::Tcp, port: http });
    if RESERVED_PORTS.contains(&wanted.port) {
        deny(DenyReason::ReservedPort)
    } else if wanted == (Endpoint { proto: Proto::Tcp, port: http }) {
        allow(rule)
    } else {
        deny(DenyReason::NotHttpPort)
    }
}

/// A database or Key Value whose clients come through the ingress by its one port.
fn from_outside_to_database(to: &Service, port: Option<Endpoint>, rule: RuleId) -> Verdict {
    let own = to.port.map(|port| Endpoint { proto: Proto::Tcp, port });
    match own {
        Some(own) if port.is_none_or(|port| port == own) => {
            allow(if rule == RuleId::WebIngress { RuleId::DatabaseIngress } else { RuleId::PublicDatabase })
        }
        _ if port.is_some_and(|port| RESERVED_PORTS.contains(&port.port)) => deny(DenyReason::ReservedPort),
        _ => deny(DenyReason::NotPublic),
    }
}

fn private(from: &Service, to: &Service, port: Option<Endpoint>, build: bool) -> Verdict {
    if [from, to].iter().any(|end| end.kind == ServiceKind::Static) {
        return deny(DenyReason::NotOnTheNetwork);
    }
    if !to.kind.receives() {
        return deny(DenyReason::ReceivesNothing);
    }
    if from.network != to.network {
        return deny(DenyReason::OtherNetwork);
    }
    if build && !to.kind.is_datastore() {
        return deny(DenyReason::BuildReachesDatastoresOnly);
    }
    if from.zone != to.zone {
        return deny(DenyReason::IsolatedEnvironment);
    }
    if to.allow_from.as_ref().is_some_and(|allowed| !allowed.contains(&from.slug)) {
        return deny(DenyReason::NotInAllowFrom);
    }
    if port.is_some_and(|p| RESERVED_PORTS.contains(&p.port)) {
        return deny(DenyReason::ReservedPort);
    }
    if to.allow_from.is_some() {
        allow(RuleId::AllowFrom)
    } else if build {
        allow(RuleId::BuildToDatastore)
    } else if to.environment.as_ref().is_some_and(|e| e.isolated) {
        allow(RuleId::SameEnvironment)
    } else {
        allow(RuleId::SameNetwork)
    }
}

/// Every ordered pair of peers and what is so of it. No cell is missing, a peer and itself included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachMatrix {
    peers: Vec<Peer>,
    cells: Vec<Verdict>,
}

/// One cell, as it is printed and written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReachRow {
    /// Who opens the flow.
    pub from: Peer,
    /// To whom.
    pub to: Peer,
    /// What is so.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Every ordered pair of peers: the internet, the host, the ingress, the services by slug, then their builds.
pub fn reach(state: &DesiredState) -> ReachMatrix {
    let mut peers = vec![Peer::Internet, Peer::Host, Peer::Ingress];
    let mut ends = vec![End::Internet, End::Host, End::Ingress];
    for service in state.services.values() {
        peers.push(Peer::Service(service.slug.clone()));
        ends.push(End::Service(service));
    }
    for service in state.services.values().filter(|s| has_builds(s)) {
        peers.push(Peer::Build(service.slug.clone()));
        ends.push(End::Build(service));
    }
    let mut cells = Vec::with_capacity(ends.len() * ends.len());
    for from in &ends {
        cells.extend(ends.iter().map(|to| judge(*from, *to, None)));
    }
    ReachMatrix { peers, cells }
}

impl ReachMatrix {
    /// The peers, in the order of rows and columns.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// One cell; an unknown peer is denied.
    pub fn cell(&self, from: &Peer, to: &Peer) -> Verdict {
        let index = |peer: &Peer| self.peers.iter().position(|p| p == peer);
        match (index(from), index(to)) {
            (Some(from), Some(to)) => self.at(from, to),
            (None, _) | (_, None) => deny(DenyReason::UnknownPeer),
        }
    }

    /// The cell of the peers with these indices into [`peers`](Self::peers); past the end it is denied.
    pub fn at(&self, from: usize, to: usize) -> Verdict {
        let inside = from < self.peers.len() && to < self.peers.len();
        inside.then(|| self.cells.get(from * self.peers.len() + to)).flatten().copied().unwrap_or(deny(DenyReason::UnknownPeer))
    }

    /// All cells, row by row.
    pub fn rows(&self) -> impl Iterator<Item = ReachRow> + '_ {
        let width = self.peers.len();
        self.cells.iter().enumerate().map(move |(i, verdict)| ReachRow {
            from: self.peers[i / width].clone(),
            to: self.peers[i % width].clone(),
            verdict: *verdict,
        })
    }

    /// The whole matrix: `{"peers": ["internet", …], "cells": [{"from", "to", "allow": RULE}, {…, "deny": REASON}]}`.
    pub fn to_json(&self) -> serde_json::Value {
        let cell = |row: ReachRow| {
            let mut object = serde_json::Map::new();
            object.insert("from".to_owned(), row.from.to_string().into());
            object.insert("to".to_owned(), row.to.to_string().into());
            let (key, value) = match row.verdict {
                Verdict::Allow { by } => ("allow", crate::explain::rule_word(by)),
                Verdict::Deny { because } => ("deny", crate::explain::reason_word(because)),
            };
            object.insert(key.to_owned(), value.into());
            serde_json::Value::Object(object)
        };
        serde_json::json!({
            "peers": self.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "cells": self.rows().map(cell).collect::<Vec<_>>(),
        })
    }
}
