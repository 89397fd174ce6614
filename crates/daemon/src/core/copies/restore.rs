//! Bringing back what an archive holds.

use super::backup::{blocking, refused};
use super::contents::{Contents, DOCUMENTS, Entry, KeptKind, RANGES, STATE, TREES};
use super::{Copying, Job, Phase, failure};
use crate::core::Core;
use crate::core::public::Shown;
use crate::core::requests::{Reply, end};
use crate::protocol::{Event, Failure, ServicePhase, SnapshotKind};
use crate::state::Durable;
use jiff::Timestamp;
use moat_archive::{Destination, Visitor};
use moat_engine::EngineError;
use moat_engine_linux::{Kept, LinuxEngine, Origin, Replacement};
use moat_model::{Service, Slug};
use moat_store::{EventKind, Key};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use tokio::time::Instant;

/// So many starts anew, and a service does not come up with what was brought back.
const TRIES: u32 = 3;

/// What is asked for.
pub(super) struct Wanted {
    file: PathBuf,
    key: Key,
    /// Services of this machine that keep something, and where their servers come from.
    here: BTreeMap<Slug, (Service, Option<Origin>)>,
    /// Only these; none is all that is in it.
    services: BTreeSet<Slug>,
    /// The machine is empty: it becomes the one that was backed up.
    machine: bool,
}

/// What is there, whole, and not used yet.
pub struct Staged {
    kept: Vec<(Option<Slug>, Kept)>,
    /// What a machine has besides.
    machine: Option<Box<Durable>>,
    /// Where it comes from, in words.
    from: String,
}

impl Staged {
    /// A snapshot that was staged.
    pub(super) fn of_snapshot(slug: Slug, kept: Kept, name: &str) -> Self {
        Self { kept: vec![(Some(slug), kept)], machine: None, from: format!("snapshot {name}") }
    }

    /// The services that it is for.
    pub(super) fn services(&self) -> BTreeSet<Slug> {
        self.kept.iter().filter_map(|(slug, _)| slug.clone()).collect()
    }

    fn all_kept(&self) -> Vec<Kept> {
        self.kept.iter().map(|(_, kept)| kept.clone()).collect()
    }
}

/// The name of the snapshot that what is replaced becomes: of this second, or of the next that no snapshot has.
async fn free_name(engine: &LinuxEngine, staged: &Staged, now: Timestamp) -> Result<String, EngineError> {
    let mut taken = BTreeSet::new();
    for (_, kept) in &staged.kept {
        taken.extend(engine.snapshot_names(kept).await?);
    }
    Ok(SnapshotKind::BeforeRestore.free_name(now, &taken))
}

/// Names with commas between.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a Slug>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

impl Core {
    /// Begins to bring back what an archive holds.
    pub(in crate::core) fn restore(&mut self, file: PathBuf, key: Option<&Path>, services: &[String], reply: Reply) {
        let head = match moat_archive::read_head(&file) {
            Ok(head) => head,
            Err(error) => {
                let failure = refused(&error);
                return end(&reply, Some(Failure { message: format!("`{}`: {}", file.display(), failure.message), ..failure }));
            }
        };
        let own = Key::bytes_of(&Key::path(&self.paths.state));
        let bytes = match key {
            Some(path) => Key::bytes_of(path),
            None => head.included_key().map_or(own, Ok),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return end(&reply, Some(Failure::refused(crate::chain(&error), None))),
        };
        let machine = self.is_empty_machine();
        if machine && let Err(failure) = self.may_become(head.whole, services, &bytes) {
            return end(&reply, Some(failure));
        }
        let mut wanted = BTreeSet::new();
        for name in services {
            match self.find(name) {
                Ok(slug) => drop(wanted.insert(slug)),
                Err(failure) => return end(&reply, Some(failure)),
            }
        }
        let keeps = |service: &&Service| Kept::of(service).is_some();
        let here = self.desired.services.values().filter(keeps).map(|service| {
            let origin = self.deployed(&service.slug).map(|deployed| Origin::of(deployed.release.clone()));
            (service.slug.clone(), (service.clone(), origin))
        });
        let here: BTreeMap<_, _> = here.collect();
        // Those that the archive turns out to hold are among these.
        let busy = if wanted.is_empty() {
            here.keys().filter(|slug| head.services.iter().any(|name| name == slug.as_str())).cloned().collect()
        } else {
            wanted.clone()
        };
        let _ = reply.send(Event::Notice { service: None, text: format!("reading the backup of {}", head.created) });
        let job = Job::Restore(Wanted { file, key: Key::from_bytes(&bytes), here, services: wanted, machine });
        self.begin_copy("a restore", busy, job, reply);
    }

