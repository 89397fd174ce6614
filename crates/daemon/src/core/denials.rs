//! Denied flows: counted, told once, and recorded now and then.
//!
//! Invariant: a flood of them costs a bounded number of notices and events.

use super::{Core, FlowKey};
use crate::protocol::Event;
use moat_store::EventKind;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// A flow that goes on being denied is recorded again after this long.
const AGAIN: Duration = Duration::from_mins(1);
/// Flows recorded one by one in [`AGAIN`]; the others are recorded together.
const AT_MOST: u32 = 60;

/// How often a flow was denied.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Denied {
    /// Packets the filter counted.
    pub(crate) counted: u64,
    /// Those of them that were probes of our own.
    pub(crate) probes: u64,
    /// Packets that were recorded, and when last.
    recorded: u64,
    recorded_at: Option<Instant>,
}

impl Denied {
    pub(crate) fn packets(self) -> u64 {
        self.counted.saturating_sub(self.probes)
    }

    /// Counts what the filter says now. It forgets a flow after a while and counts anew.
    fn count(&mut self, packets: u64, probes: bool) {
        let new = if packets >= self.counted { packets - self.counted } else { packets };
        self.counted += new;
        if probes {
            self.probes += new;
        }
    }

    /// Packets to be recorded now.
    fn due(&mut self, now: Instant) -> u64 {
        let new = self.packets().saturating_sub(self.recorded);
        if new == 0 || self.recorded_at.is_some_and(|at| now.duration_since(at) < AGAIN) {
            return 0;
        }
        self.recorded = self.packets();
        self.recorded_at = Some(now);
        new
    }
}

/// How many were recorded lately, and what was not recorded one by one.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    since: Option<Instant>,
    used: u32,
    flows: u64,
    packets: u64,
}

impl Budget {
    /// Begins anew when the time is over; gives the flows and packets that were too many, if any.
    fn renew(&mut self, now: Instant) -> Option<(u64, u64)> {
        if self.since.is_some_and(|since| now.duration_since(since) < AGAIN) {
            return None;
        }
        let more = (self.flows > 0).then_some((self.flows, self.packets));
        *self = Self { since: Some(now), ..Self::default() };
        more
    }

    /// Whether one more is recorded by itself.
    fn takes(&mut self, packets: u64) -> bool {
        if self.used < AT_MOST {
            self.used += 1;
            return true;
        }
        self.flows += 1;
        self.packets += packets;
        false
    }
}

impl Core {
    /// Takes what the filter remembers of denied flows.
    pub(super) fn denied_now(&mut self, flows: &[moat_net_linux::DeniedFlow], probes: bool) {
        let now = Instant::now();
        if let Some((flows, packets)) = self.denials.renew(now) {
            let text = format!("{flows} other flows were denied ({packets} packets): `moat denied` shows them");
            self.record(EventKind::Denied, None, text, json!({ "flows": flows, "packets": packets }));
        }
        for flow in flows {
            let key: FlowKey = (flow.from, flow.to, flow.proto, flow.port);
            let entry = self.denied.entry(key).or_default();
            entry.count(flow.packets, probes);
            let first = entry.recorded_at.is_none();
            let new = entry.due(now);
            if new > 0 && self.denials.takes(new) {
                self.tell_denied(key, new, first);
            }
        }
        if self.denied.len() > 10_000 {
            self.denied.clear();
        }
    }

    fn tell_denied(&mut self, (from, to, proto, port): FlowKey, packets: u64, first: bool) {
        let words = self.name_denied(from, to, proto, port, packets);
        let service = self.slug_of(from);
        let text = format!("denied: {} → {}:{}/{} ({})", words.from, words.to, words.port, words.proto, words.because);
        let details = json!({
            "from": words.from, "to": words.to, "port": words.port, "proto": words.proto, "because": words.because, "packets": packets,
        });
        self.record(EventKind::Denied, service.as_ref(), format!("{text}, {packets} packets"), details);
        if first {
            tracing::info!(service = service.as_ref().map(moat_model::Slug::as_str), "{text}");
            self.say(Event::Notice { service, text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_recorded_at_once_and_then_with_what_came_since() {
        let began = Instant::now();
        let mut flow = Denied::default();
        // Seconds, what the filter counts, whether these are probes of our own, what is recorded.
        for (second, packets, probes, due) in [
            (0, 3, false, 3),
            (1, 5, false, 0),
            (30, 9, false, 0),
            (60, 9, false, 6),
            (61, 9, false, 0),
            (130, 9, false, 0),
            (131, 2, false, 2),
            (200, 4, true, 0),
        ] {
            flow.count(packets, probes);
            assert_eq!(flow.due(began + Duration::from_secs(second)), due, "after {second} s");
        }
    }

    #[test]
    fn a_flood_is_recorded_in_one() {
        let began = Instant::now();
        let mut budget = Budget::default();
        assert_eq!(budget.renew(began), None);
        let one_by_one = (0..5_000).filter(|_| budget.takes(2)).count();
        assert_eq!(one_by_one, usize::try_from(AT_MOST).unwrap());
        assert_eq!(budget.renew(began + AGAIN / 2), None);
        assert_eq!(budget.renew(began + AGAIN), Some((5_000 - u64::from(AT_MOST), 2 * (5_000 - u64::from(AT_MOST)))));
        assert_eq!(budget.renew(began + AGAIN * 2), None);
        assert!(budget.takes(1));
    }
}
