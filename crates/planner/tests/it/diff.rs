//! Rows and golden plans: which steps lead from what is observed to what is desired, and in which order.

use super::support::{apply, counter, observed, releases, service, state};
use moat_model::policy::NetPolicy;
use moat_model::state::{ExitReport, InstancePhase, ObservedState};
use moat_model::{DesiredState, InstanceId, Purpose, Slug};
use moat_planner::diff::{Situation, diff, diff_in};
use moat_planner::memory::Memory;
use moat_planner::plan::InstanceSpec;
use moat_planner::{Plan, Step};
use std::collections::{BTreeMap, BTreeSet};

const SHOP: &str = "
services:
  - {type: web, name: shop, runtime: python, numInstances: 2, buildCommand: b, startCommand: s, maxShutdownDelaySeconds: 45}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: cron, name: digest, runtime: python, buildCommand: b, startCommand: s, schedule: '* * * * *'}
  - {type: keyvalue, name: queue, ipAllowList: []}
";

/// A desired state, what runs of it, and what has been planned so far.
struct Scene {
    desired: DesiredState,
    observed: ObservedState,
    ready: BTreeSet<InstanceId>,
    releases: BTreeMap<Slug, String>,
    memory: Memory,
    random: Box<dyn FnMut() -> [u8; 32]>,
}

impl Scene {
    fn new(text: &str) -> Self {
        let desired = state(text);
        let releases = releases(&desired);
        Self {
            desired,
            observed: ObservedState::default(),
            ready: BTreeSet::new(),
            releases,
            memory: Memory::default(),
            random: Box::new(counter(77)),
        }
    }

    /// Everything of the text runs and is ready.
    fn running(text: &str) -> Self {
        let mut scene = Self::new(text);
        scene.settle();
        scene
    }

    fn plan(&mut self) -> Plan {
        diff(&self.desired, &self.observed, &self.releases, &self.ready, &mut self.memory, &mut self.random)
    }

    fn apply(&mut self, plan: &Plan) {
        apply(&mut self.observed, &plan.steps);
        self.ready.retain(|id| self.observed.instances.contains_key(id));
    }

    fn all_ready(&mut self) {
        self.ready = self.observed.instances.iter().filter(|(_, i)| i.phase == InstancePhase::Running).map(|(id, _)| id.clone()).collect();
    }

    /// Goes on until there is nothing left to do; everything that starts gets ready.
    fn settle(&mut self) -> usize {
        for round in 0..100 {
            let plan = self.plan();
            if plan.steps.is_empty() {
                return round;
            }
            self.apply(&plan);
            self.all_ready();
        }
        panic!("it goes on for ever");
    }

    fn of(&self, slug: &str) -> Vec<InstanceId> {
        self.observed.instances.values().filter(|i| i.slug.as_str() == slug).map(|i| i.id.clone()).collect()
    }

    fn end(&mut self, id: &InstanceId, phase: InstancePhase) {
        self.observed.instances.get_mut(id).unwrap().phase = phase;
        self.ready.remove(id);
    }

    fn change(&mut self, slug: &str, how: impl FnOnce(&mut moat_model::Service)) {
        how(self.desired.services.get_mut(slug).unwrap());
    }

    fn vip(&self, slug: &str) -> usize {
        self.observed.policy.services[&service(&self.desired, slug).vip.unwrap()].len()
    }

    /// The plan, a word for each step.
    fn words(&self, plan: &Plan) -> Vec<String> {
        plan.steps
            .iter()
            .map(|step| match step {
                Step::EnsureRouter => "router".to_owned(),
                Step::SetPolicy { policy } => format!("policy of {}", policy.sources.len()),
                Step::StartInstance { instance } => format!("start {}", instance.slug),
                Step::StopInstance { id, grace_seconds } => format!("stop {} in {grace_seconds} s", self.observed.instances[id].slug),
                Step::RemoveRouter => "remove router".to_owned(),
            })
            .collect()
    }
}

fn exited() -> InstancePhase {
    InstancePhase::Exited(ExitReport { code: 1, signal: None, oom: false, error: None })
}

