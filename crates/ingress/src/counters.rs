//! What is counted of requests: a few additions to atomic numbers each, which threads do not share.
//!
//! Invariant: counting takes no lock, and allocates only for the first answer of each hundred of statuses.

use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bounds within one decade; one of the next is at most 1.7 times the one before.
const STEPS: [u64; 6] = [10, 15, 20, 30, 50, 70];
const DECADES: usize = 6;
/// So many times are told apart, and longer ones.
pub const BUCKETS: usize = STEPS.len() * DECADES + 2;
/// The bounds of times, nanoseconds, from 100 µs to 100 s.
const BOUNDS: [u64; BUCKETS - 1] = bounds();
/// Copies of the numbers, one for each thread up to so many.
const MOST_SHARDS: usize = 16;
/// Statuses are 100 to 999.
const HUNDREDS: usize = 9;

const fn bounds() -> [u64; BUCKETS - 1] {
    let mut bounds = [0; BUCKETS - 1];
    let (mut at, mut unit) = (0, 10_000);
    while at < bounds.len() {
        bounds[at] = STEPS[at % STEPS.len()] * unit;
        at += 1;
        if at.is_multiple_of(STEPS.len()) {
            unit *= 10;
        }
    }
    bounds
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Answers by status. 499 are clients that went away before theirs.
    #[serde(with = "pairs")]
    pub answers: BTreeMap<u16, u64>,
    /// How long they took from the request's head to the answer's, by [`Counted::bounds`]; the last is for longer ones.
    pub times: Vec<u64>,
    /// All these times together, nanoseconds.
    pub nanos: u64,
    /// Bytes of requests' bodies, and those that clients of tunnels sent.
    pub received: u64,
    /// Bytes of answers' bodies as they were sent, and those that clients of tunnels got.
    pub sent: u64,
    /// Requests and tunnels that are not over.
    pub open: u64,
}

/// A map as a list of pairs: keys of JSON objects are texts, which not every reader takes for numbers.
mod pairs {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(map: &BTreeMap<u16, u64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u16, u64>, D::Error> {
        Vec::<(u16, u64)>::deserialize(from).map(BTreeMap::from_iter)
    }
}

impl Counted {
    /// The upper bounds of [`Self::times`], seconds; each is in its own.
    #[expect(clippy::cast_precision_loss, reason = "they are short numbers")]
    pub fn bounds() -> impl Iterator<Item = f64> {
        BOUNDS.into_iter().map(|nanos| nanos as f64 / 1e9)
    }

    /// Answers of any status.
    pub fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        self.times.resize(self.times.len().max(other.times.len()), 0);
        for (sum, count) in self.times.iter_mut().zip(&other.times) {
            *sum += count;
        }
        self.nanos += other.nanos;
        self.received += other.received;
        self.sent += other.sent;
        self.open += other.open;
    }

    /// What was counted since then. Numbers that went back (another process counts) are taken as they are.
    pub fn since(&self, before: &Self) -> Self {
        let since = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        let at = |times: &[u64], n: usize| times.get(n).copied().unwrap_or_default();
        let answers =
            self.answers.iter().map(|(status, now)| (*status, since(*now, before.answers.get(status).copied().unwrap_or_default())));
        Self {
            answers: answers.collect(),
            times: self.times.iter().enumerate().map(|(n, now)| since(*now, at(&before.times, n))).collect(),
            nanos: since(self.nanos, before.nanos),
            received: since(self.received, before.received),
            sent: since(self.sent, before.sent),
            open: self.open,
        }
    }

    /// The time within which this share of all answers began, seconds: between two bounds as if they were spread evenly.
    /// `None` without answers.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.times.iter().sum();
        let wanted = share.clamp(0.0, 1.0) * total as f64;
        let (mut below, mut lower) = (0, 0.0);
        for (count, upper) in self.times.iter().zip(Self::bounds().map(Some).chain([None])) {
            let Some(upper) = upper else { break };
            if *count > 0 && (below + count) as f64 >= wanted {
                return Some(lower + (upper - lower) * ((wanted - below as f64) / *count as f64));
            }
            below += count;
            lower = upper;
        }
        (total > 0).then_some(lower)
    }
}

/// The numbers of one instance, or of what is answered without one.
#[derive(Debug)]
pub struct Counters {
    shards: Box<[Shard]>,
}

/// What a thread counts. No two are on one line of a processor's cache.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    answers: [OnceLock<Box<[AtomicU64; 100]>>; HUNDREDS],
    times: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Below zero where requests end on another thread than they began on.
    open: AtomicI64,
}

impl Default for Shard {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            answers: Default::default(),
            times: std::array::from_fn(|_| zero()),
            nanos: zero(),
            received: zero(),
            sent: zero(),
            open: AtomicI64::default(),
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = threads.next_power_of_two().min(MOST_SHARDS);
        Self { shards: (0..shards).map(|_| Shard::default()).collect() }
    }
}

