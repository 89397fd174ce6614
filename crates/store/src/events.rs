//! What happened: a log of events, bounded by count and age, in a database of its own.
//!
//! ```text
//! record ─▶ queue (bounded; what finds it full is counted) ─▶ thread ─▶ events.db, many in one transaction
//! ```
//!
//! Invariants: whoever records never waits; a flood costs a bounded part of the disk; damage here never touches the state.

mod file;
mod kind;
mod writer;

pub use file::EventFilter;
pub use kind::EventKind;

use crate::StoreError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::JoinHandle;

/// Events that wait to be written.
const QUEUE: usize = 4096;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Events.
    pub count: u32,
    /// Milliseconds.
    pub age: i64,
    /// Events that are kept however old they are: a clock that is ahead must not take them all.
    pub least: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { count: 50_000, age: 90 * 24 * 3600 * 1000, least: 1_000 }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// Milliseconds since 1970, UTC.
    pub time: i64,
    /// What.
    pub kind: EventKind,
    /// To which service, by its label.
    pub service: Option<String>,
    /// To which instance.
    pub instance: Option<String>,
    /// In words. What is longer than 2,000 characters is cut.
    pub message: String,
    /// The same for programs: an object, by kind. One whose text is longer than 8,000 bytes is left out.
    pub details: Value,
}

/// An event that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Grows with every event, and is never used twice.
    pub id: i64,
    /// What happened.
    #[serde(flatten)]
    pub event: NewEvent,
}

/// The log, for the one who writes it.
#[derive(Debug)]
pub struct EventLog {
    queue: Option<SyncSender<NewEvent>>,
    /// Events that the queue took.
    taken: AtomicU64,
    /// Events that found the queue full.
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// An event log that was opened.
#[derive(Debug)]
pub struct OpenedLog {
    /// To record with.
    pub log: EventLog,
    /// Where a damaged log lies now: a new one was begun.
    pub damaged: Option<PathBuf>,
}

impl EventLog {
    /// Where the log of a state folder is.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("events.db")
    }

    /// Opens the log, or makes it. After each write `written` is called from another thread, with how many
    /// of what was recorded since is written: it is all once that is [`Self::taken`].
    pub fn open(path: &Path, bounds: Bounds, written: impl Fn(u64) + Send + 'static) -> Result<OpenedLog, StoreError> {
        let (connection, damaged) = file::open(path)?;
        let (queue, rx) = mpsc::sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = writer::Writer::new(connection, bounds, lost.clone(), Box::new(written));
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(move || writer.run(&rx)).map_err(StoreError::io(path))?;
        Ok(OpenedLog { log: Self { queue: Some(queue), taken: AtomicU64::new(0), lost, thread: Some(thread) }, damaged })
    }

    /// A log that keeps nothing, for where there is no other.
    pub fn none() -> Self {
        Self { queue: None, taken: AtomicU64::new(0), lost: Arc::default(), thread: None }
    }

    /// Takes an event, at once.
    pub fn record(&self, event: NewEvent) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(event) {
            Ok(()) => self.taken.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// How many events were recorded so far, those aside that were lost.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The events of a log, oldest first, whoever writes it meanwhile. A log that is not there has none.
    pub fn read(path: &Path, filter: &EventFilter) -> Result<Vec<Recorded>, StoreError> {
        file::read(path, filter)
    }
}

impl Drop for EventLog {
    /// Waits until what was recorded is written, where it can be.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