#[test]
fn the_first_plan_starts_everything_and_the_next_has_nothing_to_do() {
    let mut scene = Scene::new(SHOP);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["router", "policy of 4", "start queue", "start mailer", "start shop", "start shop"]);
    scene.apply(&plan);
    assert_eq!(scene.plan().steps, [], "nothing is ready yet, and nothing more is to be started");
    assert_eq!(scene.vip("shop"), 0);
    scene.all_ready();
    let plan = scene.plan();
    // The service addresses turn to what is ready.
    assert_eq!(scene.words(&plan), ["policy of 4"]);
    scene.apply(&plan);
    assert_eq!((scene.vip("shop"), scene.vip("queue")), (2, 1));
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn what_starts_is_covered_before_it_exists() {
    let mut scene = Scene::new(SHOP);
    let plan = scene.plan();
    let mut policy = NetPolicy::default();
    for step in &plan.steps {
        match step {
            Step::SetPolicy { policy: p } => policy = (**p).clone(),
            Step::StartInstance { instance } => {
                let source = &policy.sources[&instance.id];
                assert_eq!((source.address, &source.link, &source.service), (instance.address, &instance.link, &instance.service));
                assert_eq!(instance.env["RENDER_INSTANCE_ID"].expose(), instance.id.as_str());
            }
            Step::EnsureRouter | Step::StopInstance { .. } | Step::RemoveRouter => {}
        }
    }
}

#[test]
fn what_matches_is_adopted() {
    let mut scene = Scene::running(SHOP);
    // A daemon that lost its memory: nothing restarts, and no address is handed out twice.
    scene.memory = Memory::default();
    assert_eq!(scene.plan().steps, []);
    scene.change("shop", |s| s.instances = 5);
    let taken: BTreeSet<_> = scene.observed.instances.values().map(|i| i.address.offset()).collect();
    for step in scene.plan().steps {
        if let Step::StartInstance { instance } = step {
            assert!(!taken.contains(&instance.address.offset()));
        }
    }
}

#[test]
fn what_ended_is_cleared_away_and_replaced() {
    for phase in [exited(), InstancePhase::Lost, InstancePhase::Preparing] {
        let mut scene = Scene::running(SHOP);
        let gone = scene.of("shop")[0].clone();
        scene.end(&gone, phase);
        let plan = scene.plan();
        let words = scene.words(&plan);
        assert_eq!(words[1..], ["stop shop in 0 s", "policy of 4", "start shop"]);
        assert!(words[0].starts_with("policy of "), "the service address turns away before it is cleared");
        scene.apply(&plan);
        assert_eq!(scene.vip("shop"), 1, "traffic goes to the one that is left");
        assert!(scene.settle() <= 2);
        assert!(!scene.of("shop").contains(&gone) && scene.of("shop").len() == 2);
    }
}

#[test]
fn a_changed_service_is_replaced_one_instance_at_a_time() {
    let mut scene = Scene::running(SHOP);
    scene.change("shop", |s| s.fingerprint = "new".to_owned());
    let old = scene.of("shop");
    let mut told = Vec::new();
    for _ in 0..6 {
        let plan = scene.plan();
        told.push(scene.words(&plan));
        // At every step: two that are ready, and a service address that stands for all of them.
        for n in 0..=plan.steps.len() {
            let mut then = scene.observed.clone();
            apply(&mut then, &plan.steps[..n]);
            let vip = &then.policy.services[&service(&scene.desired, "shop").vip.unwrap()];
            let serving = then.instances.values().filter(|i| scene.ready.contains(&i.id) && vip.contains(&i.address)).count();
            assert!(serving >= 2, "after {n} steps of {told:?}");
        }
        scene.apply(&plan);
        scene.all_ready();
    }
    assert_eq!(
        told,
        [
            vec!["policy of 5", "start shop"],
            vec!["policy of 5", "stop shop in 45 s", "policy of 5", "start shop"],
            vec!["policy of 5", "stop shop in 45 s", "policy of 4"],
            vec![],
            vec![],
            vec![],
        ]
    );
    assert!(scene.of("shop").iter().all(|id| !old.contains(id)));
}

