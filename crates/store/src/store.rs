//! The state: opening it, and writing changes to it.

use crate::copies::{self, Files};
use crate::{Changes, Documents, Key, StoreError, schema};
use moat_model::Generation;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who ends (after `moat down`) lets the next one in within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// What `head` seals, to know the key again.
const SEALED: &[u8] = b"moat";
const PUT: &str = "INSERT INTO documents VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET sealed = excluded.sealed";
/// Where [`SEALED`] belongs.
const HEAD: &str = "head";

/// The durable state. One process has it open at a time.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    files: Files,
    key: Key,
    generation: Generation,
    /// Counts what was written.
    revision: i64,
    /// The revision that the last good copy has, once one was made.
    copied: Option<i64>,
}

/// A store that was opened, and what it holds.
#[derive(Debug)]
pub struct Opened {
    /// To write to.
    pub store: Store,
    /// Everything that is stored.
    pub documents: Documents,
    /// What was wrong, where the last good copy took the place of a damaged state.
    pub restored: Option<Restored>,
}

/// The last good copy took the place of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was found, in words.
    pub why: String,
    /// Where the damaged state lies now; it may be absent where there was none.
    pub damaged: PathBuf,
}

impl Store {
    /// Opens the state of this folder, or makes it. A damaged one is replaced by its last good copy where there is one; where
    /// anything else is wrong, nothing is changed.
    pub fn open(folder: &Path) -> Result<Opened, StoreError> {
        Self::open_within(folder, PATIENCE)
    }

    /// The same with another patience with a process that has it open.
    pub fn open_within(folder: &Path, patience: Duration) -> Result<Opened, StoreError> {
        let files = Files::of(folder);
        let key = Key::of(folder)?;
        if files.is_new() {
            return Self::open_whole(files, key, patience);
        }
        let wrong = if files.has_state() {
            match Self::open_whole(files.clone(), key.clone(), patience) {
                Err(error @ (StoreError::Damaged { .. } | StoreError::KeyWrong { .. })) => error,
                other => return other,
            }
        } else {
            StoreError::Damaged { database: files.database.clone(), why: "it is missing or empty".to_owned() }
        };
        if copies::check(&files.copy, &key).is_err() {
            // Neither can be read: what is there stays as it is.
            return Err(wrong);
        }
        let why = if let StoreError::Damaged { why, .. } = wrong {
            why
        } else {
            // The copy opens with this key, so the key is right.
            "it does not open with its key".to_owned()
        };
        copies::restore(&files)?;
        let restored = Some(Restored { why, damaged: files.damaged.clone() });
        Ok(Opened { restored, ..Self::open_whole(files, key, patience)? })
    }

    fn open_whole(files: Files, key: Key, patience: Duration) -> Result<Opened, StoreError> {
        let path = &files.database;
        let fail = |error| StoreError::of(path, error);
        // SQLite would let everybody read it; its other files take this one's mode.
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(StoreError::io(path))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(fail)?;
        connection.busy_timeout(patience).map_err(fail)?;
        // Before the first access: the lock is kept until this process ends, and no memory is shared.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(fail)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20).map_err(fail)?;
        schema::migrate(&mut connection, path)?;
        if is_new(&connection).map_err(fail)? {
            let sealed = key.seal(HEAD, SEALED)?;
            connection.execute("INSERT INTO head VALUES (1, 0, 0, ?1)", [sealed]).map_err(fail)?;
        }
        let Content { generation, revision, documents } = read(&connection, path, &key)?;
        let store = Self { connection, files, key, generation, revision, copied: None };
        Ok(Opened { store, documents, restored: None })
    }

    /// The database, for messages.
    pub fn path(&self) -> &Path {
        &self.files.database
    }

    /// The key of this machine's secrets.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The generation that was written last.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether nothing was ever written.
    pub fn is_new(&self) -> bool {
        self.revision == 0
    }

    /// Writes changes, all or none, synced to disk. Refused where somebody else wrote since, and where the generation is older
    /// than what is there.
    pub fn write(&mut self, generation: Generation, changes: &Changes) -> Result<(), StoreError> {
        if changes.is_empty() && generation == self.generation {
            return Ok(());
        }
        let number = i64::try_from(generation.0).unwrap_or(i64::MAX);
        self.write_rows(generation, number, changes)?;
        self.generation = generation;
        self.revision += 1;
        Ok(())
    }

    fn write_rows(&mut self, generation: Generation, number: i64, changes: &Changes) -> Result<(), StoreError> {
        let path = &self.files.database;
        let fail = |error| StoreError::of(path, error);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let ours = transaction
            .execute(
                "UPDATE head SET generation = ?1, revision = revision + 1 WHERE revision = ?2 AND generation <= ?1",
                params![number, self.revision],
            )
            .map_err(fail)?;
        if ours == 0 {
            let disk = transaction.query_row("SELECT generation FROM head", [], |row| row.get(0)).map_err(fail)?;
            return Err(StoreError::stale(generation, disk));
        }
        for (aggregate, key, body) in &changes.rows {
            match body {
                Some(body) => {
                    let sealed = self.key.seal(&place(aggregate, key), body)?;
                    transaction.execute(PUT, params![aggregate, key, sealed]).map_err(fail)?;
                }
                None => {
                    transaction
                        .execute("DELETE FROM documents WHERE aggregate = ?1 AND key = ?2", params![aggregate, key])
                        .map_err(fail)?;
                }
            }
        }
        transaction.commit().map_err(fail)
    }

