//! How much one asker may take, so that its neighbours keep being served.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Queries a second that one address may ask in the long run, and at once. A program that resolves names for each of
/// its requests stays far below; a flood is dropped before it is read.
const RATE: f64 = 10_000.0;
/// Lookups outside that run at once for one address.
const LOOKUPS_EACH: u32 = 64;
/// Lookups outside that run at once in all; each holds a socket.
const LOOKUPS: u32 = 1024;
/// Streams of one address.
const STREAMS_EACH: u32 = 16;
/// Streams in all.
const STREAMS: u32 = 512;

/// Counts by asker.
#[derive(Debug, Default)]
pub(super) struct Limits {
    load: Mutex<Load>,
}

#[derive(Debug, Default)]
struct Load {
    askers: HashMap<IpAddr, Asker>,
    lookups: u32,
    streams: u32,
}

#[derive(Debug)]
struct Asker {
    tokens: f64,
    filled: Instant,
    lookups: u32,
    streams: u32,
}

impl Asker {
    fn new(now: Instant) -> Self {
        Self { tokens: RATE, filled: now, lookups: 0, streams: 0 }
    }
}

/// What a permit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Lookup,
    Stream,
}

/// One lookup or stream; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    limits: Arc<Limits>,
    asker: IpAddr,
    counted: Counted,
}

impl Limits {
    /// Takes one query from the asker's allowance. `known`: how many askers there are, to forget the others.
    pub fn take(&self, asker: IpAddr, known: usize) -> bool {
        self.take_at(asker, known, Instant::now())
    }

    fn take_at(&self, asker: IpAddr, known: usize, now: Instant) -> bool {
        let mut load = self.lock();
        if load.askers.len() > known.saturating_mul(2).max(64) {
            load.askers.retain(|_, entry| entry.lookups > 0 || entry.streams > 0);
        }
        let entry = load.askers.entry(asker).or_insert_with(|| Asker::new(now));
        let passed = now.saturating_duration_since(entry.filled).as_secs_f64();
        entry.tokens = (entry.tokens + passed * RATE).min(RATE);
        entry.filled = now;
        let admitted = entry.tokens >= 1.0;
        if admitted {
            entry.tokens -= 1.0;
        }
        admitted
    }

    /// A lookup outside, or `None` when the asker or all together run too many.
    pub fn lookup(self: &Arc<Self>, asker: IpAddr) -> Option<Permit> {
        self.permit(asker, Counted::Lookup)
    }

    /// A stream, or `None` when the asker or all together hold too many.
    pub fn stream(self: &Arc<Self>, asker: IpAddr) -> Option<Permit> {
        self.permit(asker, Counted::Stream)
    }

    fn permit(self: &Arc<Self>, asker: IpAddr, counted: Counted) -> Option<Permit> {
        let mut load = self.lock();
        let Load { askers, lookups, streams } = &mut *load;
        let entry = askers.entry(asker).or_insert_with(|| Asker::new(Instant::now()));
        let (each, most_each, all, most) = match counted {
            Counted::Lookup => (&mut entry.lookups, LOOKUPS_EACH, lookups, LOOKUPS),
            Counted::Stream => (&mut entry.streams, STREAMS_EACH, streams, STREAMS),
        };
        if *each >= most_each || *all >= most {
            return None;
        }
        *each += 1;
        *all += 1;
        Some(Permit { limits: Arc::clone(self), asker, counted })
    }

    fn lock(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut load = self.limits.lock();
        let Load { askers, lookups, streams } = &mut *load;
        let entry = askers.get_mut(&self.asker);
        match self.counted {
            Counted::Lookup => {
                *lookups = lookups.saturating_sub(1);
                if let Some(entry) = entry {
                    entry.lookups = entry.lookups.saturating_sub(1);
                }
            }
            Counted::Stream => {
                *streams = streams.saturating_sub(1);
                if let Some(entry) = entry {
                    entry.streams = entry.streams.saturating_sub(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a40_0000 + n).into()
    }

    #[test]
    fn a_flood_is_cut_and_its_neighbour_is_not() {
        let limits = Limits::default();
        let now = Instant::now();
        let taken = (0..30_000).filter(|_| limits.take_at(address(1), 2, now)).count();
        assert_eq!(taken, 10_000);
        assert!(limits.take_at(address(2), 2, now));
        let later = now + Duration::from_millis(100);
        let taken = (0..30_000).filter(|_| limits.take_at(address(1), 2, later)).count();
        assert!((999..=1001).contains(&taken), "{taken}");
    }

    #[test]
    fn permits_are_bounded_and_come_back() {
        let limits = Arc::new(Limits::default());
        let held: Vec<Permit> = std::iter::from_fn(|| limits.lookup(address(1))).collect();
        assert_eq!(held.len(), 64);
        assert!(limits.lookup(address(2)).is_some());
        assert!(limits.stream(address(1)).is_some(), "streams are counted apart");
        drop(held);
        assert!(limits.lookup(address(1)).is_some());
        let mut all = Vec::new();
        for n in 0..100 {
            all.extend(std::iter::from_fn(|| limits.stream(address(n))));
        }
        assert_eq!(all.len(), 512);
    }

    #[test]
    fn old_askers_are_forgotten() {
        let limits = Limits::default();
        let now = Instant::now();
        for n in 0..10_000 {
            limits.take_at(address(n), 1, now);
        }
        assert!(limits.lock().askers.len() <= 65);
    }
}
