//! `moat restore`.

use super::{ask_following, confirm, need_root, need_root_or_daemon, own_exe};
use crate::args::RestoreArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::protocol::{Event, Request};
use moat_daemon::{BackupHead, Paths, client};
use moat_model::Slug;
use std::process::ExitCode;

/// Brings a backup back, after asking.
pub async fn run(args: RestoreArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    need_root_or_daemon(&paths).await?;
    let absolute = |path: &std::path::Path| std::path::absolute(path).map_err(|error| CommandError::unreadable(path, &error));
    let (file, key) = (absolute(&args.file)?, args.key.as_deref().map(absolute).transpose()?);
    let head = moat_daemon::backup_head(&file)
        .map_err(|error| CommandError::refused(format!("`{}`: {}", args.file.display(), moat_daemon::chain(&error))))?;
    confirm(&question(&head, &args.service), args.yes, ui)?;
    if !client::is_running(&paths).await {
        need_root()?;
        // A machine that was never used goes on with the key of the one that was backed up.
        moat_daemon::take_over_key(&paths, &file, key.as_deref()).map_err(|error| {
            let refused = CommandError::refused(format!("`{}`: {}", args.file.display(), moat_daemon::chain(&error)));
            refused.hint("name its key: `--key FILE` (`key` in the state folder of the machine that made it)")
        })?;
        client::ensure(&paths, &own_exe()?).await?;
    }
    let request = Request::Restore { file, key, services: args.service };
    let (services, aside) = ask_following(request, ui, |event| match event {
        Event::Restored { services, aside } => Some((services, aside)),
        _ => None,
    })
    .await?;
    say(&services, &aside, ui)?;
    Ok(ExitCode::SUCCESS)
}

/// What is about to happen.
fn question(head: &BackupHead, services: &[String]) -> String {
    let from = format!("the backup that `{}` made at {}", head.machine, head.created);
    match services {
        [] if head.whole => format!("Replace what services here keep by {from}, or become that machine where nothing runs here?"),
        [] => format!("Replace what {} keep by {from}?", head.services.join(", ")),
        some => format!("Replace what {} keep by {from}?", some.join(", ")),
    }
}

/// Says what was brought back.
pub fn say(services: &[Slug], aside: &str, ui: &Ui) -> Result<(), CommandError> {
    if ui.json() {
        return ui.print_json(&serde_json::json!({ "services": services, "before": aside }));
    }
    for slug in services {
        ui.line(&format!("{} {}", ui.paint(Tone::Good, "restored"), ui.paint(Tone::Strong, slug.as_str())));
    }
    ui.say(&format!("what was replaced is kept for a week: `moat disk restore SERVICE {aside}` goes back to it"));
    Ok(())
}
