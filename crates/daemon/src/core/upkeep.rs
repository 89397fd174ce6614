//! What happens by the clock: cron runs, repairs, denied flows.

use super::{Core, Msg};
use crate::protocol::DeniedFlow;
use jiff::{SignedDuration, Timestamp};
use moat_engine_linux::LinuxEngine;
use moat_model::{Endpoint, InstanceId, Peer, Proto, Purpose, ServiceKind, Slug, Verdict};
use moat_net_linux::Repairs;
use moat_store::EventKind;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Looks at the network after which idle flows are forgotten.
const SWEEP_AFTER: u32 = 10;
/// Looks at the network after which the host's firewall is looked at, which is read as a whole.
const FIREWALL_AFTER: u32 = 10;
/// A run whose time came while there was no daemon is made up for within this time.
const MISSED: SignedDuration = SignedDuration::from_hours(1);
/// A clock that goes back by so much was set to another time; by less, it was put right.
const SET_BACK: SignedDuration = SignedDuration::from_mins(1);
/// Between two looks at the network.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Gives instances that have lost their link a new one.
async fn reconnect(engine: &LinuxEngine, lost: BTreeSet<InstanceId>) -> Vec<(EventKind, String)> {
    let mut said = Vec::new();
    for id in lost {
        match engine.reconnect(&id).await {
            Ok(true) => said.push((EventKind::Repaired, format!("the link of `{id}` was gone: it is connected again"))),
            Ok(false) => {}
            Err(error) => said.push((EventKind::Problem, crate::chain(&error))),
        }
    }
    said
}

impl Core {
    /// Starts the task that looks after the network.
    pub(crate) fn start_upkeep(&self) -> tokio::task::JoinHandle<()> {
        let engine = self.engine.linux().cloned();
        let mends = self.mends;
        let (tx, probing, removed) = (self.tx.clone(), self.probing.clone(), self.removed.clone());
        tokio::spawn(async move {
            let Some(engine) = engine else { return };
            let network = engine.network();
            let mut probed = false;
            let mut looks = 0u32;
            let mut obstacles = Vec::new();
            let mut crowds = Vec::new();
            let mut tick = tokio::time::interval(UPKEEP_EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let removed = removed.lock().await;
                if *removed {
                    return;
                }
                if network.router_ns().is_err() {
                    continue;
                }
                if probing.now() {
                    // Addresses of the pretended neighbour are not the host's.
                    probed = true;
                    continue;
                }
                let mut said = Vec::new();
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(SWEEP_AFTER)
                    && let Err(error) = network.sweep().await
                {
                    said.push((EventKind::Problem, format!("idle flows could not be forgotten: {}", crate::chain(&error))));
                }
                if looks % FIREWALL_AFTER == 1
                    && let Ok(now) = network.egress_obstacles().await
                {
                    said.extend(now.iter().filter(|o| !obstacles.contains(*o)).map(|o| (EventKind::Problem, o.to_string())));
                    obstacles = now;
                }
                match network.refresh_host_addresses().await {
                    Ok(_) => {}
                    Err(error) => {
                        said.push((EventKind::Problem, format!("the host's addresses could not be read: {}", crate::chain(&error))));
                    }
                }
                match network.relieve().await {
                    Ok(found) => crowds.extend(found),
                    Err(error) => said.push((EventKind::Problem, format!("open flows could not be counted: {}", crate::chain(&error)))),
                }
                let looked = if mends {
                    match network.repair().await {
                        Ok(Repairs { done, lost }) => {
                            let repaired = done.into_iter().map(|text| (EventKind::Repaired, text));
                            Ok(repaired.chain(reconnect(&engine, lost).await).collect())
                        }
                        Err(error) => Err(error),
                    }
                } else {
                    let told = |found: Vec<_>| {
                        let what = format!("somebody changed the filter, and it is left so: {}", moat_net_linux::listing::summary(&found));
                        Vec::from_iter((!found.is_empty()).then_some((EventKind::Problem, what)))
                    };
                    network.foreign_changes().await.map(told)
                };
                match looked {
                    Ok(looked) => said.extend(looked),
                    Err(error) => said.push((EventKind::Problem, format!("a repair failed: {}", crate::chain(&error)))),
                }
                let denied = network.denied().await.unwrap_or_default();
                if probing.now() {
                    // A verification began meanwhile: the next look counts these.
                    probed = true;
                    continue;
                }
                if tx.send(Msg::Upkeep { said, denied, crowds: std::mem::take(&mut crowds), probes: std::mem::take(&mut probed) }).is_err()
                {
                    return;
                }
            }
        })
    }

    pub(super) fn upkeep(
        &mut self,
        said: Vec<(EventKind, String)>,
        denied: &[moat_net_linux::DeniedFlow],
        crowds: &[moat_net_linux::Crowd],
        probes: bool,
    ) {
        for crowd in crowds {
            let service = self.slug_of(crowd.source);
            let flows = crowd.flows;
            let text = format!(
                "it had {flows} flows open, which left little room for those of others in the kernel's table: they were ended, and it opens none for a minute"
            );
            self.tell(EventKind::Problem, service.as_ref(), text);
        }
        for (kind, text) in said {
            if self.last_said.as_ref() != Some(&text) {
                self.tell(kind, None, text.clone());
                self.last_said = Some(text);
            }
        }
        self.denied_now(denied, probes);
    }

