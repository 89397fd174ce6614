//! Kinds of events.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+
        }

        impl EventKind {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word for it, as it is typed, stored and shown.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

kinds! {
    /// The daemon began to work.
    DaemonStarted = "daemon-started",
    /// The daemon ended by itself or was told to.
    DaemonStopped = "daemon-stopped",
    /// The state was damaged, and its last good copy took its place.
    StateRestored = "state-restored",
    /// An instance of an earlier daemon was found and goes on.
    Adopted = "adopted",
    /// A blueprint was accepted.
    Accepted = "accepted",
    /// Services were stopped because somebody asked.
    Stopped = "stopped",
    /// A deploy began.
    DeployStarted = "deploy-started",
    /// A deploy came to its end: the new release is live.
    DeploySucceeded = "deploy-succeeded",
    /// A deploy failed.
    DeployFailed = "deploy-failed",
    /// A deploy was given up for another one, or because its service was stopped.
    DeployCancelled = "deploy-cancelled",
    /// An instance's program was started.
    InstanceStarted = "instance-started",
    /// An instance's program ended, and how.
    InstanceExited = "instance-exited",
    /// An instance takes traffic.
    Ready = "ready",
    /// An instance takes no traffic any more.
    NotReady = "not-ready",
    /// A service that ended by itself is started again, after a pause.
    Restarting = "restarting",
    /// Flows were denied.
    Denied = "denied",
    /// Something that was changed from outside was put right.
    Repaired = "repaired",
    /// Something could not be done.
    Problem = "problem",
    /// Something people should know.
    Notice = "notice",
    /// Events came faster than they could be written.
    EventsLost = "events-lost",
    /// A backup was made.
    BackedUp = "backed-up",
    /// What a service keeps, or everything, was brought back from a backup or a snapshot.
    Restored = "restored",
    /// A snapshot of a disk was taken.
    Snapshot = "snapshot",
    /// A service falls asleep: nobody asked for it for a while.
    Slept = "slept",
    /// A service that slept is started again.
    Woke = "woke",
    /// A service has another number of instances, because somebody asked or by its load.
    Scaled = "scaled",
    /// Somebody suspended a service.
    Suspended = "suspended",
    /// Somebody resumed a service.
    Resumed = "resumed",
    /// The ingress answers instead of a service from now on, or no longer.
    Maintenance = "maintenance",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// No kind of event has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of event; kinds: {kinds}", kinds = EventKind::ALL.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(", "))]
pub struct UnknownKind(String);

impl FromStr for EventKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.iter().copied().find(|kind| kind.word() == text).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}
