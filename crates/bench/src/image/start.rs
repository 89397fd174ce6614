//! How long it takes until the program of an image that is here already runs.

use super::Stage;
use crate::engine::Site;
use crate::failure::Outcome;
use crate::figures::{Samples, Table};
use crate::podman::without_hybrid;
use crate::process::timed;
use crate::start::hello;
use crate::start::peers::Peer;

/// Says the time, in the words that [`hello::first`] reads; every image has it.
const PROGRAM: [&str; 2] = ["date", "+first=%s%N"];

/// Measures and prints.
pub fn run(stage: &Stage, rounds: usize) -> Outcome {
    let image = &stage.large;
    let release = image.release(&stage.site)?;
    let own = |number| {
        let spec = Site::spec(number, image.workload(&PROGRAM.join(" ")), &release)?;
        let asked = hello::now()?;
        let id = stage.site.start(spec)?;
        Ok(hello::millis(asked, hello::first(&stage.site.end(&id)?)?))
    };
    let mut apart = Vec::new();
    let mut beside = Vec::new();
    for (network, name) in [("none", "no network"), ("bridge", "its default network")] {
        if let Some(podman) = &stage.podman {
            let mut command = podman.run(network)?;
            command.arg(&image.reference).args(PROGRAM);
            apart.push((Peer::new(format!("`podman run`, {name}"), command), Samples::default()));
        }
        if let Some(docker) = &stage.docker {
            let mut command = docker.command();
            command.args(["run", "--rm", "--network", network, &image.reference]).args(PROGRAM);
            beside.push((Peer::new(format!("`docker run`, {name}"), command), Samples::default()));
        }
    }
    if let Some(podman) = &stage.podman {
        timed(podman.command().args(["pull", "--quiet", "--tls-verify=false", &image.reference])).map(drop)?;
    }
    if let Some(docker) = &stage.docker {
        timed(docker.command().args(["pull", "--quiet", &image.reference])).map(drop)?;
    }
    let mut samples = Samples::default();
    // Once before it counts.
    for (round, number) in (0..=rounds).zip(1..) {
        let took = own(number)?;
        let mut others = Vec::new();
        for (peer, _) in &mut apart {
            others.push(without_hybrid(|| peer.start())?);
        }
        for (peer, _) in &mut beside {
            others.push(peer.start()?);
        }
        if round > 0 {
            samples.push(took);
            apart.iter_mut().chain(&mut beside).zip(others).for_each(|((_, samples), took)| samples.push(took));
        }
    }
    let mut table = Table::new(
        format!(
            "A cached image, to the first instruction after its entry point, ms, {rounds} rounds; × is Moat against it, round by round"
        ),
        ["how", "median (least–most)", "Moat ×"],
    );
    table.row([&"Moat: the step `StartInstance`, private network and policy included", &samples.show(1), &""]);
    for (peer, took) in apart.iter().chain(&beside) {
        table.row([&peer.name, &took.show(1), &format!("{:.2}", samples.over(took).median())]);
    }
    println!("{table}");
    Ok(())
}
