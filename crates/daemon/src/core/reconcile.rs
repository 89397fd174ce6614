//! Desired against observed, through a plan.

use super::Core;
use super::deploys::engine_words;
use crate::deploy::{Deploy, DeployPhase};
use crate::protocol::ServicePhase;
use crate::settings::Sleep;
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, ObservedInstance, ObservedState};
use moat_model::{AddressPair, DesiredState, InstanceId, LinkName, Purpose, Slug};
use moat_planner::Step;
use moat_planner::diff::{self, Changes, Situation};
use moat_planner::policy::LiveInstance;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two tries to change the packet filter.
const POLICY_AGAIN: Duration = Duration::from_secs(1);

impl Core {
    /// What should run now: definitions of what is deployed, policy of what is wanted.
    ///
    /// A service that is not deployed yet has no instances; one in back-off, or one that shares a disk with an
    /// instance that still stops, gets none started.
    pub(crate) fn run_state(&self) -> DesiredState {
        let mut state = self.desired.clone();
        for (slug, wanted) in &mut state.services {
            match self.durable.deployed.get(slug) {
                None => wanted.instances = 0,
                Some(deployed) => {
                    let mut service = deployed.service.clone();
                    service.fingerprint = deployed.fingerprint();
                    service.instances = self.wanted(slug);
                    service.network = wanted.network;
                    service.zone = wanted.zone;
                    service.environment.clone_from(&wanted.environment);
                    service.vip = wanted.vip;
                    service.allow_from.clone_from(&wanted.allow_from);
                    service.egress = wanted.egress.clone();
                    service.public.clone_from(&wanted.public);
                    *wanted = service;
                }
            }
        }
        state
    }

    fn must_wait(&self, slug: &Slug, fingerprint: &str) -> bool {
        if self.waits_for_others(slug) || self.backoff.get(slug).and_then(|b| b.until).is_some_and(|until| until > Instant::now()) {
            return true;
        }
        let exclusive = self.durable.deployed.get(slug).is_some_and(|d| diff::is_exclusive(&d.service));
        exclusive
            && self.live.values().any(|l| l.slug == *slug && l.purpose == Purpose::Serve && (l.stopping || l.fingerprint != fingerprint))
    }

    /// Who runs; the policy is made anew with each step, so that the one that holds is not part of it.
    fn observed(&self) -> ObservedState {
        let instances = self
            .live
            .iter()
            .filter(|(_, live)| !live.stopping && !self.closing.contains(&live.slug))
            .filter_map(|(id, live)| {
                // One of a service that was given up while its daemon ended is known by its own id, and has to go.
                let service = self
                    .desired
                    .services
                    .get(&live.slug)
                    .map(|s| s.id.clone())
                    .or_else(|| self.deployed(&live.slug).map(|d| d.service.id.clone()))
                    .or_else(|| id.service())?;
                let found = ObservedInstance {
                    id: id.clone(),
                    service,
                    slug: live.slug.clone(),
                    purpose: live.purpose,
                    fingerprint: live.fingerprint.clone(),
                    address: live.address,
                    link: LinkName::of(live.address.v4),
                    phase: InstancePhase::Running,
                    monitor_pid: None,
                    pid: None,
                };
                Some((id.clone(), found))
            })
            .collect();
        ObservedState { router: true, instances, policy: NetPolicy::default() }
    }

    /// Instances as the policy sees them: those being stopped take no new flows by the service address.
    pub(crate) fn live_instances(&self) -> Vec<LiveInstance> {
        self.live
            .iter()
            .map(|(id, live)| LiveInstance {
                id: id.clone(),
                slug: live.slug.clone(),
                purpose: live.purpose,
                address: live.address,
                ready: live.ready,
                http_port: live.http_port,
            })
            .collect()
    }

    /// Makes what runs be what should run, as far as it can be now.
    pub(super) async fn reconcile(&mut self) {
        if self.durable.blueprints.is_empty() && self.live.is_empty() {
            return;
        }
        self.stop_unwanted_sandboxes();
        let state = self.run_state();
        let releases: BTreeMap<Slug, String> =
            self.durable.deployed.iter().filter_map(|(slug, d)| d.release.clone().map(|r| (slug.clone(), r))).collect();
        let ready: BTreeSet<InstanceId> = self.live.iter().filter(|(_, l)| l.ready).map(|(id, _)| id.clone()).collect();
        let observed = self.observed();
        let held: BTreeSet<Slug> =
            self.durable.deployed.iter().filter(|(slug, d)| self.must_wait(slug, &d.fingerprint())).map(|(slug, _)| slug.clone()).collect();
        let situation = Situation { releases: &releases, ready: &ready, http_ports: &BTreeMap::new(), held: &held };
        let changes = diff::changes(&state, &observed, situation, &mut self.durable.memory, &mut crate::blueprints::random);
        self.carry_out(changes).await;
    }

