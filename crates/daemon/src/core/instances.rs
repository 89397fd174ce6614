//! What becomes of instances.

use super::deploys::engine_words;
use super::record::purpose_word;
use super::{Core, Live, Msg, hooks};
use crate::deploy::DeployPhase;
use crate::machine::Machine;
use crate::protocol::ServicePhase;
use crate::ready::{self, Readiness};
use moat_engine::EngineError;
use moat_model::state::InstancePhase;
use moat_model::{InstanceId, Purpose, Secret, Service, Slug};
use moat_planner::Step;
use moat_planner::plan::InstanceSpec;
use moat_store::EventKind;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// The longest pause between two starts of a service that keeps ending.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);
/// How long connections may go on after an instance was replaced.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);
/// Between two looks whether they are over. The first is after requests that were under way to it have arrived.
const DRAIN_LOOK: Duration = Duration::from_millis(500);
/// Between two tries to stop what could not be stopped: after the first, and at most.
const STOP_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Between two tries to look at what can't be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Running this long resets the back-off.
const STEADY: Duration = Duration::from_mins(2);

impl Core {
    /// Finds what an earlier daemon left running: it goes on, but for the builds of its deploys. Where that can't be seen, nothing may
    /// be started, since it may run already.
    pub(super) async fn adopt(&mut self) -> Result<(), EngineError> {
        let observed = self.engine.observe().await?;
        // What took traffic goes on to: the checks say so again, or no longer.
        let before = std::sync::Arc::clone(&self.policy);
        for (id, found) in observed.instances {
            let runs = matches!(found.phase, InstancePhase::Running | InstancePhase::Preparing) && found.pid.is_some();
            let purpose = found.purpose;
            let since = Instant::now().checked_sub(self.engine.age(&found)).unwrap_or_else(Instant::now);
            let is_hook = hooks::is_hook(&found.fingerprint);
            self.live.insert(
                id.clone(),
                Live {
                    slug: found.slug,
                    purpose: found.purpose,
                    address: found.address,
                    fingerprint: found.fingerprint,
                    ready: runs && purpose == Purpose::Serve && before.services.values().any(|behind| behind.contains(&found.address)),
                    stopping: false,
                    started: true,
                    listeners: Vec::new(),
                    http_port: before.ingress.iter().find(|(address, _)| *address == found.address).map(|(_, port)| *port),
                    since,
                    was_ready: true,
                    seen: None,
                    checks: None,
                    draining: None,
                    stop_failed: None,
                    usage: None,
                    gate: Arc::default(),
                },
            );
            if purpose == Purpose::Job
                && is_hook
                && let Some(slug) = self.live.get(&id).map(|live| live.slug.clone())
            {
                self.hook_runs(&slug);
            }
            match purpose {
                Purpose::Serve | Purpose::Cron | Purpose::Job if runs => {
                    tracing::info!(%id, "adopted");
                    let slug = self.live.get(&id).map(|live| live.slug.clone());
                    self.record_of(EventKind::Adopted, slug.as_ref(), Some(&id), "it was found and goes on", json!({ "pid": found.pid }));
                    self.watch_end(&id);
                    if purpose == Purpose::Serve {
                        self.watch_ready(&id);
                    }
                }
                // How it ended counts, meanwhile too.
                Purpose::PreDeploy if self.durable.pre_deploys.values().any(|run| run.instance == id) => self.watch_end(&id),
                Purpose::Serve | Purpose::Cron | Purpose::Job | Purpose::Build | Purpose::PreDeploy => self.stop_instance(&id, 1),
            }
        }
        // What is not there any more gives its address back; what is there has its address, whatever the state says.
        let addresses: Vec<_> = self.live.values().map(|live| live.address).collect();
        for address in &addresses {
            moat_planner::alloc::adopt(&mut self.durable.memory, *address);
        }
        moat_planner::alloc::retain(&mut self.durable.memory, addresses);
        self.save();
        Ok(())
    }

