//! An engine in memory, with faults.
//!
//! Invariant: it does a step as a real engine does (twice equals once), or fails as one does: not at all, half, or wholly without saying so.

use moat_engine::{Capabilities, Engine, EngineError, StepOutcome};
use moat_model::state::{ExitReport, InstancePhase, Listener, ObservedInstance, ObservedState};
use moat_model::{InstanceId, LinkName};
use moat_planner::Step;
use moat_planner::plan::InstanceSpec;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// How a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Before,
    /// Half is done: a sandbox without its program, a program that ended but is not cleared away, a router that is not
    /// whole. A policy is changed as a whole or not at all, so that it is not.
    Half,
    /// All is done, and an error is told all the same (a time limit, a lost answer).
    After,
}

/// An engine that runs nothing.
#[derive(Debug, Default)]
pub struct FakeEngine {
    world: Mutex<World>,
}

#[derive(Debug, Default)]
struct World {
    observed: ObservedState,
    specs: BTreeMap<InstanceId, InstanceSpec>,
    listeners: BTreeMap<InstanceId, Vec<Listener>>,
    faults: VecDeque<Option<Fault>>,
    applied: Vec<Step>,
    waiting: Vec<Waker>,
    next_pid: u32,
}

impl FakeEngine {
    /// An engine with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the next steps do, one entry each: a fault or none. Steps past the last succeed.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.world().faults = faults.into_iter().collect();
    }

    /// The steps that were asked for, in order, failed ones too.
    pub fn applied(&self) -> Vec<Step> {
        self.world().applied.clone()
    }

    /// Looks at what there is, without taking a copy.
    pub fn look<T>(&self, at: impl FnOnce(&ObservedState) -> T) -> T {
        at(&self.world().observed)
    }

    /// What an instance that is there was made of.
    pub fn spec(&self, id: &InstanceId) -> Option<InstanceSpec> {
        self.world().specs.get(id).cloned()
    }

    /// Ends an instance's program with this code. Says whether it ran.
    pub fn exit(&self, id: &InstanceId, code: i32) -> bool {
        self.end(id, InstancePhase::Exited(ExitReport { code, signal: None, oom: false, error: None }))
    }

    /// Makes an instance's monitor vanish without a report. Says whether it ran.
    pub fn lose(&self, id: &InstanceId) -> bool {
        self.end(id, InstancePhase::Lost)
    }

    /// Makes the router vanish, as a reboot does; instances are lost with it.
    pub fn reboot(&self) {
        let mut world = self.world();
        world.observed.router = false;
        for instance in world.observed.instances.values_mut() {
            (instance.phase, instance.pid, instance.monitor_pid) = (InstancePhase::Lost, None, None);
        }
        world.wake();
    }

    /// What an instance listens on from now.
    pub fn listen(&self, id: &InstanceId, listeners: Vec<Listener>) {
        self.world().listeners.insert(id.clone(), listeners);
    }

    fn end(&self, id: &InstanceId, phase: InstancePhase) -> bool {
        let mut world = self.world();
        let Some(instance) = world.observed.instances.get_mut(id).filter(|i| is_alive(&i.phase)) else { return false };
        (instance.phase, instance.pid, instance.monitor_pid) = (phase, None, None);
        world.listeners.remove(id);
        world.wake();
        true
    }

    /// A test that failed while it held the lock has said what matters already.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn is_alive(phase: &InstancePhase) -> bool {
    matches!(phase, InstancePhase::Preparing | InstancePhase::Running)
}

impl World {
    fn wake(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }

    fn apply(&mut self, step: &Step) -> Result<StepOutcome, EngineError> {
        self.applied.push(step.clone());
        let fault = self.faults.pop_front().flatten();
        let doing = describe(step);
        if fault == Some(Fault::Before) {
            return Err(EngineError::new(doing, "an injected fault, before anything was done"));
        }
        let outcome = self.carry_out(step, fault == Some(Fault::Half)).map_err(|why| EngineError::new(doing.clone(), why))?;
        match fault {
            None => Ok(outcome),
            Some(Fault::Before | Fault::Half) => Err(EngineError::new(doing, "an injected fault, half way")),
            Some(Fault::After) => Err(EngineError::new(doing, "an injected fault, after everything was done")),
        }
    }

