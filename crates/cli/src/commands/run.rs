//! `moat run`.

use crate::args::RunArgs;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, LogLine, Request, ServiceVerb};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the command and gives its output and exit code; ends it when this is asked to end.
pub async fn run(args: RunArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let command = (!args.command.is_empty()).then(|| as_script(&args.command));
    let verb = ServiceVerb::Run { command, detach: args.detach };
    let mut talk = client::ask(&Paths::from_env(), &Request::Service { service: args.service, verb }).await?;
    let on = |kind| signal(kind).map_err(|error| CommandError::bug(format!("no signal handler: {error}")));
    let (mut int, mut term, mut hup) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    let mut code = None;
    loop {
        let event = tokio::select! {
            event = talk.next() => event?,
            // Hanging up ends it.
            _ = int.recv() => return Ok(ExitCode::from(130)),
            _ = term.recv() => return Ok(ExitCode::from(143)),
            _ = hup.recv() => return Ok(ExitCode::from(129)),
        };
        match event {
            Some(Event::Log(line)) => print(ui, &line),
            Some(Event::Notice { text, .. }) => ui.say(&text),
            Some(Event::Run { instance, why: None, .. }) if args.detach => {
                if ui.json() {
                    ui.print_json(&serde_json::json!({ "instance": instance }))?;
                } else {
                    ui.line(&instance);
                }
            }
            Some(Event::Run { why: Some(why), code: ended, .. }) => {
                if ended.is_none() {
                    ui.say(&format!("moat: the command {why}"));
                }
                code = Some(ended.unwrap_or(1));
            }
            Some(Event::End { error: Some(failure) }) => return Err(failure.into()),
            Some(Event::End { error: None }) => break,
            Some(_) => {}
            None => {
                return Err(
                    CommandError::engine("the background process went away").hint("the command goes on; `moat logs` shows what it writes")
                );
            }
        }
    }
    Ok(ExitCode::from(u8::try_from(code.unwrap_or(0)).unwrap_or(1)))
}

fn print(ui: &Ui, line: &LogLine) {
    if ui.json() {
        ui.json_line(line);
    } else if line.stream == "stderr" {
        ui.say(&line.text);
    } else {
        ui.line(&line.text);
    }
}

/// One word is a script for the shell; of several each stays as it is.
fn as_script(command: &[String]) -> String {
    match command {
        [script] => script.clone(),
        words => words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::as_script;

    #[test]
    fn words_stay_and_a_script_is_read() {
        for (words, script) in [
            (&["echo $HOME | cat"][..], "echo $HOME | cat"),
            (&["echo", "a b", "$HOME"], "'echo' 'a b' '$HOME'"),
            (&["echo", "it's"], "'echo' 'it'\\''s'"),
        ] {
            assert_eq!(as_script(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()), script);
        }
    }
}
