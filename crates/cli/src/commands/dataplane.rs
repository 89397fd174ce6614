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
            eprintln!("the data plane: {}", moat_dataplane::chain(&error));
            ExitCode::from(3)
        }
    }
}
