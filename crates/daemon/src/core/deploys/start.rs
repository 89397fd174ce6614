//! From a release to instances that are ready, or back to what ran before.

use super::super::{Core, Live};
use crate::deploy::{DeployPhase, Deployed};
use crate::history::{DeployCause, DeployState};
use crate::protocol::ServicePhase;
use moat_model::{InstanceId, Purpose, ServiceKind, Slug};
use moat_store::EventKind;
use serde_json::json;
use tokio::time::Instant;

impl Core {
    /// Makes the deploy's definition and release what runs; instances follow by reconciling.
    pub(super) fn start_serving(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.get_mut(slug) else { return };
        let before = deploy.previous.as_ref();
        // A service that is started anew differs by this number alone.
        let restarts = before.map_or(0, |p| p.restarts) + u64::from(deploy.cause == DeployCause::Restart);
        let mut new = Deployed {
            service: deploy.service.clone(),
            release: deploy.release.clone(),
            commit: deploy.commit.clone(),
            hook_ran: before.into_iter().chain(self.durable.deployed.get(slug)).any(|p| p.hook_ran),
            good: false,
            restarts,
        };
        new.good = before.is_some_and(|p| p.good && p.fingerprint() == new.fingerprint());
        let changes = !new.good;
        deploy.changes = changes;
        deploy.go(DeployPhase::Starting);
        self.durable.deployed.insert(slug.clone(), new);
        self.backoff.remove(slug);
        self.save();
        if changes {
            // Whether it runs is to be seen.
            self.durable.sleep.remove(slug);
            self.tell_begun(slug);
        }
        self.set_phase(slug, ServicePhase::Starting, None);
    }

    /// Ends deploys whose instances are all ready, and those whose time is over.
    pub(in super::super) fn settle_deploys(&mut self) {
        let starting =
            self.deploys.iter().filter(|(_, d)| d.phase == DeployPhase::Starting && d.early.is_none()).map(|(slug, _)| slug.clone());
        for slug in starting.collect::<Vec<_>>() {
            let Some(deployed) = self.durable.deployed.get(&slug) else { continue };
            let fingerprint = deployed.fingerprint();
            let is_cron = deployed.service.kind == ServiceKind::Cron;
            let wanted = self.wanted(&slug);
            let is_mine = |l: &&Live| l.slug == slug && l.purpose == Purpose::Serve && l.fingerprint == fingerprint && !l.stopping;
            let ready = self.live.values().filter(is_mine).filter(|l| l.ready).count();
            let waits = self.live.iter().find(|(_, l)| is_mine(l) && !l.ready).map(|(id, l)| (id.clone(), l.seen.clone()));
            let Some(deploy) = self.deploys.get_mut(&slug) else { continue };
            if ready > deploy.ready {
                // Each instance has the whole time.
                deploy.since = Instant::now();
            }
            deploy.ready = deploy.ready.max(ready);
            if is_cron || ready >= usize::try_from(wanted).unwrap_or(usize::MAX) {
                self.deploy_is_live(&slug);
            } else if deploy.since.elapsed() > deploy.start_timeout {
                let seconds = deploy.start_timeout.as_secs();
                let (id, seen) = waits.unzip();
                let seen = seen.flatten().unwrap_or_else(|| "it did not get ready".to_owned());
                self.fail_deploy(&slug, &format!("not ready after {seconds} s: {seen}"), id.as_ref());
            } else {
                self.set_phase(&slug, ServicePhase::Starting, waits.and_then(|(_, seen)| seen));
            }
        }
    }

    fn deploy_is_live(&mut self, slug: &Slug) {
        let Some(deploy) = self.deploys.remove(slug) else { return };
        self.forget_deploying(slug);
        self.others_may_go_on(&deploy);
        if let Some(deployed) = self.durable.deployed.get_mut(slug) {
            deployed.good = true;
            if deploy.changes {
                self.durable.history.live(slug, &deploy.id, deployed, self.engine.now());
            } else {
                self.durable.history.strike(slug, &deploy.id);
            }
        }
        self.hook_is_due(slug);
        // Its schedule may be another.
        if let Some(cron) = self.durable.cron.get_mut(slug) {
            cron.at = None;
        }
        self.save();
        if deploy.changes {
            let (release, commit) = self.deployed(slug).map(|d| (d.release.clone(), d.commit.clone())).unwrap_or_default();
            let details = json!({ "deploy": deploy.id, "release": release, "commit": commit });
            self.record(EventKind::DeploySucceeded, Some(slug), "its deploy is live", details);
        }
        self.set_phase(slug, ServicePhase::Live, None);
        self.say_ports_around(slug);
        self.sweep = true;
        self.sweep_fetched = true;
    }

    /// Keeps what ran before and says why the new one does not.
    pub(in super::super) fn fail_deploy(&mut self, slug: &Slug, why: &str, instance: Option<&InstanceId>) {
        self.end_deploy(slug, DeployState::Failed, why, instance);
    }

    /// No deploy of a service is under way any more. One that waits stays known to a daemon that comes after this one.
    fn forget_deploying(&mut self, slug: &Slug) {
        self.forget_pre_deploy(slug);
        self.look_again_at_early_ends();
        if !self.next.contains_key(slug) {
            self.durable.deploying.remove(slug);
        }
    }

    /// Ends a deploy that does not come to be live.
    pub(super) fn end_deploy(&mut self, slug: &Slug, state: DeployState, why: &str, instance: Option<&InstanceId>) {
        let Some(deploy) = self.deploys.remove(slug) else { return };
        self.forget_deploying(slug);
        self.durable.history.end(slug, &deploy.id, state, Some(why), self.engine.now());
        if let Some(id) = deploy.sandbox().cloned() {
            self.stop_instance(&id, 1);
        }
        let last_lines = instance.map(|id| crate::logs::last_lines(&self.engine.log_path(id), 12)).unwrap_or_default();
        // What an earlier daemon had begun of this deploy may be there even if it had not come so far again.
        let begun = deploy.phase == DeployPhase::Starting || self.deployed(slug).is_some_and(|now| !now.good);
        let previous = deploy.previous.filter(|previous| previous.good);
        let kept = previous.is_some();
        if begun {
            let now = self.durable.deployed.remove(slug);
            if let Some(mut previous) = previous {
                previous.hook_ran |= now.is_some_and(|now| now.hook_ran);
                self.durable.deployed.insert(slug.clone(), previous);
            }
        }
        self.save();
        let detail = if kept { format!("{why}; what ran before stays") } else { why.to_owned() };
        let (kind, verb) = match state {
            DeployState::Canceled => (EventKind::DeployCancelled, "was ended"),
            DeployState::Waiting
            | DeployState::UnderWay
            | DeployState::Live
            | DeployState::Replaced
            | DeployState::Failed
            | DeployState::Skipped => (EventKind::DeployFailed, "failed"),
        };
        let details = json!({ "deploy": deploy.id, "why": why, "kept": kept });
        self.record_of(kind, Some(slug), instance, format!("its deploy {verb}: {detail}"), details);
        self.set_phase_with(slug, ServicePhase::Failed, Some(detail), last_lines);
        self.say_ports_around(slug);
    }
}
