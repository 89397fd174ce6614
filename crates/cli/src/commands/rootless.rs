//! Running again in a user namespace, where this user is root.

use super::own_exe;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_engine_linux::rootless::{self, NoGroups, RootlessError};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Becomes this very command in the user namespace of these folders. Comes back only with the reason why not. `starts` is for a
/// command that starts processes of services itself, though a background process listens.
pub fn enter(paths: &Paths, starts: bool) -> CommandError {
    let become_it = || -> Result<CommandError, CommandError> {
        let exe = own_exe()?;
        // What this command starts goes on without it, so in a scope of its own.
        let starts = starts || !listens(paths) || rootless::is_missing(&paths.run);
        let scope = if starts { rootless::into_scope() } else { Ok(()) };
        rootless::ensure(&paths.run, &exe, &scope).map_err(refused)?;
        Ok(run_again(paths, &exe, None, None))
    };
    become_it().unwrap_or_else(|error| error)
}

/// The same in namespaces that nothing is left of.
pub fn enter_scratch(paths: &Paths) -> Result<CommandError, RootlessError> {
    let exe = own_exe().map_err(|error| RootlessError { what: error.message, hint: None })?;
    let scope = if rootless::is_missing(&paths.run) { rootless::into_scope() } else { Ok(()) };
    let holder = rootless::scratch(&exe)?;
    Ok(run_again(paths, &exe, Some(format!("{}{holder}", rootless::SCRATCH)), scope.err().as_ref()))
}

/// Whether a background process is there to do what is asked.
fn listens(paths: &Paths) -> bool {
    UnixStream::connect(paths.socket()).is_ok()
}

fn run_again(paths: &Paths, exe: &Path, scratch: Option<String>, no_scope: Option<&NoGroups>) -> CommandError {
    let mut command = Command::new(exe);
    rootless::tell_scope(&mut command, no_scope);
    let error = command
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
