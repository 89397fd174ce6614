//! Why the state can't be read or written.

use moat_model::Generation;
use rusqlite::ErrorCode;
use std::io;
use std::path::{Path, PathBuf};

/// Why the state can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store can't be read or made.
    #[error("can't use `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is full; nothing of the change is written.
    #[error("no space left on the disk of `{0}`: nothing was changed there")]
    Full(PathBuf),
    /// Another process has the state open.
    #[error("`{0}` is in use by another process: does another Moat run with the same state folder?")]
    Locked(PathBuf),
    /// There is state but no key to read it with.
    #[error("`{key}` is missing, and without it `{database}` can't be read; put the key back, or move `{database}*` away to start anew")]
    KeyLost {
        /// Where the key should be.
        key: PathBuf,
        /// The state.
        database: PathBuf,
    },
    /// The key is not the one that the state was sealed with.
    #[error("`{key}` is not the key of `{database}`; put the right one back, or move `{database}*` away to start anew")]
    KeyWrong {
        /// The key.
        key: PathBuf,
        /// The state.
        database: PathBuf,
    },
    /// The key file is no key.
    #[error("`{0}` does not hold 32 bytes, so it is no key; put the right one back")]
    KeyDamaged(PathBuf),
    /// The state is damaged and there is no whole copy.
    #[error(
        "`{database}` is damaged ({why}), and there is no whole copy of it: put a backup back, or move `{database}*` away to start anew; instances that run are found again"
    )]
    Damaged {
        /// The state.
        database: PathBuf,
        /// What was found.
        why: String,
    },
    /// Of a newer Moat.
    #[error("`{path}` was written by a newer version of Moat (layout {version}; this one knows {known})")]
    Newer {
        /// The state.
        path: PathBuf,
        /// Its layout.
        version: u32,
        /// The newest layout that this program knows.
        known: u32,
    },
    /// Another writer was there first.
    #[error("the state has changed meanwhile: this writer knows generation {mine}, the disk has {disk}")]
    Stale {
        /// What this writer believed to follow on, or wanted to write.
        mine: u64,
        /// What is there.
        disk: u64,
    },
    /// A document does not say what its aggregate needs.
    #[error("`{aggregate}` `{key}` of the state is not understood")]
    Document {
        /// The aggregate.
        aggregate: String,
        /// The document's key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The machine gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// Anything else of the database.
    #[error("can't use `{path}`")]
    Database {
        /// The state.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// The meaning of a database's error.
    pub(crate) fn of(path: &Path, source: rusqlite::Error) -> Self {
        let database = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(database),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked(database),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { database, why: source.to_string() },
            _ => Self::Database { path: database, source },
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| if source.kind() == io::ErrorKind::StorageFull { Self::Full(path) } else { Self::Io { path, source } }
    }

    pub(crate) fn document(aggregate: &str, key: &str) -> impl FnOnce(serde_json::Error) -> Self {
        let (aggregate, key) = (aggregate.to_owned(), key.to_owned());
        move |source| Self::Document { aggregate, key, source }
    }

    pub(crate) fn stale(mine: Generation, disk: i64) -> Self {
        Self::Stale { mine: mine.0, disk: disk.unsigned_abs() }
    }
}
