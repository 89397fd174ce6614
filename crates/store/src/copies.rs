//! The last good copy of the state: keeping it, and putting it in the state's place.
//!
//! Invariant: a copy is whole and on disk before it takes the place of the one before.

use crate::{Key, StoreError, store};
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The files of a store.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) key: PathBuf,
    pub(crate) database: PathBuf,
    /// The last good copy.
    pub(crate) copy: PathBuf,
    /// Where a damaged state is put.
    pub(crate) damaged: PathBuf,
}

impl Files {
    pub(crate) fn of(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name);
        Self { key: file("key"), database: file("moat.db"), copy: file("moat.db.good"), damaged: file("moat.db.damaged") }
    }

    /// Whether there is a state.
    pub(crate) fn has_state(&self) -> bool {
        fs::metadata(&self.database).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Whether there is neither a state nor a copy of one.
    pub(crate) fn is_new(&self) -> bool {
        !self.has_state() && !self.copy.exists()
    }
}

/// Copies an open state to the last good copy.
pub(crate) fn keep(connection: &Connection, files: &Files, key: &Key) -> Result<(), StoreError> {
    let fresh = beside(&files.copy, ".new");
    let made = copy(connection, &fresh).and_then(|()| check(&fresh, key)).and_then(|()| put(&fresh, &files.copy));
    if made.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    made
}

/// Writes a consistent copy of an open state to a new file, synced.
fn copy(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    // `VACUUM INTO` takes an empty file, and leaves it its mode.
    let empty = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to).map_err(StoreError::io(to))?;
    let text = to.to_str().ok_or_else(|| StoreError::io(to)(io::ErrorKind::InvalidFilename.into()))?;
    connection.execute("VACUUM INTO ?1", [text]).map_err(|error| StoreError::of(to, error))?;
    empty.sync_all().map_err(StoreError::io(to))
}

/// Whether a copy is whole and sealed by this key.
pub(crate) fn check(copy: &Path, key: &Key) -> Result<(), StoreError> {
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| StoreError::of(copy, error))?;
    store::read(&connection, copy, key).map(drop)
}

/// Puts the last good copy in the state's place, and what was there aside. A kill at any moment leaves it to be done again.
pub(crate) fn restore(files: &Files) -> Result<(), StoreError> {
    let fresh = beside(&files.database, ".new");
    let copied = File::open(&files.copy).and_then(|mut from| {
        let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        io::copy(&mut from, &mut to)?;
        to.sync_all()
    });
    copied.map_err(StoreError::io(&fresh))?;
    // Both are gone before the copy comes: a log must never be taken for that of another state.
    for ending in ["", "-wal"] {
        let (from, to) = (beside(&files.database, ending), beside(&files.damaged, ending));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io(&from)(error)),
            _ => {}
        }
    }
    put(&fresh, &files.database)
}

/// Renames over what is there, and syncs the folder.
fn put(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(StoreError::io(to))?;
    let folder = to.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))
}

pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
