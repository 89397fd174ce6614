//! Desired against observed: the steps from one to the other.
//!
//! The order within a plan:
//!
//! ```text
//! EnsureRouter ─▶ SetPolicy(what was and stays allowed) ─▶ StopInstance… ─▶ SetPolicy(target) ─▶ StartInstance…
//!                 closes what becomes forbidden;            nothing that     opens what becomes    each covered by the
//!                 service addresses turn to the             should not run   allowed               policy before its
//!                 instances that stay                       is left                                first instruction
//! ```
//!
//! The policy names the instances of the last steps before they exist: nobody else has their links or addresses, so that
//! nothing opens by it, and their first packet is not lost. Invariant: whatever the step after which a plan ends, nothing that
//! the old or the new state forbids is allowed, and the same `diff` of what is observed then goes on from there.
//!
//! A plan starts and stops at most what is safe now. Whoever applies it observes and calls `diff` again, as instances become ready, until
//! there are no steps left.

use crate::alloc;
use crate::memory::Memory;
use crate::plan::{InstanceSpec, Plan, Step};
use crate::policy::{LiveInstance, net_policy};
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, ObservedInstance, ObservedState};
use moat_model::{DesiredState, InstanceId, Purpose, Service, ServiceKind, Slug, StartOrder};
use std::collections::{BTreeMap, BTreeSet};

/// Seconds between SIGTERM and SIGKILL for an instance whose service is gone.
const GRACE_OF_THE_UNKNOWN: u32 = 30;

/// What `diff` knows besides the two states.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The release each service's new instances run. A native service without one starts and replaces nothing: it is
    /// not built yet. A release that should replace running instances has to be part of [`Service::fingerprint`].
    pub releases: &'a BTreeMap<Slug, String>,
    /// Instances that take traffic.
    pub ready: &'a BTreeSet<InstanceId>,
    /// HTTP ports found, where they differ from [`Service::port`].
    pub http_ports: &'a BTreeMap<InstanceId, u16>,
    /// Services of which nothing is started now: one that keeps ending, or whose instance before has to be gone first.
    pub held: &'a BTreeSet<Slug>,
}

/// The plan from what is observed towards what is desired, as far as it is safe now.
///
/// * Instances whose fingerprint matches stay, whoever started them.
/// * Others are replaced one at a time: a new one starts, and once it is ready an old one stops. Services with a disk and
///   datastores stop the old one first, since two must not share the data.
/// * Where instances start one by one, the next one starts once all before it are ready.
/// * Datastores start before the services that may use them.
/// * Serving instances that ended, were lost, or were left half-made by a start that failed (still preparing) are cleared
///   away and replaced. Whoever starts instances beside other work passes those under way as running.
/// * Builds, commands and cron runs are their starter's business; they are stopped only when their service is gone.
/// * Nothing desired and nothing observed removes the router.
///
/// Addresses of observed instances are noted in `memory` as in use; those of stopped ones are given back by whoever sees
/// them gone ([`alloc::release`]). A start for which no address is left is not planned.
pub fn diff(
    desired: &DesiredState,
    observed: &ObservedState,
    releases: &BTreeMap<Slug, String>,
    ready: &BTreeSet<InstanceId>,
    memory: &mut Memory,
    random: &mut dyn FnMut() -> [u8; 32],
) -> Plan {
    diff_in(desired, observed, Situation { releases, ready, http_ports: &BTreeMap::new(), held: &BTreeSet::new() }, memory, random)
}

/// [`diff`] with all that may be known.
pub fn diff_in(
    desired: &DesiredState,
    observed: &ObservedState,
    situation: Situation<'_>,
    memory: &mut Memory,
    random: &mut dyn FnMut() -> [u8; 32],
) -> Plan {
    let Changes { stops, starts } = changes(desired, observed, situation, memory, random);
    let leaving: BTreeSet<&InstanceId> = stops.iter().map(|(id, _)| id).collect();

    let mut steps = Vec::new();
    let needed = !desired.services.is_empty() || !observed.instances.is_empty();
    if needed && !observed.router {
        steps.push(Step::EnsureRouter);
    }
    // A router that has to be made decides by nothing yet, whatever was applied to the one before it.
    let mut current = if observed.router { observed.policy.clone() } else { NetPolicy::default() };

    let alive = |instance: &&ObservedInstance| matches!(instance.phase, InstancePhase::Preparing | InstancePhase::Running);
    let live = |instance: &ObservedInstance| LiveInstance {
        id: instance.id.clone(),
        slug: instance.slug.clone(),
        purpose: instance.purpose,
        address: instance.address,
        // What is about to stop takes no new connections; those it has go on until it stops.
        ready: situation.ready.contains(&instance.id) && !leaving.contains(&instance.id),
        http_port: situation.http_ports.get(&instance.id).copied(),
    };
    if needed {
        let now: Vec<LiveInstance> = observed.instances.values().filter(alive).map(live).collect();
        let closing = narrowed(&current, &net_policy(desired, &now));
        set_policy(&mut steps, &mut current, closing);
    }
    steps.extend(stops.iter().map(|(id, grace_seconds)| Step::StopInstance { id: id.clone(), grace_seconds: *grace_seconds }));
    if needed {
        let staying = observed.instances.values().filter(alive).filter(|i| !leaving.contains(&i.id)).map(live);
        let coming = starts.iter().map(|spec| LiveInstance {
            id: spec.id.clone(),
            slug: spec.slug.clone(),
            purpose: spec.purpose,
            address: spec.address,
            ready: false,
            http_port: None,
        });
        let target = net_policy(desired, &staying.chain(coming).collect::<Vec<_>>());
        set_policy(&mut steps, &mut current, target);
    }
    steps.extend(starts.into_iter().map(|instance| Step::StartInstance { instance: Box::new(instance) }));
    if !needed && observed.router {
        steps.push(Step::RemoveRouter);
    }
    Plan { generation: desired.generation, steps }
}

