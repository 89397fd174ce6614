//! The loop against a machine in memory: whatever happens, in whatever order, and wherever daemons are killed.
//!
//! A seed decides everything: blueprints whose programs do not always go well, what people ask, what ends, which steps and writes
//! fail, and at which of its steps a daemon is killed. Time is tokio's, paused, so that a minute takes as long as what happens in it.
//! Each daemon has a runtime of its own; dropping that is how it is killed.
//!
//! * [`world`], [`machine`], [`programs`] – what outlives daemons, and what they work with.
//! * [`people`], [`text`] – what is done to them.
//! * [`judge`] – what must hold.
//! * [`scenes`] – what seeds seldom come to, done step by step.
//!
//! `MOAT_SIM_SEED=N` runs one seed alone, `MOAT_SIM_SEEDS=N` so many; `MOAT_SIM_TELL=1` tells what happens.

mod certificates;
mod judge;
mod machine;
mod people;
mod programs;
mod rng;
mod scenes;
mod text;
mod world;

use super::record::Writing;
use super::{Core, Msg, Parts, Rests};
use crate::Paths;
use crate::blueprints::seed;
use machine::Desk;
use moat_store::EventLog;
use people::{People, Stage};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use world::{Killed, World};

/// Lives of daemons after which a seed has gone astray.
const MOST_LIVES: u32 = 60;

/// A daemon, until it ends.
async fn daemon(world: &Arc<World>, serves: bool, tx: mpsc::UnboundedSender<Msg>, rx: mpsc::UnboundedReceiver<Msg>) {
    match Core::of(parts(world, serves), tx, std::iter::empty()).await {
        Ok(core) => core.run(rx).await,
        Err(error) => world.tell(format!("the daemon begins nothing: {error}")),
    }
}

/// One daemon's life, until it ends, is killed, or all is over.
async fn live(world: &Arc<World>, people: &mut People, serves: bool) {
    world.begin();
    let (tx, rx) = mpsc::unbounded_channel();
    tokio::select! {
        biased;
        () = world.death() => {}
        () = daemon(world, serves, tx.clone(), rx) => world.tell("the daemon ends"),
        () = people.live(world, &tx) => {}
    }
}

/// What a daemon works with.
fn parts(world: &Arc<World>, serves: bool) -> Parts {
    let state = world.state();
    let (_, written) = watch::channel(0);
    Parts {
        paths: Paths { state: PathBuf::from("/nowhere/state"), run: PathBuf::from("/nowhere/run") },
        engine: Arc::<World>::clone(world),
        dataplane: Box::new(Desk { world: Arc::clone(world), serving: false }),
        durable: state.written().clone(),
        state,
        writing: Writing::new(EventLog::none(), written),
        serves,
        // Fewer looks at nothing: seconds are for nothing there.
        rests: Rests { busy: Duration::from_secs(5), quiet: Duration::from_secs(5) },
    }
}

/// Everything that a seed decides. Says what was wrong.
fn run(number: u64) -> Result<(), String> {
    seed(number);
    let world = World::new(number);
    let mut people = People::new(number);
    let serves = number.is_multiple_of(2);
    let mut lives = 0;
    while people.stage != Stage::Over && lives < MOST_LIVES {
        lives += 1;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(&world, &mut people, serves))));
        if let Err(cause) = ran
            && !cause.is::<Killed>()
        {
            std::eprintln!("seed {number}:\n{}", world.story());
            resume_unwind(cause);
        }
        runtime.block_on(async {
            people.hung_up(&world);
            let pause = world.inner().pause(3000);
            world.end(pause);
        });
        drop(runtime);
    }
    if people.stage != Stage::Over {
        world.wrong("it goes on for ever");
    }
    if !world.is_wrong() {
        world.judge_end();
    }
    if world.is_wrong() { Err(world.story()) } else { Ok(()) }
}

fn number(key: &str) -> Option<u64> {
    std::env::var(key).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("`{key}` holds `{text}`, which is no number")))
}

#[test]
fn daemons_converge_whatever_happens() {
    if let Some(alone) = number("MOAT_SIM_SEED") {
        if let Err(story) = run(alone) {
            panic!("seed {alone}:\n{story}");
        }
        return;
    }
    let seeds = number("MOAT_SIM_SEEDS").unwrap_or(1000);
    let first = number("MOAT_SIM_FIRST").unwrap_or(1);
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get() as u64).min(4);
    let found: Vec<(u64, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let mine = (first..first + seeds).filter(|seed| seed % workers == worker);
                    mine.filter_map(|seed| run(seed).err().map(|story| (seed, story))).take(3).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (seed, story) in &found {
        std::eprintln!("seed {seed}:\n{story}\n");
    }
    let failed: Vec<u64> = found.iter().map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "seeds {failed:?} failed (`MOAT_SIM_SEED={}` runs the first alone)", failed[0]);
}
