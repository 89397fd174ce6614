//! Snapshots of disks: each day, and when somebody asks; kept for a week, and the newest of each disk for longer.

use super::Job;
use crate::core::requests::{Reply, end};
use crate::core::{Core, Msg};
use crate::protocol::{Event, Failure, SnapshotKind, SnapshotRow};
use jiff::{SignedDuration, Timestamp};
use moat_engine_linux::{Kept, LinuxEngine, Snapshot};
use moat_model::{Service, Slug};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Between two snapshots of a disk.
const EVERY: SignedDuration = SignedDuration::from_hours(24);
/// How long a snapshot is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// So many of each disk are kept, the newest, whatever the clock says: one that is ahead must not take them all.
const ALWAYS_KEPT: usize = 3;
/// Between two looks whether one is due.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// A snapshot as it is shown; none for what is none.
pub(super) fn row(snapshot: &Snapshot) -> Option<SnapshotRow> {
    let (taken, kind) = SnapshotKind::of(&snapshot.name)?;
    Some(SnapshotRow { name: snapshot.name.clone(), taken: taken.to_string(), kind, bytes: snapshot.bytes })
}

/// Whether a disk made at one time is to have a snapshot, if these are there.
fn is_due<'a>(now: Timestamp, made: Timestamp, names: impl Iterator<Item = &'a str>) -> bool {
    let last = names.filter_map(SnapshotKind::of).filter(|(_, kind)| *kind == SnapshotKind::Daily).map(|(taken, _)| taken).max();
    // A clock that was ahead must not stop them for long.
    now.duration_since(last.filter(|last| *last <= now).unwrap_or(made)) >= EVERY
}

/// The snapshots of one disk whose time is over.
fn over(now: Timestamp, names: Vec<String>) -> Vec<String> {
    let mut known: Vec<(Timestamp, String)> =
        names.into_iter().filter_map(|name| SnapshotKind::of(&name).map(|(taken, _)| (taken, name))).collect();
    known.sort();
    known.truncate(known.len().saturating_sub(ALWAYS_KEPT));
    known.into_iter().filter(|(taken, _)| now.duration_since(*taken) > KEPT).map(|(_, name)| name).collect()
}

impl Core {
    /// Looks, in the background and when it is time, which disks are to have a snapshot, and removes old ones.
    pub(super) fn snapshot_disks(&mut self) {
        if self.copies.looking || self.copies.due.is_some_and(|due| due > Instant::now()) {
            return;
        }
        let Some(engine) = self.engine.linux().cloned() else { return };
        self.copies.looking = true;
        let deployed = self.durable.deployed.values().filter(|deployed| deployed.service.workload.disk().is_some());
        let disks: Vec<(Slug, Kept)> =
            deployed.filter_map(|deployed| Some((deployed.service.slug.clone(), Kept::of(&deployed.service)?))).collect();
        let (tx, now) = (self.tx.clone(), self.engine.now());
        tokio::spawn(async move {
            if let Err(error) = engine.remove_snapshots(move |names| over(now, names)).await {
                tracing::warn!(%error, "old snapshots stay");
            }
            let mut due = Vec::new();
            for (slug, kept) in disks {
                match is_due_now(&engine, &kept, now).await {
                    Ok(true) => due.push(slug),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "snapshots can't be looked at"),
                }
            }
            let _ = tx.send(Msg::SnapshotsDue(due));
        });
    }

    /// These disks are to have a snapshot.
    pub(in crate::core) fn snapshots_due(&mut self, due: Vec<Slug>) {
        self.copies.looking = false;
        self.copies.due = Some(Instant::now() + LOOK_EVERY);
        for slug in due {
            // Nobody waits for it: a failure is told as a problem.
            let (nobody, _) = crate::reply::channel();
            self.take_snapshot(&slug, SnapshotKind::Daily, nobody);
        }
    }

    /// Takes a snapshot of a service's disk.
    pub(in crate::core) fn take_snapshot(&mut self, slug: &Slug, kind: SnapshotKind, reply: Reply) {
        let Some(kept) = self.disk_of(slug, &reply) else { return };
        let job = Job::Snapshot { slug: slug.clone(), kept, name: kind.name(self.engine.now()) };
        self.begin_copy("a snapshot", BTreeSet::from([slug.clone()]), job, reply);
    }

    fn disk_of(&self, slug: &Slug, reply: &Reply) -> Option<Kept> {
        let refuse = |message: String, hint: Option<String>| {
            end(reply, Some(Failure::refused(message, hint)));
            None
        };
        let service = self.desired.services.get(slug)?;
        match Kept::of(service) {
            Some(kept @ Kept::Disk { .. }) if self.engine.linux().is_some_and(|engine| engine.kept_folder(&kept).exists()) => Some(kept),
            Some(Kept::Disk { .. }) => refuse(format!("the disk of `{slug}` has never been used"), None),
            Some(Kept::Data { .. }) => refuse(
                format!("`{slug}` is a {}", service.kind.phrase()),
                Some(format!("`moat backup FILE --service {slug}` copies its data")),
            ),
            None => refuse(format!("`{slug}` has no disk"), None),
        }
    }

    /// Lists the snapshots of what a service keeps.
    pub(in crate::core) fn snapshots(&self, slug: &Slug, reply: Reply) {
        let Some(kept) = self.kept_of(slug, &reply) else { return };
        let Some(engine) = self.files(&reply) else { return };
        tokio::spawn(async move {
            match engine.snapshots(&kept).await {
                Ok(found) => {
                    let _ = reply.send(Event::Snapshots { snapshots: found.iter().filter_map(row).collect() });
                    end(&reply, None);
                }
                Err(error) => end(&reply, Some(super::failure(&error))),
            }
        });
    }

    fn kept_of(&self, slug: &Slug, reply: &Reply) -> Option<Kept> {
        let kept = self.desired.services.get(slug).and_then(|service: &Service| Kept::of(service));
        if kept.is_none() {
            end(reply, Some(Failure::refused(format!("`{slug}` keeps nothing"), None)));
        }
        kept
    }

    /// Brings a snapshot back.
    pub(in crate::core) async fn restore_snapshot(&mut self, slug: &Slug, snapshot: String, reply: Reply) {
        let Some(kept) = self.kept_of(slug, &reply) else { return };
        let Some(engine) = self.files(&reply) else { return };
        let known = match engine.snapshots(&kept).await {
            Ok(known) => known,
            Err(error) => return end(&reply, Some(super::failure(&error))),
        };
        if !known.iter().any(|known| known.name == snapshot) {
            let hint = Some(format!("`moat disk snapshots {slug}` lists those there are"));
            return end(&reply, Some(Failure::refused(format!("`{slug}` has no snapshot `{snapshot}`"), hint)));
        }
        let job = Job::BringBack { slug: slug.clone(), kept, name: snapshot };
        self.begin_copy("a restore", BTreeSet::from([slug.clone()]), job, reply);
    }
}