    fn carry_out(&mut self, step: &Step, half: bool) -> Result<StepOutcome, String> {
        match step {
            Step::EnsureRouter if self.observed.router || half => Ok(StepOutcome::Unchanged),
            Step::EnsureRouter => {
                // A new router knows no policy: it is closed.
                self.observed.policy = moat_model::policy::NetPolicy::default();
                self.observed.router = true;
                Ok(StepOutcome::Changed)
            }
            Step::SetPolicy { .. } if !self.observed.router => Err("there is no router".to_owned()),
            Step::SetPolicy { policy } if self.observed.policy == **policy || half => Ok(StepOutcome::Unchanged),
            Step::SetPolicy { policy } => {
                self.observed.policy.clone_from(policy);
                Ok(StepOutcome::Changed)
            }
            Step::StartInstance { instance } => self.start(instance, half),
            Step::StopInstance { id, .. } => Ok(self.stop(id, half)),
            Step::RemoveRouter if !self.observed.instances.is_empty() => Err("instances are left".to_owned()),
            Step::RemoveRouter if !self.observed.router => Ok(StepOutcome::Unchanged),
            Step::RemoveRouter => {
                self.observed.router = false;
                Ok(StepOutcome::Changed)
            }
        }
    }

    fn start(&mut self, spec: &InstanceSpec, half: bool) -> Result<StepOutcome, String> {
        if !self.observed.router {
            return Err("there is no router".to_owned());
        }
        if let Some(found) = self.observed.instances.get(&spec.id) {
            return if is_alive(&found.phase) { Ok(StepOutcome::Unchanged) } else { Err(format!("`{}` has ended already", spec.id)) };
        }
        if let Some(other) = self.observed.instances.values().find(|i| i.address == spec.address) {
            return Err(format!("the address of `{}` is in use by `{}`", spec.id, other.id));
        }
        self.next_pid += 1;
        let monitor_pid = Some(self.next_pid);
        let (phase, pid) = if half { (InstancePhase::Preparing, None) } else { (InstancePhase::Running, Some(self.next_pid + 100_000)) };
        let instance = ObservedInstance {
            id: spec.id.clone(),
            service: spec.service.clone(),
            slug: spec.slug.clone(),
            purpose: spec.purpose,
            fingerprint: spec.fingerprint.clone(),
            address: spec.address,
            link: LinkName::of(spec.address.v4),
            phase,
            monitor_pid,
            pid,
        };
        self.observed.instances.insert(spec.id.clone(), instance);
        self.specs.insert(spec.id.clone(), spec.clone());
        Ok(StepOutcome::Changed)
    }

    fn stop(&mut self, id: &InstanceId, half: bool) -> StepOutcome {
        let Some(instance) = self.observed.instances.get_mut(id) else { return StepOutcome::Unchanged };
        self.listeners.remove(id);
        if half {
            if is_alive(&instance.phase) {
                instance.phase = InstancePhase::Exited(ExitReport { code: 143, signal: Some(15), oom: false, error: None });
                (instance.pid, instance.monitor_pid) = (None, None);
            }
        } else {
            self.observed.instances.remove(id);
            self.specs.remove(id);
        }
        self.wake();
        StepOutcome::Changed
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::EnsureRouter => "make the router".to_owned(),
        Step::SetPolicy { .. } => "set the policy".to_owned(),
        Step::StartInstance { instance } => format!("start `{}`", instance.id),
        Step::StopInstance { id, .. } => format!("stop `{id}`"),
        Step::RemoveRouter => "remove the router".to_owned(),
    }
}

impl Engine for FakeEngine {
    async fn observe(&self) -> Result<ObservedState, EngineError> {
        Ok(self.world().observed.clone())
    }

    async fn apply(&self, step: &Step) -> Result<StepOutcome, EngineError> {
        self.world().apply(step)
    }

    fn wait(&self, id: &InstanceId) -> impl Future<Output = Result<InstancePhase, EngineError>> + Send {
        let id = id.clone();
        poll_fn(move |context| {
            let mut world = self.world();
            match world.observed.instances.get(&id).map(|i| i.phase.clone()) {
                Some(phase) if is_alive(&phase) => {
                    world.waiting.push(context.waker().clone());
                    Poll::Pending
                }
                Some(phase) => Poll::Ready(Ok(phase)),
                None => Poll::Ready(Ok(InstancePhase::Lost)),
            }
        })
    }

    async fn listeners(&self, id: &InstanceId) -> Result<Vec<Listener>, EngineError> {
        Ok(self.world().listeners.get(id).cloned().unwrap_or_default())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { limits: false, ipv6: true, user_namespaces: false }
    }
}
