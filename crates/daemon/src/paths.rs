//! Where things are.

use nix::unistd::{AccessFlags, User, access, geteuid};
use std::env;
use std::path::{Path, PathBuf};

/// Where the Moat of the whole machine is.
const OF_THE_MACHINE: (&str, &str) = ("/var/lib/moat", "/run/moat");
const SOCKET: &str = "moat.sock";

/// The two folders of one Moat: durable state, and what a reboot may empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Releases, logs, disks, data, `moat.db`. `MOAT_STATE_DIR`, else `/var/lib/moat`, or `~/.local/share/moat` without root.
    pub state: PathBuf,
    /// Namespaces, sockets, instance folders. `MOAT_RUN_DIR`, else `/run/moat`, or `$XDG_RUNTIME_DIR/moat` without root.
    pub run: PathBuf,
}

impl Paths {
    /// The folders said by the environment, or the usual ones.
    pub fn from_env() -> Self {
        let said = |key: &str| env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let (state, run) = (said("MOAT_STATE_DIR"), said("MOAT_RUN_DIR"));
        if let (Some(state), Some(run)) = (&state, &run) {
            return Self { state: state.clone(), run: run.clone() };
        }
        let usual = Self::usual();
        Self { state: state.unwrap_or(usual.state), run: run.unwrap_or(usual.run) }
    }

    /// Those of the machine for root, and for who may use a Moat that runs there and has none of his own; else the user's own.
    fn usual() -> Self {
        let of_the_machine = Self { state: OF_THE_MACHINE.0.into(), run: OF_THE_MACHINE.1.into() };
        if geteuid().is_root() {
            return of_the_machine;
        }
        let own = Self::of_user(|key| env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from));
        let may_use = access(&of_the_machine.socket(), AccessFlags::W_OK).is_ok();
        if may_use && !own.socket().exists() { of_the_machine } else { own }
    }

    /// The XDG base directories, or what they are where nobody says.
    fn of_user(said: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let home = || said("HOME").or_else(|| User::from_uid(geteuid()).ok().flatten().map(|user| user.dir)).unwrap_or("/".into());
        let state = said("XDG_DATA_HOME").unwrap_or_else(|| home().join(".local/share")).join("moat");
        let run = said("XDG_RUNTIME_DIR").map_or_else(|| Path::new("/tmp").join(format!("moat-{}", geteuid())), |dir| dir.join("moat"));
        Self { state, run }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join(SOCKET)
    }

    /// The socket that metrics are read from over HTTP.
    pub fn metrics_socket(&self) -> PathBuf {
        self.run.join("metrics.sock")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_folders_of_his_own() {
        let paths = |set: &[(&str, &str)]| {
            let set: Vec<(String, PathBuf)> = set.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect();
            let paths = Paths::of_user(|key| set.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()));
            (paths.state.display().to_string(), paths.run.display().to_string())
        };
        let tmp = format!("/tmp/moat-{}", geteuid());
        assert_eq!(paths(&[("HOME", "/home/a")]), ("/home/a/.local/share/moat".to_owned(), tmp));
        assert_eq!(
            paths(&[("HOME", "/home/a"), ("XDG_DATA_HOME", "/data"), ("XDG_RUNTIME_DIR", "/run/user/7")]),
            ("/data/moat".to_owned(), "/run/user/7/moat".to_owned())
        );
    }
}
