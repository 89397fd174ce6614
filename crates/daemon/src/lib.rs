//! The background process: one loop that linearises events and reconciles the desired with the observed state.
//!
//! * [`protocol`] – what the command line and the daemon say to each other, as JSON lines over a Unix socket.
//! * [`client`] – finding or starting the daemon, and talking to it.
//! * [`core`] – the loop itself.
//!
//! Invariant: only the loop changes desired state; every other task reports to it.

pub mod access;
mod access_log;
mod autoscale;
pub mod blueprints;
pub mod client;
mod core;
mod cron;
mod dataplane;
mod deploy;
pub mod drift;
mod handed;
mod history;
pub mod logs;
mod machine;
pub mod masked;
pub mod metrics;
pub mod paths;
pub mod protocol;
mod public;
mod ready;
pub mod reply;
mod scene;
mod scrape;
mod server;
mod settings;
mod state;
mod views;

pub use core::upgrade::look as look_at_program;
pub use moat_archive::{ArchiveError, Head as BackupHead, read_head as backup_head};
pub use moat_dataplane::chain;
pub use paths::Paths;
pub use server::{DaemonError, Mode, run};

/// Events of the log of a Moat that need not run.
pub fn past_events(paths: &Paths, filter: &moat_store::EventFilter) -> Result<Vec<moat_store::Recorded>, moat_store::StoreError> {
    moat_store::EventLog::read(&moat_store::EventLog::path(&paths.state), filter)
}

/// Seals what is kept in a file of the state folder, by this machine's key.
pub fn seal(paths: &Paths, place: &str, text: &[u8]) -> Result<Vec<u8>, moat_store::StoreError> {
    moat_store::Key::of(&paths.state)?.seal(place, text)
}

/// Has a machine that was never used take over the key of a backup of everything: the one in a file, or the one that is in the
/// backup itself. A machine that has a key keeps it.
pub fn take_over_key(paths: &Paths, backup: &std::path::Path, file: Option<&std::path::Path>) -> Result<(), ArchiveError> {
    let head = backup_head(backup)?;
    if !head.whole || moat_store::Key::path(&paths.state).exists() || paths.state_file().exists() {
        return Ok(());
    }
    let bytes = match file {
        Some(file) => moat_store::Key::bytes_of(file)?,
        // Before a key of its own is made, which would be in the way of the right one.
        None => head.included_key().ok_or(ArchiveError::WrongKey)?,
    };
    moat_archive::check_key(backup, &moat_store::Key::from_bytes(&bytes))?;
    let made = std::fs::create_dir_all(&paths.state);
    made.map_err(|source| ArchiveError::Io { path: paths.state.clone(), source })?;
    moat_store::Key::take_over(&paths.state, &bytes)?;
    Ok(())
}

/// What [`seal`] sealed for this place; `None` where it was not.
pub fn unseal(paths: &Paths, place: &str, sealed: &[u8]) -> Result<Option<Vec<u8>>, moat_store::StoreError> {
    Ok(moat_store::Key::of(&paths.state)?.open(place, sealed))
}
