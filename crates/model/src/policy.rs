//! Who may talk to whom, and why: the words of the reachability matrix and the data the packet filter decides by.
//!
//! Invariant: deny is the absence of an allow. An unknown peer is denied, with a reason.

use crate::{AddressPair, Egress, InstanceId, LinkName, ServiceId, Slug, ZoneId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One end of a cell of the reachability matrix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Anything outside this machine, a LAN neighbour too.
    Internet,
    /// Moat's own HTTP proxy.
    Ingress,
    /// Other processes of this machine.
    Host,
    /// A service by its slug.
    Service(Slug),
    /// The build or pre-deploy sandbox of a service.
    Build(Slug),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet => f.pad("internet"),
            Self::Ingress => f.pad("ingress"),
            Self::Host => f.pad("host"),
            Self::Service(slug) => f.pad(slug.as_str()),
            Self::Build(slug) => f.pad(&format!("build of {slug}")),
        }
    }
}

/// The rule that allows a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleId {
    /// Both ends are in the same network, neither environment is closed against the other.
    SameNetwork,
    /// Both ends are in the same isolated environment.
    SameEnvironment,
    /// The target's `x-moat.allowFrom` names the source.
    AllowFrom,
    /// A build or pre-deploy sandbox reaches the datastores of its own network.
    BuildToDatastore,
    /// The ingress reaches the HTTP port of a web service.
    WebIngress,
    /// The internet reaches a web service through the ingress.
    PublicWeb,
    /// The internet reads the files of a static site, which the ingress serves.
    PublicSite,
    /// The internet reaches the ingress' listener.
    PublicListener,
    /// The ingress reaches the port of a database or Key Value that is open to clients from outside.
    DatabaseIngress,
    /// The internet reaches a database or Key Value through the ingress: the clients that its `ipAllowList` names.
    PublicDatabase,
    /// Services that send reach the internet.
    DefaultEgress,
    /// `x-moat.egress` lists the range.
    EgressRange,
}

/// Why a flow is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenyReason {
    /// No such peer.
    UnknownPeer,
    /// The target is a worker, a cron job, a job or a build: it receives nothing.
    ReceivesNothing,
    /// The source (a datastore) opens no flows.
    SendsNothing,
    /// The ends are in different networks (regions).
    OtherNetwork,
    /// An isolated environment's edge lies between the ends.
    IsolatedEnvironment,
    /// The target's `x-moat.allowFrom` does not name the source.
    NotInAllowFrom,
    /// The port is reserved on every private network.
    ReservedPort,
    /// From the internet or the ingress, and the target is not a web service.
    NotPublic,
    /// The ingress opens only the HTTP port of a web service.
    NotHttpPort,
    /// The host's processes are outside every private network.
    HostIsOutside,
    /// Services never reach the machine they run on.
    NeverTheHost,
    /// `x-moat.egress: none`, or the range is not listed.
    EgressClosed,
    /// Private, link-local and metadata addresses are never reached by egress.
    NeverPrivateEgress,
    /// Builds reach datastores only.
    BuildReachesDatastoresOnly,
    /// One end is a static site or its build: on no private network.
    NotOnTheNetwork,
}

/// A cell of the matrix: never a bool, never missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed by a rule.
    Allow {
        /// Which.
        by: RuleId,
    },
    /// Denied.
    Deny {
        /// Why.
        because: DenyReason,
    },
}

impl Verdict {
    /// Whether the flow is allowed.
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// One source on the private network, as the packet filter sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// The only link its packets may come from.
    pub link: LinkName,
    /// The only addresses they may carry.
    pub address: AddressPair,
    /// Its zone; `None` for what opens nothing on the private network (a datastore, a static site's build).
    pub zone: Option<ZoneId>,
    /// What it may open outside.
    pub egress: Egress,
    /// The service, for the names in logs.
    pub service: ServiceId,
}

/// Everything the packet filter decides by: a pure, complete, ordered description. The engine lowers the difference
/// between two of them to one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetPolicy {
    /// Live instances, receivers or not: anti-spoofing and zone by instance.
    pub sources: BTreeMap<InstanceId, SourceEntry>,
    /// Instance addresses that sources of a zone may open flows to (every port but the reserved ones).
    pub receivers: BTreeSet<(ZoneId, AddressPair)>,
    /// (source, target) instance addresses allowed one by one, for `allowFrom`; such targets are in no zone.
    pub pairs: BTreeSet<(AddressPair, AddressPair)>,
    /// Instance addresses and ports that the ingress may open flows to.
    pub ingress: BTreeSet<(AddressPair, u16)>,
    /// Service addresses and the ready instances behind each (possibly none: refused with a reset, unless it is held).
    #[serde(with = "as_list")]
    pub services: BTreeMap<AddressPair, BTreeSet<AddressPair>>,
    /// Service addresses whose next instance is about to come: while nobody is behind them, first packets are dropped instead
    /// of refused, so that clients send them again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held: BTreeSet<AddressPair>,
}

impl NetPolicy {
    /// What both allow: safe to apply before anything stops and before anything starts.
    ///
    /// A source that changes its zone or egress is left out, a service address keeps the instances behind it in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            sources: self
                .sources
                .iter()
                .filter(|(id, entry)| other.sources.get(*id) == Some(entry))
                .map(|(id, entry)| (id.clone(), entry.clone()))
                .collect(),
            receivers: self.receivers.intersection(&other.receivers).copied().collect(),
            pairs: self.pairs.intersection(&other.pairs).copied().collect(),
            ingress: self.ingress.intersection(&other.ingress).copied().collect(),
            services: self
                .services
                .iter()
                .filter_map(|(vip, a)| other.services.get(vip).map(|b| (*vip, a.intersection(b).copied().collect())))
                .collect(),
            held: self.held.intersection(&other.held).copied().collect(),
        }
    }
}

/// A map whose keys are no texts, as a list of (key, value): JSON has no other keys.
mod as_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Vec::<(K, V)>::deserialize(deserializer).map(|list| list.into_iter().collect())
    }
}
