//! `moat deploys`.

use super::ask_one;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::protocol::{DeployRow, Event, Request};
use std::process::ExitCode;

/// Shows deploys, oldest first.
pub async fn list(service: Option<String>, ui: &Ui) -> Result<ExitCode, CommandError> {
    let deploys = ask_one(Request::Deploys { service }, |event| match event {
        Event::Deploys { deploys } => Some(deploys),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&deploys)?;
    } else if deploys.is_empty() {
        ui.say("nothing was deployed");
    } else {
        let rows: Vec<_> = deploys.iter().map(row).collect();
        ui.table(&["DEPLOY", "SERVICE", "STATE", "CAUSE", "ASKED", "TOOK", "COMMIT", ""], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(deploy: &DeployRow) -> Vec<crate::ui::Cell> {
    let tone = match deploy.state.as_str() {
        "live" => Tone::Good,
        "failed" => Tone::Bad,
        "canceled" | "skipped" => Tone::Warn,
        _ => Tone::Plain,
    };
    let mut more = deploy.why.clone().unwrap_or_default();
    if deploy.release.is_some() && deploy.state == "replaced" {
        "can be gone back to".clone_into(&mut more);
    }
    vec![
        cell(Tone::Strong, &deploy.id),
        cell(Tone::Plain, deploy.service.as_str()),
        cell(tone, &deploy.state),
        cell(Tone::Plain, &deploy.cause),
        // To the second.
        cell(Tone::Dim, deploy.asked.get(..19).unwrap_or(&deploy.asked)),
        cell(Tone::Dim, took(deploy).unwrap_or_default()),
        cell(Tone::Dim, deploy.commit.as_deref().map(|commit| commit.get(..7).unwrap_or(commit)).unwrap_or_default()),
        cell(Tone::Dim, more),
    ]
}

fn took(deploy: &DeployRow) -> Option<String> {
    let at = |text: &Option<String>| text.as_deref()?.parse::<jiff::Timestamp>().ok();
    let took = at(&deploy.ended)?.duration_since(at(&deploy.begun)?).unsigned_abs();
    Some(format!("{}.{} s", took.as_secs(), took.subsec_millis() / 100))
}
