//! `moat cert`.

use super::{ask_one, need_root_or_daemon, own_exe};
use crate::args::CertVerb;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{CertificateVerb, Event, Request};
use moat_model::Secret;
use std::path::Path;
use std::process::ExitCode;

/// Shows or changes certificates.
pub async fn run(verb: CertVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    let verb = match verb {
        CertVerb::List => CertificateVerb::List,
        CertVerb::Add { hosts, cert, key } => CertificateVerb::Add { names: hosts, chain: read(&cert)?, key: Secret::new(read(&key)?) },
        CertVerb::Remove { host } => CertificateVerb::Remove { name: host },
    };
    let paths = Paths::from_env();
    need_root_or_daemon(&paths).await?;
    client::ensure(&paths, &own_exe()?).await?;
    let certificates = ask_one(Request::Certificate(verb), |event| match event {
        Event::Certificates { certificates } => Some(certificates),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&certificates)?;
    } else if certificates.is_empty() {
        ui.say("no certificates yet: `moat up --listen-tls 127.0.0.1:8443` makes some for names below `localhost`");
    } else {
        let rows: Vec<_> = certificates
            .into_iter()
            .map(|row| {
                // To the day.
                let until = row.until.get(..10).unwrap_or(&row.until).to_owned();
                let names = cell(Tone::Strong, row.names.join(", "));
                vec![names, cell(Tone::Plain, row.source), cell(Tone::Plain, until), cell(Tone::Dim, row.issuer)]
            })
            .collect();
        ui.table(&["HOST", "FROM", "UNTIL", "SIGNED BY"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path).map_err(|error| CommandError::usage(format!("can't read `{}`: {error}", path.display())))
}
