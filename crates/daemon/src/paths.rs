//! Where things are.

use std::path::PathBuf;

/// The two folders of one Moat: durable state, and what a reboot may empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Releases, logs, disks, data, `moat.db`. `MOAT_STATE_DIR`, else `/var/lib/moat`.
    pub state: PathBuf,
    /// Namespaces, sockets, instance folders. `MOAT_RUN_DIR`, else `/run/moat`.
    pub run: PathBuf,
}

impl Paths {
    /// The folders said by the environment, or the usual ones.
    pub fn from_env() -> Self {
        let or =
            |key: &str, usual: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map_or_else(|| PathBuf::from(usual), PathBuf::from);
        Self { state: or("MOAT_STATE_DIR", "/var/lib/moat"), run: or("MOAT_RUN_DIR", "/run/moat") }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("moat.sock")
    }

    /// The lock that at most one daemon holds.
    pub fn lock(&self) -> PathBuf {
        self.run.join("daemon.lock")
    }

    /// The daemon's own log.
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    /// The durable state.
    pub fn state_file(&self) -> PathBuf {
        self.state.join("moat.db")
    }
}
