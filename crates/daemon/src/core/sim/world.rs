//! What outlives a daemon: the machine, its clock, its disk, and the programs that run.
//!
//! Invariant: a daemon that was killed changes nothing more, and what it had begun is half done, whole or not begun.

use super::programs::Program;
use super::rng::Rng;
use crate::blueprints::Doors;
use crate::state::{Disk, Durable, State};
use moat_model::state::{InstancePhase, ObservedInstance, ObservedState};
use moat_model::{DesiredState, Generation, InstanceId, Purpose, Slug};
use moat_store::{Changes, Documents, StoreError};
use moat_testkit::{FakeEngine, now};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Lines of what happened that are kept for the message of a failure.
const TOLD: usize = 250;

/// What a killed daemon unwinds with.
pub(super) struct Killed;

/// Everything but the daemon.
pub(super) struct World {
    pub(super) engine: FakeEngine,
    inner: Mutex<Inner>,
    death: Notify,
}

pub(super) struct Inner {
    pub(super) rng: Rng,
    /// Time that passed in daemons' lives before this one, and when this one began.
    past: Duration,
    began: Option<Instant>,
    /// How far the time of day is off, in seconds.
    pub(super) off: i64,
    /// What daemons did so far, and at which of these one is killed.
    steps: u64,
    dies_at: Option<u64>,
    dead: bool,
    /// Steps and writes fail now and then.
    pub(super) faults: bool,
    /// So do looks at what runs.
    pub(super) blind: bool,
    /// All looks see nothing.
    pub(super) sees_nothing: bool,
    /// The start of the next hook's job fails.
    pub(super) hook_fails: bool,
    pub(super) programs: BTreeMap<InstanceId, Program>,
    /// Every instance that was ever started.
    pub(super) known: BTreeSet<InstanceId>,
    /// Finished releases.
    pub(super) sealed: BTreeSet<String>,
    documents: Documents,
    generation: Generation,
    /// These as a daemon would read them, and what the blueprints in them ask for.
    read: Option<(Arc<Durable>, Option<Arc<DesiredState>>)>,
    /// How many instances of a service serve at least, whatever is done now.
    pub(super) steady: BTreeMap<Slug, usize>,
    /// The generation that was published last, and the upstreams by service.
    pub(super) published: Generation,
    pub(super) upstreams: BTreeMap<Slug, BTreeSet<std::net::SocketAddr>>,
    /// What is published is not acknowledged.
    pub(super) deaf: bool,
    /// Services that the ingress would have woken.
    pub(super) asleep: BTreeSet<Slug>,
    /// Everything that was started, and when.
    pub(super) starts: Vec<(Slug, Purpose, Duration)>,
    /// How often the hook of a first deploy was started.
    pub(super) hooks: usize,
    pub(super) wrong: Vec<String>,
    told: std::collections::VecDeque<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            rng: Rng::new(seed),
            past: Duration::ZERO,
            began: None,
            off: 0,
            steps: 0,
            dies_at: None,
            dead: false,
            faults: false,
            blind: false,
            sees_nothing: false,
            hook_fails: false,
            programs: BTreeMap::new(),
            known: BTreeSet::new(),
            sealed: BTreeSet::new(),
            documents: Documents::default(),
            generation: Generation(0),
            read: None,
            steady: BTreeMap::new(),
            published: Generation(0),
            upstreams: BTreeMap::new(),
            deaf: false,
            asleep: BTreeSet::new(),
            starts: Vec::new(),
            hooks: 0,
            wrong: Vec::new(),
            told: std::collections::VecDeque::new(),
        };
        Arc::new(Self { engine: FakeEngine::new(), inner: Mutex::new(inner), death: Notify::new() })
    }

    /// A killed daemon may have held it: what matters was said already.
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the world began.
    pub(super) fn time(&self) -> Duration {
        self.inner().time()
    }

    /// Notes what happens, for the message of a failure.
    pub(super) fn tell(&self, what: impl Display) {
        self.inner().tell(what);
    }

    /// Notes what must not be.
    pub(super) fn wrong(&self, what: impl Display) {
        self.inner().wrong(what);
    }

    /// Whether something was.
    pub(super) fn is_wrong(&self) -> bool {
        !self.inner().wrong.is_empty()
    }

    /// A daemon begins to live.
    pub(super) fn begin(&self) {
        let mut inner = self.inner();
        (inner.began, inner.dead, inner.dies_at) = (Some(Instant::now()), false, None);
        inner.tell("a daemon begins");
    }

    /// It lives no more, for any reason; the next one comes after `pause`.
    pub(super) fn end(&self, pause: Duration) {
        let mut inner = self.inner();
        inner.past = inner.time() + pause;
        (inner.began, inner.dead) = (None, true);
    }

    /// The daemon is killed at its `step`-th step from now.
    pub(super) fn kill_in(&self, step: u64) {
        let mut inner = self.inner();
        inner.dies_at = Some(inner.steps + step);
    }

    /// It is not killed any more.
    pub(super) fn spare(&self) {
        self.inner().dies_at = None;
    }

    /// The daemon is killed now.
    pub(super) fn kill(&self) {
        self.inner().dead = true;
        self.death.notify_one();
    }

    /// Comes back when the daemon is killed.
    pub(super) async fn death(&self) {
        while !self.inner().dead {
            self.death.notified().await;
        }
    }

    /// One step of the daemon; false where it is dead or dies by it.
    fn lives(&self, what: &str) -> bool {
        let mut inner = self.inner();
        if inner.dead {
            return false;
        }
        inner.steps += 1;
        if inner.dies_at == Some(inner.steps) {
            inner.tell(format!("killed at: {what}"));
            inner.dead = true;
            drop(inner);
            self.death.notify_one();
            return false;
        }
        true
    }

    /// Goes on only while the daemon lives.
    pub(super) async fn step(&self, what: &str) {
        if !self.lives(what) {
            std::future::pending::<()>().await;
        }
    }

    /// The same where nothing can wait.
    fn step_now(&self, what: &str) {
        if !self.lives(what) {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Ends the programs whose time has come.
    pub(super) fn settle(&self) {
        let due: Vec<(InstanceId, i32)> = {
            let inner = self.inner();
            let time = inner.time();
            let ends =
                |(id, program): (&InstanceId, &Program)| program.ends.filter(|(at, _)| *at <= time).map(|(_, code)| (id.clone(), code));
            inner.programs.iter().filter_map(ends).collect()
        };
        for (id, code) in due {
            self.inner().programs.remove(&id);
            self.engine.exit(&id, code);
        }
    }

    /// What the machine knows, its programs being where they are now.
    pub(super) fn observed(&self) -> ObservedState {
        self.settle();
        now(moat_engine::Engine::observe(&self.engine)).unwrap()
    }

    /// Instances that run and listen where they should.
    pub(super) fn serving(&self) -> BTreeSet<InstanceId> {
        self.settle();
        let inner = self.inner();
        let time = inner.time();
        let serves = |instance: &&ObservedInstance| {
            instance.phase == InstancePhase::Running && inner.programs.get(&instance.id).is_some_and(|program| program.serves(time))
        };
        self.engine.look(|observed| observed.instances.values().filter(serves).map(|instance| instance.id.clone()).collect())
    }

    /// The durable state as a daemon would find it.
    pub(super) fn durable(&self) -> Arc<Durable> {
        let mut inner = self.inner();
        if let Some((durable, _)) = &inner.read {
            return Arc::clone(durable);
        }
        let read = State::of(Box::new(Memory { world: None }), inner.generation, inner.documents.clone()).unwrap();
        let durable = Arc::new(read.written().clone());
        inner.read = Some((Arc::clone(&durable), None));
        durable
    }

    /// What the accepted blueprints ask for.
    pub(super) fn accepted(&self) -> Arc<DesiredState> {
        let durable = self.durable();
        if let Some((_, Some(state))) = &self.inner().read {
            return Arc::clone(state);
        }
        let mut memory = durable.memory.clone();
        let mut state =
            crate::blueprints::read_and_resolve(&durable.blueprints, &mut memory, Doors { http: "127.0.0.1:8080", https: None }).state;
        for (slug, kept) in &durable.kept {
            state.services.insert(slug.clone(), kept.clone());
        }
        let state = Arc::new(state);
        self.inner().read = Some((durable, Some(Arc::clone(&state))));
        state
    }

    /// The durable state, to go on with.
    pub(super) fn state(self: &Arc<Self>) -> State {
        let (generation, documents) = {
            let inner = self.inner();
            (inner.generation, inner.documents.clone())
        };
        State::of(Box::new(Memory { world: Some(Arc::clone(self)) }), generation, documents).unwrap()
    }

    /// What happened last, and what was wrong about it.
    pub(super) fn story(&self) -> String {
        let inner = self.inner();
        let told: Vec<&str> = inner.told.iter().map(String::as_str).collect();
        format!("{}\n\nwrong:\n{}", told.join("\n"), inner.wrong.join("\n"))
    }
}

impl Inner {
    pub(super) fn time(&self) -> Duration {
        self.past + self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub(super) fn tell(&mut self, what: impl Display) {
        let line = format!("{:9.3} {what}", self.time().as_secs_f64());
        if std::env::var_os("MOAT_SIM_TELL").is_some() {
            std::eprintln!("{line}");
        }
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(line);
    }

    pub(super) fn wrong(&mut self, what: impl Display) {
        self.tell(format!("WRONG: {what}"));
        let what = what.to_string();
        if self.wrong.len() < 20 && !self.wrong.contains(&what) {
            self.wrong.push(what);
        }
    }

    /// Up to so many milliseconds.
    pub(super) fn pause(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.below(most + 1))
    }

    /// Whether something fails now, once in so many times where anything fails at all.
    pub(super) fn fails(&mut self, once_in: u64) -> bool {
        self.faults && self.rng.once_in(once_in)
    }

    /// Whether a look sees nothing, once in so many times where that happens at all. It changes nothing, and nothing may come of it.
    pub(super) fn blinks(&mut self, once_in: u64) -> bool {
        self.sees_nothing || self.blind && self.rng.once_in(once_in)
    }
}

/// The disk of a world.
struct Memory {
    world: Option<Arc<World>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Disk for Memory {
    fn write(&mut self, generation: Generation, changes: &Changes) -> Result<(), StoreError> {
        let Some(world) = &self.world else { return Ok(()) };
        {
            let inner = world.inner();
            if changes.is_empty() && generation == inner.generation {
                return Ok(());
            }
        }
        world.step_now("before a write");
        {
            let mut inner = world.inner();
            if inner.fails(40) {
                inner.tell("a write fails");
                return Err(StoreError::Full(PathBuf::from("/state")));
            }
            if generation < inner.generation {
                let before = inner.generation;
                inner.wrong(format!("the generation goes back from {} to {}", before.0, generation.0));
            }
            inner.generation = generation;
            inner.documents.apply(changes);
            inner.read = None;
        }
        world.step_now("after a write");
        Ok(())
    }

    fn keep_copy(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