#[test]
fn while_the_new_one_is_not_ready_the_old_ones_stay() {
    let mut scene = Scene::running(SHOP);
    scene.change("shop", |s| s.fingerprint = "new".to_owned());
    let plan = scene.plan();
    scene.apply(&plan);
    assert_eq!(scene.plan().steps, []);
    // It ends before it was ready: cleared away, tried again, the old ones serve on.
    let new = scene.of("shop").into_iter().find(|id| !scene.ready.contains(id)).unwrap();
    scene.end(&new, exited());
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 4", "stop shop in 0 s", "policy of 5", "start shop"]);
    scene.apply(&plan);
    assert_eq!(scene.vip("shop"), 2);
    // Back to the former one: what is not wanted any more goes, nothing starts.
    let desired = state(SHOP);
    scene.desired = desired;
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["stop shop in 45 s", "policy of 4"]);
}

#[test]
fn two_never_share_a_disk_or_data() {
    let text = format!(
        "{SHOP}  - {{type: pserv, name: disk, runtime: python, buildCommand: b, startCommand: s, disk: {{name: d, mountPath: /data}}}}\n"
    );
    let mut scene = Scene::running(&text);
    for slug in ["queue", "disk"] {
        scene.change(slug, |s| s.fingerprint = "new".to_owned());
        let plan = scene.plan();
        let words = scene.words(&plan);
        let order: Vec<&str> = words.iter().map(|w| w.split_whitespace().next().unwrap()).collect();
        assert_eq!(order, ["policy", "stop", "policy", "start"], "{slug}");
        for n in 0..=plan.steps.len() {
            let mut then = scene.observed.clone();
            apply(&mut then, &plan.steps[..n]);
            assert!(then.instances.values().filter(|i| i.slug.as_str() == slug).count() <= 1);
        }
        scene.apply(&plan);
        scene.all_ready();
        assert!(scene.settle() <= 2);
    }
}

#[test]
fn what_starts_one_by_one_waits_for_those_before() {
    let text = "
services:
  - {type: pserv, name: queue, runtime: image, image: {url: docker.io/library/rabbitmq:4}, numInstances: 3, x-moat: {start: one-by-one}}
";
    let mut scene = Scene::new(text);
    let starts = |plan: &Plan| plan.steps.iter().filter(|step| matches!(step, Step::StartInstance { .. })).count();
    for started in 1..=3 {
        let plan = scene.plan();
        assert_eq!(starts(&plan), 1);
        scene.apply(&plan);
        assert_eq!(scene.observed.instances.len(), started);
        assert_eq!(starts(&scene.plan()), 0, "the one before is not ready");
        scene.ready = scene.observed.instances.keys().cloned().collect();
    }
    assert_eq!(starts(&scene.plan()), 0);
}

#[test]
fn what_is_held_back_starts_nothing_and_stops_nothing_for_it() {
    let mut scene = Scene::running(&SHOP.replace("numInstances: 2", "numInstances: 4"));
    scene.desired = state(
        &SHOP
            .replace("numInstances: 2", "numInstances: 4")
            .replace("name: shop, runtime: python", "name: shop, runtime: python, healthCheckPath: /up"),
    );
    let first = scene.plan();
    scene.apply(&first);
    // The new one is not ready, and an old one has ended: the other old ones stay, and nothing starts until it may.
    let old = scene.observed.instances.values().find(|i| i.slug.as_str() == "shop" && scene.ready.contains(&i.id)).unwrap().id.clone();
    scene.observed.instances.remove(&old);
    scene.ready.remove(&old);
    let held = BTreeSet::from([Slug::new("shop").unwrap()]);
    let ports = BTreeMap::new();
    let situation = Situation { releases: &scene.releases, ready: &scene.ready, http_ports: &ports, held: &held };
    let plan = diff_in(&scene.desired, &scene.observed, situation, &mut scene.memory, &mut scene.random);
    let changes = plan.steps.iter().filter(|step| matches!(step, Step::StartInstance { .. } | Step::StopInstance { .. })).count();
    assert_eq!(changes, 0, "{:?}", plan.steps);
}

#[test]
fn numbers_of_instances() {
    let mut scene = Scene::running(SHOP);
    scene.change("shop", |s| s.instances = 4);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 6", "start shop", "start shop"]);
    scene.apply(&plan);
    // Fewer again before the new ones are ready: those go, not the ones that serve.
    let serving: BTreeSet<_> = scene.ready.clone();
    scene.change("shop", |s| s.instances = 2);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["stop shop in 45 s", "stop shop in 45 s", "policy of 4"]);
    scene.apply(&plan);
    assert_eq!(scene.ready, serving);
    scene.change("shop", |s| s.instances = 0);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 4", "stop shop in 45 s", "stop shop in 45 s", "policy of 2"]);
}

