//! The durable state: one JSON file, replaced as a whole.
//!
//! Invariant: a reader finds the old text or the new one, never a part.

use crate::deploy::Deployed;
use crate::history::History;
use crate::protocol::UpRequest;
use crate::settings::Settings;
use moat_model::{Generation, Service, Slug};
use moat_planner::memory::Memory;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Everything that outlives the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Durable {
    /// Version of this file's layout.
    pub version: u32,
    /// Counts accepted changes.
    pub generation: Generation,
    /// Ids, addresses and generated secrets.
    pub memory: Memory,
    /// Accepted blueprints by path.
    pub blueprints: BTreeMap<PathBuf, UpRequest>,
    /// Services that their blueprint no longer names, and that nobody removed.
    pub kept: BTreeMap<Slug, Service>,
    /// The last push of each blueprint that is not accepted yet.
    #[serde(default)]
    pub queued: BTreeMap<PathBuf, UpRequest>,
    /// Services whose deploy is not over.
    #[serde(default)]
    pub deploying: BTreeSet<Slug>,
    /// What runs of each service.
    pub deployed: BTreeMap<Slug, Deployed>,
    /// The deploys of each service.
    #[serde(default)]
    pub history: History,
    /// What people have set about services beside their blueprints.
    #[serde(default)]
    pub settings: BTreeMap<Slug, Settings>,
}

/// Why the state can't be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not readable.
    #[error("can't read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not understood.
    #[error("`{path}` is damaged ({source}): move it away to start anew; instances that run are found again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Of a newer Moat.
    #[error("`{path}` was written by a newer version of Moat (layout {version})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        version: u32,
    },
}

const VERSION: u32 = 1;

impl Durable {
    /// Reads the file; a missing one is an empty state.
    pub fn load(path: &Path) -> Result<Self, StateError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { version: VERSION, ..Self::default() }),
            Err(source) => return Err(StateError::Read { path: path.to_owned(), source }),
        };
        let state: Self = serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path: path.to_owned(), source })?;
        if state.version > VERSION {
            return Err(StateError::Newer { path: path.to_owned(), version: state.version });
        }
        Ok(state)
    }

    /// Replaces the file (mode 0600: it holds secrets), synced to disk before the old one is gone.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("json.new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(Durable::load(&path).unwrap().generation, Generation(0));
        let state = Durable { version: VERSION, generation: Generation(7), ..Durable::default() };
        state.save(&path).unwrap();
        assert_eq!(Durable::load(&path).unwrap().generation, Generation(7));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_or_newer_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(Durable::load(&path), Err(StateError::Damaged { .. })));
        Durable { version: 99, ..Durable::default() }.save(&path).unwrap();
        assert!(matches!(Durable::load(&path), Err(StateError::Newer { version: 99, .. })));
    }
}
