//! What is asked of one service, and its answers.

use moat_model::{Secret, Slug};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What people ask of one service. Where it takes time, progress comes as events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum ServiceVerb {
    /// Starts it anew, one instance at a time, with the release that it has.
    Restart,
    /// Deploys an earlier release.
    Rollback {
        /// The deploy that brought it; none is the last one that differs from what runs.
        deploy: Option<String>,
    },
    /// Ends its deploy that is under way.
    CancelDeploy,
    /// Runs so many instances; none is what the blueprint says.
    Scale {
        /// How many.
        instances: Option<u32>,
    },
    /// Stops it until it is resumed.
    Suspend,
    /// Deploys it again.
    Resume,
    /// Lets the ingress answer instead of it, or not.
    Maintenance {
        /// Whether.
        on: bool,
        /// The page, HTML; none is Moat's own.
        page: Option<String>,
    },
    /// Its variables: answers one [`super::Event::Variables`].
    Variables {
        /// With their values.
        show: bool,
    },
    /// Gives variables values, or takes them away, and deploys what they change.
    SetVariables {
        /// By key; none takes it away.
        values: BTreeMap<String, Option<Secret>>,
    },
    /// Runs a command in an instance of its own, or a cron job now: answers [`super::Event::Run`] when it runs, its output as
    /// [`super::Event::Log`], and [`super::Event::Run`] when it has ended. Who hangs up ends it.
    Run {
        /// A shell command; none is a cron job's own.
        command: Option<String>,
        /// Answers as soon as it is started, and leaves it alone.
        detach: bool,
    },
    /// The snapshots of what it keeps: answers one [`super::Event::Snapshots`].
    Snapshots,
    /// Takes a snapshot of its disk now: answers one [`super::Event::Snapshots`], of that one.
    TakeSnapshot,
    /// Brings a snapshot back: answers one [`super::Event::Restored`].
    RestoreSnapshot {
        /// Its name.
        snapshot: String,
    },
}

/// One deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRow {
    /// Its service.
    pub service: Slug,
    /// Its id.
    pub id: String,
    /// Why it was asked for.
    pub cause: String,
    /// What became of it: `waiting`, `under way`, `live`, `replaced`, `failed`, `canceled` or `skipped`.
    pub state: String,
    /// Why, in words.
    pub why: Option<String>,
    /// When it was asked for, RFC 3339.
    pub asked: String,
    /// When it began.
    pub begun: Option<String>,
    /// When it was over.
    pub ended: Option<String>,
    /// Its commit, where there is one.
    pub commit: Option<String>,
    /// The release, as long as it can be gone back to.
    pub release: Option<String>,
}

/// One variable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Variable {
    /// Its key.
    pub key: String,
    /// Its value, where that was asked for.
    pub value: Option<Secret>,
    /// Nobody gave it: it is one that every service has.
    pub default: bool,
}

/// A port of a service, in the form of the platform's API: `{"port": 5672, "protocol": "TCP"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpenPort {
    /// 1 to 65535.
    pub port: u16,
    /// Over what.
    pub protocol: OpenProtocol,
}

/// The protocols of [`OpenPort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum OpenProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// How full a disk is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Taken.
    pub used: u64,
    /// What the blueprint gives it.
    pub size: u64,
}

impl std::fmt::Display for DiskUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = self.used.saturating_mul(10) >> 30;
        write!(f, "{}.{} of {} GB", tenths / 10, tenths % 10, self.size >> 30)
    }
}