    /// Whether nothing runs here and nothing is accepted.
    fn is_empty_machine(&self) -> bool {
        self.durable.blueprints.is_empty() && self.durable.deployed.is_empty() && self.live.is_empty() && self.durable.queued.is_empty()
    }

    fn may_become(&self, whole: bool, services: &[String], key: &[u8; 32]) -> Result<(), Failure> {
        if !whole || !services.is_empty() {
            let hint = "run its blueprint first (`moat up`), or restore a backup of everything".to_owned();
            return Err(Failure::refused("nothing of Moat runs here whose data it could be", Some(hint)));
        }
        if Key::bytes_of(&Key::path(&self.paths.state)).is_ok_and(|own| own == *key) {
            return Ok(());
        }
        let state = self.paths.state.display();
        let hint = format!("move `{state}` away to begin anew with the key of the backup (`--key FILE`)");
        Err(Failure::refused(
            "this machine has a key of its own, and a backup of everything brings the key that it is sealed with",
            Some(hint),
        ))
    }

    /// Uses what was staged, once nothing runs any more that it is for.
    pub(super) async fn bring_back(&mut self, copying: &Copying, mut staged: Staged) -> Option<Phase> {
        let engine = self.files(&copying.reply)?;
        let services = staged.services();
        if staged.machine.is_none() {
            if let Some(gone) = services.iter().find(|slug| !self.desired.services.contains_key(*slug) || self.closing.contains(*slug)) {
                engine.unstage(staged.all_kept()).await;
                end(&copying.reply, Some(Failure::refused(format!("`{gone}` was stopped by `moat down`"), None)));
                return None;
            }
            if services.iter().any(|slug| self.serves(slug)) {
                return Some(Phase::Stopping(staged));
            }
        }
        let machine = staged.machine.take();
        let refused = match &machine {
            Some(_) if !self.is_empty_machine() => Some("something else runs here by now"),
            Some(durable) if !self.durable.continues(durable) => Some("the state folder is another installation's"),
            Some(_) | None => None,
        };
        if let Some(why) = refused {
            engine.unstage(staged.all_kept()).await;
            engine.unstage_machine().await;
            let hint = format!("move `{}` away to begin anew", self.paths.state.display());
            end(&copying.reply, Some(Failure::refused(why, Some(hint))));
            return None;
        }
        let aside = match free_name(&engine, &staged, self.engine.now()).await {
            Ok(aside) => aside,
            Err(error) => {
                engine.unstage(staged.all_kept()).await;
                engine.unstage_machine().await;
                end(&copying.reply, Some(failure(&error)));
                return None;
            }
        };
        let all = staged.kept.iter().map(|(_, kept)| Replacement { kept: kept.clone(), aside: aside.clone() }).collect();
        if let Err(error) = engine.replace_kept(all).await {
            self.problem(None, format!("a restore came to nothing: {error}"));
            end(&copying.reply, Some(failure(&error)));
            return None;
        }
        for slug in &services {
            self.backoff.remove(slug);
            let text = format!("what it keeps was brought back from {}", staged.from);
            self.record(EventKind::Restored, Some(slug), text, json!({ "from": staged.from, "aside": aside }));
        }
        if let Some(durable) = machine {
            if let Err(failure) = self.become_machine(&engine, *durable, &staged.from).await {
                end(&copying.reply, Some(failure));
                return None;
            }
            let services = self.desired.services.keys().cloned().collect();
            return Some(Phase::Starting { services, aside, since: Instant::now() });
        }
        Some(Phase::Starting { services, aside, since: Instant::now() })
    }

