//! What the data plane and the probes are given: routes, zones, scene; all derived from the loop's state.

use crate::core::{Core, Live};
use crate::deploy::DeployPhase;
use crate::settings::Sleep;
use moat_dataplane::{Config, Host, HostState, Stamp};
use moat_dns::{Asker, Forward, NameEntry, View, ViewId, Zones};
use moat_model::{ProxyHeader, Purpose, Service, Slug};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

impl Core {
    /// Gives the ingress its routes and DNS its zones, and waits a while until they hold; whether they do.
    pub(crate) async fn publish_views(&mut self) -> bool {
        self.show_certificates();
        self.dataplane.log(self.durable.public.access_log);
        let instances = self.live.iter();
        let instances =
            instances.flat_map(|(id, live)| [(IpAddr::V4(live.address.v4), id.clone()), (IpAddr::V6(live.address.v6), id.clone())]);
        let config = Config {
            stamp: Stamp { generation: self.desired.generation, revision: 0 },
            hosts: self.hosts(),
            databases: self.database_hosts(),
            instances: instances.collect(),
            public: self.durable.public.public(),
            proofs: self.shown.proofs(),
            zones: self.zones(),
            resolvers: Vec::new(),
        };
        self.dataplane.publish(config).await
    }

    /// Who may ask which names.
    fn zones(&self) -> Zones {
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
        Zones { askers, views }
    }

    fn hosts(&self) -> BTreeMap<String, Host> {
        let mut hosts = BTreeMap::new();
        let to_https = self.to_https();
        for service in self.desired.services.values().filter(|s| s.kind.is_public()) {
            let serving = || self.live.values().filter(|l| l.slug == service.slug && l.purpose == Purpose::Serve && l.ready && !l.stopping);
            let address = |live: &Live| Some(SocketAddr::new(live.address.v4.into(), live.http_port.or(service.port)?));
            let mut upstreams: Vec<SocketAddr> = serving().filter_map(address).collect();
            upstreams.sort();
            let announced = serving().filter_map(|live| Some((address(live)?, self.proxy_header(live)?))).collect::<Vec<_>>();
            let state = if self.is_suspended(&service.slug) {
                HostState::Suspended
            } else if let Some((page, status)) = self.maintenance_answer(service) {
                HostState::Maintenance { page, status }
            } else if let Some(site) = self.sites.route(&service.slug) {
                site
            } else if upstreams.is_empty()
                && let Some(sleep) = self.durable.sleep.get(&service.slug)
            {
                match sleep {
                    Sleep::Asleep => HostState::Asleep,
                    Sleep::Waking => HostState::Held { reason: "it was asleep, and did not wake up in time".to_owned() },
                }
            } else if upstreams.is_empty() {
                // The page is public: the phase only, never a command or a log line.
                let reason = self
                    .phases
                    .get(&service.slug)
                    .map_or_else(|| "it has not been started yet".to_owned(), |p| format!("its state is `{}`", p.phase.word()));
                if self.is_between_instances(service) { HostState::Held { reason } } else { HostState::NoInstance { reason } }
            } else {
                HostState::Live
            };
            for (name, moved_to) in super::core::public_names(service) {
                let state = moved_to.map_or_else(|| state.clone(), |host| HostState::Moved { host });
                let (service, upstreams, allow) = (service.slug.clone(), upstreams.clone(), service.public.allow.clone());
                let (announced, https) = (announced.clone(), to_https(&name));
                hosts.insert(name, Host { service, upstreams, announced, state, allow, https });
            }
        }
        hosts
    }

    /// The PROXY header that an instance's server expects: as its own definition says, not as that of another which is deployed now.
    pub(crate) fn proxy_header(&self, live: &Live) -> Option<ProxyHeader> {
        let now = self.deployed(&live.slug);
        let before = self.deploys.get(&live.slug).and_then(|deploy| deploy.previous.as_ref());
        let own = [now, before].into_iter().flatten().find(|deployed| deployed.fingerprint() == live.fingerprint).or(now)?;
        own.service.public.proxy_header
    }

    /// Whether a service without a ready instance is about to have one again: one with a disk, whose old instance has to stop
    /// before the new one starts.
    fn is_between_instances(&self, service: &Service) -> bool {
        let slug = &service.slug;
        let Some(deployed) = self.deployed(slug) else { return false };
        let stops = || self.live.values().any(|l| l.slug == *slug && l.purpose == Purpose::Serve && l.stopping);
        let replaced = || self.deploys.get(slug).is_some_and(|deploy| deploy.phase == DeployPhase::Starting && deploy.previous.is_some());
        moat_planner::diff::is_exclusive(&deployed.service) && !self.closing.contains(slug) && (replaced() || stops())
    }
}