#[test]
fn what_is_not_built_starts_nothing_and_replaces_nothing() {
    let mut scene = Scene::new(SHOP);
    scene.releases.clear();
    let plan = scene.plan();
    // A Key Value is not built.
    assert_eq!(scene.words(&plan), ["router", "policy of 1", "start queue"]);
    let mut scene = Scene::running(SHOP);
    scene.releases.clear();
    scene.change("shop", |s| s.fingerprint = "new".to_owned());
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn removed_services_close_first_and_the_router_goes_last() {
    let mut scene = Scene::running(SHOP);
    scene.desired.services.remove("shop");
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 2", "stop shop in 30 s", "stop shop in 30 s"]);
    let Step::SetPolicy { policy } = &plan.steps[0] else { panic!() };
    assert!(policy.ingress.is_empty(), "nobody gets in any more");
    scene.apply(&plan);
    scene.desired.services.clear();
    let plan = scene.plan();
    let mut words = scene.words(&plan);
    words[1..3].sort();
    // What never sent anything stays known until it is gone.
    assert_eq!(words, ["policy of 1", "stop mailer in 30 s", "stop queue in 30 s", "policy of 0"]);
    scene.apply(&plan);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["remove router"]);
    scene.apply(&plan);
    assert_eq!(scene.plan().steps, []);
    assert_eq!(Scene::new("envVarGroups: []").plan().steps, [], "nothing desired and nothing there");
}

#[test]
fn a_router_that_is_gone_is_made_again_with_the_whole_policy() {
    let mut scene = Scene::running(SHOP);
    scene.observed.router = false;
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["router", "policy of 4"]);
}

#[test]
fn builds_and_runs_are_left_to_their_starter() {
    let mut scene = Scene::running(SHOP);
    for (slug, purpose) in [("shop", Purpose::Build), ("digest", Purpose::Cron), ("mailer", Purpose::Job)] {
        let service = service(&scene.desired, slug).clone();
        let (id, address) = moat_planner::alloc::instance(&mut scene.memory, service.network, &service.id, &mut scene.random).unwrap();
        let spec = InstanceSpec::of(&service, id.clone(), purpose, address, None);
        scene.observed.instances.insert(id, observed(&spec));
    }
    let plan = scene.plan();
    // The policy covers them, and that is all.
    assert_eq!(scene.words(&plan), ["policy of 7"]);
    scene.apply(&plan);
    for id in scene.of("digest") {
        scene.end(&id, exited());
    }
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 6"], "its end is not hidden from who waits for it");
    scene.apply(&plan);
    scene.desired.services.remove("digest");
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["stop digest in 0 s"]);
}

#[test]
fn a_service_of_another_id_is_another_service() {
    let mut scene = Scene::running(SHOP);
    let other = moat_model::ServiceId::new("srv-zzzzzzzzzzzzzzzzzzzz").unwrap();
    scene.change("mailer", |s| s.id = other);
    let plan = scene.plan();
    assert_eq!(scene.words(&plan), ["policy of 3", "stop mailer in 30 s", "policy of 4", "start mailer"]);
}

#[test]
fn found_ports_open_the_ingress_there() {
    let mut scene = Scene::running(SHOP);
    let id = scene.of("shop")[0].clone();
    let address = scene.observed.instances[&id].address;
    let ports = BTreeMap::from([(id, 3000)]);
    let situation = Situation { releases: &scene.releases, ready: &scene.ready, http_ports: &ports, held: &BTreeSet::new() };
    let plan = diff_in(&scene.desired, &scene.observed, situation, &mut scene.memory, &mut scene.random);
    let Some(Step::SetPolicy { policy }) = plan.steps.last() else { panic!("{plan:?}") };
    assert!(policy.ingress.contains(&(address, 3000)) && !policy.ingress.contains(&(address, 10000)));
    assert_eq!(policy.ingress.len(), 2);
}

#[test]
fn a_plan_survives_its_text() {
    let plan = Scene::new(SHOP).plan();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}
