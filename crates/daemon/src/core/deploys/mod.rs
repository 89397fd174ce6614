//! A service's way from source to live.
//!
//! * here – asking for deploys, and whose turn it is.
//! * [`build`] – from source to a release.
//! * [`start`] – from a release to instances, or back.
//! * [`order`] – what becomes of a start that failed because another service was not there yet.
//! * [`verbs`] – what people ask about deploys.
//! * [`sweep`] – what deploys have left.
//!
//! Invariant: of one service at most one deploy is under way and at most one waits.

mod build;
mod order;
mod start;
mod sweep;
mod verbs;

use super::{Core, Msg};
use crate::deploy::{Ask, Deploy, DeployPhase, Work};
use crate::history::{DeployCause, DeployState};
use crate::protocol::ServicePhase;
use moat_engine::EngineError;
use moat_engine_linux::{BuildRequest, DatastoreRequest, ImageBuildRequest, Origin, Prepared, PullRequest, SiteRequest};
use moat_model::state::{ImageOrigin, ImageWorkload, Workload};
use moat_model::{Service, ServiceKind, Slug};
use moat_store::EventKind;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

impl Core {
    /// Asks for a deploy of what a service should be. One that is suspended is deployed when it is resumed.
    pub(super) fn begin_deploy(&mut self, service: &Service, cause: DeployCause, start_timeout: Duration) {
        if self.is_suspended(&service.slug) {
            self.set_phase(&service.slug, ServicePhase::Suspended, None);
            return;
        }
        self.ask_deploy(Ask { id: String::new(), service: service.clone(), cause, start_timeout, ready_made: None });
    }

    /// Deploys at once, or once the deploy under way is over. Of those that wait only the newest is done.
    pub(super) fn ask_deploy(&mut self, mut ask: Ask) {
        let slug = ask.service.slug.clone();
        ask.id = format!("dep-{}", moat_planner::alloc::letters(crate::blueprints::random(), 20));
        let now = self.engine.now();
        self.durable.history.ask(&slug, &ask.id, ask.cause.clone(), now);
        self.durable.deploying.insert(slug.clone());
        let until = match (self.deploys.get(&slug), self.copies.blocks(&slug)) {
            (Some(running), _) => format!("{} is over (`moat deploy cancel {slug}` ends that one)", running.id),
            (None, Some(copy)) => format!("{copy} is over"),
            (None, None) => return self.begin(ask),
        };
        let new = ask.id.clone();
        if let Some(skipped) = self.next.insert(slug.clone(), ask) {
            let why = format!("{new} was asked for before its turn");
            self.durable.history.end(&slug, &skipped.id, DeployState::Skipped, Some(&why), now);
            self.notice(Some(&slug), format!("deploy {}, which waited, is skipped: {why}", skipped.id));
        }
        self.notice(Some(&slug), format!("deploy {new} waits until {until}"));
    }

    /// Begins the deploys whose turn has come.
    pub(super) fn begin_waiting(&mut self) {
        let free = |slug: &&Slug| !self.deploys.contains_key(*slug) && self.copies.blocks(slug).is_none();
        for slug in self.next.keys().filter(free).cloned().collect::<Vec<_>>() {
            if let Some(ask) = self.next.remove(&slug) {
                self.durable.deploying.insert(slug);
                self.begin(ask);
                self.save();
            }
        }
    }

