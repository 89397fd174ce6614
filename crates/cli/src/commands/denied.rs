//! `moat denied`.

use super::ask_one;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::protocol::{Event, Request};
use std::process::ExitCode;

/// Shows denied flows with names and counts.
pub async fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    let flows = ask_one(Request::Denied, |event| match event {
        Event::Denied { flows } => Some(flows),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&flows)?;
    } else if flows.is_empty() {
        ui.say("no flow was denied");
    } else {
        let rows: Vec<_> = flows
            .iter()
            .map(|f| {
                vec![
                    cell(Tone::Plain, &f.from),
                    cell(Tone::Plain, format!("{}:{}/{}", f.to, f.port, f.proto)),
                    cell(Tone::Plain, f.packets.to_string()),
                    cell(Tone::Bad, &f.because),
                ]
            })
            .collect();
        ui.table(&["FROM", "TO", "PACKETS", "BECAUSE"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}
