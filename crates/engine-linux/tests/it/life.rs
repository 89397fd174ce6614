//! Start, log, end, stop.

use crate::bed::{Bed, test, until};
use moat_engine::{Engine, StepOutcome};
use moat_model::NativeRuntime::Python;
use moat_model::state::InstancePhase;
use moat_planner::Step;

#[test]
fn a_program_starts_writes_its_log_and_says_how_it_ended() {
    test(async |bed: &Bed| {
        let (report, lines) = bed.run(bed.native(Python, "echo one; printf 'two\\nthree'; echo four >&2; exit 7")).await;
        assert_eq!((report.code, report.signal, report.oom, report.error), (7, None, false, None));
        let mut sorted = lines.clone();
        sorted.sort();
        assert_eq!(sorted, ["four", "one", "three", "two"], "{lines:?}");
        let (report, _) = bed.run(bed.native(Python, "kill -SEGV $$")).await;
        assert_eq!((report.code, report.signal), (139, Some(11)));
    });
}

#[test]
fn a_stop_asks_first_and_kills_after_the_grace() {
    test(async |bed: &Bed| {
        for (command, said, grace) in [
            ("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done", Some("bye"), 60),
            // A shell in front of the program must not keep the word from it.
            (
                "echo up && python3 -c 'import signal,sys,time; signal.signal(15, lambda *a: (print(\"bye\"), sys.exit(0))); print(\"ready\", flush=True); time.sleep(600)' && echo never",
                Some("bye"),
                60,
            ),
            ("trap '' TERM; echo up; while :; do sleep 0.02; done", None, 1),
            // Nothing set for SIGTERM, as most programs: it ends all the same, although the kernel protects a PID 1.
            ("echo up; exec sleep 600", None, 60),
        ] {
            let mut spec = bed.native(Python, command);
            bed.release(&mut spec).await;
            bed.start(&spec).await.unwrap();
            bed.logged(&spec.id, if command.contains("ready") { "ready" } else { "up" }).await;
            let log = bed.engine.log_path(&spec.id);
            bed.stop(&spec.id, grace).await;
            let lines: Vec<String> = moat_engine_linux::log::read(&log).unwrap().into_iter().map(|line| line.text).collect();
            assert_eq!(lines.last().map(String::as_str).filter(|line| *line == "bye"), said, "{command}: {lines:?}");
        }
    });
}

#[test]
fn applying_a_step_twice_equals_applying_it_once() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "sleep 600");
        bed.release(&mut spec).await;
        let start = Step::StartInstance { instance: Box::new(spec.clone()) };
        assert_eq!(bed.engine.apply(&start).await.unwrap(), StepOutcome::Changed);
        let before = bed.engine.observe().await.unwrap();
        assert_eq!(bed.engine.apply(&start).await.unwrap(), StepOutcome::Unchanged);
        assert_eq!(bed.engine.observe().await.unwrap().instances, before.instances);
        assert_eq!(before.instances[&spec.id].phase, InstancePhase::Running);
        let stop = Step::StopInstance { id: spec.id.clone(), grace_seconds: 0 };
        assert_eq!(bed.engine.apply(&stop).await.unwrap(), StepOutcome::Changed);
        assert_eq!(bed.engine.apply(&stop).await.unwrap(), StepOutcome::Unchanged);
        assert_eq!(bed.engine.wait(&spec.id).await.unwrap(), InstancePhase::Lost);
    });
}

#[test]
fn a_command_that_does_not_exist_says_so() {
    test(async |bed: &Bed| {
        let (report, lines) = bed.run(bed.native(Python, "no-such-program --flag")).await;
        assert_eq!(report.code, 127);
        assert!(lines.iter().any(|line| line.contains("no-such-program")), "{lines:?}");
    });
}

#[test]
fn a_killed_monitor_takes_its_program_with_it_and_a_killed_engine_does_not() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo up; sleep 600");
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "up").await;
        let other = bed.reopen();
        let seen = other.observe().await.unwrap().instances[&spec.id].clone();
        assert_eq!(seen.phase, InstancePhase::Running);
        let alive = |pid: u32| std::path::Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(seen.monitor_pid.unwrap().cast_signed()), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        until(|| !alive(seen.pid.unwrap())).await;
        assert_eq!(other.wait(&spec.id).await.unwrap(), InstancePhase::Lost);
        assert_eq!(other.apply(&Step::StopInstance { id: spec.id.clone(), grace_seconds: 0 }).await.unwrap(), StepOutcome::Changed);
        assert!(other.observe().await.unwrap().instances.is_empty());
    });
}
