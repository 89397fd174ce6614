//! `moat trust`.

use super::{ask_one, need_real_root, need_root_or_daemon, own_exe};
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, Request};
use std::path::Path;
use std::process::{Command, ExitCode};

/// Folders of authorities that a machine trusts besides its distribution's, each with the command that takes them over.
const STORES: [(&str, &[&str]); 3] = [
    ("/usr/local/share/ca-certificates", &["update-ca-certificates"]),
    ("/etc/pki/ca-trust/source/anchors", &["update-ca-trust", "extract"]),
    ("/etc/ca-certificates/trust-source/anchors", &["trust", "extract-compat"]),
];
/// What it is called there.
const FILE: &str = "moat-local-authority.crt";

/// Prints the authority's certificate, or has the machine trust it.
pub async fn run(print: bool, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    need_root_or_daemon(&paths).await?;
    client::ensure(&paths, &own_exe()?).await?;
    let certificate = ask_one(Request::Authority, |event| match event {
        Event::Authority { certificate } => Some(certificate),
        _ => None,
    })
    .await?;
    if print {
        if ui.json() {
            ui.print_json(&serde_json::json!({ "certificate": certificate }))?;
        } else {
            ui.raw(&certificate);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some((folder, [program, arguments @ ..])) = STORES.iter().find(|(folder, _)| Path::new(folder).is_dir()) else {
        return Err(CommandError::refused("where this machine keeps the authorities that it trusts is not known here")
            .hint("`moat trust --print` prints the certificate, to add it by hand"));
    };
    let path = Path::new(folder).join(FILE);
    need_real_root("trust of the whole machine").map_err(|error| {
        let command = [&[*program], arguments].concat().join(" ");
        CommandError { hints: vec![format!("`moat trust --print | sudo tee {}`, then `sudo {command}`", path.display())], ..error }
    })?;
    let failed = |error: std::io::Error| CommandError::engine(format!("can't write `{}`: {error}", path.display()));
    std::fs::write(&path, certificate).map_err(failed)?;
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| CommandError::engine(format!("can't run `{program}`: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CommandError::engine(format!("`{program}` failed: {why}")));
    }
    if ui.json() {
        ui.print_json(&serde_json::json!({ "trusted": path }))?;
    } else {
        ui.say(&format!("this machine trusts `{}`; browsers with a store of their own ask for it (`moat trust --print`)", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
