//! Backups, restores and snapshots: each runs as a task beside the loop; here is what waits for it, and what it waits for.
//!
//! ```text
//! asked ─▶ Waiting ─▶ Running ─▶ done                         a backup, a snapshot
//!        (deploys of  └──────▶ Stopping ─▶ Starting ─▶ done   something is brought back: everything is there, whole, before
//!         these end)                                          the services stop, and they start with it
//! ```
//!
//! * [`contents`] – what an archive says that is in it.
//! * [`backup`] – making one.
//! * [`restore`] – bringing back what one holds.
//! * [`snapshots`] – copies of disks, by the day and when asked.
//!
//! Invariants: a service is in one of these at a time, and no deploy of it begins meanwhile; what is brought back is used only once all of
//! it was read and verified; the daemon can be killed at any moment (see [`moat_engine_linux::LinuxEngine::settle_snapshots`]).

mod backup;
mod contents;
mod restore;
mod snapshots;

use super::requests::{Reply, end};
use super::{Core, Msg};
use crate::protocol::{Event, Failure, ServicePhase};
use moat_engine::EngineError;
use moat_engine_linux::{Kept, LinuxEngine};
use moat_model::{AddressPair, Purpose, Slug};
use moat_store::EventKind;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::time::Instant;

/// What is under way.
#[derive(Default)]
pub(crate) struct Copies {
    all: Vec<Copying>,
    next: u64,
    /// When disks are looked at again whose snapshot may be due; none is now.
    due: Option<Instant>,
    /// Whether they are being looked at.
    looking: bool,
}

/// One of them.
struct Copying {
    id: u64,
    /// In words: `a backup`.
    what: &'static str,
    reply: Reply,
    /// Those whose deploys wait for it.
    services: BTreeSet<Slug>,
    phase: Phase,
}

enum Phase {
    /// For deploys that are under way.
    Waiting(Job),
    /// As a task, which reports by [`Msg::Copied`].
    Running,
    /// Until nothing of the services runs any more.
    Stopping(restore::Staged),
    /// Until they run again.
    Starting { services: BTreeSet<Slug>, aside: String, since: Instant },
}

/// What is to be done as a task.
enum Job {
    Backup(backup::Wanted),
    Restore(restore::Wanted),
    Snapshot { slug: Slug, kept: Kept, name: String },
    BringBack { slug: Slug, kept: Kept, name: String },
}

/// What a task reports.
pub enum Copied {
    /// The releases are in the archive: deploys of services that keep nothing go on.
    Trees,
    /// An archive is there.
    Archive {
        /// Where.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// Whose data is in it.
        services: Vec<Slug>,
    },
    /// A snapshot is there.
    Snapshot(Slug, moat_engine_linux::Snapshot),
    /// What is to be brought back is there, whole.
    Staged(restore::Staged),
}

impl Copies {
    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What a deploy of this service has to wait for, in words.
    pub(crate) fn blocks(&self, slug: &Slug) -> Option<&'static str> {
        let busy = |copying: &&Copying| !matches!(copying.phase, Phase::Starting { .. }) && copying.services.contains(slug);
        self.all.iter().find(busy).map(|copying| copying.what)
    }

    /// Whether nothing of this service may run now.
    pub(crate) fn holds(&self, slug: &Slug) -> bool {
        self.all.iter().any(|copying| matches!(&copying.phase, Phase::Stopping(staged) if staged.services().contains(slug)))
    }

    /// Services whose content is being replaced: connections to them wait.
    pub(super) fn replaced(&self) -> BTreeSet<Slug> {
        let of = |copying: &Copying| match &copying.phase {
            Phase::Stopping(staged) => staged.services(),
            Phase::Starting { services, .. } => services.clone(),
            Phase::Waiting(_) | Phase::Running => BTreeSet::new(),
        };
        self.all.iter().flat_map(of).collect()
    }
}

/// An engine's error as an answer.
pub(super) fn failure(error: &EngineError) -> Failure {
    Failure::engine(error)
}

impl Core {
    /// Begins something once no deploy of these services is under way; refused where one of them is in another already.
    fn begin_copy(&mut self, what: &'static str, services: BTreeSet<Slug>, job: Job, reply: Reply) {
        let busy = services.iter().find_map(|slug| Some((slug, self.copies.all.iter().find(|other| other.services.contains(slug))?.what)));
        if let Some((slug, other)) = busy {
            let hint = Some("say it again once that is over".to_owned());
            return end(&reply, Some(Failure::refused(format!("{other} of `{slug}` is under way"), hint)));
        }
        self.copies.next += 1;
        if let Some(slug) = services.iter().find(|slug| self.deploys.contains_key(*slug)) {
            let text = format!("{what} waits until its deploy is over");
            let _ = reply.send(Event::Notice { service: Some(slug.clone()), text });
        }
        self.copies.all.push(Copying { id: self.copies.next, what, reply, services, phase: Phase::Waiting(job) });
    }

