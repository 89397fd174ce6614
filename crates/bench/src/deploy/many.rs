//! Many idle instances: how long they take to start, what they cost, and how soon a new daemon has them all.

use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::process::{Moat, timed};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GOAL_ADOPTED_MS: f64 = 500.0;
const GOAL_CPU: f64 = 1.0;
/// Instances of one service.
const EACH: usize = 20;
/// How long a new daemon may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long CPU time is counted.
const WATCHED: Duration = Duration::from_secs(20);

/// So many idle instances that run.
struct Many<'a> {
    moat: &'a Moat,
    home: Folder,
    blueprint: PathBuf,
    count: usize,
    started: Duration,
}

impl<'a> Many<'a> {
    fn start(moat: &'a Moat, count: usize) -> Outcome<Self> {
        let home = Folder::new()?;
        let source = home.path().join("source");
        fs::create_dir(&source).doing("make a folder")?;
        let blueprint = source.join("render.yaml");
        let mut text = String::from("services:\n");
        for number in 0..count.div_ceil(EACH) {
            let instances = EACH.min(count - number * EACH);
            let _ = write!(
                text,
                "  - type: worker\n    name: idle-{number}\n    runtime: python\n    numInstances: {instances}\n    buildCommand: \"true\"\n    \
                 startCommand: exec sleep infinity\n"
            );
        }
        fs::write(&blueprint, text).doing("write a blueprint")?;
        let mut many = Self { moat, home, blueprint, count, started: Duration::ZERO };
        many.started = many.up()?;
        Ok(many)
    }

    fn up(&self) -> Outcome<Duration> {
        timed(self.moat.command(self.home.path()).args(["up", "--detach", "--listen", "127.0.0.1:0"]).arg(&self.blueprint))
    }

    fn status(&self) -> Outcome<Value> {
        let output = self.moat.command(self.home.path()).args(["ps", "--output", "json"]).output().doing("run `moat ps`")?;
        serde_json::from_slice(&output.stdout).doing("understand `moat ps`")
    }