    /// Whether a last good copy would hold something else than the one there is.
    pub fn copy_is_due(&self) -> bool {
        self.copied != Some(self.revision) && !self.is_new()
    }

    /// Makes the last good copy anew, once it was found to be whole.
    pub fn keep_copy(&mut self) -> Result<(), StoreError> {
        copies::keep(&self.connection, &self.files, &self.key)?;
        self.copied = Some(self.revision);
        Ok(())
    }
}

/// What a whole state says.
pub(crate) struct Content {
    pub(crate) generation: Generation,
    pub(crate) revision: i64,
    pub(crate) documents: Documents,
}

/// Reads everything, and makes sure that it is whole and sealed by this key.
pub(crate) fn read(connection: &Connection, path: &Path, key: &Key) -> Result<Content, StoreError> {
    let fail = |error| StoreError::of(path, error);
    let damaged = |why: String| StoreError::Damaged { database: path.to_owned(), why };
    let said: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(fail)?;
    if said != "ok" {
        return Err(damaged(said));
    }
    let head = connection
        .query_row("SELECT generation, revision, sealed FROM head", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
        .map_err(fail)?;
    let Some((generation, revision, sealed)): Option<(i64, i64, Vec<u8>)> = head else {
        return Err(damaged("its head is missing".to_owned()));
    };
    if key.open(HEAD, &sealed).as_deref() != Some(SEALED) {
        let key = Files::of(path.parent().unwrap_or(Path::new(""))).key;
        return Err(StoreError::KeyWrong { key, database: path.to_owned() });
    }
    let mut documents = Documents::default();
    let mut all = connection.prepare("SELECT aggregate, key, sealed FROM documents").map_err(fail)?;
    let mut rows = all.query([]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let (aggregate, name): (String, String) = (row.get(0).map_err(fail)?, row.get(1).map_err(fail)?);
        let sealed: Vec<u8> = row.get(2).map_err(fail)?;
        let body = key.open(&place(&aggregate, &name), &sealed).ok_or_else(|| damaged(format!("`{aggregate}` `{name}` does not open")))?;
        documents.rows.entry(aggregate).or_default().insert(name, body);
    }
    let generation = Generation(u64::try_from(generation).unwrap_or_default());
    Ok(Content { generation, revision, documents })
}

/// Whether the tables are as they were made: a head is written before all else.
fn is_new(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM head) AND NOT EXISTS (SELECT 1 FROM documents)", [], |row| row.get(0))
}

/// Where a document belongs; what is sealed for one place does not open at another.
fn place(aggregate: &str, key: &str) -> String {
    format!("{aggregate}\0{key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn change(key: &str, value: &str) -> Changes {
        let mut changes = Changes::default();
        changes.map("m", &BTreeMap::new(), &BTreeMap::from([(key.to_owned(), value.to_owned())])).unwrap();
        changes
    }

    #[test]
    fn an_older_generation_and_a_writer_that_was_overtaken_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap().store;
        store.write(Generation(7), &change("a", "1")).unwrap();
        assert!(matches!(store.write(Generation(6), &change("a", "2")), Err(StoreError::Stale { mine: 6, disk: 7 })));
        store.connection.execute("UPDATE head SET revision = revision + 1", []).unwrap();
        assert!(matches!(store.write(Generation(8), &change("a", "3")), Err(StoreError::Stale { mine: 8, disk: 7 })));
        drop(store);
        let mut opened = Store::open(folder.path()).unwrap();
        assert_eq!(opened.store.generation(), Generation(7));
        assert_eq!(opened.documents.map::<String, String>("m").unwrap(), BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn a_change_that_fails_midway_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap().store;
        store.write(Generation(1), &change("a", "1")).unwrap();
        store
            .connection
            .execute_batch("CREATE TEMP TRIGGER t BEFORE INSERT ON documents WHEN new.key = 'z' BEGIN SELECT raise(ABORT, 'no'); END")
            .unwrap();
        let mut changes = change("b", "2");
        changes.rows.extend(change("z", "3").rows);
        assert!(store.write(Generation(2), &changes).is_err());
        store.write(Generation(2), &change("c", "4")).unwrap();
        drop(store);
        let mut opened = Store::open(folder.path()).unwrap();
        let keys: Vec<String> = opened.documents.map::<String, String>("m").unwrap().into_keys().collect();
        assert_eq!(keys, ["a", "c"]);
    }

    #[test]
    fn a_document_that_was_moved_to_another_place_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap().store;
        store.write(Generation(1), &change("a", "1")).unwrap();
        store.connection.execute("UPDATE documents SET key = 'b'", []).unwrap();
        drop(store);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged { .. })));
    }
}
