//! `moat env`.

use super::ask_one;
use crate::args::{EnvOwner, EnvVerb};
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::protocol::{Event, Request, ServiceVerb, Variable};
use moat_model::Secret;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Shows or changes variables.
pub async fn run(verb: EnvVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    match verb {
        EnvVerb::List { owner, show } => list(owner, show, ui).await,
        EnvVerb::Get { owner, key } => get(owner, &key, ui).await,
        EnvVerb::Set { owner, values } => {
            let values: Result<BTreeMap<_, _>, _> = values.iter().map(|text| pair(text)).collect();
            set(owner, values?, ui).await
        }
        EnvVerb::Unset { owner, keys } => set(owner, keys.into_iter().map(|key| (key, None)).collect(), ui).await,
    }
}

async fn set(owner: EnvOwner, values: BTreeMap<String, Option<Secret>>, ui: &Ui) -> Result<ExitCode, CommandError> {
    let EnvOwner { name, group } = owner;
    if !group {
        return super::service::run(name, ServiceVerb::SetVariables { values }, ui).await;
    }
    super::service::follow(Request::SetGroupVariables { group: name.clone(), values }, &name, ui).await?;
    Ok(ExitCode::SUCCESS)
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

async fn ask(owner: EnvOwner, show: bool) -> Result<Vec<Variable>, CommandError> {
    let EnvOwner { name, group } = owner;
    let request = if group {
        Request::GroupVariables { group: name, show }
    } else {
        Request::Service { service: name, verb: ServiceVerb::Variables { show } }
    };
    ask_one(request, |event| match event {
        Event::Variables { variables } => Some(variables),
        _ => None,
    })
    .await
}

async fn list(owner: EnvOwner, show: bool, ui: &Ui) -> Result<ExitCode, CommandError> {
    let variables = ask(owner, show).await?;
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

async fn get(owner: EnvOwner, key: &str, ui: &Ui) -> Result<ExitCode, CommandError> {
    let name = owner.name.clone();
    let variables = ask(owner, true).await?;
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
