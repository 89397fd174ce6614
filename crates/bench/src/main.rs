//! Measures Moat beside its peers and prints tables in Markdown; `docs/benchmarks.md` says how to repeat and read them.
//!
//! `moat-bench NAME [--rounds N]`; each NAME is one module. Peers that are not installed are said and skipped.
//! Invariant: a figure is compared only with figures of the same run, whose rounds were interleaved with its own.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to the person who called it")]

mod deploy;
mod docker;
mod edge;
mod engine;
mod failure;
mod figures;
mod image;
mod load;
mod machine;
mod net;
mod place;
mod plan;
mod podman;
mod process;
mod start;
mod sys;
mod verify;

use failure::{Failure, Outcome};
use moat_engine_linux::monitor;
use std::process::ExitCode;

/// One thing that is measured.
struct Measurement {
    name: &'static str,
    /// How often, unless the caller says.
    rounds: usize,
    /// Whether it runs in a pretended host.
    apart: bool,
    run: fn(usize) -> Outcome,
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "plan", rounds: 21, apart: false, run: plan::run },
    Measurement { name: "net", rounds: 25, apart: true, run: net::run },
    Measurement { name: "change", rounds: 21, apart: true, run: net::change },
    Measurement { name: "start", rounds: 15, apart: true, run: start::run },
    Measurement { name: "image", rounds: 7, apart: false, run: image::run },
    Measurement { name: "traffic", rounds: 21, apart: false, run: image::traffic },
    Measurement { name: "deploy", rounds: 11, apart: true, run: deploy::run },
    Measurement { name: "load", rounds: 20, apart: true, run: load::run },
    Measurement { name: "edge", rounds: 5, apart: true, run: edge::run },
    Measurement { name: "verify", rounds: 3, apart: true, run: verify::run },
];

fn main() -> ExitCode {
    // The monitor's role of `moat`, for engines that run without the real one.
    if std::env::args_os().nth(1).is_some_and(|role| role == monitor::VERB) {
        return monitor::main(&std::env::args_os().skip(2).collect::<Vec<_>>());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome {
    if arguments.first().is_some_and(|role| role == net::scene::HOLD) {
        return net::scene::hold();
    }
    if let [role, rest @ ..] = arguments
        && role == image::CLIENT
    {
        return image::client(rest);
    }
    if let [role, rest @ ..] = arguments
        && role == edge::SERVE
    {
        return edge::serve(rest);
    }
    if let [role, rest @ ..] = arguments
        && role == edge::chat::CLIENT
    {
        return edge::chat::load(rest);
    }
    if arguments.first().is_some_and(|role| role == edge::chat::SERVER) {
        return edge::chat::serve();
    }
    let (measurement, rounds) = parse(arguments)?;
    println!("Machine: {}.\n", machine::facts());
    if measurement.apart {
        place::enter()?;
    }
    (measurement.run)(rounds)?;
    println!("Load at the end: {}.", machine::load());
    Ok(())
}

fn parse(arguments: &[String]) -> Outcome<(&'static Measurement, usize)> {
    let names = MEASUREMENTS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let wrong = || Failure::new(format!("wanted: NAME [--rounds N], where NAME is one of {names}"));
    let (name, rest) = arguments.split_first().ok_or_else(wrong)?;
    let measurement = MEASUREMENTS.iter().find(|m| m.name == name).ok_or_else(wrong)?;
    match rest {
        [] => Ok((measurement, measurement.rounds)),
        [flag, rounds] if flag == "--rounds" => Ok((measurement, rounds.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?)),
        _ => Err(wrong()),
    }
}
