//! Single scenes: what happens by the clock, and what a daemon that ends must not change of it.

#![expect(clippy::unchecked_time_subtraction, reason = "a start that comes before what it follows is a failed test")]

use super::daemon;
use super::machine::DAY_ONE;
use super::world::{Killed, World};
use crate::blueprints::seed;
use crate::core::Msg;
use crate::history::DeployState;
use crate::protocol::{Event, Failure, Request, ServiceVerb, UpRequest};
use moat_model::{InstanceId, Purpose, Slug};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedSender};

const HOUR: Duration = Duration::from_hours(1);
const MINUTE: Duration = Duration::from_mins(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn world(number: u64) -> Arc<World> {
    seed(number);
    World::new(number)
}

/// One daemon's life, in which this is done; the next one comes after `pause`. Nothing where the daemon was killed before the end.
fn life<T>(world: &Arc<World>, pause: Duration, body: impl AsyncFnOnce(UnboundedSender<Msg>) -> T) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            world.begin();
            let (tx, rx) = mpsc::unbounded_channel();
            tokio::select! {
                biased;
                () = world.death() => None,
                () = daemon(world, true, tx.clone(), rx) => panic!("the daemon ended:\n{}", world.story()),
                done = body(tx.clone()) => Some(done),
            }
        })
    }));
    runtime.block_on(async { world.end(pause) });
    match lived {
        Ok(done) => done,
        Err(cause) if cause.is::<Killed>() => None,
        Err(cause) => {
            std::eprintln!("{}", world.story());
            resume_unwind(cause)
        }
    }
}

async fn ask(tx: &UnboundedSender<Msg>, request: Request) -> Option<Failure> {
    let (reply, mut events) = crate::reply::channel();
    tx.send(Msg::Request(Box::new(request), reply)).ok().unwrap();
    while let Some(event) = events.recv().await {
        if let Event::End { error } = event {
            return error;
        }
    }
    panic!("never answered")
}

/// Asks for a blueprint of one service.
async fn up(tx: &UnboundedSender<Msg>, service: &str) -> Option<Failure> {
    let text = format!("services:\n  - {{runtime: python, {service}}}\n");
    ask(tx, Request::Up(UpRequest { start_timeout_seconds: 20, ..UpRequest::new("/app/render.yaml", text) })).await
}

fn tick(does: &str) -> String {
    format!("name: tick, type: cron, schedule: '*/2 * * * *', buildCommand: build v1 well, startCommand: serve v1 {does}")
}

const SHOP: &str = "name: shop, type: web, healthCheckPath: /up, initialDeployHook: hook, buildCommand: build v1 well, \
                    preDeployCommand: migrate v1 well, startCommand: serve v1 well";

/// When what runs for this was started, each time.
fn starts(world: &World, purpose: Purpose) -> Vec<Duration> {
    world.inner().starts.iter().filter(|(_, what, _)| *what == purpose).map(|(.., at)| *at).collect()
}