    fn begin(&mut self, ask: Ask) {
        let Ask { id, service, cause, start_timeout, ready_made } = ask;
        // What is started anew is what runs by now: another deploy may have come before this one's turn.
        let running = self.durable.deployed.get(&service.slug).filter(|_| cause == DeployCause::Restart);
        let ready_made = running.cloned().or(ready_made);
        let service = ready_made.as_ref().map_or(service, |made| made.service.clone());
        let slug = service.slug.clone();
        self.durable.history.begin(&slug, &id, self.engine.now());
        // What was not good yet is nothing to go back to.
        let previous = self.durable.deployed.get(&slug).filter(|running| running.good).or_else(|| self.durable.history.last_good(&slug));
        let previous = previous.or_else(|| self.durable.deployed.get(&slug)).cloned();
        let service = &service;
        let deploy = Deploy {
            id: id.clone(),
            service: service.clone(),
            cause,
            phase: DeployPhase::Preparing,
            release: None,
            tools: Vec::new(),
            commit: None,
            previous,
            start_timeout,
            told: false,
            since: Instant::now(),
            ready: 0,
            changes: true,
            early: None,
            work: None,
        };
        if let Some(made) = ready_made {
            self.deploys.insert(slug.clone(), Deploy { release: made.release, commit: made.commit, ..deploy });
            self.start_serving(&slug);
            return;
        }
        let work = match &service.workload {
            Workload::KeyValue(_) | Workload::Postgres(_) => {
                // What runs well is not moved to another server by a tag that moved, or by what was installed since.
                let before = deploy.previous.as_ref().filter(|p| p.good && p.service.fingerprint == service.fingerprint);
                let Some(request) = DatastoreRequest::of(service, before.map(|p| Origin::of(p.release.clone()))) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Starting, None);
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                let fingerprint = service.fingerprint.clone();
                tokio::spawn(async move {
                    let result = engine.provide_datastore(request, tell).await;
                    let _ = tx.send(Msg::Provided(slug, fingerprint, result));
                })
            }
            Workload::Image(ImageWorkload { origin: ImageOrigin::Published(name), credential, .. }) => {
                let request = PullRequest { image: name.clone(), credential: credential.clone() };
                let disk = kept_by(service);
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some(format!("pulling `{name}`")));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.pull_image(request, tell).await;
                    if let Ok((release, instead_of)) = &result {
                        let instead = instead_of.as_ref().map(|error| format!("{}; using the image that is here", engine_words(error)));
                        for text in instead.into_iter().chain(engine.image_notices(&release.name, disk).await) {
                            let _ = tx.send(Msg::Said(slug.clone(), text));
                        }
                    }
                    let _ = tx.send(Msg::Prepared(slug, id, result.map(|(release, _)| release.into())));
                })
            }
            Workload::Image(_) => {
                let Some(request) = ImageBuildRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_image(request, tell).await.map(Prepared::from);
                    let _ = tx.send(Msg::Prepared(slug, id, result));
                })
            }
            Workload::Static(_) => {
                let Some(request) = SiteRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_site(request, tell).await;
                    let _ = tx.send(Msg::Prepared(slug, id, result));
                })
            }
            Workload::Native(_) => {
                let Some(request) = BuildRequest::of(service) else { return };
                self.deploys.insert(slug.clone(), deploy);
                self.set_phase(&slug, ServicePhase::Building, Some("copying the source".to_owned()));
                let (engine, tx, tell) = (self.engine.clone(), self.tx.clone(), self.pull_teller(&slug));
                tokio::spawn(async move {
                    let result = engine.prepare_release(request, tell).await;
                    let _ = tx.send(Msg::Prepared(slug, id, result));
                })
            }
        };
        if let Some(deploy) = self.deploys.get_mut(&service.slug) {
            deploy.work = Some(Work::of(&work));
        }
    }

    /// Writes down that a deploy began, once it is known to change something.
    pub(super) fn tell_begun(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get_mut(slug).filter(|deploy| !deploy.told) else { return };
        deploy.told = true;
        let details = json!({ "deploy": deploy.id, "cause": deploy.cause.words(), "fingerprint": deploy.service.fingerprint });
        self.record(EventKind::DeployStarted, Some(slug), "its deploy began", details);
    }

    /// Forgets the deploys of a service, and stops the sandbox that runs for it.
    pub(super) fn cancel_deploys(&mut self, slug: &Slug, why: &str) {
        self.durable.deploying.remove(slug);
        self.forget_pre_deploy(slug);
        let now = self.engine.now();
        if let Some(waiting) = self.next.remove(slug) {
            self.durable.history.end(slug, &waiting.id, DeployState::Canceled, Some(why), now);
        }
        if let Some(deploy) = self.deploys.remove(slug) {
            self.durable.history.end(slug, &deploy.id, DeployState::Canceled, Some(why), now);
            self.record(
                EventKind::DeployCancelled,
                Some(slug),
                format!("its deploy was given up: {why}"),
                json!({ "deploy": deploy.id, "why": why }),
            );
            if let Some(id) = deploy.sandbox().cloned() {
                self.stop_instance(&id, 1);
            }
        }
    }
}

/// Below which folder of an image's service something is kept. Of a cron job nobody expects that: as if all were.
pub(super) fn kept_by(service: &Service) -> Option<PathBuf> {
    let disk = service.workload.disk().map(|disk| disk.mount_path.clone());
    disk.or_else(|| (service.kind == ServiceKind::Cron).then(|| PathBuf::from("/")))
}

/// An engine's error with its hint, in one line.
pub(super) fn engine_words(error: &EngineError) -> String {
    match &error.hint {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    }
}

pub(super) fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    if line.chars().count() > 60 { format!("{}…", line.chars().take(59).collect::<String>()) } else { line.to_owned() }
}
