//! What must hold at every step, and what must have come about once nothing happens any more.

use super::text::SERVICES;
use super::world::World;
use crate::history::{DeployState, same};
use crate::settings::Sleep;
use crate::state::Durable;
use moat_model::state::{InstancePhase, ObservedInstance};
use moat_model::{AddressPair, Endpoint, Peer, Proto, Purpose, ServiceKind, Slug};
use moat_planner::diff::is_exclusive;
use moat_planner::memory::Memory;
use moat_planner::plan::InstanceSpec;
use moat_planner::reach;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

const fn is_alive(phase: &InstancePhase) -> bool {
    matches!(phase, InstancePhase::Running | InstancePhase::Preparing)
}

/// What no instance of may ever be opened to.
fn receives_nothing(purpose: Purpose, slug: &Slug) -> bool {
    purpose != Purpose::Serve || ["mill", "tick"].contains(&slug.as_str())
}

impl World {
    /// An instance is about to start.
    pub(super) fn judge_start(&self, spec: &InstanceSpec) {
        let observed = self.observed();
        if !self.inner().known.insert(spec.id.clone()) {
            self.wrong(format!("{} is started twice", spec.id));
        }
        let has_data = spec.workload.disk().is_some() || spec.workload.is_datastore();
        let other = observed
            .instances
            .values()
            .find(|other| other.slug == spec.slug && other.id != spec.id && other.purpose == Purpose::Serve && is_alive(&other.phase));
        if let (Purpose::Serve, true, Some(other)) = (spec.purpose, has_data, other) {
            self.wrong(format!("{} starts on the disk of {}, which runs", spec.id, other.id));
        }
        if observed.router && !observed.policy.sources.contains_key(&spec.id) {
            self.wrong(format!("{} starts before the policy knows it", spec.id));
        }
        if receives_nothing(spec.purpose, &spec.slug) && takes(&observed.policy, spec.address) {
            self.wrong(format!("{} receives", spec.id));
        }
        let release = spec.release.as_ref().filter(|_| spec.purpose != Purpose::Build);
        if release.is_some_and(|name| !self.inner().sealed.contains(name)) {
            self.wrong(format!("{} starts from a release that is not there: {release:?}", spec.id));
        }
    }

    /// The policy is another.
    pub(super) fn judge_policy(&self) {
        let state = self.accepted();
        let web = Endpoint { proto: Proto::Tcp, port: 4000 };
        let mut wrong = Vec::new();
        self.engine.look(|observed| {
            let (policy, instances) = (&observed.policy, || observed.instances.values());
            wrong.extend(
                instances()
                    .filter(|i| receives_nothing(i.purpose, &i.slug) && takes(policy, i.address))
                    .map(|i| format!("{} receives", i.id)),
            );
            let serve = || instances().filter(|i| i.purpose == Purpose::Serve && state.services.contains_key(&i.slug));
            for one in serve() {
                let Some(source) = policy.sources.get(&one.id) else { continue };
                for other in serve().filter(|other| other.id != one.id) {
                    let opened = source.zone.is_some_and(|zone| policy.receivers.contains(&(zone, other.address)))
                        || policy.pairs.contains(&(source.address, other.address));
                    let (a, b) = (Peer::Service(one.slug.clone()), Peer::Service(other.slug.clone()));
                    if opened && !reach::verdict(&state, &a, &b, Some(web)).is_allowed() {
                        wrong.push(format!("{} → {} is open", one.id, other.id));
                    }
                }
            }
        });
        for what in wrong {
            self.wrong(what);
        }
    }

