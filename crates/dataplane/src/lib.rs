//! The data plane: ingress, DNS and static sites as a process of their own (`moat __dataplane`), which goes on with the last
//! configuration it was given whatever becomes of the daemon.
//!
//! * [`Config`] – everything it serves by, as one value.
//! * [`message`] – what the daemon and the process say to each other, over [`channel`].
//! * [`process`] – the process itself.
//! * [`Keeper`] – the daemon's side: finds the process or starts it, configures it, starts another when it dies, replaces it.
//!
//! ```text
//! daemon ── Start, Certificates, Log, Configure, Measure, Drain, Stop ──▶ process ── accepts with the listening sockets, which both hold
//!        ◀── Hello, Applied, Refused, Holds, Measured ──
//! ```
//!
//! Invariants: the process sees no engine and no durable state; it never goes back to an older configuration; whoever holds
//! one end of a listening socket can hand it on, so that no connection is refused while either side lives.

pub mod channel;
mod config;
mod keeper;
pub mod message;
pub mod process;
mod sockets;

pub use config::{CertificateSet, Config, DatabaseHost, Host, HostState, NamedCertificate, Public, SiteFiles, Stamp};
pub use keeper::{KeepError, Keeper, News, Place};
pub use sockets::{Doors, Sockets, is_same};

use std::path::{Path, PathBuf};

/// The folder of the run folder that holds each process' socket, `PID.sock`.
fn folder(run: &Path) -> PathBuf {
    run.join("dataplane")
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
