//! Running again in a user namespace, where this user is root.

use super::own_exe;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_engine_linux::rootless::{self, RootlessError};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Becomes this very command in the user namespace of these folders. Comes back only with the reason why not.
pub fn enter(paths: &Paths) -> CommandError {
    let become_it = || -> Result<CommandError, CommandError> {
        let exe = own_exe()?;
        rootless::ensure(&paths.run, &exe).map_err(refused)?;
        Ok(run_again(paths, &exe, None))
    };
    become_it().unwrap_or_else(|error| error)
}

/// The same in namespaces that nothing is left of.
pub fn enter_scratch(paths: &Paths) -> Result<CommandError, RootlessError> {
    let exe = own_exe().map_err(|error| RootlessError { what: error.message, hint: None })?;
    let holder = rootless::scratch(&exe)?;
    Ok(run_again(paths, &exe, Some(format!("{}{holder}", rootless::SCRATCH))))
}

fn run_again(paths: &Paths, exe: &std::path::Path, scratch: Option<String>) -> CommandError {
    let error = Command::new(exe)
        .arg(rootless::ENTER)
        .arg(&paths.run)
        .args(scratch)
        .arg("--")
        .args(std::env::args_os().skip(1))
        // Root of the namespace has no folders of its own.
        .env("MOAT_STATE_DIR", &paths.state)
        .env("MOAT_RUN_DIR", &paths.run)
        .exec();
    CommandError::engine(format!("can't run myself: {error}"))
}

fn refused(error: RootlessError) -> CommandError {
    let refused = CommandError::refused(format!("no permission: {}", error.what));
    match error.hint {
        Some(hint) => refused.hint(hint),
        None => refused.hint("run it with sudo"),
    }
}

/// Says what a Moat that runs without root has to do without; nothing where it runs with root.
pub fn say_lacks(paths: &Paths, ui: &Ui) {
    for lack in rootless::lacked(&paths.run) {
        ui.say(&ui.paint_err(Tone::Warn, &format!("without root: {lack}")));
    }
}
