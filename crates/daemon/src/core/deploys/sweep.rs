//! What deploys have left and nothing needs any more.

use super::super::Core;
use moat_engine_linux::{ImageBuildRequest, Prune};
use std::collections::BTreeSet;

impl Core {
    /// Removes releases that nothing runs and nobody can go back to, once no deploy is under way, and no backup. The loop waits for it, so that no deploy begins
    /// whose release would be taken for garbage.
    pub(in super::super) async fn sweep_releases(&mut self) {
        if !self.sweep || !self.deploys.is_empty() || !self.copies.is_empty() {
            return;
        }
        self.sweep = false;
        let keep = self.releases_kept();
        if let Err(error) = self.engine.collect_garbage(&keep).await {
            tracing::warn!(%error, "old releases can't be removed");
        }
        if let Err(error) = self.engine.prune_images(&keep, Prune::Left).await {
            tracing::warn!(%error, "old images can't be removed");
        }
    }

    /// The releases and images that something runs, may go back to, or is about to run.
    pub(in super::super) fn releases_kept(&mut self) -> BTreeSet<String> {
        let mut keep: BTreeSet<String> = self.durable.deployed.values().filter_map(|d| d.release.clone()).collect();
        keep.extend(self.releases_in_use());
        keep.extend(self.durable.history.releases());
        for deploy in self.deploys.values() {
            keep.extend(deploy.release.clone());
            keep.extend(deploy.previous.as_ref().and_then(|previous| previous.release.clone()));
        }
        keep.extend(self.next.values().filter_map(|ask| ask.ready_made.as_ref()?.release.clone()));
        keep
    }

    /// Removes what was fetched for services that are not there any more, once no deploy is under way.
    pub(in super::super) async fn sweep_fetched(&mut self) {
        if !self.sweep_fetched || !self.deploys.is_empty() {
            return;
        }
        self.sweep_fetched = false;
        let services = || self.desired.services.values();
        let sources = services().filter_map(|service| service.workload.source().cloned()).collect();
        let built = services().filter(|service| ImageBuildRequest::of(service).is_some()).map(|service| service.id.clone());
        if let Err(error) = self.engine.collect_fetched(sources, built.collect()).await {
            tracing::warn!(%error, "old sources can't be removed");
        }
    }
}
