//! Going on after an earlier daemon: what was accepted is resolved again, what was not finished is deployed again.

use super::Core;
use super::deploys::engine_words;
use crate::blueprints;
use crate::protocol::ServicePhase;
use moat_engine::Engine as _;
use moat_planner::Step;
use std::time::Duration;

impl Core {
    /// Brings back the state that the durable file tells of. Does nothing when there is none.
    pub(super) async fn resume(&mut self) {
        let Some(first) = self.durable.blueprints.values().next().cloned() else { return };
        let all = self.durable.blueprints.clone();
        let mut outcome = blueprints::read_and_resolve(&all, &mut self.durable.memory, &first.listen);
        for (slug, kept) in &self.durable.kept {
            outcome.state.services.insert(slug.clone(), kept.clone());
        }
        outcome.state.generation = self.durable.generation;
        self.desired = outcome.state;
        if let Err(failure) = self.dataplane.listen(&first.listen).await {
            self.notice(None, failure.message);
        }
        if let Err(error) = self.engine.apply(&Step::EnsureRouter).await {
            self.notice(None, engine_words(&error));
            return;
        }
        self.policy = self.engine.network().policy();
        if let Err(error) = self.dataplane.ensure(self.engine.network()).await {
            self.notice(None, crate::chain(&error));
        }
        // Before anything is published: what is served goes on.
        self.open_sites().await;
        for service in self.desired.services.values().cloned().collect::<Vec<_>>() {
            let good = self.deployed(&service.slug).is_some_and(|d| d.good);
            if self.is_suspended(&service.slug) {
                self.set_phase(&service.slug, ServicePhase::Suspended, None);
                continue;
            }
            if (!good || self.durable.deploying.contains(&service.slug)) && !self.durable.kept.contains_key(&service.slug) {
                let timeout = all.get(&service.blueprint).map_or(900, |up| up.start_timeout_seconds);
                self.resume_deploy(&service.slug, Duration::from_secs(timeout));
            }
        }
    }
}
