//! What people ask about deploys.

use super::super::requests::{Reply, end};
use super::super::{Core, Until, Waiting};
use crate::deploy::{Ask, Deployed};
use crate::history::{DeployCause, DeployState, same};
use crate::protocol::{DeployRow, Event, Failure, ServicePhase};
use moat_model::{ServiceKind, Slug};
use std::time::Duration;

impl Core {
    pub(in super::super) fn deploys(&self, service: Option<&str>, reply: &Reply) {
        let only = match service.map(|name| self.find(name)).transpose() {
            Ok(only) => only,
            Err(failure) => return end(reply, Some(failure)),
        };
        let mut deploys: Vec<DeployRow> = self
            .durable
            .history
            .all()
            .filter(|(slug, _)| only.as_ref().is_none_or(|only| only == *slug))
            .map(|(slug, record)| DeployRow {
                service: slug.clone(),
                id: record.id.clone(),
                cause: record.cause.words(),
                state: record.state.word().to_owned(),
                why: record.why.clone(),
                asked: record.asked.to_string(),
                begun: record.begun.map(|at| at.to_string()),
                ended: record.ended.map(|at| at.to_string()),
                commit: record.commit.clone(),
                release: record.deployed.as_ref().and_then(|deployed| deployed.release.clone()),
            })
            .collect();
        deploys.sort_by(|a, b| (&a.asked, &a.service).cmp(&(&b.asked, &b.service)));
        let _ = reply.send(Event::Deploys { deploys });
        end(reply, None);
    }

    pub(in super::super) fn restart(&mut self, slug: &Slug, reply: Reply) {
        let Some(running) = self.startable(slug, &reply) else { return };
        self.ask_made(slug, running, DeployCause::Restart, reply);
    }

    pub(in super::super) fn rollback(&mut self, slug: &Slug, deploy: Option<&str>, reply: Reply) {
        let refuse = |message: String, hint: &str| end(&reply, Some(Failure::refused(message, Some(hint.to_owned()))));
        if self.desired.services.get(slug).is_some_and(|service| service.kind.is_datastore()) {
            return refuse(format!("`{slug}` is a datastore: it has data, no releases"), "restore a backup instead");
        }
        if self.is_suspended(slug) {
            return refuse(format!("`{slug}` is suspended"), &format!("`moat resume {slug}` first"));
        }
        let now = self.deployed(slug);
        let hint = format!("`moat deploys {slug}` lists those with a release that is kept");
        let Some(record) = self.durable.history.rollback(slug, now, deploy) else {
            return refuse(
                match deploy {
                    Some(id) => format!("`{slug}` has no kept release of a deploy `{id}`"),
                    None => format!("`{slug}` has no earlier release"),
                },
                &hint,
            );
        };
        let (Some(target), to) = (record.deployed.clone(), record.id.clone()) else { return };
        if now.is_some_and(|now| now.good && same(now, &target)) {
            return refuse(format!("`{slug}` runs the release of {to} already"), &hint);
        }
        self.ask_made(slug, target, DeployCause::Rollback { to }, reply);
    }

    /// What runs of a service that can be started anew.
    fn startable(&self, slug: &Slug, reply: &Reply) -> Option<Deployed> {
        let refuse = |message: String, hint: Option<String>| {
            end(reply, Some(Failure::refused(message, hint)));
            None
        };
        if self.is_suspended(slug) {
            return refuse(format!("`{slug}` is suspended"), Some(format!("`moat resume {slug}` starts it")));
        }
        let Some(running) = self.deployed(slug).cloned() else {
            return refuse(format!("nothing of `{slug}` runs"), Some("`moat up` deploys it".to_owned()));
        };
        match running.service.kind {
            ServiceKind::Cron => refuse(format!("`{slug}` is a cron job"), Some(format!("`moat run {slug}` runs it now"))),
            ServiceKind::Static => refuse(format!("`{slug}` is a static site: nothing of it runs"), None),
            ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::KeyValue | ServiceKind::Postgres => Some(running),
        }
    }

    /// Deploys something that was built already.
    fn ask_made(&mut self, slug: &Slug, made: Deployed, cause: DeployCause, reply: Reply) {
        let start_timeout = self.start_timeout(slug);
        self.followers.push(reply.clone());
        let service = made.service.clone();
        self.ask_deploy(Ask { id: String::new(), service, cause, start_timeout, ready_made: Some(made) });
        self.save();
        self.waiting.push(Waiting { reply, until: Until::Service { slug: slug.clone() } });
    }

    /// How long an instance of a service may take until it is ready.
    pub(in super::super) fn start_timeout(&self, slug: &Slug) -> Duration {
        let blueprint = self.desired.services.get(slug).map(|service| &service.blueprint);
        Duration::from_secs(blueprint.and_then(|file| self.durable.blueprints.get(file)).map_or(900, |up| up.start_timeout_seconds))
    }

    /// Ends the deploy under way; one that waits is next.
    pub(in super::super) fn cancel_deploy(&mut self, slug: &Slug, reply: &Reply) {
        if !self.deploys.contains_key(slug) {
            return end(reply, Some(Failure::refused(format!("no deploy of `{slug}` is under way"), None)));
        }
        self.end_deploy(slug, DeployState::Canceled, "the deploy was canceled", None);
        end(reply, None);
    }

    /// Goes on with the deploys that an earlier daemon did not end.
    pub(in super::super) fn resume_deploy(&mut self, slug: &Slug, start_timeout: Duration) {
        let unfinished: Vec<_> = self.durable.history.of(slug).iter().filter(|record| !record.state.is_over()).cloned().collect();
        for record in &unfinished {
            self.durable.history.strike(slug, &record.id);
        }
        // A start anew that waited for another deploy comes about with that one.
        let wanted = unfinished.iter().rfind(|record| record.cause != DeployCause::Restart).or(unfinished.last());
        let cause = wanted.map_or(DeployCause::Up, |record| record.cause.clone());
        let begun = self.deployed(slug).filter(|running| !running.good).cloned();
        let made = match &cause {
            DeployCause::Up | DeployCause::Push | DeployCause::Variables | DeployCause::Resume => None,
            DeployCause::Rollback { to } => {
                self.durable.history.rollback(slug, None, Some(to)).and_then(|record| record.deployed.clone()).or(begun)
            }
            DeployCause::Restart => begun.or_else(|| self.deployed(slug).cloned()),
        };
        let Some(service) = made.as_ref().map(|made| made.service.clone()).or_else(|| self.desired.services.get(slug).cloned()) else {
            return;
        };
        tracing::info!(%slug, "goes on with its deploy");
        if made.is_some() {
            self.ask_deploy(Ask { id: String::new(), service, cause, start_timeout, ready_made: made });
        } else {
            self.begin_deploy(&service, cause, start_timeout);
        }
    }

    /// Whether nothing is under way for a service and as many instances run as should.
    pub(in super::super) fn is_settled(&self, slug: &Slug) -> bool {
        if self.deploys.contains_key(slug) || self.next.contains_key(slug) {
            return false;
        }
        if self.is_suspended(slug) {
            return !self.live.values().any(|live| live.slug == *slug);
        }
        let failed = self.phases.get(slug).is_some_and(|state| state.phase == ServicePhase::Failed);
        let (ready, others) = self.count(slug);
        failed || (ready == usize::try_from(self.wanted(slug)).unwrap_or(usize::MAX) && others == 0)
    }
}
