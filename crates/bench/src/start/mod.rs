//! `moat-bench start`: how long it takes until an instance's program runs, beside other ways of starting it, and what idle
//! instances cost.

pub mod hello;
pub mod memory;
mod ours;
pub mod peers;

use crate::docker::Docker;
use crate::failure::{Doing, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::podman::{Podman, without_hybrid};
use ours::{MOST, Ours};
use peers::{Groups, Peer};
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
    match Podman::find(folder.path()).map(|podman| without_hybrid(|| peers::podman(&podman, folder.path(), &program))) {
        Some(Ok(podman)) => apart.extend(podman),
        Some(Err(error)) => skipped.push(format!("podman: {error}")),
        None => skipped.push(Podman::MISSING.to_owned()),
    }
    let mut beside = Vec::new();
    let docker = Docker::start(folder.path()).and_then(|docker| {
        beside = docker.as_ref().map(|docker| peers::docker(docker, folder.path(), &program)).transpose()?.unwrap_or_default();
        Ok(docker)
    });
    match &docker {
        Ok(Some(_)) => (),
        Ok(None) => skipped.push(Docker::MISSING.to_owned()),
        Err(error) => skipped.push(format!("docker: {error}")),
    }
    let way = |apart| move |peer| Way { peer, apart, took: Samples::default() };
    let mut ways: Vec<Way> = apart.into_iter().map(way(true)).chain(beside.into_iter().map(way(false))).collect();

    // Once before it counts: files are read, toolchains found. A peer that does not work here is said.
    ours.start(MOST)?;
    ways.retain_mut(|way| match way.once() {
        Ok(_) => true,
        Err(error) => {
            skipped.push(format!("{}: {error}", way.peer.name));
            false
        }
    });
    let mut own = Samples::default();
    for number in (1..=MOST).take(rounds) {
        own.push(ours.start(number)?);
        for way in &mut ways {
            let took = way.once()?;
            way.took.push(took);
        }
    }
    print(&own, &ways, rounds);
    for peer in skipped {
        println!("skipped: {peer}\n");
    }
    drop(docker);
    memory::of_instances(&ours, IDLE)?;
    ours.close()?;
    memory::of_moat(usize::from(IDLE))
}

/// A peer and what it took.
struct Way {
    peer: Peer,
    /// Whether it needs a mount namespace of its own.
    apart: bool,
    took: Samples,
}

impl Way {
    fn once(&mut self) -> Outcome<f64> {
        if self.apart { without_hybrid(|| self.peer.start()) } else { self.peer.start() }
    }
}

fn print(own: &Samples, ways: &[Way], rounds: usize) {
    let title = format!("To the program's first instruction, ms, {rounds} rounds; × is Moat against it, round by round");
    let mut table = Table::new(title, ["how", "median (least–most)", "Moat ×", "goal"]);
    table.row([&"Moat: the step `StartInstance`, private network and policy included", &own.show(1), &"", &""]);
    for (number, way) in ways.iter().enumerate() {
        let ratio = own.over(&way.took);
        let goal = if number == 0 { format!("≤ {GOAL:.0}: {}", verdict(ratio.median() <= GOAL)) } else { String::new() };
        table.row([&way.peer.name, &way.took.show(1), &format!("{:.2}", ratio.median()), &goal]);
    }
    println!("{table}");
}