    /// Moves everything as far as it can go now.
    pub(super) async fn go_on_copying(&mut self) {
        self.snapshot_disks();
        for mut copying in std::mem::take(&mut self.copies.all) {
            let phase = std::mem::replace(&mut copying.phase, Phase::Running);
            let next = match phase {
                Phase::Waiting(job) if copying.services.iter().any(|slug| self.deploys.contains_key(slug)) => Some(Phase::Waiting(job)),
                Phase::Waiting(job) => self.start_job(&copying, job),
                Phase::Running => Some(Phase::Running),
                Phase::Stopping(staged) => self.bring_back(&copying, staged).await,
                Phase::Starting { services, aside, since } => self.has_started(&copying, services, aside, since),
            };
            if let Some(phase) = next {
                copying.phase = phase;
                self.copies.all.push(copying);
            }
        }
    }

    fn start_job(&mut self, copying: &Copying, job: Job) -> Option<Phase> {
        let (id, tx) = (copying.id, self.tx.clone());
        let engine = self.files(&copying.reply)?;
        match job {
            Job::Backup(wanted) => {
                let plan = match self.plan_backup(&engine, wanted) {
                    Ok(plan) => plan,
                    Err(failure) => {
                        end(&copying.reply, Some(failure));
                        return None;
                    }
                };
                tokio::spawn(async move {
                    let trees = tx.clone();
                    let done = backup::run(&engine, plan, move || drop(trees.send(Msg::Copied(id, Ok(Copied::Trees))))).await;
                    let _ = tx.send(Msg::Copied(id, done));
                });
            }
            Job::Restore(wanted) => {
                tokio::spawn(async move {
                    let done = restore::run(&engine, wanted).await.map(Copied::Staged);
                    let _ = tx.send(Msg::Copied(id, done));
                });
            }
            Job::Snapshot { slug, kept, name } => {
                tokio::spawn(async move {
                    let done = engine.take_snapshot(&kept, &name).await;
                    let done = done.map(|snapshot| Copied::Snapshot(slug, snapshot)).map_err(|error| failure(&error));
                    let _ = tx.send(Msg::Copied(id, done));
                });
            }
            Job::BringBack { slug, kept, name } => {
                tokio::spawn(async move {
                    let done = engine.stage_snapshot(&kept, &name).await;
                    let staged = || Copied::Staged(restore::Staged::of_snapshot(slug, kept, &name));
                    let _ = tx.send(Msg::Copied(id, done.map(|()| staged()).map_err(|error| failure(&error))));
                });
            }
        }
        Some(Phase::Running)
    }

    /// The engine whose files can be copied.
    fn files(&self, reply: &Reply) -> Option<LinuxEngine> {
        let engine = self.engine.linux().cloned();
        if engine.is_none() {
            end(reply, Some(Failure::refused("this machine keeps no files", None)));
        }
        engine
    }

    /// Whether an instance of this service serves, or is about to, or not gone yet.
    fn serves(&self, slug: &Slug) -> bool {
        self.live.values().any(|live| live.slug == *slug && live.purpose == Purpose::Serve)
    }

    /// A task has something to report.
    pub(super) fn copied(&mut self, id: u64, result: Result<Copied, Failure>) {
        let Some(at) = self.copies.all.iter().position(|copying| copying.id == id) else { return };
        match result {
            Ok(Copied::Trees) => {
                let keeps = |slug: &Slug| self.desired.services.get(slug).is_some_and(|service| Kept::of(service).is_some());
                self.copies.all[at].services.retain(keeps);
            }
            Ok(Copied::Staged(staged)) => {
                for slug in staged.services() {
                    self.set_phase(&slug, ServicePhase::Restarting, Some("what it keeps is being replaced".to_owned()));
                }
                self.copies.all[at].phase = Phase::Stopping(staged);
            }
            Ok(Copied::Archive { file, bytes, services }) => {
                let copying = self.copies.all.remove(at);
                let text = format!("a backup was made: `{}`", file.display());
                let only = if let [one] = services.as_slice() { Some(one.clone()) } else { None };
                self.record(EventKind::BackedUp, only.as_ref(), text, json!({ "file": file, "bytes": bytes, "services": services }));
                let _ = copying.reply.send(Event::BackedUp { file, bytes, services });
                end(&copying.reply, None);
            }
            Ok(Copied::Snapshot(slug, snapshot)) => {
                let copying = self.copies.all.remove(at);
                let text = format!("a snapshot of its disk was taken: {}", snapshot.name);
                self.record(EventKind::Snapshot, Some(&slug), text, json!({ "snapshot": snapshot.name, "bytes": snapshot.bytes }));
                let snapshots = snapshots::row(&snapshot).into_iter().collect();
                let _ = copying.reply.send(Event::Snapshots { snapshots });
                end(&copying.reply, None);
            }
            Err(failure) => {
                let copying = self.copies.all.remove(at);
                let only = copying.services.iter().next().filter(|_| copying.services.len() == 1).cloned();
                self.problem(only.as_ref(), format!("{} came to nothing: {}", copying.what, failure.message));
                end(&copying.reply, Some(failure));
            }
        }
    }

    /// Service addresses whose content is being replaced: connections wait there.
    pub(super) fn replaced_addresses(&self) -> impl Iterator<Item = AddressPair> + '_ {
        self.copies.replaced().into_iter().filter_map(|slug| self.desired.services.get(&slug)?.vip)
    }
}
