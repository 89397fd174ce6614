//! What the packet filter and the name server decide by, made of the desired state and the instances that live.
//!
//! Invariant: for every pair of instances and every port, evaluating the policy gives what
//! [`verdict`](crate::reach::verdict) gives for their peers (a property test holds it).

use crate::reach::{End, judge, visible};
use crate::zones::build_zone;
use moat_model::net::RESERVED_PORTS;
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{AddressPair, DesiredState, Egress, InstanceId, LinkName, Peer, Purpose, Service, ServiceKind, Slug, ZoneId};
use std::collections::{BTreeMap, BTreeSet};

/// An instance that lives or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its service's slug.
    pub slug: Slug,
    /// What it runs for.
    pub purpose: Purpose,
    /// Its addresses.
    pub address: AddressPair,
    /// Whether it takes traffic by the service address and the discovery name.
    pub ready: bool,
    /// The HTTP port that was found; overrides [`Service::port`].
    pub http_port: Option<u16>,
}

impl LiveInstance {
    /// The peer it is: its service, or that service's build.
    pub fn peer(&self) -> Peer {
        if is_build(self.purpose) { Peer::Build(self.slug.clone()) } else { Peer::Service(self.slug.clone()) }
    }
}

const fn is_build(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::Build | Purpose::PreDeploy)
}

/// The service that an instance is one of: that of its slug, unless another service has taken the slug since.
fn service_of<'a>(state: &'a DesiredState, instance: &LiveInstance) -> Option<&'a Service> {
    let id = instance.id.as_str().rsplit_once('-').map_or("", |(service, _)| service);
    state.services.get(&instance.slug).filter(|service| service.id.as_str() == id)
}

/// The whole policy for what lives. Instances of services that the state does not have may open nothing and receive
/// nothing, but are known by name.
pub fn net_policy(state: &DesiredState, live: &[LiveInstance]) -> NetPolicy {
    let mut by_slug: BTreeMap<&Slug, Vec<&LiveInstance>> = BTreeMap::new();
    let mut strangers = Vec::new();
    for instance in live {
        if service_of(state, instance).is_some() {
            by_slug.entry(&instance.slug).or_default().push(instance);
        } else {
            strangers.push(instance);
        }
    }
    let mut sources: Vec<(InstanceId, SourceEntry)> = Vec::with_capacity(live.len());
    sources.extend(strangers.into_iter().filter_map(|i| Some((i.id.clone(), source_entry(None, i)?))));
    let mut receivers = Vec::with_capacity(live.len());
    let mut pairs = Vec::new();
    let mut ingress = Vec::new();
    for (slug, instances) in &by_slug {
        let service = state.services.get(*slug);
        sources.extend(instances.iter().filter_map(|i| Some((i.id.clone(), source_entry(service, i)?))));
        let Some(service) = service.filter(|s| s.kind.receives()) else { continue };
        for target in instances.iter().filter(|i| i.purpose == Purpose::Serve) {
            if let Some(allowed) = &service.allow_from {
                let named = allowed.iter().filter_map(|name| Some((state.services.get(name)?, by_slug.get(name)?)));
                for (source, instances) in named {
                    pairs.extend(instances.iter().filter(|i| may_open(source, i, service)).map(|i| (i.address, target.address)));
                }
            } else {
                receivers.push((service.zone, target.address));
                if service.kind.is_datastore() {
                    receivers.push((build_zone(service.zone), target.address));
                }
            }
            if service.kind == ServiceKind::Web
                && let Some(port) = target.http_port.or(service.port).filter(|port| !RESERVED_PORTS.contains(port))
            {
                ingress.push((target.address, port));
            }
            if service.kind.is_datastore()
                && service.public.open
                && let Some(port) = service.port
            {
                ingress.push((target.address, port));
            }
        }
    }
    let backends = |service: &Service| {
        let instances = by_slug.get(&service.slug).into_iter().flatten();
        instances.filter(|i| i.ready && i.purpose == Purpose::Serve).map(|i| i.address).collect()
    };
    NetPolicy {
        // Collected from vectors: building a tree of sorted items at once is much cheaper than inserting them.
        sources: sources.into_iter().collect(),
        receivers: receivers.into_iter().collect(),
        pairs: pairs.into_iter().collect(),
        ingress: ingress.into_iter().collect(),
        services: state.services.values().filter_map(|s| Some((s.vip?, backends(s)))).collect(),
        held: BTreeSet::new(),
    }
}

