//! What services do and use.

use super::ServicePhase;
use moat_ingress::{Counted, Visited};
use moat_model::{Limits, ServiceKind, Slug};
use serde::{Deserialize, Serialize};

/// Numbers of one moment. What is counted only grows, until another process counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Load {
    /// When, in microseconds since the daemon began.
    pub at_micros: u64,
    /// Services by slug.
    pub services: Vec<ServiceLoad>,
    /// Requests for hosts that are nobody's.
    pub nobody: Counted,
    /// Clients' connections that are open, without and with TLS.
    pub connections: (u64, u64),
    /// Lines of the access log that were written, and those that were dropped.
    pub log_lines: (u64, u64),
    /// How often traces were sent, and how often that failed.
    #[serde(default)]
    pub traces: (u64, u64),
    /// Whether the data plane told what it counted.
    pub counted: bool,
    /// Moat's version.
    pub version: String,
}

/// One service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceLoad {
    /// The service.
    pub service: Slug,
    /// Its kind; none of one that is gone.
    pub kind: Option<ServiceKind>,
    /// Where it is.
    pub phase: Option<ServicePhase>,
    /// Limits of each of its instances.
    pub limits: Option<Limits>,
    /// Requests that were answered without an instance: pages, redirects, files of a static site.
    pub own: Counted,
    /// Of its clients from outside, where it is a database that has some.
    #[serde(default)]
    pub visits: Option<Visited>,
    /// Its instances by id, those of a moment ago too.
    pub instances: Vec<InstanceLoad>,
}

/// One instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceLoad {
    /// Its id.
    pub id: String,
    /// It runs.
    pub live: bool,
    /// It takes traffic.
    pub ready: bool,
    /// CPU time since its begin, microseconds, and memory now, bytes; none where nobody can tell.
    pub usage: Option<(u64, u64)>,
    /// Requests that were sent to it.
    pub counted: Counted,
}

impl ServiceLoad {
    /// All its requests.
    pub fn all(&self) -> Counted {
        let mut all = self.own.clone();
        for instance in &self.instances {
            all.add(&instance.counted);
        }
        all
    }
}
