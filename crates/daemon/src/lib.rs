//! The background process: one loop that linearises events and reconciles the desired with the observed state.
//!
//! * [`protocol`] – what the command line and the daemon say to each other, as JSON lines over a Unix socket.
//! * [`client`] – finding or starting the daemon, and talking to it.
//! * [`core`] – the loop itself.
//!
//! Invariant: only the loop changes desired state; every other task reports to it.

mod autoscale;
pub mod blueprints;
pub mod client;
mod core;
mod cron;
mod dataplane;
mod deploy;
mod history;
pub mod logs;
pub mod paths;
pub mod protocol;
mod ready;
mod scene;
mod server;
mod settings;
mod state_file;
mod views;

pub use paths::Paths;
pub use server::{DaemonError, run};

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