    /// Goes on as the machine that was backed up.
    async fn become_machine(&mut self, engine: &LinuxEngine, mut durable: Durable, from: &str) -> Result<(), Failure> {
        engine.install_trees().await.map_err(|error| failure(&error))?;
        engine.unstage_machine().await;
        // Nobody has an address yet.
        moat_planner::alloc::retain(&mut durable.memory, Vec::new());
        durable.generation.0 = durable.generation.0.max(self.durable.generation.0) + 1;
        self.commit(durable).map_err(|error| Failure { message: crate::chain(&error), hint: None, exit_code: 3 })?;
        self.shown = Shown::default();
        self.record(EventKind::Restored, None, format!("this machine goes on with what was in {from}"), json!({ "from": from }));
        self.resume().await;
        Ok(())
    }

    /// Answers once the services run again.
    pub(super) fn has_started(&mut self, copying: &Copying, services: BTreeSet<Slug>, aside: String, since: Instant) -> Option<Phase> {
        let ends = |slug: &Slug| {
            let tries = self.backoff.get(slug).map_or(0, |backoff| backoff.restarts);
            tries >= TRIES || since.elapsed() > self.start_timeout(slug)
        };
        let starts = |slug: &&Slug| self.desired.services.contains_key(*slug) && !self.is_settled(slug);
        if services.iter().filter(starts).any(|slug| !ends(slug)) {
            return Some(Phase::Starting { services, aside, since });
        }
        let failed = |slug: &&Slug| starts(slug) || self.phases.get(*slug).is_some_and(|state| state.phase == ServicePhase::Failed);
        let failed = list(services.iter().filter(failed));
        let _ = copying.reply.send(Event::Restored { services: services.into_iter().collect(), aside });
        let hint = Some("`moat logs` says why; what was there before is a snapshot (`moat disk snapshots`)".to_owned());
        end(&copying.reply, (failed != "nothing").then(|| Failure::refused(format!("{failed} failed"), hint)));
        None
    }
}

/// Reads an archive, so that all that is wanted of it is there.
pub(super) async fn run(engine: &LinuxEngine, wanted: Wanted) -> Result<Staged, Failure> {
    let Wanted { file, key, here, services, machine } = wanted;
    let from = format!("`{}`", file.display());
    let (inside, services_here) = (engine.clone(), here.clone());
    let mut taken = Taken { engine: inside, here: services_here, services, machine, stage: None, contents: None, parts: Vec::new() };
    let (read, taken) = blocking(move || {
        let read = moat_archive::read(&file, &key, &mut taken);
        Ok((read, taken))
    })
    .await?;
    let staged: Vec<Kept> = taken.parts.iter().map(|(_, kept)| kept.clone()).collect();
    let judged = match read {
        Err(error) => {
            let failure = refused(&error);
            Err(Failure { message: format!("{from}: {}", failure.message), ..failure })
        }
        Ok(_) => judge(engine, &here, &taken).await,
    };
    match judged {
        Ok(machine) => Ok(Staged { kept: taken.parts, machine, from }),
        Err(failure) => {
            engine.unstage(staged).await;
            engine.unstage_machine().await;
            Err(failure)
        }
    }
}

/// Whether the data fits its services; the state of a machine.
async fn judge(
    engine: &LinuxEngine,
    here: &BTreeMap<Slug, (Service, Option<Origin>)>,
    taken: &Taken,
) -> Result<Option<Box<Durable>>, Failure> {
    let Some(stage) = &taken.stage else {
        for (slug, kept) in &taken.parts {
            let Some((service, origin)) = slug.as_ref().and_then(|slug| here.get(slug)) else { continue };
            let staged = engine.staged(kept);
            engine.judge_data(service, staged, origin.clone()).await.map_err(|error| failure(&error))?;
        }
        return Ok(None);
    };
    let text = std::fs::read(stage.join(STATE).join(DOCUMENTS));
    let text = text.map_err(|error| Failure::refused(format!("the backup says nothing of what its machine ran: {error}"), None))?;
    let durable = Durable::from_text(&text).map_err(|error| Failure::refused(crate::chain(&error), None))?;
    // A snapshot of a Key Value is laid out as its server looks for it; who provides servers is found out when they start.
    for (slug, kept) in &taken.parts {
        if let Some(deployed) = slug.as_ref().and_then(|slug| durable.deployed.get(slug)) {
            let staged = engine.staged(kept);
            engine.judge_data(&deployed.service, staged, None).await.map_err(|error| failure(&error))?;
        }
    }
    Ok(Some(Box::new(durable)))
}

