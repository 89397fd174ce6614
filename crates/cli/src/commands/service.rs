//! `moat restart`, `rollback`, `scale`, `suspend`, `resume`, `maintenance`, `deploy cancel`: what is asked of one service.

use crate::args::Mode;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, Request, ServiceState, ServiceVerb, Status};
use std::path::Path;
use std::process::ExitCode;

/// Asks, shows what becomes of the service, and waits until it is done.
pub async fn run(service: String, verb: ServiceVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    follow(Request::Service { service: service.clone(), verb }, &service, ui).await?;
    Ok(ExitCode::SUCCESS)
}

/// Turns maintenance mode on or off.
pub async fn maintenance(service: String, mode: Mode, page: Option<&Path>, ui: &Ui) -> Result<ExitCode, CommandError> {
    let on = mode == Mode::On;
    if page.is_some() && !on {
        return Err(CommandError::usage("a page is for `on`"));
    }
    let page = page
        .map(|path| std::fs::read_to_string(path).map_err(|error| CommandError::usage(format!("can't read `{}`: {error}", path.display()))))
        .transpose()?;
    run(service, ServiceVerb::Maintenance { on, page }, ui).await
}

/// Shows what becomes of the service that `name` means until the request is done.
pub async fn follow(request: Request, name: &str, ui: &Ui) -> Result<Option<Status>, CommandError> {
    let mut talk = client::ask(&Paths::from_env(), &request).await?;
    let mut status = None;
    let mut last = None;
    while let Some(event) = talk.next().await? {
        match event {
            Event::Service(state) if last.as_ref() != Some(&(state.phase, state.service.clone())) => {
                last = Some((state.phase, state.service.clone()));
                show(&state, ui);
            }
            Event::Notice { service, text } => notice(service.as_ref().map_or(name, |slug| slug.as_str()), &text, ui),
            Event::Missing { values } => {
                let asked: Vec<String> = values.iter().map(|value| format!("{}.{}", value.owner, value.key)).collect();
                ui.say(&format!("without a value: {}", asked.join(", ")));
            }
            Event::Refused { diagnostics } => diagnostics.iter().for_each(|diagnostic| ui.say(&diagnostic.rendered)),
            Event::Status(now) => status = Some(now),
            Event::End { error: Some(failure) } => return Err(failure.into()),
            Event::End { error: None } => break,
            _ => {}
        }
    }
    Ok(status)
}

fn show(state: &ServiceState, ui: &Ui) {
    if ui.json() {
        ui.json_line(&serde_json::json!({ "service": state }));
        return;
    }
    let word = ui.paint_err(super::ps::phase_tone(state.phase), &format!("{:<10}", state.phase.word()));
    let name = ui.paint_err(Tone::Strong, &format!("{:<20}", state.service.as_str()));
    ui.say(format!("{name} {word} {}", ui.paint_err(Tone::Dim, state.detail.as_deref().unwrap_or_default())).trim_end());
    for line in &state.last_lines {
        ui.say(&format!("    {} {line}", ui.paint_err(Tone::Dim, "│")));
    }
}

fn notice(who: &str, text: &str, ui: &Ui) {
    if ui.json() {
        ui.json_line(&serde_json::json!({ "notice": text, "service": who }));
    } else {
        ui.say(&ui.paint_err(Tone::Warn, &format!("● {who}: {text}")));
    }
}
