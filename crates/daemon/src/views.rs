//! What the data plane and the probes are given: routes, zones, scene; all derived from the loop's state.

use crate::core::Core;
use moat_dns::{Asker, Forward, NameEntry, View, ViewId, Zones};
use moat_ingress::{Route, RouteState, Routes};
use moat_model::{Purpose, Slug};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

impl Core {
    /// Gives the ingress its routes and DNS its zones, and notes who has which address.
    pub(crate) fn publish_views(&mut self) {
        self.dataplane.set_routes(self.routes());
        self.publish_zones();
        self.names.clear();
        for service in self.desired.services.values() {
            if let Some(vip) = service.vip {
                self.names.insert(IpAddr::V4(vip.v4), service.slug.to_string());
                self.names.insert(IpAddr::V6(vip.v6), service.slug.to_string());
            }
        }
        for live in self.live.values() {
            let name = match live.purpose {
                Purpose::Build | Purpose::PreDeploy => format!("build of {}", live.slug),
                Purpose::Serve | Purpose::Cron | Purpose::Job => live.slug.to_string(),
            };
            self.names.insert(IpAddr::V4(live.address.v4), name.clone());
            self.names.insert(IpAddr::V6(live.address.v6), name);
        }
    }

    /// Who may ask which names.
    pub(crate) fn publish_zones(&self) {
        let view = moat_planner::policy::dns_view(&self.run_state(), &self.live_instances());
        let id = |n: usize| ViewId(u32::try_from(n).unwrap_or(u32::MAX));
        let views: HashMap<ViewId, View> = view
            .zones
            .into_iter()
            .enumerate()
            .map(|(n, names)| {
                let names: BTreeMap<Slug, NameEntry> = names
                    .into_iter()
                    .map(|name| (name.slug, NameEntry { service: name.vip, ready: name.ready.into_iter().collect(), hosts: name.hosts }))
                    .collect();
                (id(n), View::new(names))
            })
            .collect();
        let mut askers = HashMap::new();
        for asker in view.askers {
            let entry = Asker { view: id(asker.zone), forward: if asker.forward { Forward::All } else { Forward::None } };
            askers.insert(IpAddr::V4(asker.address.v4), entry);
            askers.insert(IpAddr::V6(asker.address.v6), entry);
        }
        self.dataplane.set_zones(Zones { askers, views });
    }

    fn routes(&self) -> Routes {
        let mut hosts = HashMap::new();
        for service in self.desired.services.values().filter(|s| s.kind.is_public()) {
            let mut upstreams: Vec<SocketAddr> = self
                .live
                .values()
                .filter(|l| l.slug == service.slug && l.purpose == Purpose::Serve && l.ready && !l.stopping)
                .filter_map(|l| Some(SocketAddr::new(l.address.v4.into(), l.http_port.or(service.port)?)))
                .collect();
            upstreams.sort();
            let state = if let Some(site) = self.sites.route(&service.slug) {
                site
            } else if upstreams.is_empty() {
                // The page is public: the phase only, never a command or a log line.
                let reason = self
                    .phases
                    .get(&service.slug)
                    .map_or_else(|| "it has not been started yet".to_owned(), |p| format!("its state is `{}`", p.phase.word()));
                RouteState::NoInstance { reason }
            } else {
                RouteState::Live
            };
            hosts.insert(Self::host_name(service), Route { service: service.slug.clone(), upstreams, state });
        }
        Routes { hosts }
    }
}
