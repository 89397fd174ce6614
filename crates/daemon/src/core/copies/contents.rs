//! What an archive says that is in it, in its first entry.
//!
//! ```text
//! state/documents.json, ranges.json     of a whole machine: accepted blueprints, ids, secrets, settings, what is deployed
//! trees/NAME                            of a whole machine: releases, images, certificates, repositories
//! disks/SERVICE/DISK, data/SERVICE      what services keep; owners as they are inside
//! ```

use moat_engine_linux::Kept;
use moat_model::state::Workload;
use moat_model::{Service, ServiceId, Slug};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The part of what a machine knows.
pub(super) const STATE: &str = "state";
/// In it: the durable state.
pub(super) const DOCUMENTS: &str = "documents.json";
/// In it: which user ids services have.
pub(super) const RANGES: &str = "ranges.json";
/// Before the names of folders of a machine.
pub(super) const TREES: &str = "trees/";

/// Everything in an archive but what a machine has besides its services' data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    /// Whether a machine can be brought back from it.
    pub(super) whole: bool,
    /// What services keep.
    pub(super) kept: Vec<Entry>,
}

/// What one service keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The part.
    pub(super) part: PathBuf,
    /// Whose, as that machine called it.
    pub(super) service: ServiceId,
    /// Its label; none for what a service kept that is not there any more.
    pub(super) slug: Option<Slug>,
    /// What it is.
    pub(super) kind: KeptKind,
    /// The disk's name.
    pub(super) disk: Option<String>,
    /// How it was copied.
    pub(super) way: Way,
}

/// What a service keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KeptKind {
    Disk,
    Postgres,
    KeyValue,
    /// The data of a datastore that is not there any more.
    Data,
}

impl KeptKind {
    pub(super) const fn of(service: &Service) -> Self {
        match service.workload {
            Workload::Postgres(_) => Self::Postgres,
            Workload::KeyValue(_) => Self::KeyValue,
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => Self::Disk,
        }
    }

    pub(super) const fn phrase(self) -> &'static str {
        match self {
            Self::Disk => "a disk",
            Self::Postgres => "a database",
            Self::KeyValue => "a Key Value",
            Self::Data => "a datastore's data",
        }
    }
}

/// How what a service keeps was copied: what can be said of its consistency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    /// By its server while that ran: all committed work of one moment.
    Server,
    /// Its files of one moment, in which whoever wrote them stood still: as after a power cut, but for what programs keep in memory.
    StoodStill,
    /// Nobody used it.
    AtRest,
}

impl Entry {
    /// The entry of something kept.
    pub(super) fn of(kept: &Kept, service: Option<&Service>, way: Way) -> Self {
        let disk = match kept {
            Kept::Disk { name, .. } => Some(name.clone()),
            Kept::Data { .. } => None,
        };
        Self {
            part: kept.path(),
            service: kept.service().clone(),
            slug: service.map(|service| service.slug.clone()),
            kind: service.map_or(if disk.is_some() { KeptKind::Disk } else { KeptKind::Data }, KeptKind::of),
            disk,
            way,
        }
    }

    /// The same on the machine that it came from.
    pub(super) fn kept(&self) -> Kept {
        match &self.disk {
            Some(name) => Kept::Disk { service: self.service.clone(), name: name.clone() },
            None => Kept::Data { service: self.service.clone() },
        }
    }
}
