//! Snapshots, as they are called and shown.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// How the time is written in a name: UTC, to the second.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// A day had gone by.
    Daily,
    /// Somebody asked.
    Asked,
    /// It was there before something else was brought back.
    BeforeRestore,
}

impl SnapshotKind {
    const ALL: [Self; 3] = [Self::Daily, Self::Asked, Self::BeforeRestore];

    /// As it is in names, and shown.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Asked => "asked",
            Self::BeforeRestore => "before-restore",
        }
    }

    /// The name of a snapshot that is taken now.
    pub fn name(self, now: Timestamp) -> String {
        format!("{}-{}", now.strftime(TIME), self.word())
    }

    /// The same, of a later second where others have the name: two may be taken within one.
    pub fn free_name(self, now: Timestamp, taken: &BTreeSet<String>) -> String {
        let mut at = now;
        loop {
            let name = self.name(at);
            if !taken.contains(&name) {
                return name;
            }
            at += SignedDuration::from_secs(1);
        }
    }

    /// When and why a snapshot of this name was taken; none for what is no snapshot's name.
    pub fn of(name: &str) -> Option<(Timestamp, Self)> {
        let (time, word) = name.split_once('-')?;
        let kind = Self::ALL.into_iter().find(|kind| kind.word() == word)?;
        let time = DateTime::strptime(TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
        Some((time.timestamp(), kind))
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Its name.
    pub name: String,
    /// When it was taken, RFC 3339.
    pub taken: String,
    /// Why.
    pub kind: SnapshotKind,
    /// What it takes, not counting that it may share blocks with others.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when_and_why() {
        let now: Timestamp = "2026-11-21T17:30:05Z".parse().unwrap();
        for kind in SnapshotKind::ALL {
            assert_eq!(SnapshotKind::of(&kind.name(now)), Some((now, kind)));
            let taken = BTreeSet::from([kind.name(now), kind.name(now + SignedDuration::from_secs(1))]);
            assert_eq!(SnapshotKind::of(&kind.free_name(now, &taken)), Some((now + SignedDuration::from_secs(2), kind)));
            assert_eq!(kind.free_name(now, &BTreeSet::new()), kind.name(now));
        }
        assert_eq!(SnapshotKind::Daily.name(now), "20261121T173005Z-daily");
        for other in ["", "daily", "20261121T173005Z", "20261121T173005Z-weekly", "x-daily", "../20261121T173005Z-daily"] {
            assert_eq!(SnapshotKind::of(other), None, "{other}");
        }
    }
}