fn may_open(source: &Service, instance: &LiveInstance, target: &Service) -> bool {
    let from = if is_build(instance.purpose) { End::Build(source) } else { End::Service(source) };
    judge(from, End::Service(target), None).is_allowed()
}

/// `None` only for an instance id that holds no service id, which no engine hands out.
fn source_entry(service: Option<&Service>, instance: &LiveInstance) -> Option<SourceEntry> {
    let (zone, egress) = match service {
        Some(service) if is_build(instance.purpose) => {
            // A static site's build is in no zone: it reaches the internet and nothing else.
            ((service.kind != ServiceKind::Static).then(|| build_zone(service.zone)), Egress::Internet)
        }
        Some(service) if service.kind.sends() => (Some(service.zone), service.egress.clone()),
        Some(_) | None => (None, Egress::None),
    };
    let id = match service {
        Some(service) => service.id.clone(),
        None => instance.id.service()?,
    };
    Some(SourceEntry { link: LinkName::of(instance.address.v4), address: instance.address, zone, egress, service: id })
}

/// What the name server answers by: who asks, and what each may see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsView {
    /// Sets of names; askers that see the same share one.
    pub zones: Vec<Vec<DnsName>>,
    /// Who asks, one for each live instance that may ask at all.
    pub askers: Vec<DnsAsker>,
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// The label; `LABEL-discovery` is the other name.
    pub slug: Slug,
    /// What `LABEL` stands for.
    pub vip: AddressPair,
    /// What `LABEL-discovery` stands for: every ready instance.
    pub ready: BTreeSet<AddressPair>,
    /// The instances that have a host name of their own, ready or not, by that name.
    pub hosts: BTreeMap<String, AddressPair>,
}

/// Someone who asks, known by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsAsker {
    /// Its addresses.
    pub address: AddressPair,
    /// Index into [`DnsView::zones`].
    pub zone: usize,
    /// Whether other names are forwarded for it: those without egress have no use for them and could leak by them.
    pub forward: bool,
}

/// Who may resolve which names: those of the services that it may reach.
pub fn dns_view(state: &DesiredState, live: &[LiveInstance]) -> DnsView {
    let mut ready: BTreeMap<&Slug, BTreeSet<AddressPair>> = BTreeMap::new();
    let mut hosts: BTreeMap<&Slug, BTreeMap<String, AddressPair>> = BTreeMap::new();
    for instance in live.iter().filter(|i| i.purpose == Purpose::Serve) {
        if instance.ready {
            ready.entry(&instance.slug).or_default().insert(instance.address);
        }
        let Some(service) = service_of(state, instance) else { continue };
        let host = crate::plan::host_name(&service.workload, instance.purpose, &instance.id, &instance.slug);
        if host != instance.slug.as_str() {
            hosts.entry(&instance.slug).or_default().insert(host.to_owned(), instance.address);
        }
    }
    // Two askers of one zone see the same but for the services whose `allowFrom` names one of them.
    let mut allowed: BTreeMap<&Slug, Vec<&Slug>> = BTreeMap::new();
    for service in state.services.values() {
        for name in service.allow_from.iter().flatten() {
            allowed.entry(name).or_default().push(&service.slug);
        }
    }
    let mut view = DnsView::default();
    let mut seen: BTreeMap<(Option<ZoneId>, bool, &[&Slug]), usize> = BTreeMap::new();
    for instance in live {
        let Some(service) = service_of(state, instance) else { continue };
        let peer = instance.peer();
        if !is_build(instance.purpose) && !service.kind.sends() {
            continue;
        }
        let zone = (service.kind != ServiceKind::Static).then_some(service.zone);
        let class = (zone, is_build(instance.purpose), allowed.get(&instance.slug).map_or(&[][..], Vec::as_slice));
        let zone = *seen.entry(class).or_insert_with(|| {
            let names = visible(state, &peer).filter_map(|s| {
                Some(DnsName {
                    slug: s.slug.clone(),
                    vip: s.vip?,
                    ready: ready.get(&s.slug).cloned().unwrap_or_default(),
                    hosts: hosts.get(&s.slug).cloned().unwrap_or_default(),
                })
            });
            view.zones.push(names.collect());
            view.zones.len() - 1
        });
        let forward =
            judge(if is_build(instance.purpose) { End::Build(service) } else { End::Service(service) }, End::Internet, None).is_allowed();
        view.askers.push(DnsAsker { address: instance.address, zone, forward });
    }
    view
}
