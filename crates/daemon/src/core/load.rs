//! What services do and use, for people and for Prometheus.

use super::Core;
use super::requests::{Reply, end};
use crate::metrics;
use crate::protocol::{Counted, Event, InstanceLoad, Load, ServiceLoad};
use moat_dataplane::message::Measures;
use moat_engine_linux::Usage;
use moat_ingress::Series;
use moat_model::{InstanceId, Slug};
use std::collections::{BTreeMap, HashMap};

impl Core {
    /// Answers with the numbers of now; as text, the way Prometheus reads them.
    pub(super) fn tell_load(&self, as_text: bool, reply: Reply) {
        let mut services: BTreeMap<Slug, ServiceLoad> = BTreeMap::new();
        for service in self.desired.services.values() {
            let phase = self.phases.get(&service.slug).map(|state| state.phase);
            let mut load = empty(service.slug.clone());
            (load.kind, load.phase, load.limits) = (Some(service.kind), phase, Some(service.limits));
            services.insert(service.slug.clone(), load);
        }
        let mut ids: Vec<InstanceId> = Vec::new();
        for (id, live) in &self.live {
            let service = services.entry(live.slug.clone()).or_insert_with(|| empty(live.slug.clone()));
            service.instances.push(InstanceLoad {
                id: id.to_string(),
                live: true,
                ready: live.ready && !live.stopping,
                usage: None,
                counted: Counted::default(),
            });
            ids.push(id.clone());
        }
        let (engine, measures) = (self.engine.clone(), self.dataplane.measure());
        tokio::spawn(async move {
            // What can't be read is not shown.
            let usage = engine.usage(ids).await.unwrap_or_default();
            let load = joined(services, usage, measures.await);
            let _ = reply.send(if as_text { Event::Metrics { text: metrics::text(load) } } else { Event::Load(Box::new(load)) });
            end(&reply, None);
        });
    }
}

fn empty(service: Slug) -> ServiceLoad {
    ServiceLoad { service, kind: None, phase: None, limits: None, own: Counted::default(), visits: None, instances: Vec::new() }
}

fn joined(mut services: BTreeMap<Slug, ServiceLoad>, usage: Vec<(InstanceId, Usage)>, measures: Option<Measures>) -> Load {
    let usage: HashMap<String, Usage> = usage.into_iter().map(|(id, usage)| (id.to_string(), usage)).collect();
    for instance in services.values_mut().flat_map(|service| &mut service.instances) {
        instance.usage = usage.get(&instance.id).map(|usage| (usage.cpu_micros, usage.memory_bytes));
    }
    let mut load =
        Load { at_micros: since_begin(), counted: measures.is_some(), version: env!("CARGO_PKG_VERSION").to_owned(), ..Load::default() };
    let Measures { series, connections, log_lines, traces, visits } = measures.unwrap_or_default();
    (load.connections, load.log_lines, load.traces) = (connections, log_lines, traces);
    for Series { service, instance, counted } in series {
        let Some(slug) = service else {
            load.nobody = counted;
            continue;
        };
        let service = services.entry(slug.clone()).or_insert_with(|| empty(slug));
        match instance {
            None => service.own = counted,
            Some(id) => match service.instances.iter_mut().find(|instance| *instance.id == *id) {
                Some(instance) => instance.counted = counted,
                None => service.instances.push(InstanceLoad { id: id.to_string(), live: false, ready: false, usage: None, counted }),
            },
        }
    }
    for (slug, visited) in visits {
        services.entry(slug.clone()).or_insert_with(|| empty(slug)).visits = Some(visited);
    }
    load.services = services.into_values().collect();
    load
}

/// Microseconds since the first call.
fn since_begin() -> u64 {
    static BEGAN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    u64::try_from(BEGAN.elapsed().as_micros()).unwrap_or(u64::MAX)
}
