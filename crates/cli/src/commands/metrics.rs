//! `moat metrics`.

use super::ask_one;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::protocol::{Event, Request};
use std::process::ExitCode;

/// Prints the text that Prometheus reads; as JSON, the numbers behind it.
pub async fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    if ui.json() {
        let load = ask_one(Request::Load, |event| match event {
            Event::Load(load) => Some(load),
            _ => None,
        });
        ui.print_json(&load.await?)?;
    } else {
        let text = ask_one(Request::Metrics, |event| match event {
            Event::Metrics { text } => Some(text),
            _ => None,
        });
        ui.raw(&text.await?);
    }
    Ok(ExitCode::SUCCESS)
}
