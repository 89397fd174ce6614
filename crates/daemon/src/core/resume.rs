//! Going on after an earlier daemon: what was accepted is resolved again, what was not finished is deployed again.

use super::Core;
use super::deploys::engine_words;
use crate::blueprints::{self, Doors};
use crate::protocol::ServicePhase;
use moat_model::{Severity, Slug};
use moat_planner::Step;
use std::time::Duration;
use tokio::time::Instant;

/// Between two tries to open the network that could not be opened.
const OPEN_AGAIN: Duration = Duration::from_secs(2);

impl Core {
    /// Where the ingress listens: where the service manager says, else where it did.
    fn listen_as_before(&self, before: &str) -> String {
        self.dataplane.listening().map_or_else(|| before.to_owned(), |address| address.to_string())
    }

    /// Where it listens for HTTPS, if it does: where it did, else where the service manager says.
    pub(super) fn https_as_before(&self) -> Option<String> {
        let handed = || self.dataplane.listening_https().map(|address| address.to_string());
        self.durable.public.listen_tls.clone().or_else(handed)
    }

    /// Makes the router and has the data plane serve. What is not possible yet (a port that is taken, an address that is not up)
    /// is said, and tried again by [`Self::go_on_opening`].
    async fn open_network(&mut self) {
        let Some(first) = self.durable.blueprints.values().next() else { return };
        let (http, https) = (self.listen_as_before(&first.listen), self.https_as_before());
        self.open_due = Some(Instant::now() + OPEN_AGAIN);
        let mut problem = None;
        if let Err(error) = self.engine.apply(&Step::EnsureRouter).await {
            problem = Some(engine_words(&error));
        } else {
            self.policy = self.engine.policy();
            if let Err(failure) = self.dataplane.listen(&http, https.as_deref()).await {
                problem = Some(failure.message);
            } else if let Err(failure) = self.dataplane.listen_databases(self.durable.public.doors()).await {
                problem = Some(failure.message);
            } else if let Err(error) = self.dataplane.ensure().await {
                problem = Some(crate::chain(&error));
            }
        }
        match problem {
            None => self.open_due = None,
            Some(problem) => {
                self.wake_in(OPEN_AGAIN);
                if self.not_open.replace(problem.clone()).as_ref() != Some(&problem) {
                    self.notice(None, format!("{problem}; tried again until it can be done"));
                }
            }
        }
    }

    /// Tries again to open a network that could not be opened when this daemon started.
    pub(super) async fn go_on_opening(&mut self) {
        if !self.dataplane.is_serving() && self.open_due.is_some_and(|due| due <= Instant::now()) {
            self.open_network().await;
        }
    }

    /// Brings back the state that the durable file tells of. Does nothing when there is none.
    pub(super) async fn resume(&mut self) {
        let Some(first) = self.durable.blueprints.values().next().cloned() else { return };
        let all = self.durable.blueprints.clone();
        let (http, https) = (self.listen_as_before(&first.listen), self.https_as_before());
        let doors = Doors { http: &http, https: https.as_deref() };
        let mut outcome = blueprints::read_and_resolve(&all, &mut self.durable.memory, doors);
        for (slug, kept) in &self.durable.kept {
            outcome.state.services.insert(slug.clone(), kept.clone());
        }
        // What this program does not read as the one before it did goes on as it was.
        let lost: Vec<Slug> = self.durable.deployed.keys().filter(|slug| !outcome.state.services.contains_key(*slug)).cloned().collect();
        for (slug, deployed) in &self.durable.deployed {
            outcome.state.services.entry(slug.clone()).or_insert_with(|| deployed.service.clone());
        }
        outcome.state.generation = self.durable.generation;
        self.desired = outcome.state;
        self.open_databases();
        // What was drawn for a version that knew less is kept before anybody is told of it.
        self.save();
        for slug in lost {
            let words = outcome.diagnostics.iter().filter(|(_, d)| d.severity == Severity::Error).map(|(_, d)| d.message.clone());
            let why = words.reduce(|all, one| format!("{all}; {one}")).unwrap_or_else(|| "it does not name it".to_owned());
            self.notice(Some(&slug), format!("goes on as it was deployed, since its blueprint can't be read as it was: {why}"));
        }
        self.open_network().await;
        self.adopt_scale();
        self.resume_hooks();
        // Before anything is published: what is served goes on.
        self.open_sites().await;
        for service in self.desired.services.values().cloned().collect::<Vec<_>>() {
            let good = self.deployed(&service.slug).is_some_and(|d| d.good);
            if self.is_suspended(&service.slug) {
                self.set_phase(&service.slug, ServicePhase::Suspended, None);
                continue;
            }
            // One that its blueprint no longer names ends the deploy that it is in, and gets no other.
            if self.durable.deploying.contains(&service.slug) || (!good && !self.durable.kept.contains_key(&service.slug)) {
                let timeout = all.get(&service.blueprint).map_or(900, |up| up.start_timeout_seconds);
                self.resume_deploy(&service.slug, Duration::from_secs(timeout));
            }
        }
    }
}