    /// Denied flows with names.
    pub(super) fn denied_flows(&self) -> Vec<DeniedFlow> {
        let counted = self.denied.iter().filter(|(_, denied)| denied.packets() > 0);
        counted.map(|((from, to, proto, port), denied)| self.name_denied(*from, *to, *proto, *port, denied.packets())).collect()
    }

    pub(super) fn name_denied(&self, from: IpAddr, to: IpAddr, proto: u8, port: u16, packets: u64) -> DeniedFlow {
        let name = |address: IpAddr, peer: Option<&Peer>| match peer {
            Some(Peer::Build(slug)) => format!("build of {slug}"),
            Some(Peer::Service(slug)) => slug.to_string(),
            Some(Peer::Internet | Peer::Ingress | Peer::Host) | None => address.to_string(),
        };
        let (source, target) = (self.peer_of(from), self.peer_of(to));
        let because = match (&source, &target) {
            // Others are told with their port.
            (Some(_), _) if port == 0 && matches!(proto, 6 | 17 | 132) => "too-many-flows".to_owned(),
            (Some(a), Some(b)) => {
                let endpoint = match proto {
                    6 => Some(Endpoint { proto: Proto::Tcp, port }),
                    17 => Some(Endpoint { proto: Proto::Udp, port }),
                    _ => None,
                };
                match moat_planner::reach::verdict(&self.desired, a, b, endpoint) {
                    Verdict::Deny { because } => moat_planner::explain::reason_word(because).to_owned(),
                    Verdict::Allow { .. } => "not-ready".to_owned(),
                }
            }
            (None, _) => "spoofed-or-unknown-source".to_owned(),
            (Some(_), None) => "never-private-egress".to_owned(),
        };
        let proto = match proto {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            58 => "icmpv6".to_owned(),
            132 => "sctp".to_owned(),
            other => format!("protocol {other}"),
        };
        DeniedFlow { from: name(from, source.as_ref()), to: name(to, target.as_ref()), proto, port, packets, because }
    }

    pub(super) fn slug_of(&self, address: IpAddr) -> Option<Slug> {
        match self.peer_of(address)? {
            Peer::Service(slug) | Peer::Build(slug) => Some(slug),
            Peer::Internet | Peer::Ingress | Peer::Host => None,
        }
    }

    fn peer_of(&self, address: IpAddr) -> Option<Peer> {
        if let Some(live) = self.live.values().find(|l| l.address.contains(address)) {
            let slug = live.slug.clone();
            return Some(if matches!(live.purpose, Purpose::Build | Purpose::PreDeploy) { Peer::Build(slug) } else { Peer::Service(slug) });
        }
        self.desired.services.values().find(|s| s.vip.is_some_and(|vip| vip.contains(address))).map(|s| Peer::Service(s.slug.clone()))
    }

    /// Starts the cron runs that are due.
    pub(super) async fn run_due_cron(&mut self) {
        let now = self.engine.now();
        let seen = self.cron_seen.replace(now);
        // A clock that is set to the second brings no run twice.
        let set_back = seen.is_some_and(|seen| seen.duration_since(now) >= SET_BACK);
        let schedules: Vec<(Slug, String)> = self
            .durable
            .deployed
            .iter()
            .filter(|(slug, d)| d.service.kind == ServiceKind::Cron && d.good && self.desired.services.contains_key(*slug))
            .filter(|(slug, _)| !self.is_suspended(slug))
            .filter_map(|(slug, d)| Some((slug.clone(), d.service.workload.schedule()?.to_owned())))
            .collect();
        // What is not there any more, or rests, misses nothing.
        let before = self.durable.cron.clone();
        self.durable.cron.retain(|slug, _| schedules.iter().any(|(known, _)| known == slug));
        self.go_on_with_cron().await;
        for (slug, schedule) in schedules {
            let due = self.durable.cron.get(&slug).and_then(|cron| cron.at);
            if due.is_some_and(|due| due > now) && seen.is_some() && !set_back {
                continue;
            }
            let next = match crate::cron::next(&schedule, now) {
                // Further ahead than the schedule says it is after a clock that was ahead.
                Ok(next) => due.filter(|due| *due > now).map_or(next, |due| due.min(next)),
                Err(error) => {
                    self.notice(Some(&slug), error.to_string());
                    // Never due again until it is deployed anew.
                    Timestamp::MAX
                }
            };
            self.durable.cron.entry(slug.clone()).or_default().at = Some(next);
            if next < Timestamp::MAX {
                self.wake_in(next.duration_since(now).unsigned_abs() + Duration::from_millis(20));
            }
            // After the next time is noted: whoever comes after this daemon does not run it again.
            match due.filter(|due| *due <= now) {
                Some(due) if seen.is_none() && now.duration_since(due) > MISSED => {
                    self.notice(Some(&slug), format!("its run of {due} was missed: Moat did not run then"));
                }
                Some(_) => self.run_cron(&slug).await,
                None => {}
            }
        }
        if self.durable.cron != before {
            self.save();
        }
    }
}
