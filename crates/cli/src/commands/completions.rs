//! `moat completions`.

use crate::args::Cli;
use clap::CommandFactory as _;
use std::process::ExitCode;

/// Prints the script.
pub fn run(shell: clap_complete::Shell) -> ExitCode {
    clap_complete::generate(shell, &mut Cli::command(), "moat", &mut std::io::stdout());
    ExitCode::SUCCESS
}
