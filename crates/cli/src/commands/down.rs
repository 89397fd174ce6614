//! `moat down`.

use super::{need_root, own_exe};
use crate::args::DownArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, Request, ServicePhase};
use std::process::ExitCode;

/// Stops what the file names, or everything.
pub async fn run(args: DownArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    let file = match &args.file {
        Some(name) if !name.exists() && super::git::Repository::find(&paths, &name.to_string_lossy()).is_some() => {
            super::git::Repository::find(&paths, &name.to_string_lossy()).map(|repository| repository.blueprint())
        }
        // A file that was deleted meanwhile can still be named.
        Some(file) => Some(
            std::fs::canonicalize(file).or_else(|_| std::path::absolute(file)).map_err(|error| CommandError::unreadable(file, &error))?,
        ),
        None => None,
    };
    if !client::is_running(&paths).await {
        // What a killed daemon left is found by a new one.
        let left = paths.state_file().exists() || paths.run.join("netns").exists() || paths.run.join("instances").exists();
        if !left {
            if ui.json() {
                ui.json_line(&serde_json::json!({ "stopped": [] }));
            } else {
                ui.say("nothing of Moat runs here");
            }
            return Ok(ExitCode::SUCCESS);
        }
        need_root()?;
        client::ensure(&paths, &own_exe()?).await?;
    }
    stop(&paths, file, ui).await?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the daemon to stop, and says what stops.
pub async fn stop(paths: &Paths, file: Option<std::path::PathBuf>, ui: &Ui) -> Result<(), CommandError> {
    let mut stopped = Vec::new();
    for last in [false, false, true] {
        match stop_once(paths, file.clone(), ui, &mut stopped).await {
            // It ended in this very moment: another one looks after what is left.
            Err(Gone::Away(_)) if !last => client::ensure(paths, &own_exe()?).await?,
            Err(Gone::Away(error)) => return Err(error.into()),
            Err(Gone::Refused(error)) => return Err(error),
            Ok(()) => break,
        }
    }
    if ui.json() {
        ui.json_line(&serde_json::json!({ "stopped": stopped }));
    } else {
        ui.say(&format!("{} stopped", if stopped.is_empty() { "everything is".to_owned() } else { format!("{} services", stopped.len()) }));
    }
    Ok(())
}

/// Why one try did not come to its end.
enum Gone {
    Away(ClientError),
    Refused(CommandError),
}

impl From<ClientError> for Gone {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotRunning | ClientError::Broken(_) => Self::Away(error),
            ClientError::NoStart(_) | ClientError::Permission(_) | ClientError::Foreign(_) => Self::Refused(error.into()),
        }
    }
}

async fn stop_once(paths: &Paths, file: Option<std::path::PathBuf>, ui: &Ui, stopped: &mut Vec<String>) -> Result<(), Gone> {
    let mut talk = client::ask(paths, &Request::Down { file }).await?;
    while let Some(event) = talk.next().await? {
        match event {
            Event::Service(state) if state.phase == ServicePhase::Stopping => {
                if !ui.json() {
                    ui.say(&format!("{} {}", ui.paint_err(Tone::Dim, "stopping"), state.service));
                }
                stopped.push(state.service.to_string());
            }
            Event::Notice { text, .. } if !ui.json() => ui.say(&ui.paint_err(Tone::Warn, &text)),
            Event::End { error: Some(failure) } => return Err(Gone::Refused(failure.into())),
            Event::End { error: None } => break,
            _ => {}
        }
    }
    Ok(())
}
