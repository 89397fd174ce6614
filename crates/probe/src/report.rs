//! What the probes saw, held against the matrix.
//!
//! Main types: [`Report`], [`Row`]. Invariant: what could not be proved is never counted as agreement.

use moat_model::{Family, InstanceId, Peer, Proto, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// How a target was addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// The instance's own address.
    InstanceAddress,
    /// The service address.
    ServiceAddress,
    /// The instance's own address, by frames put on the uplink as a route of the host would do.
    Uplink,
    /// An address of the host.
    HostAddress,
    /// The gateway's address.
    Gateway,
    /// A cloud metadata or link-local address.
    Metadata,
    /// An address of the internet; the packet's time to live ends on this machine.
    Egress,
}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ProbeKind {
    /// A TCP connection or a UDP datagram.
    Flow {
        /// Protocol.
        proto: Proto,
        /// Family.
        family: Family,
        /// How the target was addressed.
        via: Via,
    },
    /// A DNS question.
    Name {
        /// What the question travelled by.
        transport: Proto,
        /// `A` for IPv4, `AAAA` for IPv6.
        family: Family,
        /// Whether the discovery name was asked for.
        discovery: bool,
    },
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |family: &Family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match self {
            Self::Flow { proto, family, via } => {
                let via = match via {
                    Via::InstanceAddress => "instance address",
                    Via::ServiceAddress => "service address",
                    Via::Uplink => "frames on the uplink",
                    Via::HostAddress => "host address",
                    Via::Gateway => "gateway address",
                    Via::Metadata => "metadata address",
                    Via::Egress => "egress",
                };
                write!(f, "{proto} by {via}, {}", version(family))
            }
            Self::Name { transport, family, discovery } => {
                let name = if *discovery { "discovery name" } else { "name" };
                write!(f, "{name} over {transport}, {}", version(family))
            }
        }
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "why")]
pub enum Observed {
    /// It arrived where it was meant to (or the name was answered).
    Reached,
    /// It left its source and did not arrive (or the name was denied).
    NotReached,
    /// Nothing can be said, and why.
    Unproven(String),
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Who tried.
    pub from: Peer,
    /// From inside which instance.
    pub from_instance: Option<InstanceId>,
    /// To whom.
    pub to: Peer,
    /// The instance that was meant; for a service address the one that answered.
    pub to_instance: Option<InstanceId>,
    /// What was tried.
    pub what: ProbeKind,
    /// The address that was tried, or the gateway's for a name.
    pub address: IpAddr,
    /// The port that was tried.
    pub port: u16,
    /// What the matrix says.
    pub expected: Verdict,
    /// What came of it.
    pub observed: Observed,
    /// More about a disagreement.
    pub detail: Option<String>,
    /// Whether both say the same.
    pub agrees: bool,
}

/// A proof that the probes themselves work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Control {
    /// What was tried.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// Something that is there and should not be, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Drift {
    /// The pair it concerns, when that is known.
    pub pair: Option<(Peer, Peer)>,
    /// What it is.
    pub what: String,
}

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Every attempt.
    pub rows: Vec<Row>,
    /// Every control.
    pub controls: Vec<Control>,
    /// Every difference from what should be.
    pub drift: Vec<Drift>,
    /// Packets and questions sent.
    pub probes: u64,
    /// How long it took.
    pub duration_ms: u64,
}

/// All attempts of one pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairSummary {
    /// Who tried.
    pub from: Peer,
    /// To whom.
    pub to: Peer,
    /// Attempts that should arrive, and how many of these did.
    pub allowed: (usize, usize),
    /// Attempts that should not arrive, and how many of these did not.
    pub denied: (usize, usize),
    /// Attempts of which nothing can be said.
    pub unproven: usize,
    /// Differences in the router or the host that concern the pair.
    pub drift: usize,
}

impl PairSummary {
    /// Whether everything is as it should be.
    pub const fn agrees(&self) -> bool {
        self.allowed.0 == self.allowed.1 && self.denied.0 == self.denied.1 && self.unproven == 0 && self.drift == 0
    }
}

impl Report {
    /// Whether everything was proved to be as it should be.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty()
            && self.rows.iter().all(|row| row.agrees)
            && self.controls.iter().all(|control| control.ok)
            && self.drift.is_empty()
    }

    /// The attempts that came out otherwise than the matrix says, or unproven.
    pub fn disagreements(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.agrees)
    }

    /// One line for each pair, ordered by pair.
    pub fn summary(&self) -> Vec<PairSummary> {
        let mut pairs: BTreeMap<(&Peer, &Peer), PairSummary> = BTreeMap::new();
        let empty = |from: &Peer, to: &Peer| PairSummary {
            from: from.clone(),
            to: to.clone(),
            allowed: (0, 0),
            denied: (0, 0),
            unproven: 0,
            drift: 0,
        };
        for row in &self.rows {
            let pair = pairs.entry((&row.from, &row.to)).or_insert_with(|| empty(&row.from, &row.to));
            let count = if row.expected.is_allowed() { &mut pair.allowed } else { &mut pair.denied };
            count.0 += 1;
            count.1 += usize::from(row.agrees);
            pair.unproven += usize::from(matches!(row.observed, Observed::Unproven(_)));
        }
        for (from, to) in self.drift.iter().filter_map(|drift| drift.pair.as_ref()) {
            pairs.entry((from, to)).or_insert_with(|| empty(from, to)).drift += 1;
        }
        pairs.into_values().collect()
    }
}
