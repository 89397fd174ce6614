//! What the daemon and the data plane say to each other.
//!
//! The process speaks first on each connection ([`Hello`]). What a process of any version must understand, whoever asks:
//! [`Order::Drain`] and [`Order::Stop`], and the fields of [`Hello`] may only ever be added to. Everything else belongs to
//! [`PROTOCOL`]: a daemon that speaks another one takes the listening sockets, which come with the greeting, and replaces the
//! process.

use crate::{CertificateSet, Config, Stamp};
use moat_ingress::{LogFormat, Series, Visited};
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// The version of [`Order`] and [`Report`].
pub const PROTOCOL: u32 = 7;

/// Says that it is the data plane who speaks.
pub const ROLE: &str = "moat dataplane";

/// What a process says first. Its listening sockets ([`Sockets`](crate::Sockets)) come with it, unless it has none (yet, or
/// any more).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`ROLE`].
    pub role: String,
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Its process id.
    pub pid: u32,
    /// The configuration it serves by, if any.
    pub stamp: Option<Stamp>,
    /// It accepts no connections any more and ends with those that it has.
    pub draining: bool,
    /// Folders of sites that it has open.
    pub holds: BTreeSet<PathBuf>,
}

/// What a daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Use the sockets that come with this. Once, before anything else, by who started the process.
    Start {
        /// The folder that all sites are below.
        root: PathBuf,
        /// The user to be from now on, and the group; none stays who it is.
        user: Option<u32>,
    },
    /// Serve by this from now on: answered with [`Report::Applied`] or [`Report::Refused`].
    Configure(Box<Config>),
    /// Show these certificates from now on; answered with nothing.
    Certificates(Arc<CertificateSet>),
    /// Write the access log so from now on, to the file that comes with this; when it is full, what it holds goes to the second
    /// that comes. Without a format nothing is written. Answered with nothing.
    Log {
        /// How.
        format: Option<LogFormat>,
    },
    /// Tell what was counted: answered with [`Report::Measured`].
    Measure,
    /// Accept no more connections, and end with those that are open.
    Drain,
    /// End now.
    Stop,
}

/// What a process reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// A configuration holds.
    Applied {
        /// Which.
        stamp: Stamp,
        /// Folders of sites that it has open now.
        holds: BTreeSet<PathBuf>,
    },
    /// A configuration is older than the one in force.
    Refused {
        /// The one in force.
        have: Stamp,
    },
    /// What was counted.
    Measured(Box<Measures>),
    /// It let go of folders.
    Holds {
        /// Those that it has open now.
        holds: BTreeSet<PathBuf>,
    },
    /// Somebody asks for these services, which sleep.
    Wanted {
        /// All that are asked for and were not woken yet.
        services: BTreeSet<Slug>,
    },
}

/// What a process counted since it began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Measures {
    /// Of each service and instance.
    pub series: Vec<Series>,
    /// Clients' connections that are open, without and with TLS.
    pub connections: (u64, u64),
    /// Lines of the access log that were written, and those that were dropped.
    pub log_lines: (u64, u64),
    /// How often traces were sent, and how often that failed.
    #[serde(default)]
    pub traces: (u64, u64),
    /// Of clients of each database that is reached from outside.
    #[serde(default)]
    pub visits: Vec<(Slug, Visited)>,
}
