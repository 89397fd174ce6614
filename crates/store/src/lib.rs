//! What outlives the daemon: its state, sealed, in SQLite; and the log of events.
//!
//! * [`Store`] – the state: documents by aggregate and key, written in one transaction for each change.
//! * [`documents`] – what a change writes, and how an aggregate is read back.
//! * [`key`] – the key that everything is sealed with.
//! * [`events`] – what happened, in a file of its own that is bounded and may lag.
//!
//! ```text
//! STATE/key          32 random bytes, mode 0600
//! STATE/moat.db      the state; moat.db-wal belongs to it
//! STATE/moat.db.good the last copy that was found to be whole
//! STATE/events.db    the events
//! ```
//!
//! Invariants: a reader finds all of a change or nothing of it, whatever was killed; no document is on disk in clear.

mod copies;
pub mod documents;
mod error;
pub mod events;
pub mod key;
mod schema;
mod store;

pub use documents::{Changes, Documents};
pub use error::StoreError;
pub use events::{EventFilter, EventKind, EventLog, NewEvent, Recorded};
pub use key::Key;
pub use store::{Opened, Store};
