//! One module for each verb.
#![expect(clippy::wildcard_enum_match_arm, reason = "a command picks the events that it is about")]

pub mod backup;
pub mod cert;
pub mod check;
pub mod completions;
pub mod daemon;
pub mod dataplane;
pub mod denied;
pub mod deploys;
pub mod disk;
pub mod doctor;
pub mod domains;
pub mod down;
pub mod env;
pub mod events;
pub mod exec;
pub mod explain;
pub mod git;
pub mod image;
pub mod ingress;
pub mod install;
pub mod logs;
pub mod metrics;
pub mod plan;
pub mod ps;
pub mod reach;
pub mod restore;
pub mod rootless;
pub mod run;
pub mod schema;
pub mod service;
pub mod top;
pub mod trust;
pub mod up;
pub mod upgrade;
pub mod verify;

use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, Request};
use moat_model::DesiredState;
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// This program, for the processes it starts of itself.
pub fn own_exe() -> Result<PathBuf, CommandError> {
    std::env::current_exe().map_err(|error| CommandError::engine(format!("can't find my own program: {error}")))
}

/// Goes on as root: of the machine, or of a user namespace of one's own, in which this very command is run again. What keeps that from
/// being done is the error.
pub fn need_root() -> Result<(), CommandError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(rootless::enter(&Paths::from_env(), false)) }
}

/// As [`need_root`], for a command that starts processes of services itself, which belong to control groups.
pub fn need_root_and_groups() -> Result<(), CommandError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(rootless::enter(&Paths::from_env(), true)) }
}

/// Refuses early and clearly when not root of the machine.
pub fn need_real_root(what: &str) -> Result<(), CommandError> {
    if nix::unistd::geteuid().is_root() && !moat_engine_linux::rootless::inside() {
        return Ok(());
    }
    Err(CommandError::refused(format!("no permission: {what} needs root")).hint("run it with sudo"))
}

/// As [`need_root`], unless a Moat runs that hears this user.
pub async fn need_root_or_daemon(paths: &Paths) -> Result<(), CommandError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match client::reach(paths).await {
        Err(ClientError::NotRunning) => need_root(),
        other => Ok(other?),
    }
}

/// Asks and waits for the first event that `pick` takes; a failure at the end is the error.
pub async fn ask_one<T>(request: Request, pick: impl Fn(Event) -> Option<T>) -> Result<T, CommandError> {
    let mut talk = client::ask(&Paths::from_env(), &request).await?;
    let mut found = None;
    while let Some(event) = talk.next().await? {
        match event {
            Event::End { error: Some(failure) } => return Err(failure.into()),
            Event::End { error: None } => break,
            event => found = pick(event).or(found),
        }
    }
    found.ok_or_else(|| ClientError::Broken(std::io::ErrorKind::UnexpectedEof.into()).into())
}

/// The same, saying what happens meanwhile.
pub async fn ask_following<T>(request: Request, ui: &Ui, pick: impl Fn(Event) -> Option<T>) -> Result<T, CommandError> {
    ask_one(request, |event| match event {
        Event::Notice { service, text } => {
            let who = service.map(|slug| format!("{slug}: ")).unwrap_or_default();
            ui.say(&ui.paint_err(Tone::Dim, &format!("{who}{text}")));
            None
        }
        event => pick(event),
    })
    .await
}

/// Asks for a yes at the terminal, unless it was given; without a terminal that is a refusal.
pub fn confirm(question: &str, yes: bool, ui: &Ui) -> Result<(), CommandError> {
    if yes {
        return Ok(());
    }
    if !ui.terminal() || !std::io::stdin().is_terminal() {
        return Err(CommandError::refused("this replaces data, and nobody is here to be asked").hint("say `--yes`"));
    }
    ui.say(&format!("{question} [y/N]"));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(CommandError::refused("nothing was changed")),
    }
}

/// The state of what runs, or of a blueprint that need not run.
pub async fn state_of(file: Option<&std::path::Path>) -> Result<DesiredState, CommandError> {
    match file {
        Some(file) => check::state_of_file(file),
        None => {
            ask_one(Request::Desired, |event| match event {
                Event::Desired { state } => Some(*state),
                _ => None,
            })
            .await
        }
    }
}