async fn is_due_now(engine: &LinuxEngine, kept: &Kept, now: Timestamp) -> Result<bool, moat_engine::EngineError> {
    let folder = engine.kept_folder(kept);
    let Ok(about) = std::fs::metadata(&folder) else { return Ok(false) };
    let made = about.created().or_else(|_| about.modified()).ok().and_then(|made| Timestamp::try_from(made).ok());
    let names = engine.snapshot_names(kept).await?;
    Ok(is_due(now, made.unwrap_or(now), names.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_snapshot_each_day_and_keeps_them_for_a_week() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let now = at("2026-11-21T12:00:00Z");
        for (made, names, expect) in [
            ("2026-11-21T11:00:00Z", &[][..], false),
            ("2026-11-20T11:00:00Z", &[], true),
            ("2026-11-01T00:00:00Z", &["20261121T110000Z-daily"], false),
            ("2026-11-01T00:00:00Z", &["20261120T110000Z-daily", "20261119T110000Z-daily"], true),
            // Those that somebody asked for are none of the daily ones.
            ("2026-11-01T00:00:00Z", &["20261121T110000Z-asked", "20261121T110000Z-before-restore"], true),
            ("2026-11-01T00:00:00Z", &["20301121T110000Z-daily"], true),
            ("2026-11-01T00:00:00Z", &["new.part", "something"], true),
        ] {
            assert_eq!(is_due(now, at(made), names.iter().copied()), expect, "{made} {names:?}");
        }
        let newest = ["20261121T100000Z-daily", "20261121T110000Z-daily", "20261121T115000Z-asked"];
        for (name, expect) in [
            ("20261114T115900Z-daily", true),
            ("20261114T120100Z-daily", false),
            ("20261101T000000Z-before-restore", true),
            ("20261101T000000Z-asked", true),
            ("something", false),
        ] {
            let names = [name].into_iter().chain(newest).map(str::to_owned).collect();
            assert_eq!(over(now, names), Vec::from_iter(expect.then_some(name)), "{name}");
        }
    }

    #[test]
    fn a_clock_that_is_ahead_takes_no_more_snapshots_than_the_old_ones() {
        let ahead = "2031-01-01T00:00:00Z".parse().unwrap();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = names(&[
            "20261121T000000Z-daily",
            "20261114T000000Z-daily",
            "20261120T120000Z-before-restore",
            "20261119T000000Z-asked",
            "new.part",
            "20261118T000000Z-daily",
        ]);
        assert_eq!(over(ahead, all), names(&["20261114T000000Z-daily", "20261118T000000Z-daily"]));
        assert_eq!(over(ahead, names(&["20200101T000000Z-daily", "20200102T000000Z-daily"])), names(&[]));
    }
}