/// Waits for the `nth` start of what runs for this: when that was.
async fn started(world: &World, purpose: Purpose, nth: usize, within: Duration) -> Duration {
    let until = world.time() + within;
    loop {
        if let Some(at) = starts(world, purpose).get(nth - 1) {
            return *at;
        }
        assert!(world.time() < until, "no start {nth} within {} s:\n{}", within.as_secs(), world.story());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn sleep_until(world: &World, at: Duration) {
    tokio::time::sleep(at.saturating_sub(world.time())).await;
}

#[track_caller]
fn assert_between(what: &str, time: Duration, least: Duration, most: Duration) {
    assert!((least..most).contains(&time), "{what}: {time:?}, not {least:?} to {most:?}");
}

#[test]
fn a_tick_that_falls_into_a_run_follows_it_once_whichever_daemon_is_there() {
    for killed in [false, true] {
        let world = world(1);
        let begun = life(&world, seconds(20), async |tx| {
            assert_eq!(up(&tx, &tick("lasts-300")).await.map(|failure| failure.message), None);
            let first = started(&world, Purpose::Cron, 1, 3 * MINUTE).await;
            // One tick fell into it by now.
            sleep_until(&world, first + seconds(150)).await;
            if !killed {
                sleep_until(&world, first + seconds(295)).await;
                assert_eq!(starts(&world, Purpose::Cron).len(), 1);
                assert_between("the second", started(&world, Purpose::Cron, 2, MINUTE).await - first, seconds(300), seconds(310));
            }
            first
        });
        let first = begun.unwrap();
        if killed {
            life(&world, Duration::ZERO, async |_tx| {
                sleep_until(&world, first + seconds(295)).await;
                assert_eq!(starts(&world, Purpose::Cron).len(), 1);
                // Not at the tick after, which is at 360 s.
                assert_between("the second", started(&world, Purpose::Cron, 2, MINUTE).await - first, seconds(300), seconds(310));
                // Two ticks fell into that one, and one run comes of both.
                let second = starts(&world, Purpose::Cron)[1];
                assert_between("the third", started(&world, Purpose::Cron, 3, HOUR).await - second, seconds(300), seconds(310));
            })
            .unwrap();
        }
    }
}

#[test]
fn a_tick_while_there_was_no_daemon_is_made_up_for_unless_it_is_long_ago() {
    let world = world(2);
    let first = life(&world, seconds(10), async |tx| {
        assert_eq!(up(&tx, &tick("lasts-1")).await.map(|failure| failure.message), None);
        let first = started(&world, Purpose::Cron, 1, 3 * MINUTE).await;
        sleep_until(&world, first + seconds(115)).await;
        first
    });
    let first = first.unwrap();
    // It was due at 120 s.
    let pause = life(&world, Duration::ZERO, async |_tx| {
        let second = started(&world, Purpose::Cron, 2, MINUTE).await;
        assert_between("the second", second - first, seconds(125), seconds(135));
        // Noted as done: the next daemon does it once more only when its time comes again.
        tokio::time::sleep(seconds(10)).await;
    });
    assert!(pause.is_some());
    life(&world, 2 * HOUR, async |_tx| {
        let third = started(&world, Purpose::Cron, 3, 3 * MINUTE).await;
        assert_between("the third", third - first, seconds(240), seconds(250));
        // So that the next daemon begins between two ticks.
        sleep_until(&world, third + seconds(60)).await;
    })
    .unwrap();
    life(&world, Duration::ZERO, async |_tx| {
        let fourth = started(&world, Purpose::Cron, 4, 3 * MINUTE).await;
        let after_a_tick = (u64::try_from(DAY_ONE).unwrap() + fourth.as_secs()) % 120;
        assert!(after_a_tick < 10, "a run of hours ago was made up for, {after_a_tick} s after a tick");
    })
    .unwrap();
}

#[test]
fn a_clock_that_is_set_back_stops_no_cron_job_and_doubles_no_run() {
    let world = world(3);
    life(&world, Duration::ZERO, async |tx| {
        assert_eq!(up(&tx, &tick("lasts-1")).await.map(|failure| failure.message), None);
        started(&world, Purpose::Cron, 1, 3 * MINUTE).await;
        world.inner().off -= 86_400;
        let second = started(&world, Purpose::Cron, 2, 3 * MINUTE).await;
        // A few seconds, across the tick that has just been.
        world.inner().off -= 20;
        let third = started(&world, Purpose::Cron, 3, 3 * MINUTE).await;
        assert_between("the third", third - second, seconds(110), seconds(150));
        // Ahead: what is due by then runs once.
        world.inner().off += 86_400;
        let fourth = started(&world, Purpose::Cron, 4, seconds(20)).await;
        let fifth = started(&world, Purpose::Cron, 5, 3 * MINUTE).await;
        assert_between("the fifth", fifth - fourth, seconds(1), seconds(130));
    })
    .unwrap();
}

#[test]
fn a_cron_run_ends_after_12_hours_whichever_daemon_is_there() {
    let world = world(4);
    let first = life(&world, MINUTE, async |tx| {
        assert_eq!(up(&tx, &tick("hangs")).await.map(|failure| failure.message), None);
        let first = started(&world, Purpose::Cron, 1, 3 * MINUTE).await;
        sleep_until(&world, first + 6 * HOUR).await;
        first
    });
    let first = first.unwrap();
    life(&world, Duration::ZERO, async |_tx| {
        sleep_until(&world, first + 12 * HOUR - seconds(10)).await;
        assert_eq!(starts(&world, Purpose::Cron).len(), 1);
        // Its time came meanwhile: the next one follows.
        assert_between("the second", started(&world, Purpose::Cron, 2, 2 * MINUTE).await - first, 12 * HOUR, 12 * HOUR + seconds(30));
    })
    .unwrap();
}

#[test]
fn builds_and_pre_deploy_commands_have_their_limits() {
    for (commands, limit, words) in [
        ("buildCommand: build v1 hangs, preDeployCommand: migrate v1 well", 2 * HOUR, "120 minutes"),
        ("buildCommand: build v1 well, preDeployCommand: migrate v1 hangs", HOUR / 2, "30 minutes"),
    ] {
        let world = world(5);
        life(&world, Duration::ZERO, async |tx| {
            let failure = up(&tx, &format!("name: mill, type: worker, {commands}, startCommand: serve v1 well")).await;
            assert!(failure.is_some());
            assert_between(commands, world.time(), limit, limit + MINUTE);
            let durable = world.durable();
            let records = durable.history.of(&Slug::new("mill").unwrap());
            assert_eq!((records.len(), records[0].state), (1, DeployState::Failed), "{records:?}");
            assert!(records[0].why.as_ref().is_some_and(|why| why.contains(words)), "{records:?}");
            tokio::time::sleep(MINUTE).await;
            assert!(world.observed().instances.is_empty(), "what took too long is stopped");
        })
        .unwrap();
    }
}

#[test]
fn a_hook_of_the_first_deploy_runs_once_wherever_a_daemon_is_killed() {
    let mut killed = 0;
    for step in 1..=90 {
        let world = world(6);
        let whole = life(&world, seconds(1), async |tx| {
            world.kill_in(step);
            up(&tx, SHOP).await;
            tokio::time::sleep(2 * MINUTE).await;
        });
        killed += u64::from(whole.is_none());
        world.spare();
        life(&world, Duration::ZERO, async |tx| {
            assert_eq!(up(&tx, SHOP).await.map(|failure| failure.message), None, "killed at step {step}");
            tokio::time::sleep(10 * MINUTE).await;
        })
        .unwrap();
        let hooks = world.inner().hooks;
        assert_eq!(hooks, 1, "killed at step {step}:\n{}", world.story());
        // A later deploy is not the first.
        life(&world, Duration::ZERO, async |tx| {
            assert_eq!(up(&tx, &SHOP.replace("v1", "v2")).await.map(|failure| failure.message), None);
            tokio::time::sleep(MINUTE).await;
        })
        .unwrap();
        assert_eq!(world.inner().hooks, 1);
    }
    assert!(killed > 30, "{killed} of the steps were there to be killed at");
}

#[test]
fn a_command_that_somebody_runs_is_not_taken_for_the_hook() {
    let world = world(7);
    world.inner().hook_fails = true;
    life(&world, seconds(1), async |tx| {
        assert_eq!(up(&tx, SHOP).await.map(|failure| failure.message), None);
        // The hook's first start fails, and before its second a command is started.
        tokio::time::sleep(seconds(2)).await;
        assert_eq!(world.inner().hooks, 0);
        let verb = ServiceVerb::Run { command: Some("lasts-600".to_owned()), detach: true };
        ask(&tx, Request::Service { service: "shop".to_owned(), verb }).await;
        tokio::time::sleep(seconds(2)).await;
        assert_eq!(starts(&world, Purpose::Job).len(), 1);
    })
    .unwrap();
    life(&world, Duration::ZERO, async |_tx| tokio::time::sleep(MINUTE).await).unwrap();
    let hooks = world.inner().hooks;
    assert_eq!((hooks, starts(&world, Purpose::Job).len()), (1, 2), "{}", world.story());
}

fn serving(world: &World) -> Option<InstanceId> {
    world.serving().into_iter().next()
}

/// The instance that serves ends: how long it takes until the next one is started.
async fn crash(world: &World) -> Duration {
    let id = serving(world).unwrap();
    let before = starts(world, Purpose::Serve).len();
    world.inner().programs.remove(&id);
    world.engine.exit(&id, 3);
    let ended = world.time();
    let next = started(world, Purpose::Serve, before + 1, 3 * MINUTE).await;
    tokio::time::sleep(seconds(5)).await;
    next - ended
}

#[test]
fn a_service_that_keeps_ending_is_left_alone_longer_each_time_and_not_for_ever() {
    let world = world(8);
    life(&world, Duration::ZERO, async |tx| {
        let shop = SHOP.replace("initialDeployHook: hook, ", "");
        assert_eq!(up(&tx, &shop).await.map(|failure| failure.message), None);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert_between("the pause", crash(&world).await, seconds(pause), seconds(pause + 4));
        }
        // It ran for long enough.
        tokio::time::sleep(3 * MINUTE).await;
        for pause in [1, 2, 4, 8, 16] {
            assert_between("the pause after a while", crash(&world).await, seconds(pause), seconds(pause + 4));
        }
        tokio::time::sleep(3 * MINUTE).await;
        // The same of one that is not healthy any more.
        let id = serving(&world).unwrap();
        let before = starts(&world, Purpose::Serve).len();
        let sick_from = world.time();
        world.inner().programs.get_mut(&id).unwrap().sick = Some(Duration::MAX);
        let next = started(&world, Purpose::Serve, before + 1, 3 * MINUTE).await;
        assert_between("the pause of the sick one", next - sick_from, seconds(60), seconds(70));
    })
    .unwrap();
}

#[test]
fn what_cannot_be_looked_at_goes_on_as_it_is() {
    let world = world(9);
    let id = life(&world, seconds(1), async |tx| {
        assert_eq!(up(&tx, &SHOP.replace("initialDeployHook: hook, ", "")).await.map(|failure| failure.message), None);
        tokio::time::sleep(MINUTE).await;
        serving(&world).unwrap()
    });
    let id = id.unwrap();
    life(&world, seconds(1), async |_tx| {
        tokio::time::sleep(seconds(5)).await;
        world.inner().sees_nothing = true;
        // Long enough for an instance that is not healthy to be taken out and started anew.
        for _ in 0..60 {
            tokio::time::sleep(seconds(5)).await;
            let upstreams = world.inner().upstreams.get(&Slug::new("shop").unwrap()).map(std::collections::BTreeSet::len);
            assert_eq!((serving(&world), upstreams), (Some(id.clone()), Some(1)), "{}", world.story());
        }
        world.inner().sees_nothing = false;
        tokio::time::sleep(MINUTE).await;
        assert_eq!(starts(&world, Purpose::Serve).len(), 1);
        // Its end is seen again as well.
        crash(&world).await;
    })
    .unwrap();
}
