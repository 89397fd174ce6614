//! What a client got, as it says it: `redis-benchmark`'s table, or the line of the Memcached client.

use crate::failure::{Failure, Outcome};
use std::fmt;

/// What a client got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Requests each second, in thousands.
    pub thousands: f64,
    /// 99 of 100 answers took no longer.
    pub p99_ms: f64,
}

const MARK: &str = "memcached: ";

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{} {}", self.thousands, self.p99_ms)
    }
}

/// The figure of what a client, directly or in a log, has printed of a test.
///
/// `GET` and the like are rows of `redis-benchmark --csv`: test, requests each second, mean, least, p50, p95, p99, most.
pub fn read(said: &str, test: Option<&str>) -> Outcome<Figure> {
    let found = said.lines().find_map(|line| {
        if let Some(test) = test {
            let row = line.split_once(&format!("\"{test}\","))?.1;
            let numbers: Vec<f64> = row.split(',').map_while(|cell| cell.trim().trim_matches('"').parse().ok()).collect();
            Some(Figure { thousands: numbers.first()? / 1e3, p99_ms: *numbers.get(5)? })
        } else {
            let (thousands, p99) = line.split_once(MARK)?.1.trim().split_once(' ')?;
            Some(Figure { thousands: thousands.parse().ok()?, p99_ms: p99.parse().ok()? })
        }
    });
    found.ok_or_else(|| Failure::new(format!("the client gave no figure, but: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_plain_output_and_in_a_log() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                   2026-11-21T05:00:00Z stdout F \"SET\",\"50000.00\",\"0.5\",\"0.1\",\"0.4\",\"0.8\",\"0.9\",\"1.5\"\n\
                   \"GET\",\"80000.00\",\"0.5\",\"0.1\",\"0.4\",\"0.8\",\"0.7\",\"1.5\"\n";
        let own = Figure { thousands: 12.5, p99_ms: 0.25 };
        for (said, test, figure) in [
            (csv, Some("SET"), Some(Figure { thousands: 50.0, p99_ms: 0.9 })),
            (csv, Some("GET"), Some(Figure { thousands: 80.0, p99_ms: 0.7 })),
            (csv, None, None),
            (&format!("2026-11-21T05:00:00Z stdout F {own}\n"), None, Some(own)),
            ("Could not connect to Redis", Some("GET"), None),
        ] {
            assert_eq!(read(said, test).ok(), figure, "{said} {test:?}");
        }
    }
}
