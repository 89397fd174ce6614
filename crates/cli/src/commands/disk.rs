//! `moat disk`.

use super::{ask_following, confirm};
use crate::args::DiskVerb;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::protocol::{Event, Request, ServiceVerb, SnapshotRow};
use std::process::ExitCode;

/// Shows, takes or brings back snapshots.
pub async fn run(verb: DiskVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    match verb {
        DiskVerb::Snapshots { service } => {
            let found = snapshots(service, ServiceVerb::Snapshots, ui).await?;
            show(&found, ui)?;
        }
        DiskVerb::Snapshot { service } => {
            let found = snapshots(service, ServiceVerb::TakeSnapshot, ui).await?;
            show(&found, ui)?;
        }
        DiskVerb::Restore { service, snapshot, yes } => {
            confirm(&format!("Replace what {service} keeps by {snapshot}?"), yes, ui)?;
            let request = Request::Service { service, verb: ServiceVerb::RestoreSnapshot { snapshot } };
            let (services, aside) = ask_following(request, ui, |event| match event {
                Event::Restored { services, aside } => Some((services, aside)),
                _ => None,
            })
            .await?;
            super::restore::say(&services, &aside, ui)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn snapshots(service: String, verb: ServiceVerb, ui: &Ui) -> Result<Vec<SnapshotRow>, CommandError> {
    ask_following(Request::Service { service, verb }, ui, |event| match event {
        Event::Snapshots { snapshots } => Some(snapshots),
        _ => None,
    })
    .await
}

fn show(found: &[SnapshotRow], ui: &Ui) -> Result<(), CommandError> {
    if ui.json() {
        return ui.print_json(&found);
    }
    if found.is_empty() {
        ui.say("there are no snapshots");
        return Ok(());
    }
    let rows: Vec<_> = found
        .iter()
        .map(|row| {
            let size = format!("{} kB", row.bytes.div_ceil(1000));
            vec![cell(Tone::Strong, &row.name), cell(Tone::Plain, row.kind.word()), cell(Tone::Plain, size), cell(Tone::Dim, &row.taken)]
        })
        .collect();
    ui.table(&["SNAPSHOT", "WHY", "SIZE", "TAKEN"], &rows);
    Ok(())
}
