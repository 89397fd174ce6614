//! Pushes: which one is deployed, and by which services.
//!
//! ```text
//! asked ─▶ queued (the newest of a blueprint only) ─▶ compared with what runs ─▶ accepted as any `up`
//!             └── another comes: superseded
//! ```
//!
//! Invariant: a push is on disk before it is answered, until it is accepted or refused, so that a killed daemon loses none.

use super::requests::{Reply, end};
use super::{Core, Msg, Until};
use crate::blueprints::Outcome;
use crate::protocol::{Cause, Event, Failure, Pushed, ServicePhase, UpRequest};
use moat_engine::EngineError;
use moat_model::state::{ImageOrigin, Source, Workload};
use moat_model::{Service, Slug};
use moat_planner::push::{Held, PushRule};
use moat_store::EventKind;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at the logs of builds.
const TAIL_EVERY: Duration = Duration::from_millis(200);

impl Core {
    /// Queues a push behind the deploy of its blueprint that is under way, in place of one that waits.
    pub(super) fn push(&mut self, up: UpRequest, reply: &Reply) {
        let (file, commit) = (up.file.clone(), up.git[1].clone());
        let busy = self.is_busy(&file);
        let some = up.pushed.as_ref().is_some_and(|pushed| matches!(&pushed.cause, Cause::Asked { services } if !services.is_empty()));
        if some && self.durable.queued.contains_key(&file) {
            // In place of that one it would deploy less than was pushed.
            return end(reply, Some(Failure::refused("a push waits for its turn", Some("ask again once it is deployed".to_owned()))));
        }
        if let Some(waiting) = self.pushers.insert(file.clone(), reply.clone()) {
            let _ = waiting.send(Event::Superseded { commit: commit.clone() });
            end(&waiting, None);
        }
        self.durable.queued.insert(file, up);
        self.save();
        if busy {
            let text = format!("commit {} waits until the deploy before it is over", short(&commit));
            self.record(EventKind::Notice, None, text.clone(), json!({ "commit": commit }));
            let _ = reply.send(Event::Notice { service: None, text });
        }
    }

    fn is_busy(&self, file: &Path) -> bool {
        let mine = |service: &Service| service.blueprint == file;
        self.comparing.contains(file)
            || self.deploys.values().any(|deploy| mine(&deploy.service))
            || self.next.values().any(|ask| mine(&ask.service))
            || self.desired.services.values().any(|service| mine(service) && self.closing.contains(&service.slug))
    }

    /// Begins the pushes whose turn it is.
    pub(super) fn go_on_with_pushes(&mut self) {
        for (file, up) in self.durable.queued.clone() {
            let Some(pushed) = up.pushed.clone().filter(|_| !self.is_busy(&file)) else { continue };
            let commits = match pushed.cause {
                Cause::Push => self.running_commits(&file),
                Cause::Asked { .. } => BTreeSet::new(),
            };
            self.comparing.insert(file.clone());
            let (engine, tx, commit) = (self.engine.clone(), self.tx.clone(), up.git[1].clone());
            tokio::spawn(async move {
                let changed = engine.changed_files(pushed.repository, commits, commit.clone()).await;
                let _ = tx.send(Msg::Compared(file, commit, changed));
            });
        }
    }

    /// The commits that a blueprint's services run.
    fn running_commits(&self, file: &Path) -> BTreeSet<String> {
        let mine = self.durable.deployed.values().filter(|deployed| deployed.good && deployed.service.blueprint == file);
        mine.filter_map(|deployed| deployed.commit.clone()).collect()
    }

