//! How many instances a service should have, by what its instances use.
//!
//! Invariant: more at once, fewer only when fewer have been enough for a while.

use moat_model::state::Scaling;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Fewer instances have to be enough for this long.
const DOWN_AFTER: Duration = Duration::from_mins(3);

/// What the instances that are ready use, per cent of their limits, on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Of the CPU limit.
    pub cpu: f64,
    /// Of the memory limit.
    pub memory: f64,
}

/// How many instances would use what the targets say: `ceil(now × use / target)`, the larger of both measures.
pub fn enough(scaling: &Scaling, now: u32, load: Load) -> u32 {
    let by = |used: f64, target: Option<u32>| {
        let target = f64::from(target?.max(1));
        // A hair above a whole number is measuring, not load.
        let count = (f64::from(now.max(1)) * used / target - 1e-9).ceil();
        // Out of range means the most there is.
        Some(if count >= f64::from(scaling.max) { scaling.max } else { truncated(count) })
    };
    let wanted = [by(load.cpu, scaling.cpu_percent), by(load.memory, scaling.memory_percent)].into_iter().flatten().max();
    wanted.unwrap_or(scaling.min).clamp(scaling.min, scaling.max)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number between 0 and the most instances")]
fn truncated(count: f64) -> u32 {
    count.max(0.0) as u32
}

/// One service's count.
#[derive(Debug, Clone)]
pub struct Scaler {
    count: u32,
    /// What would have been enough, and when, newest last.
    seen: VecDeque<(Instant, u32)>,
}

impl Scaler {
    /// Begins with so many.
    pub fn new(count: u32) -> Self {
        Self { count, seen: VecDeque::new() }
    }

    /// How many there should be.
    pub fn count(&self, scaling: &Scaling) -> u32 {
        self.count.clamp(scaling.min, scaling.max)
    }

    /// Takes what `ready` instances use at `now`; says the count when it changes.
    pub fn take(&mut self, scaling: &Scaling, ready: u32, load: Load, now: Instant) -> Option<u32> {
        let wanted = enough(scaling, ready, load);
        let before = self.count(scaling);
        let began = self.seen.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= DOWN_AFTER);
        self.seen.push_back((now, wanted));
        while self.seen.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= DOWN_AFTER) {
            self.seen.pop_front();
        }
        let recent = self.seen.iter().filter(|(at, _)| now.saturating_duration_since(*at) < DOWN_AFTER);
        let most = recent.map(|(_, count)| *count).max().unwrap_or(wanted);
        self.count = if wanted > before {
            wanted
        } else if began && most < before {
            most
        } else {
            before
        };
        (self.count != before).then_some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Scaling = Scaling { min: 1, max: 10, cpu_percent: Some(50), memory_percent: Some(80) };

    #[test]
    fn the_count_is_that_which_meets_the_larger_target() {
        let only_cpu = Scaling { memory_percent: None, ..BOTH };
        for (scaling, now, cpu, memory, expect) in [
            (BOTH, 1, 50.0, 10.0, 1),
            (BOTH, 1, 51.0, 10.0, 2),
            (BOTH, 4, 100.0, 10.0, 8),
            (BOTH, 4, 10.0, 100.0, 5),
            (BOTH, 4, 25.0, 20.0, 2),
            (BOTH, 4, 0.0, 0.0, 1),
            (BOTH, 9, 400.0, 0.0, 10),
            (only_cpu, 3, 20.0, 100.0, 2),
            (Scaling { min: 3, ..BOTH }, 3, 0.0, 0.0, 3),
            (BOTH, 0, 60.0, 0.0, 2),
        ] {
            assert_eq!(enough(&scaling, now, Load { cpu, memory }), expect, "{scaling:?} {now} {cpu} {memory}");
        }
    }

    #[test]
    fn it_grows_at_once_and_shrinks_after_minutes() {
        let start = Instant::now();
        let mut scaler = Scaler::new(1);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let cpu = |cpu: f64| Load { cpu, memory: 0.0 };
        // Seconds, instances that are ready, CPU, the change that is said.
        for (seconds, ready, used, expect) in [
            (0, 1, 90.0, Some(2)),
            (10, 2, 90.0, Some(4)),
            (20, 4, 10.0, None),
            (100, 4, 10.0, None),
            // The load comes back for a moment: the wait begins anew.
            (110, 4, 40.0, None),
            (199, 4, 10.0, None),
            (250, 4, 10.0, None),
            (289, 4, 10.0, None),
            (291, 4, 10.0, Some(1)),
            (300, 1, 10.0, None),
        ] {
            assert_eq!(scaler.take(&BOTH, ready, cpu(used), at(seconds)), expect, "at {seconds} s");
        }
    }
}
