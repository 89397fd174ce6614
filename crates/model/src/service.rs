//! What a service is.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The types of service that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// Public HTTP, receives and sends on the private network.
    Web,
    /// Private network only, receives and sends.
    Pserv,
    /// Sends only.
    Worker,
    /// Runs by a schedule, sends only.
    Cron,
    /// A Redis-compatible datastore, receives only.
    KeyValue,
    /// A PostgreSQL server, receives only. The only kind that is no entry of `services`: it comes from `databases`.
    Postgres,
    /// Files that the ingress serves to the public: on no private network, without instances.
    Static,
}

impl ServiceKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 7] = [Self::Web, Self::Pserv, Self::Worker, Self::Cron, Self::KeyValue, Self::Postgres, Self::Static];

    /// Whether peers of the private network may open a flow to it. Nothing else decides this.
    pub const fn receives(self) -> bool {
        matches!(self, Self::Web | Self::Pserv | Self::KeyValue | Self::Postgres)
    }
    /// Whether it may open flows to the private network and to the internet.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Web | Self::Pserv | Self::Worker | Self::Cron)
    }
    /// Whether the public reaches it through the ingress.
    pub const fn is_public(self) -> bool {
        matches!(self, Self::Web | Self::Static)
    }
    /// Whether it is a datastore (builds may reach those).
    pub const fn is_datastore(self) -> bool {
        matches!(self, Self::KeyValue | Self::Postgres)
    }
    /// The word of the blueprint, `postgres` for an entry of `databases` and `static` for a web service of that runtime.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Pserv => "pserv",
            Self::Worker => "worker",
            Self::Cron => "cron",
            Self::KeyValue => "keyvalue",
            Self::Postgres => "postgres",
            Self::Static => "static",
        }
    }
    /// The phrase for people: `private service`.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Web => "web service",
            Self::Pserv => "private service",
            Self::Worker => "background worker",
            Self::Cron => "cron job",
            Self::KeyValue => "Key Value",
            Self::Postgres => "database",
            Self::Static => "static site",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Runtimes that run over a toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeRuntime {
    /// Python.
    Python,
    /// Node.js.
    Node,
    /// Ruby.
    Ruby,
    /// Go.
    Go,
    /// Rust.
    Rust,
    /// Elixir.
    Elixir,
}

impl NativeRuntime {
    /// Every one, in the order of the documentation.
    pub const ALL: [Self; 6] = [Self::Python, Self::Node, Self::Ruby, Self::Go, Self::Rust, Self::Elixir];

    /// The word of the blueprint.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Ruby => "ruby",
            Self::Go => "go",
            Self::Rust => "rust",
            Self::Elixir => "elixir",
        }
    }
}

/// Resource limits of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Hard memory limit in bytes.
    pub memory_bytes: u64,
    /// CPU share in thousandths of a CPU: a weight and a burstable ceiling.
    pub cpu_millis: u32,
    /// Most processes and threads.
    pub pids: u32,
}

/// What a service may open towards the internet (`x-moat.egress`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nothing; external names are not forwarded either.
    None,
    /// Everything that is not private, link-local, metadata or the host.
    #[default]
    Internet,
    /// Only these ranges (still never private, link-local, metadata or the host).
    Ranges(BTreeSet<ipnet::IpNet>),
}
