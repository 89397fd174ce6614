//! `moat-bench verify`: how long `moat verify` takes on the example that needs no registry.

use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::process::{Moat, timed};
use std::path::Path;

const GOAL_S: f64 = 10.0;

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    let Some(moat) = Moat::find()? else {
        println!("skipped: {}\n", Moat::MISSING);
        return Ok(());
    };
    let example =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello/render.yaml").canonicalize().doing("find the example")?;
    let home = Folder::new()?;
    let mut samples = Samples::default();
    let measured = timed(moat.command(home.path()).args(["up", "--detach", "--listen", "127.0.0.1:0"]).arg(&example)).and_then(|_| {
        for _ in 0..rounds {
            samples.push(timed(moat.command(home.path()).arg("verify"))?.as_secs_f64());
        }
        Ok(())
    });
    let down = timed(moat.command(home.path()).arg("down"));
    measured.map_err(|error| Failure::new(format!("examples/hello: {error}")))?;
    down?;
    let mut table =
        Table::new(format!("`moat verify` of examples/hello, seconds, {rounds} rounds"), ["what", "median (least–most)", "goal"]);
    table.row([&"`moat verify`, the whole process", &samples.show(2), &format!("≤ {GOAL_S:.0}: {}", verdict(samples.median() <= GOAL_S))]);
    println!("{table}");
    Ok(())
}
