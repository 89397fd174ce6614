//! `moat-bench start`: how long it takes until an instance's program runs, beside other ways of starting it, and what idle
//! instances cost.

mod hello;
mod memory;
mod ours;
mod peers;

use crate::failure::{Doing, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use ours::{MOST, Ours};
use peers::{Docker, Groups, Peer};
use std::fs;

/// `crun run` may be beaten by this much.
const GOAL: f64 = 3.0;
/// Idle instances.
const IDLE: u16 = 20;

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    let folder = Folder::new()?;
    let _groups = Groups::new();
    let source = folder.path().join("source");
    fs::create_dir(&source).doing("make a folder")?;
    let program = source.join("hello");
    hello::compile(&program)?;
    let ours = Ours::new(&folder.path().join("moat"), &program)?;
    let mut skipped = Vec::new();

    let (first, _) = ours.idle(MOST)?;
    let bundle = ours.bundle(&first)?;
    ours.stop(&first)?;
    // Peers that need their own mount namespace, then the others.
    let mut apart = vec![peers::crun(folder.path(), bundle, &program)?];
    match peers::without_hybrid(|| peers::podman(folder.path(), &program)) {
        Ok(Some(podman)) => apart.extend(podman),
        Ok(None) => skipped.push("podman (apt-get install podman)".to_owned()),
        Err(error) => skipped.push(format!("podman: {error}")),
    }
    let docker = Docker::start(folder.path(), &program).unwrap_or_else(|error| {
        skipped.push(format!("docker: {error}"));
        None
    });
    if docker.is_none() && !skipped.iter().any(|text| text.starts_with("docker")) {
        skipped.push("docker (apt-get install docker.io)".to_owned());
    }
    let mut ways: Vec<(&Peer, bool, Samples)> = apart.iter().map(|peer| (peer, true, Samples::default())).collect();
    ways.extend(docker.iter().flat_map(|docker| &docker.peers).map(|peer| (peer, false, Samples::default())));

    // Once before it counts: files are read, toolchains found. A peer that does not work here is said.
    ours.start(MOST)?;
    ways.retain(|(peer, apart, _)| match once(peer, *apart) {
        Ok(_) => true,
        Err(error) => {
            skipped.push(format!("{}: {error}", peer.name));
            false
        }
    });
    let mut own = Samples::default();
    for number in (1..=MOST).take(rounds) {
        own.push(ours.start(number)?);
        for (peer, apart, samples) in &mut ways {
            samples.push(once(peer, *apart)?);
        }
    }
    print(&own, &ways, rounds);
    for peer in skipped {
        println!("skipped: {peer}\n");
    }
    drop(ways);
    drop(docker);
    memory::of_instances(&ours, IDLE)?;
    ours.close()?;
    memory::of_moat(usize::from(IDLE))
}

fn once(peer: &Peer, apart: bool) -> Outcome<f64> {
    if apart { peers::without_hybrid(|| peer.start()) } else { peer.start() }
}

fn print(own: &Samples, ways: &[(&Peer, bool, Samples)], rounds: usize) {
    let title = format!("To the program's first instruction, ms, {rounds} rounds; × is Moat against it, round by round");
    let mut table = Table::new(title, ["how", "median (least–most)", "Moat ×", "goal"]);
    table.row([&"Moat: the step `StartInstance`, private network and policy included", &own.show(1), &"", &""]);
    for (number, (peer, _, samples)) in ways.iter().enumerate() {
        let ratio = own.over(samples);
        let goal = if number == 0 { format!("≤ {GOAL:.0}: {}", verdict(ratio.median() <= GOAL)) } else { String::new() };
        table.row([&peer.name, &samples.show(1), &format!("{:.2}", ratio.median()), &goal]);
    }
    println!("{table}");
}