/// The place of this thread among the copies.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static PLACE: Cell<Option<usize>> = const { Cell::new(None) });
    PLACE.with(|place| {
        place.get().unwrap_or_else(|| {
            let own = NEXT.fetch_add(1, Ordering::Relaxed);
            place.set(Some(own));
            own
        })
    })
}

impl Counters {
    fn shard(&self) -> Option<&Shard> {
        self.shards.get(place() % self.shards.len())
    }

    /// A request was answered after so long.
    pub fn answered(&self, status: u16, took: Duration) {
        let Some(shard) = self.shard() else { return };
        let (hundred, rest) = (usize::from(status / 100).wrapping_sub(1), usize::from(status % 100));
        if let Some(hundred) = shard.answers.get(hundred) {
            let hundred = hundred.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::default())));
            if let Some(count) = hundred.get(rest) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = shard.times.get(BOUNDS.partition_point(|bound| *bound < nanos)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        shard.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// So many bytes came from the client.
    pub fn received(&self, bytes: u64) {
        if let Some(shard) = self.shard() {
            shard.received.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// So many bytes went to the client.
    pub fn sent(&self, bytes: u64) {
        if let Some(shard) = self.shard() {
            shard.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// A request or tunnel begins (1) or is over (-1).
    pub fn open(&self, by: i64) {
        if let Some(shard) = self.shard() {
            shard.open.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// What was counted until now.
    pub fn read(&self) -> Counted {
        let mut counted = Counted { times: vec![0; BUCKETS], ..Counted::default() };
        let mut open = 0;
        for shard in &self.shards {
            for (hundred, counts) in (1_u16..).zip(&shard.answers) {
                for (rest, count) in (0_u16..).zip(counts.get().into_iter().flat_map(|counts| counts.iter())) {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        *counted.answers.entry(hundred * 100 + rest).or_default() += count;
                    }
                }
            }
            for (sum, count) in counted.times.iter_mut().zip(&shard.times) {
                *sum += count.load(Ordering::Relaxed);
            }
            counted.nanos = counted.nanos.wrapping_add(shard.nanos.load(Ordering::Relaxed));
            counted.received += shard.received.load(Ordering::Relaxed);
            counted.sent += shard.sent.load(Ordering::Relaxed);
            open += shard.open.load(Ordering::Relaxed);
        }
        counted.open = u64::try_from(open).unwrap_or_default();
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counters = Arc::new(Counters::default());
        let work = |n: u64| {
            let counters = Arc::clone(&counters);
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    counters.open(1);
                    counters.received(2);
                    counters.sent(n);
                    counters.answered(if n == 0 { 204 } else { 999 }, Duration::from_millis(n));
                }
            })
        };
        for thread in [work(0), work(1), work(5)] {
            thread.join().unwrap();
        }
        // Ended on another thread than begun.
        counters.open(-2999);
        let counted = counters.read();
        assert_eq!(counted.answers, BTreeMap::from([(204, 1000), (999, 2000)]));
        assert_eq!((counted.received, counted.sent, counted.open, counted.total()), (6000, 6000, 1, 3000));
        assert_eq!(counted.nanos, 6_000_000_000);
        assert_eq!(counted.times.iter().sum::<u64>(), 3000);
    }

    #[test]
    fn bounds_are_in_order_and_times_fall_below_theirs() {
        let bounds: Vec<f64> = Counted::bounds().collect();
        assert_eq!((bounds[0], bounds[1], bounds[6], bounds[36]), (0.0001, 0.00015, 0.001, 100.0));
        assert!(bounds.windows(2).all(|two| two[0] < two[1] && two[1] / two[0] < 1.7));
        for (micros, bucket) in [(0, 0), (100, 0), (101, 1), (1000, 6), (1001, 7), (100_000_000, 36), (100_000_001, 37)] {
            let counters = Counters::default();
            counters.answered(200, Duration::from_micros(micros));
            assert_eq!(counters.read().times.iter().position(|count| *count == 1), Some(bucket), "{micros}");
        }
    }

    #[test]
    fn quantiles_and_differences() {
        assert_eq!(Counted::default().quantile(0.5), None);
        let counters = Counters::default();
        for _ in 0..98 {
            counters.answered(200, Duration::from_millis(2));
        }
        let before = counters.read();
        counters.answered(500, Duration::from_secs(4));
        counters.answered(500, Duration::from_secs(1000));
        let now = counters.read();
        let within = |share: f64, low: f64, high: f64| {
            let got = now.quantile(share).unwrap();
            assert!(low < got && got <= high, "{share}: {got}");
        };
        within(0.5, 0.0015, 0.002);
        within(0.985, 3.0, 5.0);
        within(1.0, 99.9, 100.0);
        let since = now.since(&before);
        assert_eq!((since.total(), since.answers[&500], since.answers[&200]), (2, 2, 0));
        let anew = Counters::default();
        anew.answered(200, Duration::from_millis(2));
        assert_eq!(anew.read().since(&now).total(), 1, "another process counts");
        let mut sum = Counted::default();
        sum.add(&before);
        sum.add(&since);
        assert_eq!(sum.times, now.times);
    }
}