    /// Clients of what is only replaced are served all the time.
    pub(super) fn judge_rotation(&self, at: &str) {
        let steady = self.inner().steady.clone();
        if steady.is_empty() {
            return;
        }
        let serving = self.serving();
        let mut counts: BTreeMap<Slug, usize> = BTreeMap::new();
        self.engine.look(|observed| {
            let behind: BTreeSet<&AddressPair> = observed.policy.services.values().flatten().collect();
            for one in observed.instances.values().filter(|i| behind.contains(&i.address) && serving.contains(&i.id)) {
                *counts.entry(one.slug.clone()).or_default() += 1;
            }
        });
        for (slug, least) in steady {
            let count = counts.get(&slug).copied().unwrap_or_default();
            if count < least {
                self.wrong(format!("{at}: of `{slug}` {count} instances serve, {least} should"));
            }
        }
    }

    /// Whether everything has come about: what should run, runs, and nothing else does. Says what is missing.
    pub(super) fn missing(&self) -> Option<String> {
        let (durable, observed, serving) = (self.durable(), self.observed(), self.serving());
        if !durable.deploying.is_empty() || !durable.queued.is_empty() {
            return Some(format!("deploying {:?}", durable.deploying));
        }
        let passing = |instance: &ObservedInstance| {
            matches!(instance.purpose, Purpose::Cron | Purpose::Job) && instance.phase == InstancePhase::Running
        };
        for instance in observed.instances.values().filter(|instance| !passing(instance)) {
            let deployed = durable.deployed.get(&instance.slug);
            let fits = instance.purpose == Purpose::Serve
                && instance.phase == InstancePhase::Running
                && deployed.is_some_and(|deployed| deployed.fingerprint() == instance.fingerprint);
            if !fits {
                return Some(format!("{} is there ({:?}, {:?})", instance.id, instance.purpose, instance.phase));
            }
        }
        // One that is about to start has its address before.
        let addresses: BTreeSet<u64> = observed.instances.values().map(|instance| u64::from(instance.address.offset())).collect();
        let used = used(&durable.memory);
        if used != addresses {
            return Some(format!("addresses in use are {addresses:?}, and {used:?} are remembered"));
        }
        for slug in durable.deployed.keys() {
            let mine: Vec<&ObservedInstance> =
                observed.instances.values().filter(|i| i.slug == *slug && i.purpose == Purpose::Serve).collect();
            let (wanted, ready) = (wanted(&durable, slug), mine.iter().filter(|i| serving.contains(&i.id)).count());
            if mine.len() != wanted || ready != wanted {
                return Some(format!("`{slug}` has {} instances, {ready} serve, {wanted} should", mine.len()));
            }
            let behind: BTreeSet<AddressPair> = mine.iter().map(|i| i.address).collect();
            let service = &durable.deployed[slug].service;
            if service.kind.receives() && !observed.policy.services.values().any(|to| *to == behind) && wanted > 0 {
                return Some(format!("the service address of `{slug}` leads elsewhere"));
            }
            if service.kind == ServiceKind::Web {
                let port = service.port.unwrap_or_default();
                let expect: BTreeSet<SocketAddr> = behind.iter().map(|at| SocketAddr::new(at.v4.into(), port)).collect();
                let found = self.inner().upstreams.get(slug).cloned().unwrap_or_default();
                if found != expect {
                    return Some(format!("the ingress passes `{slug}` to {found:?}, not {expect:?}"));
                }
                let sleep = durable.sleep.get(slug);
                if sleep == Some(&Sleep::Waking) {
                    return Some(format!("`{slug}` never wakes"));
                }
                let answered = durable.settings.get(slug).is_some_and(|set| set.suspended || set.maintenance.is_some());
                let wakes = self.inner().asleep.contains(slug);
                if !answered && wakes != sleep.is_some() {
                    return Some(format!("`{slug}`: {sleep:?}, and the ingress has it woken: {wakes}"));
                }
            }
        }
        None
    }

