//! What is counted of clients of databases.

use crate::tunnel::Bytes;
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The numbers of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Visited {
    /// Clients that are connected to it.
    pub open: u64,
    /// Clients that were, those that are too.
    pub opened: u64,
    /// Clients that asked for it by name and were not let in: by its list, or without its password.
    pub refused: u64,
    /// Bytes that clients sent since they were let in.
    pub received: u64,
    /// Bytes that they got.
    pub sent: u64,
}

/// Counts for one database.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    open: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Visits {
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Visited {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Visited {
            open: read(&self.open),
            opened: read(&self.opened),
            refused: read(&self.refused),
            received: read(&self.received),
            sent: read(&self.sent),
        }
    }
}

impl Bytes for Visits {
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A client that is connected until this is dropped.
pub(super) struct Visitor(Arc<Visits>);

impl Visitor {
    pub(super) fn new(visits: &Arc<Visits>) -> Self {
        visits.open.fetch_add(1, Ordering::Relaxed);
        visits.opened.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(visits))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The numbers of one database. What is counted is no part of what a database is: any two are equal.
#[derive(Debug, Clone, Default)]
pub struct Visitors(pub(crate) Arc<Visits>);

impl PartialEq for Visitors {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}
impl Eq for Visitors {}

/// The numbers of all databases that are reached from outside.
#[derive(Debug, Default)]
pub struct AllVisits(Mutex<BTreeMap<Slug, Visitors>>);

impl AllVisits {
    /// Those of a database, as they were before where there are some.
    pub fn of(&self, service: &Slug) -> Visitors {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(service.clone()).or_default().clone()
    }

    /// Forgets those of databases that nobody comes to any more.
    pub fn sweep(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, visitors| Arc::strong_count(&visitors.0) > 1);
    }

    /// All numbers.
    pub fn read(&self) -> Vec<(Slug, Visited)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(service, visitors)| (service.clone(), visitors.0.read())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_last_as_long_as_their_database() {
        let all = AllVisits::default();
        let service = Slug::new("db").unwrap();
        let visitors = all.of(&service);
        let visitor = Visitor::new(&visitors.0);
        drop(Visitor::new(&all.of(&service).0));
        visitors.0.sent(3);
        visitors.0.received(4);
        visitors.0.refused();
        all.sweep();
        assert_eq!(all.read(), [(service.clone(), Visited { open: 1, opened: 2, refused: 1, received: 4, sent: 3 })]);
        drop(visitors);
        all.sweep();
        assert_eq!(all.read().len(), 1, "somebody is connected");
        drop(visitor);
        all.sweep();
        assert_eq!(all.read(), []);
    }
}
