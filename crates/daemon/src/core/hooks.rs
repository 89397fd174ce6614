//! `initialDeployHook`: a command that runs once, after the first deploy of a service that came to be live.
//!
//! ```text
//! first live ─▶ due ─▶ its job is being started ─▶ started: noted as run, in the durable state
//!                ▲                 └── the daemon ends: the next one finds the job, or has it due again
//!                └── not noted as run
//! ```
//!
//! Invariant: a hook that was not started is due, whichever daemon comes.

use super::Core;
use crate::deploy::Deployed;
use moat_model::{InstanceId, Slug};
use moat_planner::plan::InstanceSpec;
use std::time::Duration;
use tokio::time::Instant;

/// Between two tries to start one.
const AGAIN: Duration = Duration::from_secs(10);

/// How the fingerprint of a hook's job begins, by which a later daemon tells it from a command that somebody runs.
const MARK: &str = "hook-";

/// Marks a job as that of a hook.
pub(super) fn mark(spec: &mut InstanceSpec) {
    spec.fingerprint.insert_str(0, MARK);
}

/// Whether a job with this fingerprint is that of a hook.
pub(super) fn is_hook(fingerprint: &str) -> bool {
    fingerprint.starts_with(MARK)
}

fn hook(deployed: &Deployed) -> Option<&str> {
    deployed.service.workload.initial_deploy_hook().filter(|_| deployed.service.workload.needs_release() && !deployed.hook_ran)
}

impl Core {
    /// The service is live: its hook is due, unless it ran.
    pub(super) fn hook_is_due(&mut self, slug: &Slug) {
        let Some(deployed) = self.durable.deployed.get_mut(slug) else { return };
        match hook(deployed) {
            Some(_) => {
                let starts = |id: &InstanceId| self.live.get(id).is_some_and(|live| live.slug == *slug);
                if !self.hooks.iter().any(starts) {
                    self.hooks_due.insert(slug.clone(), Instant::now());
                }
            }
            // One that its blueprint names later is none of a first deploy.
            None => deployed.hook_ran |= deployed.service.workload.needs_release(),
        }
    }

    /// Those that an earlier daemon did not come to.
    pub(super) fn resume_hooks(&mut self) {
        let due = self.durable.deployed.iter().filter(|(_, deployed)| deployed.good && hook(deployed).is_some());
        self.hooks_due.extend(due.map(|(slug, _)| (slug.clone(), Instant::now())));
    }

    /// Starts the jobs of hooks that are due.
    pub(super) async fn start_hooks(&mut self) {
        let now = Instant::now();
        for slug in self.hooks_due.iter().filter(|(_, due)| **due <= now).map(|(slug, _)| slug.clone()).collect::<Vec<_>>() {
            self.hooks_due.remove(&slug);
            let Some(deployed) = self.deployed(&slug).cloned() else { continue };
            let Some(command) = hook(&deployed).map(str::to_owned) else { continue };
            self.notice(Some(&slug), format!("running the initial deploy hook: {}", super::deploys::first_line(&command)));
            match self.start_hook(&deployed.service, deployed.release, command).await {
                Ok(id) => {
                    self.hooks.insert(id);
                }
                Err(why) => {
                    self.notice(Some(&slug), why);
                    self.hook_again(&slug);
                }
            }
        }
    }

    /// An instance was started, or could not be.
    pub(super) fn hook_started(&mut self, id: &InstanceId, slug: &Slug, runs: bool) {
        if !self.hooks.remove(id) {
            return;
        }
        if runs {
            self.hook_runs(slug);
            self.save();
        } else {
            self.hook_again(slug);
        }
    }

    fn hook_again(&mut self, slug: &Slug) {
        self.hooks_due.insert(slug.clone(), Instant::now() + AGAIN);
        self.wake_in(AGAIN);
    }

    /// The job of the service's hook runs, or ran.
    pub(super) fn hook_runs(&mut self, slug: &Slug) {
        if let Some(deployed) = self.durable.deployed.get_mut(slug) {
            deployed.hook_ran = true;
        }
    }
}
