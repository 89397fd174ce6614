//! The one task runner: `cargo xtask help` lists what it does.
//!
//! Each command is one row of [`COMMANDS`] and one module. A command that fails returns a [`Failure`]; only this file
//! turns it into words and an exit code (1 for a failed task, 2 for a command line that makes no sense).
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task runner talks to the person who called it")]

mod bench;
mod ci;
mod demo;
mod packages;
mod python;
mod run;
mod test;
mod tidy;

use run::{Failure, Outcome};
use std::process::ExitCode;

/// One thing the task runner can do.
struct Command {
    name: &'static str,
    /// What may follow the name, for the help text.
    usage: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Outcome,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        usage: "[--detach] [--listen ADDRESS:PORT] [-- OPTIONS of `moat up`]",
        about: "install what is missing, build `moat`, run examples/shop and say what to try",
        run: demo::run,
    },
    Command {
        name: "test",
        usage: "[ARGUMENTS of the test runner]",
        about: "install what is missing, run every test (those of namespaces as root)",
        run: test::run,
    },
    Command {
        name: "bench",
        usage: "plan|net|change|start|image|traffic|deploy|load|edge|verify|all [--rounds N]",
        about: "install what is missing, build for release, print the tables of docs/benchmarks.md",
        run: bench::run,
    },
    Command { name: "ci", usage: "", about: "format, clippy, tidy and every test; what `.ci/run` runs", run: ci::run },
    Command {
        name: "tidy",
        usage: "",
        about: "dependency direction, manifests, files and links, diagnostic codes, invariants",
        run: tidy::run,
    },
    Command { name: "help", usage: "", about: "this text", run: help },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = match arguments.split_first() {
        None => ("help", &[][..]),
        Some((first, _)) if first == "-h" || first == "--help" => ("help", &[][..]),
        Some((first, rest)) => (first.as_str(), rest),
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("error: there is no command `{name}`");
        eprintln!("hint: `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    match (command.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            if let Some(hint) = &failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(failure.exit_code)
        }
    }
}

fn help(arguments: &[String]) -> Outcome {
    no_arguments(arguments)?;
    println!("cargo xtask COMMAND\n");
    for command in COMMANDS {
        println!("  {}", format!("{} {}", command.name, command.usage).trim_end());
        println!("      {}", command.about);
    }
    Ok(())
}

/// Refuses arguments where a command takes none.
fn no_arguments(arguments: &[String]) -> Outcome {
    match arguments.first() {
        None => Ok(()),
        Some(argument) => Err(Failure::usage(format!("`{argument}` is not understood here"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_are_unique_and_every_command_says_what_it_does() {
        for (index, command) in COMMANDS.iter().enumerate() {
            assert!(!command.about.is_empty(), "{}", command.name);
            assert!(COMMANDS[..index].iter().all(|other| other.name != command.name), "{}", command.name);
        }
    }

    #[test]
    fn arguments_that_nothing_reads_are_refused() {
        assert!(no_arguments(&[]).is_ok());
        assert_eq!(no_arguments(&["--fast".to_owned()]).unwrap_err().exit_code, 2);
    }
}