    /// Decides which services deploy the pushed commit, and accepts it.
    pub(super) async fn compared(&mut self, file: &PathBuf, commit: &str, changed: Result<BTreeMap<String, Vec<String>>, EngineError>) {
        self.comparing.remove(file);
        // Another may have come meanwhile: its turn is next.
        let Some(up) = self.durable.queued.get(file).filter(|up| up.git[1] == commit).cloned() else { return };
        let Some(pushed) = up.pushed.clone() else { return };
        let reply = self.pushers.remove(file).unwrap_or_else(|| crate::reply::channel().0);
        self.durable.queued.remove(file);
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                end(&reply, Some(Failure::engine(&error)));
                return self.save();
            }
        };
        let Some(outcome) = self.resolve_with(&up, &reply) else { return self.save() };
        let decided = match self.decide(file, &pushed, &outcome, &changed) {
            Ok(decided) => decided,
            Err(failure) => {
                end(&reply, Some(failure));
                return self.save();
            }
        };
        let pins = decided.pins;
        let up = UpRequest { pushed: Some(Pushed { pins, ..pushed }), ..up };
        let Some(outcome) = self.resolve_with(&up, &reply) else { return self.save() };
        self.accept(up, outcome.state, &decided.held, reply).await;
        self.save();
    }

    fn decide(&self, file: &Path, pushed: &Pushed, outcome: &Outcome, changed: &BTreeMap<String, Vec<String>>) -> Result<Decided, Failure> {
        let mine = || outcome.state.services.values().filter(|service| service.blueprint == file);
        let is_called = |service: &Service, name: &String| service.name == *name || service.slug.as_str() == name;
        let asked: &[String] = if let Cause::Asked { services } = &pushed.cause { services } else { &[] };
        if let Some(unknown) = asked.iter().find(|name| !mine().any(|service| is_called(service, name))) {
            let known: Vec<&str> = mine().map(|service| service.name.as_str()).collect();
            return Err(Failure::refused(format!("there is no service `{unknown}`"), Some(format!("services: {}", known.join(", ")))));
        }
        let mut decided = Decided::default();
        for service in mine() {
            let Some(running) = self.deployed(&service.slug).filter(|running| running.good && running.service.blueprint == file) else {
                // Nothing of it runs: there is nothing to keep.
                continue;
            };
            let commit = running.commit.as_ref();
            let reason = match &pushed.cause {
                Cause::Asked { services } if services.is_empty() || services.iter().any(|name| is_called(service, name)) => continue,
                Cause::Asked { .. } => "it was not asked for",
                Cause::Push => {
                    let rule = outcome.push_rules.get(&service.slug).unwrap_or(&PushRule::Settings);
                    let files = commit.and_then(|commit| changed.get(commit)).map(Vec::as_slice);
                    match rule.held(files) {
                        Some(Held::NotPushed) => Held::NotPushed.reason(),
                        // What was never taken from git can't be taken from there again.
                        Some(held) if commit.is_some() => held.reason(),
                        Some(_) | None => continue,
                    }
                }
            };
            if let Some(commit) = commit {
                decided.pins.insert(service.name.clone(), commit.clone());
                decided.held.insert(service.slug.clone(), format!("keeps commit {}: {reason}", short(commit)));
            } else {
                decided.held.insert(service.slug.clone(), String::new());
            }
        }
        Ok(decided)
    }

    /// Whether a service that is held is left alone: nothing but its source would change. Says so.
    pub(super) fn keeps(&mut self, service: &Service, held: &BTreeMap<Slug, String>) -> bool {
        let Some(reason) = held.get(&service.slug) else { return false };
        let same =
            self.deployed(&service.slug).is_some_and(|running| running.good && without_commit(&running.service) == without_commit(service));
        let reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
        if !same {
            if let Some(reason) = reason {
                self.notice(Some(&service.slug), format!("{reason}; its settings have changed, and are applied"));
            }
            return false;
        }
        let restarting = self.phases.get(&service.slug).is_some_and(|state| state.phase == ServicePhase::Restarting);
        match reason {
            Some(reason) if restarting => self.notice(Some(&service.slug), reason),
            reason if !restarting => self.set_phase(&service.slug, ServicePhase::Live, reason),
            _ => {}
        }
        true
    }

    /// Gives up the pushes of one blueprint, or all, that are not accepted yet.
    pub(super) fn forget_pushes(&mut self, file: Option<&PathBuf>) {
        let forgotten = |path: &PathBuf| file.is_none_or(|file| file == path);
        self.durable.queued.retain(|path, _| !forgotten(path));
        for path in self.pushers.keys().filter(|path| forgotten(path)).cloned().collect::<Vec<_>>() {
            if let Some(reply) = self.pushers.remove(&path) {
                end(&reply, Some(Failure::refused("stopped by `moat down`", None)));
            }
        }
    }

    /// Hands what builds and pre-deploy commands have written to those who wait for their blueprint.
    pub(super) fn tell_build_logs(&mut self) {
        for (file, tail) in self.tails.values_mut() {
            for line in tail.news() {
                for waiting in self.waiting.iter().filter(|waiting| matches!(&waiting.until, Until::Settled { file: of } if of == file)) {
                    // Who hung up is noticed elsewhere.
                    let _ = waiting.reply.send(Event::Log(line.clone()));
                }
            }
        }
        if self.tails.is_empty() {
            self.tails_due = None;
        } else if self.tails_due.is_none_or(|due| due <= Instant::now()) {
            self.tails_due = Some(Instant::now() + TAIL_EVERY);
            self.wake_in(TAIL_EVERY + Duration::from_millis(5));
        }
    }
}

/// What a push comes to.
#[derive(Default)]
struct Decided {
    /// Commits that services keep, by name.
    pins: BTreeMap<String, String>,
    /// Why, by service; empty where there is nothing to say.
    held: BTreeMap<Slug, String>,
}

/// The first digits of a commit.
fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

fn without_commit(service: &Service) -> Service {
    let mut service = service.clone();
    let source = match &mut service.workload {
        Workload::Native(native) => Some(&mut native.source),
        Workload::Image(image) => match &mut image.origin {
            ImageOrigin::Dockerfile(dockerfile) => Some(&mut dockerfile.source),
            ImageOrigin::Published(_) => None,
        },
        Workload::Static(site) => Some(&mut site.source),
        Workload::KeyValue(_) | Workload::Postgres(_) => None,
    };
    if let Some(Source::Repository { commit, .. }) = source {
        *commit = None;
    }
    service
}
