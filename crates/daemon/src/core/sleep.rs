//! Web services with `plan: free` that nobody asks for sleep, where people set that: none of their instances runs until somebody
//! asks for one, at its public name.
//!
//! ```text
//!            nothing asked or connected for the time that was set
//!      awake ───────────────────────────────────────────────────▶ asleep ──┐
//!        ▲                                                                 │ a request; or free plans sleep no longer
//!        └──────────────────────────── waking ◀────────────────────────────┘
//!          an instance is ready, or ended (it restarts as any other does)
//! ```
//!
//! A deploy that changes something wakes it as well. Invariant: what does not run is in [`Durable::sleep`](crate::state::Durable) before
//! it is stopped, so that whichever daemon comes next has requests for it wait instead of refusing them.

use super::{Core, Msg};
use crate::protocol::ServicePhase;
use crate::public::span_text;
use crate::settings::Sleep;
use moat_ingress::Series;
use moat_model::{InstanceId, Purpose, Slug};
use moat_store::EventKind;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at who was asked for: a tenth of the time that was set, within these.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What is known of services that are awake and may sleep.
#[derive(Default)]
pub(crate) struct Idle {
    seen: BTreeMap<Slug, Seen>,
    /// When it is looked next; none before the first look.
    due: Option<Instant>,
    looking: bool,
}

struct Seen {
    activity: Activity,
    /// Since when it has been so.
    since: Instant,
}

/// Everything that counts as being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Activity {
    answers: u64,
    bytes: u64,
    open: u64,
}

impl Activity {
    /// Of these instances. What the ingress answers itself wakes nobody, and keeps nobody awake.
    fn of(series: &[Series], instances: &[&InstanceId]) -> Self {
        let mine =
            series.iter().filter(|series| series.instance.as_ref().is_some_and(|id| instances.iter().any(|of| of.as_str() == &**id)));
        mine.fold(Self::default(), |sum, Series { counted, .. }| Self {
            answers: sum.answers + counted.total(),
            bytes: sum.bytes + counted.received + counted.sent,
            open: sum.open + counted.open,
        })
    }
}

/// What a look found.
pub struct Look {
    /// What was counted; none where nobody told.
    series: Option<Vec<Series>>,
    /// Services that it was looked at whether somebody is connected to them.
    due: BTreeSet<Slug>,
    /// Those of them to which somebody is: on the private network, or through a data plane that was replaced.
    connected: BTreeSet<Slug>,
}

impl Core {
    pub(crate) fn is_asleep(&self, slug: &Slug) -> bool {
        self.durable.sleep.get(slug) == Some(&Sleep::Asleep)
    }

    /// Whether it is one that sleeps when nobody asks for it.
    fn is_sleeper(&self, slug: &Slug) -> bool {
        self.durable.public.free_plans_sleep.is_some() && self.desired.services.get(slug).is_some_and(|service| service.public.free)
    }

    /// Services that are awake, and that nothing but being asked keeps so.
    fn may_sleep(&self) -> BTreeSet<Slug> {
        let calm = |slug: &&Slug| {
            !self.deploys.contains_key(*slug)
                && !self.next.contains_key(*slug)
                && !self.closing.contains(*slug)
                && !self.durable.sleep.contains_key(*slug)
                && self.copies.blocks(slug).is_none()
                && self.wanted(slug) > 0
        };
        let good = self.durable.deployed.iter().filter(|(_, deployed)| deployed.good).map(|(slug, _)| slug);
        good.filter(|slug| self.is_sleeper(slug)).filter(calm).cloned().collect()
    }

    fn awake_instances(&self, slug: &Slug) -> Vec<&InstanceId> {
        let mine = self.live.iter().filter(|(_, live)| live.slug == *slug && live.purpose == Purpose::Serve && !live.stopping);
        mine.map(|(id, _)| id).collect()
    }

    /// Looks whether somebody asked for services that may sleep, when it is time.
    pub(super) fn look_for_idle(&mut self) {
        let Some(limit) = self.durable.public.free_plans_sleep.map(Duration::from_secs) else {
            self.idle.seen.clear();
            return;
        };
        let now = Instant::now();
        if self.idle.looking || self.idle.due.is_some_and(|due| due > now) {
            return;
        }
        let may = self.may_sleep();
        self.idle.seen.retain(|slug, _| may.contains(slug));
        let pause = (limit / 10).clamp(LOOKS.0, LOOKS.1);
        self.idle.due = Some(now + pause);
        if may.is_empty() {
            return;
        }
        self.wake_in(pause);
        self.idle.looking = true;
        let over = |slug: &&Slug| self.idle.seen.get(*slug).is_some_and(|seen| seen.since + limit <= now);
        let due: BTreeSet<Slug> = may.iter().filter(over).cloned().collect();
        let instances: Vec<(Slug, InstanceId)> =
            due.iter().flat_map(|slug| self.awake_instances(slug).into_iter().map(|id| (slug.clone(), id.clone()))).collect();
        let (engine, measures, tx) = (self.engine.clone(), self.dataplane.measure(), self.tx.clone());
        tokio::spawn(async move {
            let mut connected = BTreeSet::new();
            for (slug, id) in instances {
                // Nobody is connected to what can't be looked at any more.
                if engine.connections(&id).await.unwrap_or_default() > 0 {
                    connected.insert(slug);
                }
            }
            let series = measures.await.map(|measures| measures.series);
            let _ = tx.send(Msg::Looked(Look { series, due, connected }));
        });
    }

