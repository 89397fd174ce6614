//! `cargo xtask test`: every test of the workspace. Built as whoever calls, run as root (many make network namespaces).

use crate::run::{Failure, Outcome, Program, is_root};
use crate::{packages, python};

/// Installs what is missing and runs every test; `arguments` go to the test runner.
pub fn run(arguments: &[String]) -> Outcome {
    packages::ensure(&[packages::TO_BUILD, packages::TO_RUN, packages::TO_TEST])?;
    python::ensure()?;
    tests(arguments)
}

/// Runs every test, documentation's examples too when the caller does not choose.
pub fn tests(arguments: &[String]) -> Outcome {
    let cargo = as_root_runner(Program::cargo())?;
    if !Program::cargo().args(["nextest", "--version"]).succeeds() {
        return cargo.args(["test", "--workspace", "--locked"]).args(arguments).run();
    }
    cargo.args(["nextest", "run", "--workspace", "--locked"]).args(arguments).run()?;
    if arguments.is_empty() {
        // nextest does not run the examples of the documentation.
        as_root_runner(Program::cargo())?.args(["test", "--workspace", "--locked", "--doc", "--quiet"]).run()?;
    }
    Ok(())
}

/// Cargo that starts each test program through `sudo` when this is not root: the target folder stays the caller's own.
fn as_root_runner(cargo: Program) -> Result<Program, Failure> {
    if is_root() {
        return Ok(cargo);
    }
    // Asks for the password once, before anything is built.
    Program::new("sudo")
        .args(["--validate"])
        .run()
        .map_err(|failure| failure.hint("many tests make network namespaces: run this as root or with a working `sudo`"))?;
    let version = Program::new("rustc").args(["-vV"]).output()?;
    Ok(cargo.env(&runner_variable(host_of(&version)?), "sudo --preserve-env --"))
}

fn host_of(rustc_version: &str) -> Result<&str, Failure> {
    rustc_version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or_else(|| Failure::new("`rustc -vV` names no host"))
}

/// Cargo's variable for the program that starts a target's programs.
fn runner_variable(host: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", host.to_ascii_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_set_for_the_host_that_rustc_names() {
        let host = host_of("rustc 1.95.0 (x 2026-03-01)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n").unwrap();
        assert_eq!(runner_variable(host), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
        assert!(host_of("rustc 1.95.0\n").is_err());
    }
}