    /// Starts an instance of its own for a build, a command or a cron run. The policy covers it before it runs.
    pub(super) async fn start_sandbox(
        &mut self,
        service: &Service,
        purpose: Purpose,
        release: Option<String>,
        command: Option<String>,
    ) -> Result<InstanceId, String> {
        self.start_marked(service, purpose, release, command, |_| ()).await
    }

    /// Starts the job of a hook.
    pub(super) async fn start_hook(&mut self, service: &Service, release: Option<String>, command: String) -> Result<InstanceId, String> {
        self.start_marked(service, Purpose::Job, release, Some(command), hooks::mark).await
    }

    async fn start_marked(
        &mut self,
        service: &Service,
        purpose: Purpose,
        release: Option<String>,
        command: Option<String>,
        mark: impl FnOnce(&mut InstanceSpec),
    ) -> Result<InstanceId, String> {
        let (id, address) =
            moat_planner::alloc::instance(&mut self.durable.memory, service.network, &service.id, &mut crate::blueprints::random)
                .map_err(|full| full.to_string())?;
        let mut spec = InstanceSpec::of(service, id.clone(), purpose, address, release);
        spec.command = command;
        mark(&mut spec);
        if purpose == Purpose::Build && spec.command.is_some() {
            // A tool is everybody's: nothing of the service goes into it.
            spec.env.clear();
            spec.secret_files.clear();
        }
        if purpose == Purpose::Build {
            let passed = self.durable.blueprints.get(&service.blueprint).map(|up| up.pass_env.clone()).unwrap_or_default();
            spec.env.extend(passed.iter().filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), Secret::new(value))));
        }
        self.save();
        self.register(&spec);
        if !self.apply_policy_now().await {
            self.unregister(&id);
            return Err("the packet filter could not be changed".to_owned());
        }
        if matches!(purpose, Purpose::Build | Purpose::PreDeploy) {
            let tail = crate::logs::Tail::new(&self.paths.state.join("logs"), &service.slug, &id);
            self.tails.insert(id.clone(), (service.blueprint.clone(), tail));
        }
        self.launch(spec);
        Ok(id)
    }

    /// Notes an instance that is about to start.
    pub(super) fn register(&mut self, spec: &InstanceSpec) {
        self.live.insert(
            spec.id.clone(),
            Live {
                slug: spec.slug.clone(),
                purpose: spec.purpose,
                address: spec.address,
                fingerprint: spec.fingerprint.clone(),
                ready: false,
                stopping: false,
                started: false,
                listeners: Vec::new(),
                http_port: None,
                since: Instant::now(),
                was_ready: false,
                seen: None,
                checks: None,
                draining: None,
                stop_failed: None,
                usage: None,
                gate: Arc::default(),
            },
        );
    }

    /// Takes that back: it does not start.
    pub(super) fn unregister(&mut self, id: &InstanceId) {
        if let Some(live) = self.live.remove(id) {
            moat_planner::alloc::release(&mut self.durable.memory, live.address);
            self.save();
        }
    }

    /// Starts it, as a task.
    pub(super) fn launch(&mut self, spec: InstanceSpec) {
        let (engine, tx, id) = (self.engine.clone(), self.tx.clone(), spec.id.clone());
        // Nobody else has it yet.
        let held = self.live.get(&id).and_then(|live| Arc::clone(&live.gate).try_lock_owned().ok());
        let step = Step::StartInstance { instance: Box::new(spec) };
        tokio::spawn(async move {
            let result = engine.apply(&step).await.map(|_| ());
            drop(held);
            let _ = tx.send(Msg::Started(id, result));
        });
    }

    /// Stops it, as a task, once.
    pub(super) fn stop_instance(&mut self, id: &InstanceId, grace_seconds: u32) {
        let Some(live) = self.live.get_mut(id) else { return };
        // One that drains stops now.
        live.draining = None;
        if live.stopping {
            return;
        }
        live.retire();
        let gate = Arc::clone(&live.gate);
        let (engine, tx, id) = (self.engine.clone(), self.tx.clone(), id.clone());
        tokio::spawn(async move {
            drop(gate.lock().await);
            stop(&*engine, id, grace_seconds, &tx).await;
        });
    }

    /// Stops it once the connections that it has are over, or after a while. What receives nothing, or shares a disk with the
    /// one that follows, stops at once.
    pub(super) fn drain_instance(&mut self, id: &InstanceId, grace_seconds: u32) {
        let Some(live) = self.live.get_mut(id) else { return };
        let service = self.durable.deployed.get(&live.slug).map(|deployed| &deployed.service);
        let drains = service.is_some_and(|service| service.kind.receives() && !moat_planner::diff::is_exclusive(service));
        if !drains || !live.started || !live.was_ready || live.stopping {
            return self.stop_instance(id, grace_seconds);
        }
        live.retire();
        let (now, asked) = tokio::sync::oneshot::channel();
        live.draining = Some(now);
        let (engine, tx, id) = (self.engine.clone(), self.tx.clone(), id.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = drained(&*engine, &id) => {}
                // An error means the same: dropped, since it is to stop now.
                _ = asked => {}
            }
            stop(&*engine, id, grace_seconds, &tx).await;
        });
    }

    pub(super) fn started(&mut self, id: &InstanceId, result: Result<(), EngineError>) {
        let Some(live) = self.live.get_mut(id) else { return };
        live.started = true;
        live.since = Instant::now();
        let slug = live.slug.clone();
        self.hook_started(id, &slug, result.is_ok());
        let Some(live) = self.live.get(id) else { return };
        match result {
            Ok(()) => {
                let (slug, purpose) = (live.slug.clone(), live.purpose);
                self.record_of(
                    EventKind::InstanceStarted,
                    Some(&slug),
                    Some(id),
                    format!("it was started ({})", purpose_word(purpose)),
                    json!({ "purpose": purpose }),
                );
                self.watch_end(id);
                if self.live.get(id).is_some_and(|l| l.purpose == Purpose::Serve) {
                    self.watch_ready(id);
                }
            }
            Err(error) => {
                let (slug, purpose, fingerprint) = (live.slug.clone(), live.purpose, live.fingerprint.clone());
                let words = engine_words(&error);
                let deploying = self.deploys.get(&slug).is_some_and(|d| d.sandbox() == Some(id))
                    || (purpose == Purpose::Serve && self.is_starting(&slug, &fingerprint));
                self.run_ended(id, None, &words);
                if deploying {
                    self.fail_deploy(&slug, &words, Some(id));
                } else {
                    self.notice(Some(&slug), words.clone());
                    if purpose == Purpose::Serve {
                        self.back_off(&slug, &words, id, Instant::now());
                    }
                }
                self.stop_instance(id, 0);
            }
        }
    }

    fn watch_end(&self, id: &InstanceId) {
        let (engine, tx, id) = (self.engine.clone(), self.tx.clone(), id.clone());
        tokio::spawn(async move {
            let phase = its_end(&*engine, &id).await;
            let _ = tx.send(Msg::Ended(id, phase));
        });
    }

    fn watch_ready(&mut self, id: &InstanceId) {
        let Some(live) = self.live.get(id) else { return };
        let Some(mut service) =
            self.deployed(&live.slug).map(|d| d.service.clone()).or_else(|| self.desired.services.get(&live.slug).cloned())
        else {
            return;
        };
        service.public.proxy_header = self.proxy_header(live);
        let host = super::public::host_name(&service);
        let before = live.ready.then(|| Readiness { ready: true, http_port: live.http_port, ..Readiness::default() });
        let task = tokio::spawn(ready::watch(self.engine.clone(), id.clone(), service, live.address, host, before, self.tx.clone()));
        if let Some(live) = self.live.get_mut(id) {
            live.checks = Some(task.abort_handle());
        }
    }

    pub(super) fn checked(&mut self, id: &InstanceId, readiness: Readiness) {
        let Some(live) = self.live.get_mut(id) else { return };
        if live.stopping {
            return;
        }
        let turned = live.ready != readiness.ready;
        live.ready = readiness.ready;
        live.was_ready |= readiness.ready;
        live.http_port = readiness.http_port;
        live.listeners = readiness.listeners;
        let slug = live.slug.clone();
        if turned {
            let (kind, message) = match (readiness.ready, &readiness.seen) {
                (true, _) => (EventKind::Ready, "it takes traffic".to_owned()),
                (false, Some(seen)) => (EventKind::NotReady, format!("it takes no traffic: {seen}")),
                (false, None) => (EventKind::NotReady, "it takes no traffic".to_owned()),
            };
            self.record_of(kind, Some(&slug), Some(id), message, json!({ "port": readiness.http_port }));
        }
        let Some(live) = self.live.get_mut(id) else { return };
        if live.seen != readiness.seen {
            live.seen.clone_from(&readiness.seen);
            if let Some(notice) = readiness.notice {
                self.notice(Some(&slug), notice);
            }
        }
    }

    /// A program ended by itself or was stopped.
    pub(super) fn ended(&mut self, id: &InstanceId, phase: &InstancePhase) {
        // Whole by now, and told before what comes of it.
        self.tell_build_logs();
        self.tails.remove(id);
        let Some(live) = self.live.get_mut(id) else { return };
        if let Some(checks) = live.checks.take() {
            checks.abort();
        }
        live.ready = false;
        // Nobody is connected to it any more.
        live.draining = None;
        let (slug, purpose, was_stopping, began) = (live.slug.clone(), live.purpose, live.stopping, live.since);
        let fingerprint = live.fingerprint.clone();
        let (code, why) = in_words(phase);
        self.record_end(id, &slug, purpose, phase, &why, was_stopping);
        if was_stopping {
            self.run_ended(id, code, "was stopped");
        } else {
            match purpose {
                Purpose::Build | Purpose::PreDeploy => self.sandbox_ended(&slug, purpose, id, code, &why),
                Purpose::Cron | Purpose::Job => {
                    let what = if purpose == Purpose::Cron { "the run" } else { "the job" };
                    self.run_ended(id, code, &why);
                    if code != Some(0) {
                        self.notice(Some(&slug), format!("{what} {why}"));
                    }
                }
                Purpose::Serve => {
                    if self.is_starting(&slug, &fingerprint) {
                        self.ended_early(&slug, id, began, format!("it {why} before it was ready"));
                    } else {
                        self.back_off(&slug, &why, id, began);
                    }
                }
            }
            // What is left of its sandbox goes.
            self.stop_instance(id, 0);
        }
    }

    /// Whether an instance is one that a deploy brings.
    fn is_starting(&self, slug: &Slug, fingerprint: &str) -> bool {
        self.deploys.get(slug).is_some_and(|deploy| deploy.phase == DeployPhase::Starting)
            && self.deployed(slug).is_some_and(|deployed| deployed.fingerprint() == fingerprint)
    }

    /// Its health check fails for too long: it is started anew.
    pub(super) fn unhealthy(&mut self, id: &InstanceId, why: &str) {
        let Some(live) = self.live.get(id).filter(|live| !live.stopping) else { return };
        let (slug, began) = (live.slug.clone(), live.since);
        self.notice(Some(&slug), format!("{id} is started anew: {why}"));
        let grace = self.deployed(&slug).map_or(30, |deployed| deployed.service.max_shutdown_delay_seconds);
        self.back_off(&slug, "was unhealthy", id, began);
        self.stop_instance(id, grace);
    }

    /// Leaves a service alone for a while, longer each time, but for one that ran long enough.
    fn back_off(&mut self, slug: &Slug, why: &str, id: &InstanceId, began: Instant) {
        if began.elapsed() > STEADY {
            self.backoff.remove(slug);
        }
        let entry = self.backoff.entry(slug.clone()).or_default();
        let pause = Duration::from_secs(1 << entry.restarts.min(6)).min(LONGEST_BACKOFF);
        entry.restarts += 1;
        entry.until = Some(Instant::now() + pause);
        let times = entry.restarts;
        self.wake_in(pause);
        let pause_seconds = pause.as_secs();
        self.record_of(
            EventKind::Restarting,
            Some(slug),
            Some(id),
            format!("it {why}; starting again in {pause_seconds} s (restart {times})"),
            json!({ "restarts": times, "pause_seconds": pause_seconds }),
        );
        let lines = crate::logs::last_lines(&self.engine.log_path(id), 6);
        self.set_phase_with(
            slug,
            ServicePhase::Restarting,
            Some(format!("it {why}; starting again in {} s (restart {times})", pause.as_secs())),
            lines,
        );
    }

    pub(super) fn stopped(&mut self, id: &InstanceId, result: Result<(), EngineError>) {
        if let Err(error) = result {
            // Until it is gone it keeps its address, its disk and its place in the policy.
            let words = engine_words(&error);
            if let Some(live) = self.live.get_mut(id)
                && live.stop_failed.replace(words.clone()).as_ref() != Some(&words)
            {
                let slug = live.slug.clone();
                self.notice(Some(&slug), format!("{words}; tried again until it is gone"));
            }
            return;
        }
        self.tails.remove(id);
        // Where it was stopped before it began, nothing else says that it ended.
        self.run_ended(id, None, "was stopped");
        if let Some(live) = self.live.remove(id) {
            moat_planner::alloc::release(&mut self.durable.memory, live.address);
            self.save();
        }
    }
}

