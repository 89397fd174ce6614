//! Custom domains, and who may ask for a public service.

use super::plans::FREE;
use super::workspace::Workspace;
use crate::codes::{Code, Report};
use crate::names::quoted;
use ipnet::IpNet;
use moat_blueprint::spec::{AllowEntry, DatabaseSpec, ServiceSpec};
use moat_model::state::{Domain, Public};
use moat_model::{DesiredState, ServiceKind};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Names below this are given by Moat.
const OWN: &str = "localhost";

/// What a service's definition says of its public side; reading judged every value.
pub(crate) fn public(spec: &ServiceSpec, kind: ServiceKind) -> Public {
    if kind == ServiceKind::KeyValue {
        return datastore(spec.ip_allow_list.as_ref().map(|list| list.value.as_slice()));
    }
    if !kind.is_public() {
        return Public::default();
    }
    let listed: Vec<String> = spec.domains.iter().map(|domain| domain.value.to_ascii_lowercase()).collect();
    let domains = listed.iter().map(|name| Domain { name: name.clone(), moved_to: None });
    let others = listed.iter().filter_map(|name| {
        let other = other_of(name)?;
        (!listed.contains(&other)).then(|| Domain { name: other, moved_to: Some(name.clone()) })
    });
    Public {
        domains: domains.chain(others).collect(),
        no_subdomain: spec.subdomain_disabled.as_ref().is_some_and(|disabled| disabled.value) && !spec.domains.is_empty(),
        allow: spec.ip_allow_list.as_ref().map(|list| nets(&list.value)),
        free: kind == ServiceKind::Web && spec.plan.as_ref().is_some_and(|plan| plan.value == FREE),
        proxy_header: spec.moat.as_ref().filter(|_| kind == ServiceKind::Web).and_then(|moat| Some(moat.proxy_header.as_ref()?.value)),
        maintenance_page: spec
            .maintenance_mode
            .as_ref()
            .filter(|_| kind == ServiceKind::Web)
            .and_then(|mode| Some(mode.value.uri.as_ref()?.value.clone())),
        open: false,
    }
}

/// Who may come to a database from outside.
pub(crate) fn database(spec: &DatabaseSpec) -> Public {
    datastore(spec.ip_allow_list.as_ref().map(|list| list.value.as_slice()))
}

/// Who may come from outside where this machine lets anybody: whom it lists, so nobody unless it does.
fn datastore(listed: Option<&[AllowEntry]>) -> Public {
    Public { allow: listed.map(nets).filter(|list| !list.is_empty()), ..Public::default() }
}

fn nets(entries: &[AllowEntry]) -> Vec<IpNet> {
    let net = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
    entries.iter().filter_map(|entry| net(&entry.source.value)).collect()
}

/// `NAME` for `www.NAME`, and the reverse where the name is a domain of its own and not a part of one: it has two labels, or
/// three of which the last two look like `co.uk`.
fn other_of(name: &str) -> Option<String> {
    if name.starts_with("*.") {
        return None;
    }
    if let Some(root) = name.strip_prefix("www.") {
        return root.contains('.').then(|| root.to_owned());
    }
    let labels: Vec<&str> = name.split('.').collect();
    let is_root = match labels[..] {
        [_, _] => true,
        [_, second, top] => top.len() == 2 && second.len() <= 3,
        _ => false,
    };
    is_root.then(|| format!("www.{name}"))
}

/// Sees to it that each name leads to one service: two that list the same are told, and a pair's other name is whose who lists it.
pub(crate) fn settle(workspace: &Workspace<'_>, state: &mut DesiredState, report: &mut Report) {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for entry in workspace.entries.iter().filter(|entry| entry.runs() && entry.kind().is_some_and(ServiceKind::is_public)) {
        for domain in &entry.spec.domains {
            let name = domain.value.to_ascii_lowercase();
            let place = format!("{}/domains", entry.spec.pointer);
            if name == OWN || name.ends_with(&format!(".{OWN}")) {
                let message = format!("{} can't be a custom domain", quoted(&domain.value));
                let help = format!("names below `{OWN}` are given by Moat: remove it");
                report.say(entry.input, Code::E0314, domain.span, &place, message, help);
            } else if let Some(owner) = owners.get(&name) {
                let message = format!("the domain {} belongs to {} already", quoted(&domain.value), quoted(owner));
                let help = "a domain leads to one service: remove it from one of them".to_owned();
                report.say(entry.input, Code::E0314, domain.span, &place, message, help);
            } else {
                owners.insert(name, entry.spec.name.value.as_str());
            }
        }
    }
    let mut taken: std::collections::BTreeSet<String> = owners.into_keys().collect();
    for service in state.services.values_mut() {
        service.public.domains.retain(|domain| domain.moved_to.is_none() || taken.insert(domain.name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        for (name, other) in [
            ("www.example.com", Some("example.com")),
            ("example.com", Some("www.example.com")),
            ("example.co.uk", Some("www.example.co.uk")),
            ("www.shop.example.com", Some("shop.example.com")),
            ("shop.example.com", None),
            ("shop.example.io", None),
            ("a.b.co.uk", None),
            ("*.example.com", None),
            ("www.com", None),
        ] {
            assert_eq!(other_of(name).as_deref(), other, "{name}");
        }
    }
}
