//! Blueprints as text, resolved as `up` resolves them.

use moat_blueprint::{Blueprint, Severity};
use moat_model::state::{InstancePhase, ObservedInstance, ObservedState};
use moat_model::{DesiredState, LinkName, Peer, Purpose, Secret, Service, Slug};
use moat_planner::memory::Memory;
use moat_planner::plan::{InstanceSpec, Step};
use moat_planner::policy::LiveInstance;
use moat_planner::resolve::{GitFacts, Input, Resolved, Settings, resolve};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a blueprint that has no errors.
pub fn read(text: &str) -> Blueprint {
    let read = moat_blueprint::read(text);
    let errors: Vec<_> = read.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    read.blueprint
}

/// A source of bytes that differ at each call, the same at each run.
pub fn counter(start: u64) -> impl FnMut() -> [u8; 32] {
    let mut count = start;
    move || {
        count += 1;
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let mixed = count.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::try_from(i).unwrap());
            *byte = mixed.to_be_bytes()[i % 8];
        }
        bytes
    }
}

/// What is given to `resolve` beside the text.
#[derive(Default)]
pub struct Given {
    pub values: BTreeMap<String, Secret>,
    pub files: BTreeMap<String, Secret>,
    /// Commits that services keep, of a blueprint that was pushed.
    pub pins: Option<BTreeMap<String, String>>,
}

impl Given {
    pub fn values(pairs: &[(&str, &str)]) -> Self {
        Self { values: pairs.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(), ..Self::default() }
    }
}

/// Resolves files (path, text) with a memory.
pub fn resolve_files(files: &[(&str, &str)], given: &Given, memory: &mut Memory) -> Resolved {
    let read: Vec<(&Path, Blueprint)> = files.iter().map(|(path, text)| (Path::new(*path), read(text))).collect();
    let inputs: Vec<Input<'_>> = read
        .iter()
        .map(|(path, blueprint)| Input {
            path,
            source: path.parent().unwrap(),
            blueprint,
            given: &given.values,
            files: &given.files,
            git: GitFacts {
                branch: "main".to_owned(),
                commit: "c0ffee".to_owned(),
                repo_slug: "me/shop".to_owned(),
                pushed_to: given.pins.as_ref().map(|_| "/state/git/shop.git".into()),
                pins: given.pins.clone().unwrap_or_default(),
            },
        })
        .collect();
    resolve(&inputs, memory, &mut counter(0), &Settings::default())
}

/// Resolves one text that has no problems.
pub fn state(text: &str) -> DesiredState {
    let resolved = resolve_files(&[("/shop/render.yaml", text)], &Given::default(), &mut Memory::default());
    let problems: Vec<_> = resolved.diagnostics.iter().filter(|(_, d)| d.severity == Severity::Error).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    resolved.state
}

pub fn service<'a>(state: &'a DesiredState, slug: &str) -> &'a Service {
    state.services.get(slug).unwrap_or_else(|| panic!("no service {slug}"))
}

pub fn value(state: &DesiredState, slug: &str, key: &str) -> String {
    service(state, slug).env.get(key).unwrap_or_else(|| panic!("{slug} has no {key}")).expose().to_owned()
}

/// A peer as people write it.
pub fn peer(text: &str) -> Peer {
    moat_planner::explain::parse_peer(text).unwrap().0
}

/// Addresses for instances that a test makes up, one each.
pub struct Addresses {
    pub memory: Memory,
    random: Box<dyn FnMut() -> [u8; 32]>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { memory: Memory::default(), random: Box::new(counter(1000)) }
    }
}

impl Addresses {
    pub fn live(&mut self, service: &Service, purpose: Purpose, ready: bool) -> LiveInstance {
        let (id, address) = moat_planner::alloc::instance(&mut self.memory, service.network, &service.id, &mut self.random).unwrap();
        LiveInstance { id, slug: service.slug.clone(), purpose, address, ready, http_port: None }
    }

    /// One instance of each purpose that makes sense for each service.
    pub fn all(&mut self, state: &DesiredState) -> Vec<LiveInstance> {
        let mut live = Vec::new();
        for service in state.services.values() {
            if service.kind == moat_model::ServiceKind::Cron {
                live.push(self.live(service, Purpose::Cron, true));
            } else {
                live.push(self.live(service, Purpose::Serve, true));
                live.push(self.live(service, Purpose::Serve, false));
            }
            if moat_planner::reach::has_builds(service) {
                for purpose in [Purpose::Build, Purpose::PreDeploy, Purpose::Job] {
                    live.push(self.live(service, purpose, true));
                }
            }
        }
        live
    }
}

/// What an engine sees of an instance that a plan started.
pub fn observed(spec: &InstanceSpec) -> ObservedInstance {
    ObservedInstance {
        id: spec.id.clone(),
        service: spec.service.clone(),
        slug: spec.slug.clone(),
        purpose: spec.purpose,
        fingerprint: spec.fingerprint.clone(),
        address: spec.address,
        link: LinkName::of(spec.address.v4),
        phase: InstancePhase::Running,
        monitor_pid: None,
        pid: None,
    }
}

/// Carries out a plan on an observed state, as an engine that never fails would.
pub fn apply(observed_state: &mut ObservedState, steps: &[Step]) {
    for step in steps {
        match step {
            Step::EnsureRouter => observed_state.router = true,
            Step::SetPolicy { policy } => observed_state.policy = (**policy).clone(),
            Step::StartInstance { instance } => {
                observed_state.instances.insert(instance.id.clone(), observed(instance));
            }
            Step::StopInstance { id, .. } => drop(observed_state.instances.remove(id)),
            Step::RemoveRouter => *observed_state = ObservedState::default(),
        }
    }
}

/// A release for every service.
pub fn releases(state: &DesiredState) -> BTreeMap<Slug, String> {
    state.services.keys().map(|slug| (slug.clone(), "r1".to_owned())).collect()
}