    /// Everything has come about: it must be all right.
    pub(super) fn judge_quiet(&self) {
        let (durable, state) = (self.durable(), self.accepted());
        let may_sleep =
            |slug: &Slug| durable.public.free_plans_sleep.is_some() && state.services.get(slug).is_none_or(|service| service.public.free);
        for slug in durable.sleep.keys().filter(|slug| !may_sleep(slug)) {
            self.wrong(format!("`{slug}` sleeps and should not"));
        }
        for (slug, deployed) in &durable.deployed {
            // Suspended in its first deploy, which ended with that: resuming is another one.
            if !deployed.good && durable.settings.get(slug).is_some_and(|settings| settings.suspended) {
                continue;
            }
            if !deployed.good {
                self.wrong(format!("what runs of `{slug}` was never good"));
            }
            let records = durable.history.of(slug);
            let live: Vec<_> = records.iter().filter(|record| record.state == DeployState::Live).collect();
            match live.as_slice() {
                [one] if one.deployed.as_ref().is_some_and(|made| same(made, deployed)) => {}
                _ => self.wrong(format!("what runs of `{slug}` is not what its history says is live")),
            }
        }
        for (slug, record) in durable.history.all() {
            if !record.state.is_over() {
                self.wrong(format!("a deploy of `{slug}` is {} for ever", record.state.word()));
            }
            if record.begun.is_some_and(|begun| begun < record.asked && self.inner().off == 0) {
                self.wrong("a deploy began before it was asked for");
            }
        }
    }

    /// Everything was stopped.
    pub(super) fn judge_end(&self) {
        let (durable, observed) = (self.durable(), self.observed());
        if !observed.instances.is_empty() {
            self.wrong(format!("left: {:?}", observed.instances.keys()));
        }
        let left = [
            ("blueprints", durable.blueprints.len()),
            ("kept", durable.kept.len()),
            ("deploying", durable.deploying.len()),
            ("deployed", durable.deployed.len()),
            ("deploys", durable.history.all().count()),
            ("settings", durable.settings.len()),
            ("sleepers", durable.sleep.len()),
            ("cron jobs", durable.cron.len()),
            ("addresses", used(&durable.memory).len()),
        ];
        for (what, _) in left.iter().filter(|(_, count)| *count > 0) {
            self.wrong(format!("{what} are left"));
        }
    }
}

/// How many instances should serve.
pub(super) fn wanted(durable: &Durable, slug: &Slug) -> usize {
    let Some(deployed) = durable.deployed.get(slug) else { return 0 };
    let settings = durable.settings.get(slug).cloned().unwrap_or_default();
    let asleep = durable.sleep.get(slug) == Some(&Sleep::Asleep);
    if settings.suspended || asleep || deployed.service.kind == ServiceKind::Cron {
        return 0;
    }
    let count = settings.scale.map_or(deployed.service.instances, |scale| scale.instances);
    usize::try_from(count).unwrap()
}

/// Services whose instances are replaced one at a time and have an address, but those that may fall asleep.
pub(super) fn rolling(durable: &Durable) -> impl Iterator<Item = &Slug> {
    let sleeps = durable.public.free_plans_sleep.is_some();
    let rolls = move |slug: &Slug| SERVICES.contains(&slug.as_str()) && !(sleeps && slug.as_str() == "shop");
    let kind = |kind: ServiceKind| matches!(kind, ServiceKind::Web | ServiceKind::Pserv);
    durable.deployed.iter().filter(move |(slug, d)| rolls(slug) && kind(d.service.kind) && !is_exclusive(&d.service)).map(|(slug, _)| slug)
}

fn takes(policy: &moat_model::policy::NetPolicy, address: AddressPair) -> bool {
    policy.receivers.iter().any(|(_, to)| *to == address)
        || policy.pairs.iter().any(|(_, to)| *to == address)
        || policy.ingress.iter().any(|(to, _)| *to == address)
        || policy.services.values().any(|to| to.contains(&address))
}

/// Offsets of instance addresses that are remembered as in use.
fn used(memory: &Memory) -> BTreeSet<u64> {
    let memory = serde_json::to_value(memory).unwrap();
    let ranges = memory["ranges"].as_object().into_iter().flat_map(|ranges| ranges.values());
    let used = ranges.filter_map(|range| range["instances"]["used"].as_array());
    used.flatten().filter_map(serde_json::Value::as_u64).collect()
}
