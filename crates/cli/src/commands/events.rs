//! `moat events`.

use crate::args::EventsArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, EventFilter, EventKind, Recorded, Request};
use moat_daemon::{Paths, past_events};
use serde_json::json;
use std::process::ExitCode;

/// Prints events, live when asked. Where nothing of Moat runs, what was recorded is read from the state folder.
pub async fn run(args: EventsArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    let EventsArgs { service, kind, since, last, follow } = args;
    let since = since.map(Timestamp::as_millisecond);
    let request = Request::Events { service: service.clone(), kind, since, last, follow };
    let mut talk = match client::ask(&paths, &request).await {
        Err(ClientError::NotRunning) if !follow => {
            let filter = EventFilter { service: service.map(|slug| slug.to_string()), kind, since, after: None, last };
            let past = past_events(&paths, &filter).map_err(|error| CommandError::engine(moat_daemon::chain(&error)))?;
            for event in &past {
                print(ui, event);
            }
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    loop {
        let event = tokio::select! {
            event = talk.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        match event {
            Some(Event::Recorded(event)) => print(ui, &event),
            Some(Event::End { error: Some(failure) }) => return Err(failure.into()),
            Some(Event::End { error: None }) | None => return Ok(ExitCode::SUCCESS),
            Some(_) => {}
        }
    }
}

fn print(ui: &Ui, Recorded { id, event }: &Recorded) {
    let time = Timestamp::from_millisecond(event.time).unwrap_or_default();
    if ui.json() {
        ui.json_line(&json!({
            "id": id, "time": time.to_string(), "kind": event.kind, "service": event.service, "instance": event.instance,
            "message": event.message, "details": event.details,
        }));
        return;
    }
    let when = time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    // As `exec` takes it.
    let whom: Vec<&str> = event.service.iter().chain(&event.instance).map(String::as_str).collect();
    let whom = if whom.is_empty() { String::new() } else { format!("{}: ", whom.join("/")) };
    ui.line(&format!(
        "{} {} {whom}{}",
        ui.paint(Tone::Dim, &when),
        ui.paint(tone(event.kind), &format!("{:<17}", event.kind.word())),
        event.message
    ));
}

fn tone(kind: EventKind) -> Tone {
    match kind {
        EventKind::DeploySucceeded | EventKind::Ready | EventKind::BackedUp | EventKind::Restored => Tone::Good,
        EventKind::DeployFailed | EventKind::Problem | EventKind::StateRestored | EventKind::EventsLost => Tone::Bad,
        EventKind::Restarting | EventKind::NotReady | EventKind::Denied | EventKind::Repaired => Tone::Warn,
        EventKind::DaemonStarted
        | EventKind::DaemonStopped
        | EventKind::Adopted
        | EventKind::Accepted
        | EventKind::Stopped
        | EventKind::DeployStarted
        | EventKind::DeployCancelled
        | EventKind::InstanceStarted
        | EventKind::InstanceExited
        | EventKind::Snapshot
        | EventKind::Slept
        | EventKind::Woke
        | EventKind::Scaled
        | EventKind::Suspended
        | EventKind::Resumed
        | EventKind::Maintenance
        | EventKind::Notice => Tone::Plain,
    }
}
