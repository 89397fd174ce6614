//! `cargo xtask ci`: everything that must hold before a change is taken. Every check runs, whatever the one before said.

use crate::run::{Failure, Outcome, Program, on_path};
use crate::{packages, python, test, tidy};
use std::time::Instant;

type Check = (&'static str, fn() -> Outcome);

const CHECKS: &[Check] = &[
    ("format", || Program::cargo().args(["fmt", "--all", "--check"]).run()),
    ("clippy", || Program::cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]).run()),
    ("tidy", || tidy::run(&[])),
    ("dependencies", dependencies),
    ("tests", || test::tests(&[])),
];

/// Installs what is missing, runs every check, and closes with one line that says how it went.
pub fn run(arguments: &[String]) -> Outcome {
    crate::no_arguments(arguments)?;
    let start = Instant::now();
    packages::ensure(&[packages::TO_BUILD, packages::TO_RUN, packages::TO_TEST])?;
    python::ensure()?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("\n== {name}");
        if let Err(failure) = check() {
            eprintln!("error: {}", failure.message);
            failed.push(*name);
        }
    }
    let minutes = start.elapsed().as_secs() / 60;
    let seconds = start.elapsed().as_secs() % 60;
    if failed.is_empty() {
        println!("\nci: all {} checks passed in {minutes} min {seconds} s", CHECKS.len());
        return Ok(());
    }
    Err(Failure::new(format!(
        "ci: {} of {} checks failed after {minutes} min {seconds} s: {}",
        failed.len(),
        CHECKS.len(),
        failed.join(", ")
    )))
}

/// Licenses, sources and duplicates, by `deny.toml`. Advisories need the network and a database: they are for people.
fn dependencies() -> Outcome {
    if !on_path("cargo-deny") {
        eprintln!("skipped: `cargo-deny` is not installed (`cargo install --locked cargo-deny`)");
        return Ok(());
    }
    Program::cargo().args(["deny", "--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]).run()
}