    /// Has those sleep that nobody asked for.
    pub(super) fn looked(&mut self, Look { series, due, connected }: Look) {
        self.idle.looking = false;
        let (Some(limit), Some(series)) = (self.durable.public.free_plans_sleep, series) else { return };
        let now = Instant::now();
        for slug in self.may_sleep() {
            let activity = Activity::of(&series, &self.awake_instances(&slug));
            let seen =
                self.idle.seen.get(&slug).filter(|seen| seen.activity == activity && activity.open == 0 && !connected.contains(&slug));
            match seen.map(|seen| seen.since) {
                None => drop(self.idle.seen.insert(slug, Seen { activity, since: now })),
                Some(since) if due.contains(&slug) && since + Duration::from_secs(limit) <= now => self.fall_asleep(&slug, limit),
                Some(_) => {}
            }
        }
    }

    fn fall_asleep(&mut self, slug: &Slug, after: u64) {
        self.durable.sleep.insert(slug.clone(), Sleep::Asleep);
        self.idle.seen.remove(slug);
        self.backoff.remove(slug);
        self.save();
        let message = format!("it sleeps: nobody asked for it for {}", span_text(after));
        self.record(EventKind::Slept, Some(slug), message, json!({ "after_seconds": after }));
        self.set_phase(slug, ServicePhase::Sleeping, None);
    }

    /// Somebody asks for services that sleep, or slept a moment ago.
    pub(super) fn wanted_by_clients(&mut self, services: &BTreeSet<Slug>) {
        for slug in services.iter().filter(|slug| self.is_asleep(slug)).cloned().collect::<Vec<_>>() {
            self.wake(&slug, "somebody asks for it");
        }
    }

    fn wake(&mut self, slug: &Slug, why: &str) {
        self.durable.sleep.insert(slug.clone(), Sleep::Waking);
        self.save();
        self.record(EventKind::Woke, Some(slug), format!("it wakes: {why}"), json!({ "why": why }));
        self.set_phase(slug, ServicePhase::Starting, None);
    }

    /// What woke up is as any other; so is what ends instead, and what nobody has any more.
    pub(super) fn settle_sleep(&mut self) {
        let before = self.durable.sleep.len();
        for (slug, sleep) in self.durable.sleep.clone() {
            let runs = self.deployed(&slug).is_some() && self.desired.services.contains_key(&slug) && !self.is_suspended(&slug);
            let ready =
                || self.live.values().any(|live| live.slug == slug && live.purpose == Purpose::Serve && live.ready && !live.stopping);
            match sleep {
                _ if !runs => drop(self.durable.sleep.remove(&slug)),
                Sleep::Asleep if !self.is_sleeper(&slug) => self.wake(&slug, "it does not sleep any more when nobody asks for it"),
                Sleep::Waking if ready() || self.backoff.contains_key(&slug) => drop(self.durable.sleep.remove(&slug)),
                Sleep::Asleep | Sleep::Waking => {}
            }
        }
        if self.durable.sleep.len() < before {
            self.save();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_ingress::Counters;

    #[test]
    fn what_counts_as_being_asked() {
        let (counters, own) = (Counters::default(), Counters::default());
        own.answered(503, Duration::ZERO);
        let series = |instance: Option<&str>, counters: &Counters| Series {
            service: Slug::new("shop").ok(),
            instance: instance.map(Into::into),
            counted: counters.read(),
        };
        let id = InstanceId::new("shop-1").unwrap();
        let now = |counters: &Counters| {
            Activity::of(&[series(None, &own), series(Some("shop-0"), &own), series(Some("shop-1"), counters)], &[&id])
        };
        assert_eq!(now(&counters), Activity::default(), "neither pages of the ingress nor instances that are gone");
        let mut last = now(&counters);
        let deeds: [fn(&Counters); 4] = [|to| to.answered(200, Duration::ZERO), |to| to.received(1), |to| to.sent(1), |to| to.open(1)];
        for deed in deeds {
            deed(&counters);
            let after = now(&counters);
            assert_ne!(after, last);
            last = after;
        }
    }
}