/// Takes the parts that are wanted.
struct Taken {
    engine: LinuxEngine,
    here: BTreeMap<Slug, (Service, Option<Origin>)>,
    services: BTreeSet<Slug>,
    machine: bool,
    /// Where what a machine has besides its services' data is made.
    stage: Option<PathBuf>,
    contents: Option<Contents>,
    parts: Vec<(Option<Slug>, Kept)>,
}

impl Visitor for Taken {
    fn contents(&mut self, text: &[u8]) -> Result<(), String> {
        let contents: Contents = serde_json::from_slice(text).map_err(|error| format!("what is in it is not understood: {error}"))?;
        for entry in &contents.kept {
            let clean = entry.part.components().all(|part| matches!(part, Component::Normal(_)));
            if !clean || entry.kept().path() != entry.part || entry.part.components().count() > 3 {
                return Err(format!("`{}` is no part of a backup", entry.part.display()));
            }
        }
        if self.machine {
            self.stage = Some(self.engine.stage_machine().map_err(|error| error.to_string())?);
        } else {
            self.fits(&contents)?;
        }
        self.contents = Some(contents);
        Ok(())
    }

    fn part(&mut self, name: &str) -> Result<Option<Destination>, String> {
        let contents = self.contents.as_ref().ok_or("it does not say what is in it")?;
        if let Some(stage) = &self.stage
            && (name == STATE || name.starts_with(TREES))
        {
            let folder = stage.join(name.strip_prefix(TREES).unwrap_or(name));
            if folder.parent() != Some(stage.as_path()) {
                return Err(format!("`{name}` is no part of a backup"));
            }
            return Ok(Some(Destination { folder, first_id: 0 }));
        }
        let Some(entry) = contents.kept.iter().find(|entry| entry.part == Path::new(name)).cloned() else { return Ok(None) };
        let Some(kept) = self.place(&entry)? else { return Ok(None) };
        let words = |error: moat_engine::EngineError| error.to_string();
        let folder = self.engine.stage(&kept).map_err(words)?;
        let first_id = self.engine.first_id(kept.service()).map_err(words)?;
        self.parts.push((entry.slug, kept));
        Ok(Some(Destination { folder, first_id }))
    }
}

impl Taken {
    /// Refuses an archive that holds what this machine has no place for.
    fn fits(&self, contents: &Contents) -> Result<(), String> {
        let named = || contents.kept.iter().filter_map(|entry| entry.slug.as_ref());
        if let Some(missing) = self.services.iter().find(|slug| !named().any(|name| name == *slug)) {
            return Err(format!("nothing of `{missing}` is in it, but of {}", list(named())));
        }
        let wanted = |slug: &&Slug| self.services.is_empty() || self.services.contains(*slug);
        if let Some(strange) = named().filter(wanted).find(|slug| !self.here.contains_key(*slug)) {
            let known = list(self.here.keys());
            return Err(format!(
                "it holds what `{strange}` keeps, and this machine runs nothing of that name that keeps data, but {known}"
            ));
        }
        Ok(())
    }

    /// Where an entry belongs on this machine; none where it is not wanted.
    fn place(&self, entry: &Entry) -> Result<Option<Kept>, String> {
        if let Some(stage) = &self.stage {
            // All that a machine kept, under the ids that it gave.
            if let Ok(ranges) = std::fs::read(stage.join(STATE).join(RANGES)) {
                self.engine.take_over_ranges(&ranges).map_err(|error| error.to_string())?;
            }
            return Ok(Some(entry.kept()));
        }
        let Some(slug) = entry.slug.as_ref().filter(|slug| self.services.is_empty() || self.services.contains(*slug)) else {
            return Ok(None);
        };
        let Some((service, _)) = self.here.get(slug) else { return Ok(None) };
        let kind = KeptKind::of(service);
        if kind != entry.kind {
            return Err(format!("`{slug}` keeps {}, and what is in it is {}", kind.phrase(), entry.kind.phrase()));
        }
        if kind == KeptKind::Postgres && entry.service != service.id {
            return Err(format!(
                "the database `{slug}` in it is another one's, with another password: restore everything on an empty machine, or move its data with pg_dump and psql"
            ));
        }
        Ok(Kept::of(service))
    }
}
