//! `moat doctor`.

use super::rootless;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows what this machine can do; fails when something required is missing.
pub fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = moat_daemon::Paths::from_env();
    let without_root = if nix::unistd::geteuid().is_root() { None } else { Some(rootless::enter_scratch(&paths)) };
    let oci_runtime = std::env::var_os("MOAT_OCI_RUNTIME").map(PathBuf::from);
    let place = moat_engine_linux::doctor::Place { run: &paths.run, state: &paths.state, oci_runtime: oci_runtime.as_deref() };
    let mut findings = moat_engine_linux::doctor::facts(place);
    match without_root {
        None => {}
        // It would not have come back otherwise.
        Some(Ok(error)) => return Err(error),
        Some(Err(why)) => findings.iter_mut().filter(|finding| finding.name == "root").for_each(|finding| {
            finding.found = format!("{}; {}", finding.found, why.what);
            finding.hint = why.hint.clone().or(finding.hint.take());
        }),
    }
    let lacking = findings.iter().filter(|f| f.required && !f.ok).count();
    if ui.json() {
        ui.print_json(&findings)?;
    } else {
        let rows: Vec<_> = findings
            .iter()
            .map(|f| {
                let (mark, tone) = match (f.ok, f.required) {
                    (true, _) => ("✓", Tone::Good),
                    (false, true) => ("✗", Tone::Bad),
                    (false, false) => ("–", Tone::Warn),
                };
                vec![
                    cell(tone, mark),
                    cell(Tone::Plain, &f.name),
                    cell(Tone::Plain, &f.found),
                    cell(Tone::Dim, f.hint.clone().unwrap_or_default()),
                ]
            })
            .collect();
        ui.table(&["", "WHAT", "FOUND", ""], &rows);
        ui.say(&if lacking == 0 {
            ui.paint_err(Tone::Good, "this machine can run Moat")
        } else {
            ui.paint_err(Tone::Bad, &format!("{lacking} required things are missing"))
        });
    }
    Ok(if lacking == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