fn set_policy(steps: &mut Vec<Step>, current: &mut NetPolicy, policy: NetPolicy) {
    if policy != *current {
        current.clone_from(&policy);
        steps.push(Step::SetPolicy { policy: policy.into() });
    }
}

/// What both policies allow; service addresses of both stand for what they do in the second. A service address is no
/// permission (a flow is judged by the instance it ends at), so that it may turn to its new instances at once: it never
/// stands empty between old and new.
fn narrowed(current: &NetPolicy, next: &NetPolicy) -> NetPolicy {
    let both = next.services.iter().filter(|(vip, _)| current.services.contains_key(*vip));
    NetPolicy { services: both.map(|(vip, to)| (*vip, to.clone())).collect(), held: next.held.clone(), ..current.intersection(next) }
}

/// The instances that come and go.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// What stops, and the seconds between SIGTERM and SIGKILL.
    pub stops: Vec<(InstanceId, u32)>,
    /// What starts, in this order.
    pub starts: Vec<InstanceSpec>,
}

/// What [`diff_in`] stops and starts, for whoever makes the policy of what lives at the moment of each step;
/// [`ObservedState::policy`] is not looked at.
pub fn changes(
    desired: &DesiredState,
    observed: &ObservedState,
    situation: Situation<'_>,
    memory: &mut Memory,
    random: &mut dyn FnMut() -> [u8; 32],
) -> Changes {
    for instance in observed.instances.values() {
        alloc::adopt(memory, instance.address);
    }
    let mut changes = Changes::default();
    let mut serving: BTreeMap<&Slug, Vec<&ObservedInstance>> = BTreeMap::new();
    for instance in observed.instances.values() {
        match desired.services.get(&instance.slug).filter(|service| service.id == instance.service) {
            None => changes.stops.push((instance.id.clone(), grace(instance, GRACE_OF_THE_UNKNOWN))),
            Some(_) if instance.purpose == Purpose::Serve => serving.entry(&instance.slug).or_default().push(instance),
            Some(_) => {}
        }
    }
    for service in desired.services.values() {
        let mine = serving.remove(&service.slug).unwrap_or_default();
        let turn = turn(service, &mine, situation);
        for instance in turn.stop {
            changes.stops.push((instance.id.clone(), grace(instance, service.max_shutdown_delay_seconds)));
        }
        let start = if situation.held.contains(&service.slug) { 0 } else { turn.start };
        for _ in 0..start {
            let Ok((id, address)) = alloc::instance(memory, service.network, &service.id, random) else { break };
            changes.starts.push(InstanceSpec::of(service, id, Purpose::Serve, address, situation.releases.get(&service.slug).cloned()));
        }
    }
    changes.starts.sort_by_key(|spec| !spec.workload.is_datastore());
    changes
}

fn grace(instance: &ObservedInstance, seconds: u32) -> u32 {
    match instance.phase {
        InstancePhase::Running => seconds,
        // Nothing runs: there is nothing to wait for.
        InstancePhase::Preparing | InstancePhase::Exited(_) | InstancePhase::Lost => 0,
    }
}

/// What is to be done about one service now.
struct Turn<'a> {
    stop: Vec<&'a ObservedInstance>,
    start: u32,
}

fn turn<'a>(service: &Service, mine: &[&'a ObservedInstance], situation: Situation<'_>) -> Turn<'a> {
    let wanted = if service.kind == ServiceKind::Cron { 0 } else { service.instances };
    let is_alive = |i: &ObservedInstance| i.phase == InstancePhase::Running;
    let is_ready = |i: &ObservedInstance| situation.ready.contains(&i.id);
    let (alive, mut stop): (Vec<&ObservedInstance>, Vec<&ObservedInstance>) = mine.iter().copied().partition(|i| is_alive(i));

    let built = !service.workload.needs_release() || situation.releases.contains_key(&service.slug);
    let (mut new, mut old): (Vec<&ObservedInstance>, Vec<&ObservedInstance>) =
        alive.into_iter().partition(|i| i.fingerprint == service.fingerprint);
    if !built && wanted > 0 {
        // What runs goes on until there is something to run instead.
        return Turn { stop, start: 0 };
    }

    // Too many: those that are not ready go first.
    let count = |list: &[&ObservedInstance]| u32::try_from(list.len()).unwrap_or(u32::MAX);
    new.sort_by_key(|i| (!is_ready(i), i.id.clone()));
    while count(&new) > wanted {
        stop.extend(new.pop());
    }
    let ready = u32::try_from(new.iter().filter(|i| is_ready(i)).count()).unwrap_or(u32::MAX);
    let short = wanted.saturating_sub(count(&new));
    if is_exclusive(service) {
        stop.extend(old);
        return Turn { stop, start: short };
    }
    // As many old ones stay as new ones are not ready yet.
    old.sort_by_key(|i| (!is_ready(i), i.id.clone()));
    while count(&old) > wanted.saturating_sub(ready) {
        stop.extend(old.pop());
    }
    let start = if old.is_empty() && service.start == StartOrder::Together {
        short
    } else if ready == count(&new) {
        // One at a time: the one before is ready.
        short.min(1)
    } else {
        0
    };
    Turn { stop, start }
}

/// Whether two instances of the service must never run side by side: they would share a disk or the data.
pub fn is_exclusive(service: &Service) -> bool {
    service.workload.disk().is_some() || service.workload.is_datastore()
}
