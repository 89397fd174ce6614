//! What people and the machine do to a daemon, and what they were answered.

use super::judge::{rolling, wanted};
use super::rng::Rng;
use super::text::{SERVICES, Text, blueprint};
use super::world::World;
use crate::core::Msg;
use crate::protocol::{Event, Request, ServiceVerb, UpRequest};
use crate::reply::Answers;
use moat_model::{InstanceId, Secret, Slug};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Simulated seconds within which everything has to come about once nothing fails any more.
const PATIENCE: u64 = 600;

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Anything, so many times, with faults or with deploys and kills alone.
    Any { left: u64, gentle: bool },
    /// Nothing until everything has come about.
    Quiet,
    /// A blueprint in which nothing fails.
    Clean,
    /// Everything is stopped.
    Down,
    /// Nothing more.
    Over,
}

/// The blueprint that is the accepted one when a request was; none is none.
struct Accepted(Option<String>);

/// An answer that is waited for.
struct Open {
    events: Answers,
    what: String,
    /// The index of what it asked for, in [`People::asked`].
    asked: Option<usize>,
}

pub(super) struct People {
    rng: Rng,
    pub(super) stage: Stage,
    /// Stages of [`Stage::Any`] that are still to come.
    rounds: u64,
    open: Vec<Open>,
    /// Blueprints that may be the accepted one: what was asked for since the last answer, and before it the answered one. None is none.
    asked: Vec<Option<String>>,
    /// Requests of the clean stage and of the last one were sent so often.
    tries: u32,
    /// The blueprint of the clean stage.
    clean: Text,
}

fn file() -> PathBuf {
    PathBuf::from("/app/render.yaml")
}

fn up(text: &Text) -> Request {
    Request::Up(UpRequest { start_timeout_seconds: 20, ..UpRequest::new(file(), text.yaml.clone()) })
}

