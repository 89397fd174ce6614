//! What counting a request costs, on one thread and on all: `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo run -p moat-ingress --example counting`.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use moat_ingress::Counters;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BATCH: u32 = 20_000;
const BATCHES: u32 = 400;

/// Nanoseconds for each request of the fastest batch: of one that nothing else came between.
fn fastest(counters: &Counters) -> f64 {
    let batch = |_| {
        let began = Instant::now();
        for n in 0..BATCH {
            counters.open(1);
            counters.received(0);
            counters.answered(200, Duration::from_micros(u64::from(n)));
            counters.sent(1024);
            counters.open(-1);
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
    };
    (0..BATCHES).map(batch).fold(f64::INFINITY, f64::min)
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for count in [1, threads] {
        let counters = Arc::new(Counters::default());
        let work = |_| {
            let counters = Arc::clone(&counters);
            std::thread::spawn(move || fastest(&counters))
        };
        let all: Vec<_> = (0..count).map(work).collect();
        let each: Vec<String> = all.into_iter().filter_map(|thread| thread.join().ok()).map(|nanos| format!("{nanos:.1} ns")).collect();
        println!("{count} threads: {} for each request, {} counted", each.join(" and "), counters.read().total());
    }
}
