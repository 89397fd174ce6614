//! One module for each verb.
#![expect(clippy::wildcard_enum_match_arm, reason = "a command picks the events that it is about")]

pub mod cert;
pub mod check;
pub mod completions;
pub mod daemon;
pub mod dataplane;
pub mod denied;
pub mod deploys;
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
pub mod plan;
pub mod ps;
pub mod reach;
pub mod run;
pub mod schema;
pub mod service;
pub mod trust;
pub mod up;
pub mod upgrade;
pub mod verify;

use crate::command_error::CommandError;
use moat_daemon::Paths;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, Request};
use moat_model::DesiredState;
use std::path::PathBuf;

/// This program, for the processes it starts of itself.
pub fn own_exe() -> Result<PathBuf, CommandError> {
    std::env::current_exe().map_err(|error| CommandError::engine(format!("can't find my own program: {error}")))
}

/// Refuses early and clearly when not root.
pub fn need_root() -> Result<(), CommandError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(CommandError::refused("no permission: Moat makes network namespaces and needs root for that").hint("run it with sudo"))
}

/// Refuses early and clearly when not root, unless a Moat runs that hears this user.
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
