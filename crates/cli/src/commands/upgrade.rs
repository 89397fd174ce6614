//! `moat upgrade`.

use super::{ask_one, need_root, own_exe};
use crate::args::UpgradeArgs;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, Request, Status};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the new program may take until it answers, adopting what runs included.
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);

/// Has the background process and the data plane go on as another program.
pub async fn run(args: UpgradeArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    let paths = Paths::from_env();
    let program = match args.binary {
        Some(file) => {
            std::fs::canonicalize(&file).map_err(|error| CommandError::usage(format!("can't use `{}`: {error}", file.display())))?
        }
        None => own_exe()?,
    };
    let before = status().await?;
    let mut talk = client::ask(&paths, &Request::Upgrade { program: program.clone() }).await?;
    loop {
        match talk.next().await {
            Ok(Some(Event::Notice { text, .. })) if !ui.json() => ui.say(&text),
            Ok(Some(Event::End { error: Some(failure) })) => return Err(failure.into()),
            Ok(Some(_)) => {}
            // It hangs up when it becomes the other.
            Ok(None) | Err(ClientError::Broken(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let Some(now) = answered_by(&program).await else {
        let old = PathBuf::from(&before.program);
        let back = old.exists() && client::ensure(&paths, &old).await.is_ok();
        let what = if back { "the one before runs again" } else { "what runs goes on without a background process" };
        return Err(CommandError::engine(format!("`{}` did not come up; {what}", program.display()))
            .hint(format!("`{}` says why", paths.daemon_log().display())));
    };
    if ui.json() {
        ui.print_json(&serde_json::json!({ "program": now.program, "version": now.version }))?;
    } else {
        ui.say(&format!("Moat {} runs now; no workload was touched", now.version));
    }
    Ok(ExitCode::SUCCESS)
}

async fn status() -> Result<Status, CommandError> {
    ask_one(Request::Status, |event| match event {
        Event::Status(status) => Some(status),
        _ => None,
    })
    .await
}

/// The status that this program gives, once it answers.
async fn answered_by(program: &Path) -> Option<Status> {
    let began = Instant::now();
    while began.elapsed() < ANSWERS_WITHIN {
        if let Ok(status) = status().await
            && Path::new(&status.program) == program
        {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    None
}
