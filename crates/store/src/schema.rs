//! The layout of the state's database, by steps that are never changed once they were released.

use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Step `n` leads from `user_version` `n` to `n + 1`.
const STEPS: [&str; 1] = [
    // `head` has one row: what was accepted, how often something was written, and a text sealed by the key of all others.
    "CREATE TABLE head (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        generation INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        sealed BLOB NOT NULL
    ) STRICT;
    CREATE TABLE documents (
        aggregate TEXT NOT NULL,
        key TEXT NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (aggregate, key)
    ) STRICT;",
];

/// The newest layout.
#[expect(clippy::cast_possible_truncation, reason = "a handful of steps")]
pub const NEWEST: u32 = STEPS.len() as u32;

/// The layout of a database; 0 is an empty one.
pub fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings a database to the newest layout, each step whole or not at all.
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |error| StoreError::of(path, error);
    let from = version(connection).map_err(fail)?;
    if from > NEWEST {
        return Err(StoreError::Newer { path: path.to_owned(), version: from, known: NEWEST });
    }
    for (step, to) in STEPS.iter().zip(1_u32..).skip(from as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        transaction.execute_batch(step).map_err(fail)?;
        transaction.pragma_update(None, "user_version", to).map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a database of each layout may hold, and what it comes to.
    #[test]
    fn every_layout_becomes_the_newest_and_keeps_its_rows() {
        let rows: [(&str, i64); 2] =
            [("", 0), ("INSERT INTO head VALUES (1, 7, 9, x'00'); INSERT INTO documents VALUES ('deployed', 'web', x'01');", 1)];
        for (from, (fill, documents)) in rows.into_iter().enumerate() {
            let mut connection = Connection::open_in_memory().unwrap();
            for step in &STEPS[..from] {
                connection.execute_batch(step).unwrap();
            }
            connection.pragma_update(None, "user_version", i64::try_from(from).unwrap()).unwrap();
            connection.execute_batch(fill).unwrap();
            migrate(&mut connection, Path::new("x")).unwrap();
            assert_eq!(version(&connection).unwrap(), NEWEST, "from {from}");
            let count: i64 = connection.query_row("SELECT count(*) FROM documents", [], |row| row.get(0)).unwrap();
            assert_eq!(count, documents, "from {from}");
        }
    }

    #[test]
    fn a_newer_layout_is_refused_and_left() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", NEWEST + 1).unwrap();
        assert!(matches!(migrate(&mut connection, Path::new("x")), Err(StoreError::Newer { .. })));
        assert_eq!(version(&connection).unwrap(), NEWEST + 1);
    }
}