/// Stops an instance, again and again while that fails.
async fn stop(engine: &dyn Machine, id: InstanceId, grace_seconds: u32, tx: &UnboundedSender<Msg>) {
    let step = Step::StopInstance { id: id.clone(), grace_seconds };
    let (mut pause, longest) = STOP_AGAIN;
    loop {
        let result = engine.apply(&step).await.map(|_| ());
        let is_over = result.is_ok();
        if tx.send(Msg::Stopped(id.clone(), result)).is_err() || is_over {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Waits until an instance has ended. That it can't be looked at says nothing about it.
async fn its_end(engine: &dyn Machine, id: &InstanceId) -> InstancePhase {
    let mut told = false;
    loop {
        match engine.wait(id).await {
            Ok(phase) => return phase,
            Err(error) if !told => {
                tracing::warn!(%id, %error, "it can't be seen whether it runs; looked at again until it can");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until an instance's connections are over, or for as long as they may take.
async fn drained(engine: &dyn Machine, id: &InstanceId) {
    let ends = Instant::now() + DRAIN_LIMIT;
    while Instant::now() < ends {
        tokio::time::sleep(DRAIN_LOOK).await;
        // What can't be looked at may have some; that it has ended is told by another.
        if engine.connections(id).await.is_ok_and(|open| open == 0) {
            return;
        }
    }
}

/// Exit code and words for an end.
fn in_words(phase: &InstancePhase) -> (Option<i32>, String) {
    match phase {
        InstancePhase::Exited(report) => {
            let words = match (&report.error, report.oom, report.signal) {
                (Some(error), ..) => format!("could not run: {error}"),
                (None, true, _) => "was killed: it used more memory than its plan allows".to_owned(),
                (None, false, Some(signal)) => format!("was ended by signal {signal}"),
                (None, false, None) => format!("exited with status {}", report.code),
            };
            (report.error.is_none().then_some(report.code), words)
        }
        InstancePhase::Lost => (None, "vanished (its monitor was killed)".to_owned()),
        InstancePhase::Preparing | InstancePhase::Running => (None, "is in an unknown state".to_owned()),
    }
}