    /// Carries changes out. Stops and starts run side by side as tasks, so that the policy is made here of what lives at
    /// this moment: an instance keeps its flows until it has stopped, and one that starts is covered before it exists.
    async fn carry_out(&mut self, changes: Changes) {
        let Changes { stops, mut starts } = changes;
        for (id, _) in &stops {
            if let Some(live) = self.live.get_mut(id) {
                live.ready = false;
            }
        }
        if !starts.is_empty() {
            // An address that was handed out stays so, even if this process ends now.
            self.save();
        }
        for spec in &starts {
            self.register(spec);
        }
        if !self.apply_policy_now().await {
            // None starts that the policy does not know.
            for spec in std::mem::take(&mut starts) {
                self.unregister(&spec.id);
            }
            self.wake_in(POLICY_AGAIN);
        }
        if !stops.is_empty() {
            // No new request goes to what is about to stop.
            self.publish_views().await;
        }
        for (id, grace) in stops {
            self.drain_instance(&id, grace);
        }
        for spec in starts {
            self.launch(spec);
        }
    }

    /// Build, cron and job instances of services that are gone are stopped.
    fn stop_unwanted_sandboxes(&mut self) {
        let gone: Vec<InstanceId> = self
            .live
            .iter()
            .filter(|(_, l)| !l.stopping && l.purpose != Purpose::Serve && !self.desired.services.contains_key(&l.slug))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.stop_instance(&id, 1);
        }
    }

    /// Applies the policy of what is known now; false where that failed, which was said.
    pub(super) async fn apply_policy_now(&mut self) -> bool {
        let mut policy = moat_planner::policy::net_policy(&self.run_state(), &self.live_instances());
        policy.held = self.held();
        self.set_policy(policy).await
    }

    /// Service addresses of deploys that stop before they start: connections wait there for the instance to come.
    fn held(&self) -> BTreeSet<AddressPair> {
        let comes = |deploy: &&Deploy| {
            let ran = deploy.previous.as_ref().is_some_and(|previous| previous.good);
            deploy.phase == DeployPhase::Starting && ran && diff::is_exclusive(&deploy.service)
        };
        let vips = self.deploys.values().filter(comes).filter_map(|deploy| self.desired.services.get(&deploy.service.slug)?.vip);
        vips.chain(self.replaced_addresses()).collect()
    }

    /// Closes first, opens last: the part that both policies allow, then the new one.
    async fn set_policy(&mut self, target: NetPolicy) -> bool {
        if target == *self.policy {
            return true;
        }
        self.publish_views().await;
        // A service address is no permission: it may turn to its new instances at once.
        let narrowed = NetPolicy { services: target.services.clone(), held: target.held.clone(), ..self.policy.intersection(&target) };
        for policy in [narrowed, target].map(Arc::new) {
            if policy == self.policy {
                continue;
            }
            match self.engine.apply(&Step::SetPolicy { policy: Arc::clone(&policy) }).await {
                Ok(_) => self.policy = policy,
                Err(error) => {
                    self.notice(None, format!("the packet filter could not be changed: {}", engine_words(&error)));
                    return false;
                }
            }
        }
        true
    }

    /// Keeps the phases of live services true.
    pub(super) fn refresh_phases(&mut self) {
        let mut ready: BTreeMap<Slug, u32> = BTreeMap::new();
        for live in self.live.values().filter(|l| l.purpose == Purpose::Serve && l.ready) {
            match ready.get_mut(&live.slug) {
                Some(count) => *count += 1,
                None => drop(ready.insert(live.slug.clone(), 1)),
            }
        }
        for slug in self.durable.deployed.keys().cloned().collect::<Vec<_>>() {
            if self.deploys.contains_key(&slug) {
                continue;
            }
            if self.is_suspended(&slug) || self.copies.holds(&slug) {
                continue;
            }
            if let Some(sleep) = self.durable.sleep.get(&slug) {
                let phase = match sleep {
                    Sleep::Asleep => ServicePhase::Sleeping,
                    Sleep::Waking => ServicePhase::Starting,
                };
                // That a deploy failed is said until something else is to be.
                if self.phases.get(&slug).is_none_or(|state| state.phase != ServicePhase::Failed) {
                    self.set_phase(&slug, phase, None);
                }
                continue;
            }
            let (wanted, ready) = (self.wanted(&slug), ready.get(&slug).copied().unwrap_or_default());
            let phase = self.phases.get(&slug).map(|p| p.phase);
            if ready >= wanted && matches!(phase, Some(ServicePhase::Restarting | ServicePhase::Starting | ServicePhase::Sleeping)) {
                self.set_phase(&slug, ServicePhase::Live, None);
            }
            if phase.is_none() {
                self.set_phase(&slug, if ready >= wanted { ServicePhase::Live } else { ServicePhase::Restarting }, None);
            }
        }
    }
}
