//! `moat env`.

use super::ask_one;
use crate::args::EnvVerb;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::protocol::{Event, Request, ServiceVerb, Variable};
use moat_model::Secret;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Shows or changes variables.
pub async fn run(verb: EnvVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    match verb {
        EnvVerb::List { service, show } => list(service, show, ui).await,
        EnvVerb::Get { service, key } => get(service, &key, ui).await,
        EnvVerb::Set { service, values } => {
            let values: Result<BTreeMap<_, _>, _> = values.iter().map(|text| pair(text)).collect();
            super::service::run(service, ServiceVerb::SetVariables { values: values? }, ui).await
        }
        EnvVerb::Unset { service, keys } => {
            let values = keys.into_iter().map(|key| (key, None)).collect();
            super::service::run(service, ServiceVerb::SetVariables { values }, ui).await
        }
    }
}

/// `KEY=VALUE`, or `KEY` with the value on standard input, so that it is in no argument list.
fn pair(text: &str) -> Result<(String, Option<Secret>), CommandError> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.to_owned(), Some(Secret::new(value))));
    }
    let mut value = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut value)
        .map_err(|error| CommandError::usage(format!("can't read the value of `{text}`: {error}")))?;
    Ok((text.to_owned(), Some(Secret::new(value.strip_suffix('\n').unwrap_or(&value)))))
}

async fn ask(service: String, show: bool) -> Result<Vec<Variable>, CommandError> {
    ask_one(Request::Service { service, verb: ServiceVerb::Variables { show } }, |event| match event {
        Event::Variables { variables } => Some(variables),
        _ => None,
    })
    .await
}

async fn list(service: String, show: bool, ui: &Ui) -> Result<ExitCode, CommandError> {
    let variables = ask(service, show).await?;
    if ui.json() {
        ui.print_json(&variables)?;
        return Ok(ExitCode::SUCCESS);
    }
    for variable in variables {
        let value = variable.value.as_ref().map_or("***", |value| value.expose());
        let default = if variable.default { ui.paint(Tone::Dim, "  (default)") } else { String::new() };
        ui.line(&format!("{}={value}{default}", variable.key));
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(service: String, key: &str, ui: &Ui) -> Result<ExitCode, CommandError> {
    let name = service.clone();
    let variables = ask(service, true).await?;
    let Some(value) = variables.into_iter().find(|variable| variable.key == key).and_then(|variable| variable.value) else {
        return Err(CommandError::refused(format!("`{name}` has no variable `{key}`")));
    };
    if ui.json() {
        ui.print_json(&value.expose())?;
    } else {
        ui.line(value.expose());
    }
    Ok(ExitCode::SUCCESS)
}
