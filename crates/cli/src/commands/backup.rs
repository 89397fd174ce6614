//! `moat backup`.

use super::{ask_following, need_root, need_root_or_daemon, own_exe};
use crate::args::BackupArgs;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, Request};
use std::process::ExitCode;

/// Makes a backup, and says what is in it.
pub async fn run(args: BackupArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    need_root_or_daemon(&paths).await?;
    if !client::is_running(&paths).await {
        if !paths.state_file().exists() {
            return Err(CommandError::refused("nothing of Moat is here to back up").hint("run a blueprint first: `moat up FILE`"));
        }
        need_root()?;
        client::ensure(&paths, &own_exe()?).await?;
    }
    let file = std::path::absolute(&args.file).map_err(|error| CommandError::unreadable(&args.file, &error))?;
    let with_key = args.with_key;
    let request = Request::Backup { file, services: args.service, with_key };
    let (file, bytes, services) = ask_following(request, ui, |event| match event {
        Event::BackedUp { file, bytes, services } => Some((file, bytes, services)),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&serde_json::json!({ "file": file, "bytes": bytes, "services": services, "withKey": with_key }))?;
        return Ok(ExitCode::SUCCESS);
    }
    ui.line(&file.display().to_string());
    let names: Vec<&str> = services.iter().map(moat_model::Slug::as_str).collect();
    let names = if names.is_empty() { "no service".to_owned() } else { names.join(", ") };
    ui.say(&format!("{} kB; data of {names}", bytes.div_ceil(1000)));
    if with_key {
        ui.say("the key is in it: whoever has this file can read everything in it");
    } else {
        ui.say(&format!("it opens with `{}` only: keep a copy of that elsewhere", paths.state.join("key").display()));
    }
    Ok(ExitCode::SUCCESS)
}