    fn daemon(&self) -> Outcome<u32> {
        let pid = self.status()?["daemon_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.ok_or_else(|| Failure::new("no daemon answers"))
    }

    fn end(self) -> Outcome {
        timed(self.moat.command(self.home.path()).arg("down")).map(drop)
    }
}

/// From starting a daemon, whose predecessor was killed, until it has adopted all.
pub fn adopted(moat: &Moat, rounds: usize) -> Outcome {
    let count = instances(100)?;
    let many = Many::start(moat, count)?;
    let measured = (0..rounds).map(|_| adopt_once(&many)).collect::<Outcome<Samples>>();
    let ended = many.end();
    let samples = measured?;
    ended?;
    let title =
        format!("A daemon that was killed, {count} idle instances: from starting the next until it has adopted all, ms, {rounds} rounds");
    let mut table = Table::new(title, ["what", "median (least–most)", "goal"]);
    let goal = format!("≤ {GOAL_ADOPTED_MS:.0}: {}", verdict(samples.median() <= GOAL_ADOPTED_MS));
    table.row([&"all adopted, as the log of events says", &samples.show(0), &goal]);
    println!("{table}");
    Ok(())
}

fn adopt_once(many: &Many<'_>) -> Outcome<f64> {
    let pid = |pid: u32| i32::try_from(pid).map(Pid::from_raw).doing("read a pid");
    let before = events(many)?.iter().filter_map(|event| event["id"].as_i64()).max().unwrap_or_default();
    kill(pid(many.daemon()?)?, Signal::SIGKILL).doing("kill the daemon")?;
    let began = Timestamp::now();
    let mut serve = many.moat.command(many.home.path());
    let mut next = serve.arg("serve").stdout(Stdio::null()).stderr(Stdio::null()).spawn().doing("start `moat serve`")?;
    let since = Instant::now();
    let measured = loop {
        let mut adopted = events(many)?;
        adopted.retain(|event| event["id"].as_i64().is_some_and(|id| id > before));
        if adopted.len() >= many.count {
            let last = adopted.iter().filter_map(|event| event["time"].as_str()?.parse::<Timestamp>().ok()).max();
            break Ok(last.map_or(f64::INFINITY, |last| last.duration_since(began).as_secs_f64() * 1e3));
        }
        if since.elapsed() > PATIENCE {
            break Err(Failure::new(format!("{} of {} instances were adopted", adopted.len(), many.count)));
        }
    };
    // It leaves everything running; the next one in the background takes its place.
    kill(pid(next.id())?, Signal::SIGTERM).doing("end `moat serve`")?;
    next.wait().doing("wait for `moat serve`")?;
    many.up()?;
    measured
}

/// What was ever adopted.
fn events(many: &Many<'_>) -> Outcome<Vec<Value>> {
    let mut command = many.moat.command(many.home.path());
    let output = command.args(["events", "--kind", "adopted", "--output", "json"]).output().doing("run `moat events`")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// What many idle instances cost.
pub fn idle(moat: &Moat) -> Outcome {
    let many = Many::start(moat, instances(1000)?)?;
    let measured = cost(&many);
    let count = many.count;
    let began = Instant::now();
    let ended = many.end();
    let stopped = began.elapsed();
    let (started, cost) = measured?;
    ended?;
    let mut table = Table::new(format!("{count} idle instances"), ["what", "is", "goal"]);
    let each = |seconds: f64| format!("{seconds:.1} s, {:.1} ms each", seconds * 1e3 / f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    table.row([&"`moat up`, the whole command", &each(started.as_secs_f64()), &""]);
    table.row([&"`moat down`, the whole command", &each(stopped.as_secs_f64()), &""]);
    let monitors = format!("{:.0} MB RSS, {:.0} MB PSS", cost.monitors.0, cost.monitors.1);
    table.row([&"memory of all monitors", &monitors, &""]);
    table.row([&"memory of the daemon", &format!("{:.0} MB RSS", cost.daemon_mb), &""]);
    table.row([
        &"CPU of the daemon while nothing happens, % of one",
        &format!("{:.2}", cost.cpu),
        &format!("< {GOAL_CPU:.0}: {}", verdict(cost.cpu < GOAL_CPU)),
    ]);
    table.row([&"one `moat up` that changes nothing, ms", &format!("{:.0}", cost.again_ms), &""]);
    println!("{table}");
    Ok(())
}

struct Cost {
    monitors: (f64, f64),
    daemon_mb: f64,
    cpu: f64,
    again_ms: f64,
}

fn cost(many: &Many<'_>) -> Outcome<(Duration, Cost)> {
    let daemon = many.daemon()?;
    // What starting needed is over.
    std::thread::sleep(Duration::from_secs(5));
    let (before, began) = (cpu_seconds(daemon)?, Instant::now());
    std::thread::sleep(WATCHED);
    let cpu = 100.0 * (cpu_seconds(daemon)? - before) / began.elapsed().as_secs_f64();
    let mut monitors = (0.0, 0.0);
    for pid in monitors_below(many.home.path())? {
        // One that has just ended is none.
        let Ok((rss, pss)) = memory(pid) else { continue };
        monitors = (monitors.0 + rss, monitors.1 + pss);
    }
    let again_ms = many.up()?.as_secs_f64() * 1e3;
    Ok((many.started, Cost { monitors, daemon_mb: memory(daemon)?.0, cpu, again_ms }))
}

/// Seconds of CPU that a process has used.
fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).doing("read what a process used")?;
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    let second = sysconf(SysconfVar::CLK_TCK).doing("read the clock's ticks")?.unwrap_or(100);
    // utime and stime, proc_pid_stat(5).
    Ok((ticks(11) + ticks(12)) / f64::from(i32::try_from(second).unwrap_or(100)))
}

/// RSS and PSS in MB.
fn memory(pid: u32) -> Outcome<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).doing("read the memory of a process")?;
    let field = |name: &str| {
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    };
    Ok((field("Rss:"), field("Pss:")))
}

/// Monitors of the run folder below `home`.
fn monitors_below(home: &Path) -> Outcome<Vec<u32>> {
    let mark = home.to_string_lossy().into_owned();
    let output = Command::new("pgrep").args(["-f", "__monitor"]).output().doing("list the monitors")?;
    let pids = String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>();
    let read = |pid: u32, file: &str| fs::read(format!("/proc/{pid}/{file}")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let ours = |pid: &u32| ["cmdline", "environ"].iter().any(|file| read(*pid, file).is_ok_and(|text| text.contains(&mark)));
    Ok(pids.into_iter().filter(ours).collect())
}

/// How many instances: as many as asked for by `MOAT_BENCH_INSTANCES`, or the usual number.
fn instances(usual: usize) -> Outcome<usize> {
    match std::env::var("MOAT_BENCH_INSTANCES") {
        Ok(text) => text
            .parse::<usize>()
            .ok()
            .filter(|count| *count > 0)
            .map(|count| count.min(usual))
            .ok_or_else(|| Failure::new(format!("`MOAT_BENCH_INSTANCES` holds `{text}`, which is no number of instances"))),
        Err(_) => Ok(usual),
    }
}
