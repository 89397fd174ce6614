//! Databases that clients from outside come to: which ones, by which names, and who.
//!
//! Invariant: a database is open only while this machine is set so (`moat ingress postgres=`) and its `ipAllowList` names
//! somebody.

use super::Core;
use super::public::subdomain;
use moat_dataplane::DatabaseHost;
use moat_model::state::Workload;
use moat_model::{Purpose, Secret, Service, ServiceKind};
use std::collections::BTreeMap;
use std::net::SocketAddr;

impl Core {
    /// Says of each database of the desired state whether clients from outside come to it.
    pub(super) fn open_databases(&mut self) {
        let on = self.durable.public.postgres.is_some();
        for service in self.desired.services.values_mut().filter(|service| service.kind == ServiceKind::Postgres) {
            service.public.open = on && service.public.allow.as_ref().is_some_and(|allow| !allow.is_empty());
        }
    }

    /// The host names of databases that are open.
    pub(super) fn database_names(&self) -> impl Iterator<Item = String> + '_ {
        self.desired.services.values().filter(|service| service.public.open).map(subdomain)
    }

    /// What the ingress does with clients of databases.
    pub(crate) fn database_hosts(&self) -> BTreeMap<String, DatabaseHost> {
        let mut hosts = BTreeMap::new();
        for service in self.desired.services.values().filter(|service| service.public.open) {
            let ready = self
                .live
                .values()
                .filter(|live| live.slug == service.slug && live.purpose == Purpose::Serve && live.ready && !live.stopping);
            let upstreams = ready.filter_map(|live| Some(SocketAddr::new(live.address.v4.into(), service.port?))).collect();
            let allow = service.public.allow.clone().unwrap_or_default();
            hosts.insert(subdomain(service), DatabaseHost { service: service.slug.clone(), upstreams, allow });
        }
        hosts
    }

    /// Where people from outside find a database that is open; its password is not in it.
    pub(super) fn database_url(&self, service: &Service) -> Option<String> {
        self.outside_url(service, None)
    }

    /// How services and people from outside connect to a database, with its password, by name.
    pub(super) fn database_urls(&self, service: &Service) -> Vec<(&'static str, Secret)> {
        let Workload::Postgres(server) = &service.workload else { return Vec::new() };
        let password = server.password.expose();
        let inside = format!("postgresql://{}:{password}@{}/{}", server.user, service.slug, server.database);
        let outside = self.outside_url(service, Some(password)).map(|url| ("EXTERNAL_URL", Secret::new(url)));
        [("INTERNAL_URL", Secret::new(inside))].into_iter().chain(outside).collect()
    }

    fn outside_url(&self, service: &Service, password: Option<&str>) -> Option<String> {
        let at = self.durable.public.postgres.filter(|_| service.public.open)?;
        let Workload::Postgres(server) = &service.workload else { return None };
        let password = password.map(|password| format!(":{password}")).unwrap_or_default();
        let (name, port) = (subdomain(service), at.port());
        Some(format!("postgresql://{}{password}@{name}:{port}/{}?sslmode=verify-full", server.user, server.database))
    }
}
