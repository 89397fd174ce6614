//! Following the load.

use super::{Core, Msg};
use crate::autoscale::{Load, Scaler};
use moat_engine_linux::Usage;
use moat_model::{InstanceId, Limits, Purpose, Slug};
use moat_store::EventKind;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at what instances use.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Core {
    /// Goes on with as many instances of services that follow their load as an earlier daemon left.
    pub(super) fn adopt_scale(&mut self) {
        for (slug, deployed) in &self.durable.deployed {
            let serves = |live: &&super::Live| live.slug == *slug && live.purpose == Purpose::Serve && !live.stopping;
            let running = u32::try_from(self.live.values().filter(serves).count()).unwrap_or(u32::MAX);
            if deployed.service.scaling.is_some() && running > 0 {
                self.scalers.entry(slug.clone()).or_insert_with(|| Scaler::new(running));
            }
        }
    }

    /// Measures the instances of services that follow their load, when it is time.
    pub(super) fn measure_use(&mut self) {
        if self.use_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let ids: Vec<InstanceId> = self.live.iter().filter(|(_, live)| self.is_measured(live)).map(|(id, _)| id.clone()).collect();
        if ids.is_empty() {
            self.use_due = Some(Instant::now() + LOOK_EVERY);
            return;
        }
        self.use_due = None;
        let (engine, tx) = (self.engine.clone(), self.tx.clone());
        tokio::spawn(async move {
            // What can't be read is looked at again.
            let found = engine.usage(ids).await.unwrap_or_default();
            let _ = tx.send(Msg::Used(found));
        });
    }

    fn is_measured(&self, live: &super::Live) -> bool {
        live.purpose == Purpose::Serve
            && !live.stopping
            && self.deployed(&live.slug).is_some_and(|deployed| deployed.service.scaling.is_some())
    }

    /// What instances use: services get as many as that asks for.
    pub(super) fn used(&mut self, found: &[(InstanceId, Usage)]) {
        let now = Instant::now();
        self.use_due = Some(now + LOOK_EVERY);
        let mut loads: BTreeMap<Slug, Vec<Load>> = BTreeMap::new();
        for (id, usage) in found {
            let Some(live) = self.live.get_mut(id) else { continue };
            let before = live.usage.replace((now, *usage));
            let (Some((then, before)), true) = (before, live.ready) else { continue };
            let slug = live.slug.clone();
            let Some(limits) = self.deployed(&slug).map(|deployed| deployed.service.limits) else { continue };
            loads.entry(slug).or_default().push(load(limits, before, *usage, now.saturating_duration_since(then)));
        }
        for (slug, loads) in loads {
            let deploying = self.deploys.contains_key(&slug);
            let Some((service, scaling)) =
                self.deployed(&slug).map(|deployed| &deployed.service).and_then(|service| Some((service, service.scaling?)))
            else {
                continue;
            };
            if deploying {
                // Instances come and go by themselves.
                continue;
            }
            let ready = u32::try_from(loads.len()).unwrap_or(u32::MAX);
            let count = f64::from(ready);
            let average = Load {
                cpu: loads.iter().map(|load| load.cpu).sum::<f64>() / count,
                memory: loads.iter().map(|load| load.memory).sum::<f64>() / count,
            };
            let start = service.instances;
            let scaler = self.scalers.entry(slug.clone()).or_insert_with(|| Scaler::new(start));
            if let Some(count) = scaler.take(&scaling, ready, average, now) {
                let used = format!("{:.0} % CPU and {:.0} % memory in use", average.cpu, average.memory);
                self.tell(EventKind::Scaled, Some(&slug), format!("scaled to {count}: {used} on average"));
            }
        }
    }
}

/// Per cent of the limits, over the time between two looks.
#[expect(clippy::cast_precision_loss, reason = "a share of at most some hundred per cent")]
fn load(limits: Limits, before: Usage, now: Usage, passed: Duration) -> Load {
    let micros = passed.as_micros().max(1) as f64 * f64::from(limits.cpu_millis.max(1)) / 1000.0;
    Load {
        cpu: 100.0 * now.cpu_micros.saturating_sub(before.cpu_micros) as f64 / micros,
        memory: 100.0 * now.memory_bytes as f64 / limits.memory_bytes.max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_limits_and_the_time_between() {
        let limits = Limits { memory_bytes: 1000, cpu_millis: 500, pids: 1 };
        let usage = |cpu_micros, memory_bytes| Usage { cpu_micros, memory_bytes };
        for (before, now, seconds, cpu, memory) in [
            (usage(0, 0), usage(5_000_000, 250), 10, 100.0, 25.0),
            (usage(1_000_000, 0), usage(2_000_000, 1000), 4, 50.0, 100.0),
            // A counter that went back (another group of the same name) is no load.
            (usage(9, 0), usage(3, 0), 1, 0.0, 0.0),
        ] {
            let load = load(limits, before, now, Duration::from_secs(seconds));
            assert!((load.cpu - cpu).abs() < 0.001 && (load.memory - memory).abs() < 0.001, "{load:?}");
        }
    }
}
