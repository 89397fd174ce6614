//! The fake engine itself.

use moat_engine::{Engine as _, StepOutcome};
use moat_model::state::InstancePhase;
use moat_planner::Step;
use moat_planner::memory::Memory;
use moat_testkit::{FakeEngine, Fault, now};
use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};

/// The steps that start one Key Value.
fn steps() -> Vec<Step> {
    let state = super::simulation::resolve("services:\n  - {type: keyvalue, name: store, ipAllowList: []}\n", &mut Memory::default());
    super::simulation::plan(&state, &FakeEngine::new(), &mut Memory::default()).steps
}

#[test]
fn twice_is_once() {
    let engine = FakeEngine::new();
    for step in steps() {
        assert_eq!(now(engine.apply(&step)).unwrap(), StepOutcome::Changed);
        assert_eq!(now(engine.apply(&step)).unwrap(), StepOutcome::Unchanged);
    }
    let id = now(engine.observe()).unwrap().instances.keys().next().unwrap().clone();
    let stop = Step::StopInstance { id, grace_seconds: 1 };
    assert_eq!(now(engine.apply(&stop)).unwrap(), StepOutcome::Changed);
    assert_eq!(now(engine.apply(&stop)).unwrap(), StepOutcome::Unchanged);
    assert_eq!(now(engine.apply(&Step::RemoveRouter)).unwrap(), StepOutcome::Changed);
    assert_eq!(now(engine.apply(&Step::RemoveRouter)).unwrap(), StepOutcome::Unchanged);
}

#[test]
fn what_no_engine_could_do_is_refused() {
    let engine = FakeEngine::new();
    let steps = steps();
    let Some(Step::StartInstance { instance }) = steps.last() else { panic!("{steps:?}") };
    let message = |result: Result<StepOutcome, moat_engine::EngineError>| result.unwrap_err().message;
    assert_eq!(message(now(engine.apply(&steps[2]))), "there is no router");
    assert_eq!(message(now(engine.apply(&steps[1]))), "there is no router");
    for step in &steps {
        now(engine.apply(step)).unwrap();
    }
    assert_eq!(message(now(engine.apply(&Step::RemoveRouter))), "instances are left");
    let mut other = (**instance).clone();
    other.id = moat_model::InstanceId::new("red-other-aaaaa").unwrap();
    assert!(message(now(engine.apply(&Step::StartInstance { instance: Box::new(other) }))).contains("is in use by"));
}

#[test]
fn faults_come_as_they_are_written() {
    let engine = FakeEngine::new();
    let steps = steps();
    engine.script([Some(Fault::Before), Some(Fault::After), Some(Fault::Half), None, Some(Fault::Half)]);
    let router = || now(engine.observe()).unwrap().router;
    assert!(now(engine.apply(&steps[0])).is_err() && !router());
    assert!(now(engine.apply(&steps[0])).is_err() && router());
    assert!(now(engine.apply(&steps[1])).is_err() && now(engine.observe()).unwrap().policy.sources.is_empty());
    assert!(now(engine.apply(&steps[1])).is_ok());
    assert!(now(engine.apply(&steps[2])).is_err());
    assert_eq!(now(engine.observe()).unwrap().instances.values().next().unwrap().phase, InstancePhase::Preparing);
    assert_eq!(engine.applied().len(), 5);
}

#[test]
fn waiting_ends_with_the_instance() {
    let engine = FakeEngine::new();
    for step in steps() {
        now(engine.apply(&step)).unwrap();
    }
    let id = now(engine.observe()).unwrap().instances.keys().next().unwrap().clone();
    {
        let mut waiting = pin!(engine.wait(&id));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(engine.exit(&id, 3));
        assert!(matches!(now(waiting).unwrap(), InstancePhase::Exited(report) if report.code == 3));
    }
    assert!(!engine.exit(&id, 4), "it has ended");
    let nobody = moat_model::InstanceId::new("nobody-aaaaa").unwrap();
    assert_eq!(now(engine.wait(&nobody)).unwrap(), InstancePhase::Lost);
}