impl People {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let clean = blueprint(&mut rng, true);
        let rounds = 1 + rng.below(2);
        let stage = Stage::Any { left: 1 + rng.below(8), gentle: false };
        Self { rng, stage, rounds, open: Vec::new(), asked: vec![None], tries: 0, clean }
    }

    /// Does things until the daemon is gone, or all is over.
    pub(super) async fn live(&mut self, world: &World, tx: &mpsc::UnboundedSender<Msg>) {
        loop {
            self.listen(world);
            match self.stage {
                Stage::Any { left: 0, .. } => self.stage = Stage::Quiet,
                Stage::Any { left, gentle } => {
                    self.stage = Stage::Any { left: left - 1, gentle };
                    if !gentle {
                        world.inner().faults = !self.rng.once_in(4);
                    }
                    world.inner().blind = self.rng.once_in(2);
                    self.one(world, tx, gentle);
                    let pause = *self.rng.pick(&[0, 0, 5, 60, 400, 1500, 4000, 25_000]);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Stage::Quiet => {
                    self.quiet(world).await;
                    world.judge_quiet();
                    self.judge_accepted(world);
                    self.after_quiet(world);
                }
                Stage::Clean => {
                    self.tries += 1;
                    let text = self.clean.clone();
                    self.up(world, tx, "the clean blueprint", &text);
                    if self.answered(world).await {
                        self.quiet(world).await;
                        world.judge_quiet();
                        self.judge_clean(world);
                        self.cron_goes_on(world).await;
                        (self.stage, self.tries) = (Stage::Down, 0);
                    }
                }
                Stage::Down => {
                    self.tries += 1;
                    self.ask(world, tx, "down", Request::Down { file: None }, Some(Accepted(None)));
                    self.answered(world).await;
                }
                Stage::Over => return,
            }
            if self.tries > 3 {
                world.wrong("nobody answers");
            }
            if world.is_wrong() {
                self.stage = Stage::Over;
            }
        }
    }

    /// The daemon is gone: nobody answers any more. What was asked for and not answered came about, or did not.
    pub(super) fn hung_up(&mut self, world: &World) {
        self.listen(world);
        self.open.clear();
    }

    fn after_quiet(&mut self, world: &World) {
        self.rounds = self.rounds.saturating_sub(1);
        self.stage = if self.rounds == 0 { Stage::Clean } else { Stage::Any { left: 1 + self.rng.below(5), gentle: true } };
        let durable = world.durable();
        let observed = world.observed();
        let mut inner = world.inner();
        let time = inner.time();
        // One that is sick is taken out when it is so for long enough.
        let is_sick = |id: &InstanceId| inner.programs.get(id).is_some_and(|program| program.is_sick(time));
        let sick: Vec<&Slug> =
            observed.instances.values().filter(|instance| is_sick(&instance.id)).map(|instance| &instance.slug).collect();
        let steady = rolling(&durable).filter(|slug| !sick.contains(slug)).map(|slug| (slug.clone(), wanted(&durable, slug))).collect();
        inner.steady = steady;
    }

    /// One thing happens.
    fn one(&mut self, world: &World, tx: &mpsc::UnboundedSender<Msg>, gentle: bool) {
        let slug = *self.rng.pick(&SERVICES);
        let service = |verb: ServiceVerb| Request::Service { service: slug.to_owned(), verb };
        match self.rng.below(if gentle { 12 } else { 34 }) {
            0..5 => {
                let text = blueprint(&mut self.rng, false);
                self.up(world, tx, "up", &text);
            }
            5 | 6 => self.ask(world, tx, &format!("restart {slug}"), service(ServiceVerb::Restart), None),
            7 => {
                let value = Some(Secret::new(self.rng.below(3).to_string()));
                let values = BTreeMap::from([("COLOUR".to_owned(), value.filter(|_| !self.rng.once_in(3)))]);
                self.ask(world, tx, &format!("set a variable of {slug}"), service(ServiceVerb::SetVariables { values }), None);
            }
            8 => self.ask(world, tx, &format!("cancel the deploy of {slug}"), service(ServiceVerb::CancelDeploy), None),
            9 | 10 => {
                let most = *self.rng.pick(&[3, 12, 60]);
                world.kill_in(1 + self.rng.below(most));
            }
            11 => {
                world.tell("the daemon is told to leave");
                let _ = tx.send(Msg::Leave);
            }
            12 | 13 => self.ask(world, tx, &format!("roll {slug} back"), service(ServiceVerb::Rollback { deploy: None }), None),
            14 | 15 => {
                let instances = Some(1 + u32::try_from(self.rng.below(4)).unwrap()).filter(|_| !self.rng.once_in(4));
                self.ask(world, tx, &format!("scale {slug} to {instances:?}"), service(ServiceVerb::Scale { instances }), None);
            }
            16 | 17 => self.ask(world, tx, &format!("suspend {slug}"), service(ServiceVerb::Suspend), None),
            18 | 19 => self.ask(world, tx, &format!("resume {slug}"), service(ServiceVerb::Resume), None),
            20 => {
                let verb = ServiceVerb::Run { command: Some("job".to_owned()).filter(|_| slug != "tick"), detach: self.rng.once_in(2) };
                self.ask(world, tx, &format!("run in {slug}"), service(verb), None);
            }
            21 => {
                let verb = ServiceVerb::Maintenance { on: self.rng.once_in(2), page: None };
                self.ask(world, tx, "maintenance", service(verb), None);
            }
            22..25 => self.end_one(world),
            25 => self.make_one_sick(world),
            26 => self.ask(world, tx, "down", Request::Down { file: Some(file()) }, Some(Accepted(None))),
            27 => self.ask(world, tx, "down with everything", Request::Down { file: None }, Some(Accepted(None))),
            28 => {
                world.tell("the machine starts anew");
                world.engine.reboot();
                world.inner().programs.clear();
                world.kill();
            }
            29 | 30 => {
                let after = if self.rng.once_in(3) { "off" } else { "20s" };
                let set = vec![("free-plans-sleep".to_owned(), after.to_owned())];
                self.ask(world, tx, &format!("free plans sleep: {after}"), Request::Ingress { set }, None);
            }
            31 | 32 => {
                let asleep = world.inner().asleep.clone();
                world.tell(format!("asked for: {asleep:?}"));
                let _ = tx.send(Msg::Wanted(asleep));
            }
            _ => {
                let jump = i64::try_from(self.rng.below(7200)).unwrap() - 3600;
                world.tell(format!("the clock jumps by {jump} s"));
                world.inner().off += jump;
            }
        }
    }

    fn up(&mut self, world: &World, tx: &mpsc::UnboundedSender<Msg>, what: &str, text: &Text) {
        for (name, count) in &text.instances {
            let mut inner = world.inner();
            if let Some(least) = Slug::new(*name).ok().and_then(|slug| inner.steady.get_mut(&slug)) {
                *least = (*least).min(usize::try_from(*count).unwrap());
            }
        }
        self.ask(world, tx, what, up(text), Some(Accepted(Some(text.yaml.clone()))));
    }

    fn running(&mut self, world: &World) -> Option<InstanceId> {
        let running: Vec<InstanceId> = world.inner().programs.keys().cloned().collect();
        (!running.is_empty()).then(|| self.rng.pick(&running).clone())
    }

    fn end_one(&mut self, world: &World) {
        let Some(id) = self.running(world) else { return };
        world.inner().programs.remove(&id);
        let lost = self.rng.once_in(2);
        world.tell(format!("{id} {}", if lost { "is lost" } else { "ends" }));
        if lost {
            world.engine.lose(&id);
        } else {
            world.engine.exit(&id, 3);
        }
    }

    fn make_one_sick(&mut self, world: &World) {
        let Some(id) = self.running(world) else { return };
        let observed = world.observed();
        let mut inner = world.inner();
        if let Some(instance) = observed.instances.get(&id) {
            // It is taken out when it is sick for long enough, as it should be.
            inner.steady.remove(&instance.slug);
        }
        let until = inner.time() + Duration::from_secs(self.rng.below(100));
        inner.tell(format!("{id} is sick"));
        if let Some(program) = inner.programs.get_mut(&id).filter(|program| program.sick.is_none()) {
            program.sick = Some(until);
        }
    }

    /// Asks; what an accepted request makes of the blueprint is noted.
    fn ask(&mut self, world: &World, tx: &mpsc::UnboundedSender<Msg>, what: &str, request: Request, makes: Option<Accepted>) {
        world.tell(format!("asked: {what}"));
        let (reply, events) = crate::reply::channel();
        let asked = makes.map(|Accepted(blueprint)| {
            self.asked.push(blueprint);
            self.asked.len() - 1
        });
        // One that leaves just now hears nothing.
        let _ = tx.send(Msg::Request(Box::new(request), reply));
        self.open.push(Open { events, what: what.to_owned(), asked });
    }

    /// Hears what was answered.
    fn listen(&mut self, world: &World) {
        let mut answered = Vec::new();
        self.open.retain_mut(|open| {
            while let Ok(event) = open.events.try_recv() {
                if let Event::Refused { diagnostics } = &event {
                    world.wrong(format!("refused: {}", diagnostics.iter().map(|d| d.rendered.clone()).collect::<String>()));
                }
                // What else is said on the way is for people.
                let Event::End { error } = event else { continue };
                let why = error.as_ref().map_or("done", |failure| failure.message.as_str());
                world.tell(format!("answered: {}: {why}", open.what));
                // Refused by a disk or an engine that failed: nothing was changed.
                let refused = error.as_ref().is_some_and(|failure| failure.exit_code != 1);
                answered.push((open.asked, refused));
                // It may be gone before anybody looks again.
                if self.stage == Stage::Down && error.is_none() {
                    self.stage = Stage::Over;
                }
                return false;
            }
            true
        });
        for (asked, refused) in answered {
            let Some(asked) = asked else { continue };
            if refused && self.asked[asked].is_none() {
                // What could not be ended to the last step may have ended all the same.
            } else if refused {
                // Its place stays, so that the others keep theirs.
                self.asked[asked] = self.asked[0].clone();
            } else {
                for earlier in 0..asked {
                    self.asked[earlier] = self.asked[asked].clone();
                }
            }
        }
    }

    /// Waits until everything is answered; false where the daemon is gone.
    async fn answered(&mut self, world: &World) -> bool {
        for _ in 0..PATIENCE {
            self.listen(world);
            if self.open.is_empty() {
                return true;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let what: Vec<&str> = self.open.iter().map(|open| open.what.as_str()).collect();
        world.wrong(format!("never answered: {}", what.join(", ")));
        self.open.clear();
        true
    }

    /// Waits until everything has come about, nothing failing any more.
    async fn quiet(&mut self, world: &World) {
        world.inner().faults = false;
        world.inner().blind = false;
        world.inner().steady.clear();
        world.spare();
        let mut before = None;
        for _ in 0..PATIENCE {
            tokio::time::sleep(Duration::from_millis(2300)).await;
            self.listen(world);
            let missing = world.missing().or_else(|| self.open.first().map(|open| format!("`{}` is not answered", open.what)));
            // Twice, so that it is not just between two.
            if missing.is_none() && before.is_none() {
                return;
            }
            before = missing;
        }
        world.wrong(format!("it does not come about: {}", before.unwrap_or_default()));
    }

    /// Cron jobs run on, whatever the clock does.
    async fn cron_goes_on(&mut self, world: &World) {
        let tick = Slug::new("tick").unwrap();
        let durable = world.durable();
        let runs = durable.deployed.get(&tick).is_some_and(|deployed| deployed.good)
            && durable.settings.get(&tick).is_none_or(|settings| !settings.suspended);
        if !runs || self.rng.once_in(2) {
            return;
        }
        // In its own time, or as the clock is set to another: back, mostly.
        let jump = *self.rng.pick(&[0, -20, -3600, -100_000, 5000]);
        world.tell(format!("the clock jumps by {jump} s"));
        world.inner().off += jump;
        let count = |world: &World| world.inner().starts.iter().filter(|(slug, ..)| *slug == tick).count();
        let before = count(world);
        // Every other minute, once the one before is over, which takes 200 s at most.
        for _ in 0..36 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            if count(world) > before {
                return;
            }
        }
        world.wrong("no cron run was started for six minutes");
    }

    /// What was accepted is what was asked for.
    fn judge_accepted(&mut self, world: &World) {
        let durable = world.durable();
        let accepted = durable.blueprints.get(&file()).map(|up| up.text.clone());
        if !self.asked.contains(&accepted) {
            world.wrong(format!("accepted is {accepted:?}, and nobody asked for it"));
        }
        self.asked = vec![accepted];
    }

    /// What runs is what the clean blueprint says.
    fn judge_clean(&mut self, world: &World) {
        self.judge_accepted(world);
        if self.asked != [Some(self.clean.yaml.clone())] {
            world.wrong("the clean blueprint is not the accepted one");
        }
        let (durable, state) = (world.durable(), world.accepted());
        if world.inner().hooks == 0 && durable.deployed.values().any(|deployed| deployed.service.slug.as_str() == "shop" && deployed.good) {
            world.wrong("the hook of the first deploy never ran");
        }
        for service in state.services.values() {
            let settings = durable.settings.get(&service.slug).cloned().unwrap_or_default();
            if settings.suspended {
                continue;
            }
            match durable.deployed.get(&service.slug) {
                Some(deployed) if deployed.service.fingerprint == service.fingerprint => {}
                other => world.wrong(format!(
                    "of `{}` runs {:?}, not what its blueprint says",
                    service.slug,
                    other.map(|deployed| &deployed.service.workload)
                )),
            }
        }
    }
}
