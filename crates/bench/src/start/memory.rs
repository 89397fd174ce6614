//! What idle instances cost: the memory of their monitors, and of the background process.

use super::ours::Ours;
use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::process::{Moat, timed};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

const GOAL_MONITOR_MB: f64 = 3.0;
const GOAL_DAEMON_MB: f64 = 40.0;
const HEADS: [&str; 4] = ["process", "RSS, MB", "PSS (its share of what is shared), MB", "goal (RSS)"];

/// Starts so many idle instances through the engine, prints what their monitors take, and stops them.
pub fn of_instances(ours: &Ours, count: u16) -> Outcome {
    let idle = (1..=count).map(|number| ours.idle(number)).collect::<Outcome<Vec<_>>>()?;
    let monitors = settled(|| idle.iter().map(|(_, monitor)| Memory::of(*monitor)).collect())?;
    let mut table = Table::new(format!("Memory of {count} idle instances, through the engine"), HEADS);
    row(&mut table, "one monitor", &monitors, GOAL_MONITOR_MB);
    println!("{table}");
    idle.iter().try_for_each(|(id, _)| ours.stop(id))
}

/// The same through the real program: a blueprint of idle workers, the background process, and what it started.
pub fn of_moat(count: usize) -> Outcome {
    let Some(moat) = Moat::find()? else {
        println!("skipped: memory of the background process, since {}\n", Moat::MISSING);
        return Ok(());
    };
    let home = Folder::new()?;
    // The folder of a blueprint is its source: nothing else may be in it.
    let source = home.path().join("source");
    fs::create_dir(&source).doing("make a folder")?;
    let blueprint = source.join("render.yaml");
    let mut text = String::from("services:\n");
    for number in 1..=count {
        let _ = write!(
            text,
            "  - type: worker\n    name: idle-{number}\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: exec sleep infinity\n"
        );
    }
    fs::write(&blueprint, text).doing("write a blueprint")?;
    let measured = timed(moat.command(home.path()).args(["up", "--detach", "--listen", "127.0.0.1:0"]).arg(&blueprint)).and_then(|_| {
        let daemons = settled(|| running(home.path(), "__daemon"))?;
        let planes = settled(|| running(home.path(), "__dataplane"))?;
        let monitors = settled(|| running(home.path(), "__monitor"))?;
        if daemons.len() == 1 && planes.len() == 1 && monitors.len() == count {
            Ok((daemons, planes, monitors))
        } else {
            Err(Failure::new(format!("{} daemons, {} data planes and {} monitors run", daemons.len(), planes.len(), monitors.len())))
        }
    });
    let down = timed(moat.command(home.path()).arg("down"));
    let (daemons, planes, monitors) = measured?;
    down?;
    let mut table = Table::new(format!("Memory of `moat up --detach` of {count} idle workers"), HEADS);
    row(&mut table, "the background process (engine)", &daemons, GOAL_DAEMON_MB);
    row(&mut table, "the data plane (DNS, ingress)", &planes, GOAL_DAEMON_MB);
    row(&mut table, "one monitor", &monitors, GOAL_MONITOR_MB);
    println!("{table}");
    Ok(())
}

/// Reads until two readings agree: what starting needed is given back a moment later. The last one after a few seconds.
fn settled(read: impl Fn() -> Outcome<Vec<Memory>>) -> Outcome<Vec<Memory>> {
    let mut before = read()?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(250));
        let now = read()?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before)
}

/// Memory of a process, MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    rss_mb: f64,
    /// Its share of what is shared.
    pub pss_mb: f64,
}

impl Memory {
    /// What it is now.
    pub fn of(pid: u32) -> Outcome<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).doing("read the memory of a process")?;
        let field = |name: &str| -> Outcome<f64> {
            let kib = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0).ok_or_else(|| Failure::new(format!("the kernel does not say `{name}`")))
        };
        Ok(Self { rss_mb: field("Rss:")?, pss_mb: field("Pss:")? })
    }
}

fn row(table: &mut Table, name: &str, processes: &[Memory], goal: f64) {
    let rss: Samples = processes.iter().map(|memory| memory.rss_mb).collect();
    let pss: Samples = processes.iter().map(|memory| memory.pss_mb).collect();
    let most = processes.iter().map(|memory| memory.rss_mb).fold(0.0, f64::max);
    table.row([&name, &rss.show(2), &pss.show(2), &format!("≤ {goal:.0}: {}", verdict(most <= goal))]);
}

/// Memory of the processes of this role that belong to the run folder below `home`.
fn running(home: &Path, role: &str) -> Outcome<Vec<Memory>> {
    let mut found = Vec::new();
    let mark = home.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").doing("list the processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read =
            |file: &str| fs::read(entry.path().join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let line = read("cmdline");
        let first = line.split('\0').nth(1);
        let inside = line.contains("--init");
        if first == Some(role) && !inside && (line.contains(&mark) || read("environ").contains(&mark)) {
            found.push(Memory::of(pid)?);
        }
    }
    Ok(found)
}
