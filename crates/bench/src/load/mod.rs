//! `moat-bench load`: what clients notice while releases of a web service and of a private TCP service change one after the other.

mod clients;
mod ours;
mod peers;

use crate::docker::Docker;
use crate::failure::{Doing, Outcome};
use crate::figures::Table;
use crate::place::Folder;
use crate::process::{Moat, found, timed};
use crate::start::peers::Groups;
use clients::{Clients, Counted, Lane};
use peers::{Stack, Switch};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("serve.c");
/// How long a kept connection lasts: less than what a stopped release may take to end.
const HELD: Duration = Duration::from_secs(3);
/// What a stopped release may take to end, in seconds.
const DRAIN: u32 = 8;

/// Measures and prints. `rounds`: how many releases of each service.
pub fn run(rounds: usize) -> Outcome {
    let Some(moat) = Moat::find()? else {
        println!("skipped: {}\n", Moat::MISSING);
        return Ok(());
    };
    let folder = Folder::new()?;
    let _groups = Groups::new();
    let source = folder.path().join("source");
    fs::create_dir(&source).doing("make a folder")?;
    let (program, text) = (source.join("serve"), folder.path().join("serve.c"));
    fs::write(&text, SOURCE).doing("write the measured service")?;
    timed(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&text))?;

    let title = format!("Clients over {rounds} releases of a web service and {rounds} of a private TCP service, each release under load");
    let mut table = Table::new(
        title,
        [
            "how",
            "exchanges",
            "failed: a connection each",
            "failed: kept HTTP connection",
            "failed: TCP",
            "longest silence, s",
            "a release, s",
        ],
    );
    let ours = ours::begin(&moat, folder.path(), &source)?;
    let measured = ours.lanes().and_then(|lanes| measure(lanes, rounds, |release| ours.deploy(release)));
    ours.end()?;
    row(&mut table, "Moat: `moat up`", &measured?);

    let mut skipped = Vec::new();
    if !found("nginx") {
        skipped.push("docker behind nginx (apt-get install nginx-light libnginx-mod-stream)".to_owned());
    } else if let Some(docker) = Docker::start(folder.path())? {
        let stack = Stack::begin(docker, folder.path(), &program)?;
        for (name, switch) in [
            ("docker behind nginx: the old container is stopped, the new one started", Switch::Replace),
            ("docker behind nginx: the new one is started, nginx reloaded, the old one stopped", Switch::Beside),
        ] {
            let lanes = Stack::lanes().into_iter().map(|lane| (lane, None)).collect();
            match measure(lanes, rounds, |release| stack.deploy(switch, release)) {
                Ok(measured) => row(&mut table, name, &measured),
                Err(error) => skipped.push(format!("{name}: {error}")),
            }
        }
        stack.end()?;
    } else {
        skipped.push(Docker::MISSING.to_owned());
    }
    println!("{table}");
    for peer in skipped {
        println!("skipped: {peer}\n");
    }
    Ok(())
}

type Measured = (Counted, Duration);

fn measure(lanes: Vec<(Lane, Option<OwnedFd>)>, rounds: usize, deploy: impl Fn(usize) -> Outcome) -> Outcome<Measured> {
    deploy(0)?;
    let mut clients = Clients::new();
    for (lane, ns) in lanes {
        clients.add(lane, ns);
    }
    let began = Instant::now();
    let deployed = (1..=rounds).try_for_each(deploy);
    let each = began.elapsed() / u32::try_from(rounds.max(1)).unwrap_or(u32::MAX);
    let counted = clients.end()?;
    deployed?;
    Ok((counted, each))
}

const EACH: &str = "each";
const KEPT: &str = "kept";
const TCP: &str = "tcp";

/// Three of each kind.
fn lanes(http: SocketAddr, host: &'static str, tcp: SocketAddr) -> Vec<Lane> {
    let lane = |name, at, host, held| Lane { name, at, host, held };
    let each = [
        lane(EACH, http, Some(host), Duration::ZERO),
        lane(KEPT, http, Some(host), HELD),
        lane(TCP, tcp, None, Duration::ZERO),
        lane(TCP, tcp, None, HELD),
    ];
    each.into_iter().flat_map(|lane| vec![lane; 2]).collect()
}

fn row(table: &mut Table, name: &str, (counted, each): &Measured) {
    let faults = |lane| counted.faults.get(lane).copied().unwrap_or_default();
    let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
    table.row([&name, &counted.exchanges, &faults(EACH), &faults(KEPT), &faults(TCP), &seconds(counted.longest), &seconds(*each)]);
}
