//! `moat-bench deploy`: from `moat up` to traffic on a new release, a new daemon until it has adopted all, many idle instances.

mod many;
mod ours;
mod peers;
mod traffic;

use crate::docker::Docker;
use crate::failure::{Doing, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::podman::{Podman, without_hybrid};
use crate::process::{Moat, found, timed};
use crate::start::peers::Groups;
use peers::Peer;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const SOURCE: &str = include_str!("serve.c");
const GOAL_MS: f64 = 150.0;

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    let Some(moat) = Moat::find()? else {
        println!("skipped: {}\n", Moat::MISSING);
        return Ok(());
    };
    deploys(&moat, rounds)?;
    many::adopted(&moat, rounds)?;
    many::idle(&moat)
}

/// Compiles the measured service.
fn compile(to: &Path) -> Outcome {
    let source = to.with_extension("c");
    fs::write(&source, SOURCE).doing("write the measured service")?;
    timed(Command::new("cc").args(["-O2", "-static", "-o"]).arg(to).arg(&source)).map(drop)?;
    fs::remove_file(&source).doing("remove the source of the measured service")
}

fn deploys(moat: &Moat, rounds: usize) -> Outcome {
    let folder = Folder::new()?;
    let _groups = Groups::new();
    let source = folder.path().join("source");
    fs::create_dir(&source).doing("make a folder")?;
    let program = source.join("serve");
    compile(&program)?;

    let mut skipped = Vec::new();
    let mut peers: Vec<(Peer, bool)> = Vec::new();
    match Podman::find(folder.path()).map(|podman| without_hybrid(|| Peer::podman(podman, folder.path(), &program))) {
        Some(Ok(peer)) => peers.push((peer, true)),
        Some(Err(error)) => skipped.push(format!("podman: {error}")),
        None => skipped.push(Podman::MISSING.to_owned()),
    }
    match Docker::start(folder.path()) {
        Ok(Some(docker)) => {
            let docker = Arc::new(docker);
            match Peer::docker(Arc::clone(&docker), folder.path(), &program) {
                Ok(peer) => peers.push((peer, false)),
                Err(error) => skipped.push(format!("docker: {error}")),
            }
            if found("docker-compose") {
                peers.push((Peer::compose(docker, folder.path())?, false));
            } else {
                skipped.push(Peer::NO_COMPOSE.to_owned());
            }
        }
        Ok(None) => skipped.push(Docker::MISSING.to_owned()),
        Err(error) => skipped.push(format!("docker: {error}")),
    }

    let ours = ours::Ours::begin(moat, folder.path(), &source)?;
    // Once before it counts: the build, images and toolchains are there then.
    let begun = ours.deploy(1).and_then(|_| ours.deploy(0)).and_then(|_| {
        peers.retain_mut(|(peer, apart)| match once(peer, *apart, 0) {
            Ok(_) => true,
            Err(error) => {
                skipped.push(format!("{}: {error}", peer.name));
                false
            }
        });
        let (mut own, mut whole, mut unanswered) = <(Samples, Samples, usize)>::default();
        let mut theirs: Vec<Samples> = peers.iter().map(|_| Samples::default()).collect();
        for round in 1..=rounds {
            let took = ours.deploy(round % 2)?;
            own.push(took.to_traffic_ms - took.program_ms);
            whole.push(took.command_ms);
            unanswered += took.unanswered;
            for ((peer, apart), samples) in peers.iter_mut().zip(&mut theirs) {
                let took = once(peer, *apart, round)?;
                samples.push(took.to_traffic_ms - took.program_ms);
            }
        }
        Ok((own, whole, unanswered, theirs))
    });
    let ended = ours.end();
    for (peer, apart) in &mut peers {
        if *apart { without_hybrid(|| peer.end())? } else { peer.end()? }
    }
    let (own, whole, unanswered, theirs) = begun?;
    ended?;
    let title = format!("A new release of a built service: from the command to its first answer, less its own start, ms, {rounds} rounds");
    let mut table = Table::new(title, ["how", "median (least–most)", "Moat ×", "unanswered meanwhile", "goal"]);
    let goal = format!("≤ {GOAL_MS:.0}: {}", verdict(own.median() <= GOAL_MS));
    table.row([&"`moat up --detach`, the old release serves until then", &own.show(1), &"", &unanswered, &goal]);
    table.row([&"the whole command", &whole.show(1), &"", &"", &""]);
    for ((peer, _), samples) in peers.iter().zip(&theirs) {
        table.row([&peer.name, &samples.show(1), &format!("{:.2}", own.over(samples).median()), &"all, until then", &""]);
    }
    println!("{table}");
    for peer in skipped {
        println!("skipped: {peer}\n");
    }
    Ok(())
}

fn once(peer: &mut Peer, apart: bool, release: usize) -> Outcome<traffic::Took> {
    if apart { without_hybrid(|| peer.deploy(release)) } else { peer.deploy(release) }
}
