//! `moat logs`.

use crate::args::LogsArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, LogFilter, LogLine, Request};
use moat_model::Slug;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Prints lines, live when asked.
pub async fn run(mut args: LogsArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    args.service = args.service.or(args.named.take());
    if args.access {
        return access(args, ui).await;
    }
    let service = args.service.map(|text| Slug::new(text).map_err(|error| CommandError::usage(error.to_string()))).transpose()?;
    let since = args.since.map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
    let filter = LogFilter { instance: args.instance, since, grep: args.grep };
    let request = Request::Logs { service, follow: args.follow, tail: args.tail, file: None, filter };
    let mut talk = client::ask(&Paths::from_env(), &request).await?;
    let mut painter = Painter::default();
    loop {
        let event = tokio::select! {
            event = talk.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        match event {
            Some(Event::Log(line)) => painter.print(ui, &line),
            Some(Event::Notice { service, text }) => painter.notice(ui, service.as_ref(), &text),
            Some(Event::End { error: Some(failure) }) => return Err(failure.into()),
            Some(Event::End { error: None }) | None => return Ok(ExitCode::SUCCESS),
            Some(_) => {}
        }
    }
}

/// The access log, as it is written.
async fn access(args: LogsArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let LogsArgs { service, follow, tail, grep, .. } = args;
    let request = Request::AccessLog { service, follow, tail, grep };
    let mut talk = client::ask(&Paths::from_env(), &request).await?;
    loop {
        let event = tokio::select! {
            event = talk.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        match event {
            Some(Event::AccessLines { text }) => ui.raw(&text),
            Some(Event::End { error: Some(failure) }) => return Err(failure.into()),
            Some(Event::End { error: None }) | None => return Ok(ExitCode::SUCCESS),
            Some(_) => {}
        }
    }
}

/// Gives each service a colour and a column.
#[derive(Debug, Default)]
pub struct Painter {
    seen: BTreeMap<Slug, usize>,
    width: usize,
}

impl Painter {
    fn prefix(&mut self, ui: &Ui, service: &Slug) -> String {
        let next = self.seen.len();
        let nth = *self.seen.entry(service.clone()).or_insert(next);
        self.width = self.width.max(service.as_str().len());
        ui.paint(Tone::Nth(nth), &format!("{service:<width$} │", width = self.width))
    }

    /// One line of a service.
    pub fn print(&mut self, ui: &Ui, line: &LogLine) {
        if ui.json() {
            ui.json_line(line);
            return;
        }
        let prefix = self.prefix(ui, &line.service);
        ui.line(&format!("{prefix} {}", line.text));
    }

    /// One line of Moat about a service.
    pub fn notice(&mut self, ui: &Ui, service: Option<&Slug>, text: &str) {
        if ui.json() {
            ui.json_line(&serde_json::json!({ "notice": text, "service": service }));
            return;
        }
        let prefix = match service {
            Some(service) => self.prefix(ui, service),
            None => ui.paint(Tone::Dim, &format!("{:<width$} │", "moat", width = self.width.max(4))),
        };
        ui.line(&format!("{prefix} {}", ui.paint(Tone::Warn, &format!("● {text}"))));
    }
}
