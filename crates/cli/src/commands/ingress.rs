//! `moat ingress`.

use super::{ask_one, need_root_or_daemon, own_exe};
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, Request};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Changes settings and shows all, or has another process serve.
pub async fn run(restart: bool, set: &[String], ui: &Ui) -> Result<ExitCode, CommandError> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            CommandError::usage(format!("`{text}` has no `=`")).hint("write SETTING=VALUE; without any, `moat ingress` shows them all")
        })?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    let set: Vec<(String, String)> = set.iter().map(pair).collect::<Result<_, CommandError>>()?;
    let paths = Paths::from_env();
    need_root_or_daemon(&paths).await?;
    client::ensure(&paths, &own_exe()?).await?;
    let request = if restart { Request::RestartIngress } else { Request::Ingress { set } };
    let settings = ask_one(request, |event| match event {
        Event::Ingress { settings } => Some(settings),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&settings.into_iter().collect::<BTreeMap<_, _>>())?;
    } else {
        let rows: Vec<_> = settings.into_iter().map(|(key, value)| vec![cell(Tone::Strong, key), cell(Tone::Plain, value)]).collect();
        ui.table(&["SETTING", "VALUE"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}
