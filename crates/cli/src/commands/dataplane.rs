//! `moat __dataplane`: ingress, DNS and static sites as a process of their own. Its output goes to the daemon's log.

use moat_daemon::Paths;
use std::process::ExitCode;

/// Serves until the daemon has it end.
#[expect(clippy::print_stderr, reason = "stderr is the log")]
pub fn main() -> ExitCode {
    super::daemon::log_to_stderr();
    match moat_dataplane::process::main(&Paths::from_env().run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("the data plane: {error}");
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                next = cause.source();
            }
            eprintln!("{text}");
            ExitCode::from(3)
        }
    }
}
