//! The thread that writes events.

use super::{Bounds, EventKind, NewEvent};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Events in one transaction.
const BATCH: usize = 512;
/// After the first event of a batch, others are waited for so long.
const GATHER: Duration = Duration::from_millis(30);
/// Between two tries to write what could not be written.
const AGAIN: Duration = Duration::from_secs(1);
/// Events between two looks at what is too many or too old.
const LOOK_EVERY: usize = 256;
const LONGEST_MESSAGE: usize = 2_000;
const LONGEST_DETAILS: usize = 8_000;

/// Takes events from the queue and writes them.
pub(super) struct Writer {
    connection: Connection,
    bounds: Bounds,
    lost: Arc<AtomicU64>,
    written: Box<dyn Fn(u64) + Send>,
    /// Not written yet, oldest first. At most [`BATCH`]: while they can't be written, the queue fills up.
    batch: VecDeque<NewEvent>,
    /// Events written so far.
    count: u64,
    since_look: usize,
}

impl Writer {
    pub(super) fn new(connection: Connection, bounds: Bounds, lost: Arc<AtomicU64>, written: Box<dyn Fn(u64) + Send>) -> Self {
        // The first write looks at what has become too old meanwhile.
        Self { connection, bounds, lost, written, batch: VecDeque::new(), count: 0, since_look: LOOK_EVERY }
    }

    /// Until nobody can record any more and everything is written, or can't be.
    pub(super) fn run(mut self, queue: &Receiver<NewEvent>) {
        let mut open = true;
        while open {
            let mut wait = if self.batch.is_empty() { None } else { Some(AGAIN) };
            while open && self.batch.len() < BATCH {
                let next = match wait {
                    None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(wait) => queue.recv_timeout(wait),
                };
                match next {
                    Ok(event) => {
                        self.batch.push_back(event);
                        wait = Some(GATHER);
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => open = false,
                }
            }
            if self.batch.len() >= BATCH && !self.write() && open {
                std::thread::sleep(AGAIN);
            } else if !self.batch.is_empty() {
                self.write();
            }
        }
    }

    /// Writes the batch, whole or not at all; says whether it is written.
    fn write(&mut self) -> bool {
        let recorded = self.batch.len();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0
            && let Some(last) = self.batch.back()
        {
            let event = NewEvent {
                time: last.time,
                kind: EventKind::EventsLost,
                service: None,
                instance: None,
                message: format!("{lost} events came faster than they could be written"),
                details: json!({ "count": lost }),
            };
            self.batch.push_back(event);
        }
        if self.insert().is_ok() {
            self.since_look += self.batch.len();
            self.batch.clear();
            self.count += recorded as u64;
            (self.written)(self.count);
            return true;
        }
        // A full disk, mostly: what is here is tried again, what comes meanwhile is counted.
        if lost > 0 {
            self.batch.pop_back();
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
        false
    }

    fn insert(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let mut newest = 0;
        {
            let mut insert = transaction
                .prepare("INSERT INTO events (time, kind, service, instance, message, details) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for event in &self.batch {
                let message = cut(&event.message);
                newest = insert.insert(params![
                    event.time,
                    event.kind.word(),
                    event.service,
                    event.instance,
                    message,
                    details(&event.details)
                ])?;
            }
        }
        if self.since_look >= LOOK_EVERY {
            let oldest = self.batch.back().map_or(0, |event| event.time) - self.bounds.age;
            let (most, least) = (newest - i64::from(self.bounds.count), newest - i64::from(self.bounds.least));
            transaction.execute("DELETE FROM events WHERE id <= ?1 OR (time < ?2 AND id <= ?3)", params![most, oldest, least])?;
            self.since_look = 0;
        }
        transaction.commit()
    }
}

fn cut(text: &str) -> String {
    if text.len() <= LONGEST_MESSAGE {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(LONGEST_MESSAGE);
    format!("{}…", &text[..end])
}

fn details(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= LONGEST_DETAILS { text } else { "null".to_owned() }
}
