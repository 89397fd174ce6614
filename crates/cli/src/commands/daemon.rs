//! `moat __daemon`, the background process itself, and `moat serve`, the same in the foreground. Their output is their log.

use moat_daemon::{Mode, Paths};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How long what blocks may go on after the daemon has ended: well within what systemd gives it.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Makes stderr the log of this process.
pub fn log_to_stderr() {
    let wanted = filter_fn(|about| *about.level() <= tracing::Level::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // A full disk must not end the process: what can't be written to its log is lost.
        .log_internal_errors(false)
        .with_target(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(wanted)).init();
}

/// Runs until everything is down, or it is told to end.
#[expect(clippy::print_stderr, reason = "the daemon's stderr is its log file")]
pub fn main(mode: Mode) -> ExitCode {
    log_to_stderr();
    // Before there is a thread or a child.
    moat_engine_linux::rootless::join_own_group();
    let Ok(exe) = std::env::current_exe() else { return ExitCode::from(3) };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::from(3);
        }
    };
    let ended = runtime.block_on(moat_daemon::run(Paths::from_env(), exe, mode));
    // Pulls end soon after nobody waits for them; one that waits for a silent registry is not waited for.
    runtime.shutdown_timeout(ENDS_WITHIN);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = match &error {
                moat_daemon::DaemonError::Engine(moat_engine::EngineError { hint: Some(hint), .. }) => format!("{error} (hint: {hint})"),
                error => moat_daemon::chain(error),
            };
            // The log may be on a full disk: the exit code has to do then.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(error.exit_code())
        }
    }
}
