//! `moat schema`.

use crate::command_error::CommandError;
use crate::ui::Ui;
use std::process::ExitCode;

/// Prints the schema.
pub fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    ui.print_json(&moat_blueprint::schema())?;
    Ok(ExitCode::SUCCESS)
}
