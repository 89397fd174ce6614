//! Whatever fails, in whatever order: no step opens what is forbidden, no address is handed out twice, and once nothing
//! fails any more, what runs is what should run.

use moat_engine::Engine as _;
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, ObservedState};
use moat_model::{AddressPair, DesiredState, Endpoint, InstanceId, Peer, Proto, Purpose};
use moat_planner::memory::Memory;
use moat_planner::policy::{LiveInstance, net_policy};
use moat_planner::resolve::{GitFacts, Input, Settings};
use moat_planner::{Plan, Step, alloc, diff, reach};
use moat_testkit::{FakeEngine, Fault, now};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A source of bytes that never gives the same twice, whatever was restored from a file: as the kernel's.
fn random() -> [u8; 32] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = count.rotate_left(u32::try_from(i).unwrap() * 7).to_be_bytes()[i % 8];
    }
    bytes
}

pub fn resolve(text: &str, memory: &mut Memory) -> DesiredState {
    let blueprint = moat_blueprint::read(text).blueprint;
    let (given, files) = (BTreeMap::new(), BTreeMap::new());
    let input = Input {
        path: Path::new("/b/render.yaml"),
        source: Path::new("/b"),
        blueprint: &blueprint,
        given: &given,
        files: &files,
        git: GitFacts::default(),
    };
    moat_planner::resolve::resolve(&[input], memory, &mut random, &Settings::default()).state
}

/// The plan from what an engine sees, all that runs being ready.
pub fn plan(state: &DesiredState, engine: &FakeEngine, memory: &mut Memory) -> Plan {
    let observed = now(engine.observe()).unwrap();
    let ready = running(&observed);
    let releases = state.services.keys().map(|slug| (slug.clone(), "r".to_owned())).collect();
    diff::diff(state, &observed, &releases, &ready, memory, &mut random)
}

fn running(observed: &ObservedState) -> BTreeSet<InstanceId> {
    observed.instances.values().filter(|i| i.phase == InstancePhase::Running).map(|i| i.id.clone()).collect()
}

/// Blueprints that a team might go through in a day.
const DAY: [&str; 6] = [
    "envVarGroups: []",
    "services:
  - {type: web, name: shop, runtime: python, numInstances: 2, buildCommand: b, startCommand: s}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: keyvalue, name: queue, ipAllowList: []}
",
    // The catalog lets in the shop only, the worker runs something else, the web service grows.
    "services:
  - {type: web, name: shop, runtime: python, numInstances: 3, buildCommand: b, startCommand: s}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [shop]}}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: other, x-moat: {egress: none}}
  - {type: keyvalue, name: queue, ipAllowList: []}
",
    // An environment closes round some of them, another region takes one.
    "projects:
  - name: p
    environments:
      - name: prod
        networking: {isolation: enabled}
        services:
          - {type: pserv, name: catalog, runtime: python, numInstances: 2, buildCommand: b, startCommand: s}
          - {type: keyvalue, name: queue, ipAllowList: []}
services:
  - {type: web, name: shop, runtime: python, numInstances: 2, buildCommand: b, startCommand: s}
  - {type: worker, name: mailer, runtime: python, region: ohio, buildCommand: b, startCommand: s}
",
    // The worker becomes private, the catalog becomes public, the queue another's.
    "services:
  - {type: web, name: catalog, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: mailer, runtime: python, numInstances: 2, buildCommand: b, startCommand: s}
  - {type: cron, name: queue, runtime: python, schedule: '* * * * *', buildCommand: b, startCommand: s}
",
    "services:
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, disk: {name: d, mountPath: /data}}
",
];

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    /// Another blueprint is brought up.
    Up(usize),
    /// A plan is made and carried out until a step fails.
    Reconcile(Vec<Option<Fault>>),
    /// An instance ends, or vanishes.
    End(prop::sample::Index, bool),
    /// The daemon is killed after it stored its memory and carried out this many steps of its plan.
    Killed(usize),
    /// The machine restarts.
    Reboot,
}

fn event() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![6 => Just(None), 1 => Just(Some(Fault::Before)), 1 => Just(Some(Fault::Half)), 1 => Just(Some(Fault::After))];
    prop_oneof![
        3 => (0..DAY.len()).prop_map(Event::Up),
        6 => proptest::collection::vec(fault, 0..8).prop_map(Event::Reconcile),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, lost)| Event::End(which, lost)),
        1 => (0..8_usize).prop_map(Event::Killed),
        1 => Just(Event::Reboot),
    ]
}

/// A daemon's life beside a fake engine.
struct Life {
    engine: FakeEngine,
    desired: DesiredState,
    memory: Memory,
    /// Addresses that were in use once, and how many were handed out when they came free.
    free_since: BTreeMap<AddressPair, usize>,
    handed_out: usize,
}

impl Life {
    fn new() -> Self {
        Self {
            engine: FakeEngine::new(),
            desired: DesiredState::default(),
            memory: Memory::default(),
            free_since: BTreeMap::new(),
            handed_out: 0,
        }
    }

