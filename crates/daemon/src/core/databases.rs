//! Databases and Key Values that clients from outside come to: which ones, by which names, and who.
//!
//! Invariant: one is open only while this machine is set so (`moat ingress postgres=`, `keyvalue=`) and its `ipAllowList` names
//! somebody.

use super::Core;
use super::public::subdomain;
use moat_dataplane::{DatabaseHost, Doors};
use moat_ingress::{Access, Login};
use moat_model::state::Workload;
use moat_model::{Purpose, Secret, Service, ServiceKind};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Where clients from outside come to a service of this kind, if anywhere.
const fn door(doors: Doors<SocketAddr>, kind: ServiceKind) -> Option<SocketAddr> {
    match kind {
        ServiceKind::Postgres => doors.postgres,
        ServiceKind::KeyValue => doors.keyvalue,
        ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::Cron | ServiceKind::Static => None,
    }
}

impl Core {
    /// Says of each database of the desired state whether clients from outside come to it.
    pub(super) fn open_databases(&mut self) {
        let doors = self.durable.public.doors();
        for service in self.desired.services.values_mut().filter(|service| service.kind.is_datastore()) {
            let names_somebody = service.public.allow.as_ref().is_some_and(|allow| !allow.is_empty());
            service.public.open = door(doors, service.kind).is_some() && names_somebody;
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
            let access = match self.outside_password(service) {
                Some(password) => Access::KeyValue(Login::new(service.id.as_str(), password.expose())),
                None if service.kind == ServiceKind::Postgres => Access::Postgres,
                // Nobody comes to what can't ask for a password.
                None => continue,
            };
            let ready = self
                .live
                .values()
                .filter(|live| live.slug == service.slug && live.purpose == Purpose::Serve && live.ready && !live.stopping);
            let upstreams = ready.filter_map(|live| Some(SocketAddr::new(live.address.v4.into(), service.port?))).collect();
            let allow = service.public.allow.clone().unwrap_or_default();
            hosts.insert(subdomain(service), DatabaseHost { service: service.slug.clone(), access, upstreams, allow });
        }
        hosts
    }

    /// What the ingress asks clients of a Key Value for, whose own server has no password.
    fn outside_password(&self, service: &Service) -> Option<&Secret> {
        self.durable.memory.outside_password(&service.slug).filter(|_| service.kind == ServiceKind::KeyValue)
    }

    /// Where people from outside find a database that is open; its password is not in it.
    pub(super) fn database_url(&self, service: &Service) -> Option<String> {
        self.outside_url(service, None)
    }

    /// How services and people from outside connect to a database, with its password, by name.
    pub(super) fn database_urls(&self, service: &Service) -> Vec<(&'static str, Secret)> {
        let (inside, password) = match &service.workload {
            Workload::Postgres(server) => {
                let password = server.password.expose();
                (format!("postgresql://{}:{password}@{}/{}", server.user, service.slug, server.database), Some(&server.password))
            }
            Workload::KeyValue(_) => {
                (format!("redis://{}:{}", service.slug, service.port.unwrap_or_default()), self.outside_password(service))
            }
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => return Vec::new(),
        };
        let outside = password.and_then(|password| self.outside_url(service, Some(password)));
        let outside = outside.map(|url| ("EXTERNAL_URL", Secret::new(url)));
        [("INTERNAL_URL", Secret::new(inside))].into_iter().chain(outside).collect()
    }

    fn outside_url(&self, service: &Service, password: Option<&Secret>) -> Option<String> {
        let at = door(self.durable.public.doors(), service.kind).filter(|_| service.public.open)?;
        let password = password.map(|password| format!(":{}", password.expose())).unwrap_or_default();
        let (name, port) = (subdomain(service), at.port());
        match &service.workload {
            Workload::Postgres(server) => {
                Some(format!("postgresql://{}{password}@{name}:{port}/{}?sslmode=verify-full", server.user, server.database))
            }
            Workload::KeyValue(_) => Some(format!("rediss://{}{password}@{name}:{port}", service.id)),
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => None,
        }
    }
}
