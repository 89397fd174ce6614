//! `moat domains`.

use super::ask_one;
use crate::command_error::CommandError;
use crate::ui::{Cell, Tone, Ui, cell};
use moat_daemon::protocol::{DomainRow, Domains, Event, Request};
use std::process::ExitCode;

/// Shows custom domains. The exit code is 1 where clients of one don't get here.
pub async fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    let Domains { domains, hint } = ask_one(Request::Domains, |event| match event {
        Event::Domains(domains) => Some(domains),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&domains)?;
    } else if domains.is_empty() {
        ui.say("no custom domains: a web service's `domains` names them");
    } else {
        let rows: Vec<Vec<Cell>> = domains.iter().map(row).collect();
        ui.table(&["DOMAIN", "SERVICE", "DNS SAYS", "DNS MUST SAY", "CERTIFICATE", ""], &rows);
    }
    if let Some(hint) = hint {
        ui.say(&format!("hint: {hint}"));
    }
    Ok(if domains.iter().all(|domain| domain.good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(domain: &DomainRow) -> Vec<Cell> {
    let tone = if domain.good { Tone::Good } else { Tone::Bad };
    let found = match (&domain.error, domain.found.as_slice()) {
        (Some(error), _) => error.clone(),
        (None, []) => "nothing".to_owned(),
        (None, found) => found.join(", "),
    };
    // Any of them does; a name that is a domain of its own can't be a CNAME.
    let wanted = match (domain.good, domain.wanted.as_slice()) {
        (true, _) => String::new(),
        (false, []) => "an address that leads here".to_owned(),
        (false, [only]) => only.clone(),
        (false, many) => format!("one of {}", many.join(", ")),
    };
    let moved = domain.moved_to.as_ref().map(|to| format!("leads to {to}"));
    let more: Vec<String> = moved.into_iter().chain(domain.problem.clone()).collect();
    let more = more.join("; ");
    vec![
        cell(Tone::Strong, &domain.name),
        cell(Tone::Plain, domain.service.as_str()),
        cell(tone, found),
        cell(Tone::Plain, wanted),
        cell(if domain.certificate.is_some() { Tone::Plain } else { Tone::Warn }, domain.certificate.as_deref().unwrap_or("none")),
        cell(Tone::Dim, more),
    ]
}
