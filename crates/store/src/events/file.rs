//! The database of events.

use super::{EventKind, NewEvent, Recorded};
use crate::StoreError;
use crate::copies::beside;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OpenFlags, Row, params_from_iter};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LAYOUT: u32 = 1;
const TABLES: &str = "
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        service TEXT,
        instance TEXT,
        message TEXT NOT NULL,
        details TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_service ON events (service, id);
    PRAGMA user_version = 1;";

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// Not before this time, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Only those with a greater id.
    pub after: Option<i64>,
    /// Only so many, the last ones.
    pub last: Option<usize>,
}

/// Opens the log to write it. A damaged one is put aside, and another begun: no event is worth a daemon that does not start.
pub(super) fn open(path: &Path) -> Result<(Connection, Option<PathBuf>), StoreError> {
    match begin(path) {
        Ok(connection) => Ok((connection, None)),
        Err(StoreError::Damaged { .. }) => {
            let aside = beside(path, ".damaged");
            fs::rename(path, &aside).map_err(StoreError::io(path))?;
            for ending in ["-wal", "-shm"] {
                let _ = fs::remove_file(beside(path, ending));
            }
            Ok((begin(path)?, Some(aside)))
        }
        Err(error) => Err(error),
    }
}

fn begin(path: &Path) -> Result<Connection, StoreError> {
    let fail = |error| StoreError::of(path, error);
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(StoreError::io(path))?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(fail)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20).map_err(fail)?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    match version {
        0 => connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;")).map_err(fail)?,
        LAYOUT => {}
        version => return Err(StoreError::Newer { path: path.to_owned(), version, known: LAYOUT }),
    }
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(fail)?;
    if said == "ok" { Ok(connection) } else { Err(StoreError::Damaged { database: path.to_owned(), why: said }) }
}

fn connect(path: &Path, how: OpenFlags) -> Result<Connection, StoreError> {
    let connection =
        Connection::open_with_flags(path, how | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(|error| StoreError::of(path, error))?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(|error| StoreError::of(path, error))?;
    Ok(connection)
}

pub(super) fn read(path: &Path, filter: &EventFilter) -> Result<Vec<Recorded>, StoreError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut conditions = vec!["1"];
    let mut values: Vec<Sql> = Vec::new();
    let mut only = |condition: &'static str, value: Option<Sql>| {
        if let Some(value) = value {
            conditions.push(condition);
            values.push(value);
        }
    };
    only("service = ?", filter.service.clone().map(Sql::from));
    only("kind = ?", filter.kind.map(|kind| Sql::from(kind.word().to_owned())));
    only("time >= ?", filter.since.map(Sql::from));
    only("id > ?", filter.after.map(Sql::from));
    values.push(Sql::from(filter.last.and_then(|last| i64::try_from(last).ok()).unwrap_or(-1)));
    let query = format!(
        "SELECT id, time, kind, service, instance, message, details FROM events WHERE {} ORDER BY id DESC LIMIT ?",
        conditions.join(" AND ")
    );
    // Reading a log that nobody writes takes the right to write, too: its index in memory is made anew.
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let found: rusqlite::Result<Vec<Recorded>> =
        connection.prepare(&query).and_then(|mut query| query.query_map(params_from_iter(values), recorded)?.collect());
    let mut found = found.map_err(|error| StoreError::of(path, error))?;
    found.reverse();
    Ok(found)
}

fn recorded(row: &Row<'_>) -> rusqlite::Result<Recorded> {
    let kind: String = row.get(2)?;
    let kind = kind.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(error)))?;
    let details: String = row.get(6)?;
    let details = serde_json::from_str(&details)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(6, rusqlite::types::Type::Text, Box::new(error)))?;
    let event = NewEvent { time: row.get(1)?, kind, service: row.get(3)?, instance: row.get(4)?, message: row.get(5)?, details };
    Ok(Recorded { id: row.get(0)?, event })
}