    fn observed(&self) -> ObservedState {
        now(self.engine.observe()).unwrap()
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Up(which) => self.desired = resolve(DAY[*which], &mut self.memory),
            Event::Reconcile(faults) => {
                self.engine.script(faults.iter().copied());
                self.reconcile(usize::MAX);
                self.engine.script([]);
            }
            Event::End(which, lost) => {
                let running: Vec<InstanceId> = running(&self.observed()).into_iter().collect();
                if !running.is_empty() {
                    let id = which.get(&running);
                    assert!(if *lost { self.engine.lose(id) } else { self.engine.exit(id, 1) });
                }
            }
            Event::Killed(after) => {
                let stored = serde_json::to_string(&{
                    self.reconcile(*after);
                    self.memory.clone()
                });
                self.memory = serde_json::from_str(&stored.unwrap()).unwrap();
                // What it finds is what is in use.
                let live: Vec<AddressPair> = self.observed().instances.values().map(|i| i.address).collect();
                alloc::retain(&mut self.memory, live);
            }
            Event::Reboot => self.engine.reboot(),
        }
    }

    /// Carries out a plan, until a step fails or the daemon is killed. True when there was nothing to do.
    fn reconcile(&mut self, most: usize) -> bool {
        let before = self.observed();
        let plan = plan(&self.desired, &self.engine, &mut self.memory);
        for step in &plan.steps {
            if let Step::StartInstance { instance } = step {
                self.handed_out += 1;
                assert!(before.instances.values().all(|i| i.address != instance.address), "{} has an address in use", instance.id);
                let since = self.free_since.get(&instance.address).map(|at| self.handed_out - at);
                assert!(since.is_none_or(|since| since > 10_000), "{} has an address that was in use {since:?} instances ago", instance.id);
                self.free_since.insert(instance.address, self.handed_out);
            }
        }
        for step in plan.steps.iter().take(most) {
            let result = now(self.engine.apply(step));
            // From the first step on that is not about the router, what is forbidden is closed, whether it worked or not: a
            // policy that could not be set ends the plan before anything starts.
            if result.is_ok() && !matches!(step, Step::EnsureRouter) {
                self.nothing_forbidden_is_open();
            }
            if let (Step::StopInstance { id, .. }, Ok(_)) = (step, &result)
                && let Some(gone) = before.instances.get(id)
            {
                alloc::release(&mut self.memory, gone.address);
                self.free_since.insert(gone.address, self.handed_out);
            }
            if result.is_err() {
                return false;
            }
        }
        plan.steps.is_empty()
    }

    fn nothing_forbidden_is_open(&self) {
        let observed = self.observed();
        let peer = |id: &InstanceId| {
            let instance = &observed.instances[id];
            let service = self.desired.services.get(&instance.slug).filter(|s| s.id == instance.service)?;
            Some(Peer::Service(service.slug.clone()))
        };
        for from in observed.instances.keys() {
            for to in observed.instances.keys() {
                let endpoint = Endpoint { proto: Proto::Tcp, port: 5000 };
                let allowed = matches!((peer(from), peer(to)), (Some(a), Some(b)) if reach::verdict(&self.desired, &a, &b, Some(endpoint)).is_allowed());
                let open = permits(&observed.policy, from, observed.instances[to].address);
                assert!(allowed || !open, "{from} → {to} is open");
            }
        }
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        for _ in 0..60 {
            if self.reconcile(usize::MAX) {
                return;
            }
        }
        panic!("it goes on for ever: {:?}", plan(&self.desired, &self.engine, &mut self.memory));
    }

    fn is_as_desired(&self) {
        let observed = self.observed();
        assert_eq!(observed.router, !self.desired.services.is_empty());
        for service in self.desired.services.values() {
            let mine: Vec<_> = observed.instances.values().filter(|i| i.service == service.id).collect();
            assert_eq!(mine.len(), usize::try_from(service.instances).unwrap(), "{}", service.slug);
            assert!(mine.iter().all(|i| i.fingerprint == service.fingerprint));
        }
        let wanted: u32 = self.desired.services.values().map(|s| s.instances).sum();
        assert_eq!(observed.instances.len(), usize::try_from(wanted).unwrap());
        let addresses: BTreeSet<AddressPair> = observed.instances.values().map(|i| i.address).collect();
        assert_eq!(addresses.len(), observed.instances.len());
        if observed.router {
            let ready = running(&observed);
            let live: Vec<LiveInstance> = observed
                .instances
                .values()
                .map(|i| LiveInstance {
                    id: i.id.clone(),
                    slug: i.slug.clone(),
                    purpose: Purpose::Serve,
                    address: i.address,
                    ready: ready.contains(&i.id),
                    http_port: None,
                })
                .collect();
            assert_eq!(observed.policy, net_policy(&self.desired, &live));
        }
    }
}

fn permits(policy: &NetPolicy, from: &InstanceId, to: AddressPair) -> bool {
    policy
        .sources
        .get(from)
        .is_some_and(|s| s.zone.is_some_and(|zone| policy.receivers.contains(&(zone, to))) || policy.pairs.contains(&(s.address, to)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn it_converges_whatever_happens(events in proptest::collection::vec(event(), 1..25)) {
        let mut life = Life::new();
        for event in &events {
            life.happen(event);
        }
        life.settle();
        life.is_as_desired();
        // Down again: nothing is left.
        life.happen(&Event::Up(0));
        life.settle();
        prop_assert_eq!((life.observed().instances.len(), life.observed().router), (0, false));
    }
}

#[test]
fn a_whole_day_without_faults() {
    let mut life = Life::new();
    for which in [1, 2, 3, 4, 5, 1, 3, 2, 0, 1] {
        life.happen(&Event::Up(which));
        life.settle();
        life.is_as_desired();
    }
}

#[test]
fn every_step_may_fail_in_every_way() {
    for from in 0..DAY.len() {
        for to in 0..DAY.len() {
            for fault in [Fault::Before, Fault::Half, Fault::After] {
                for failing in 0..12 {
                    let mut life = Life::new();
                    life.happen(&Event::Up(from));
                    life.settle();
                    life.happen(&Event::Up(to));
                    let mut faults = vec![None; failing];
                    faults.push(Some(fault));
                    let before = life.engine.applied().len();
                    life.happen(&Event::Reconcile(faults));
                    if life.engine.applied().len() - before <= failing {
                        // The plan has no such step.
                        break;
                    }
                    life.settle();
                    life.is_as_desired();
                }
            }
        }
    }
}
