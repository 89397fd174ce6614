//! The policy and the names against the verdict: a tiny evaluator, every pair of instances, every kind of port.

use super::support::{Addresses, peer, state};
use moat_model::net::RESERVED_PORTS;
use moat_model::policy::NetPolicy;
use moat_model::{AddressPair, DesiredState, Egress, Endpoint, InstanceId, Peer, Proto, Purpose, RuleId, Verdict};
use moat_planner::policy::{LiveInstance, dns_view, net_policy};
use moat_planner::reach::{verdict, visible};
use std::collections::BTreeSet;

/// Whether the filter lets a source open a flow to an instance's address: what an engine has to make of a policy.
pub fn permits(policy: &NetPolicy, from: &InstanceId, to: AddressPair, port: u16) -> bool {
    let Some(source) = policy.sources.get(from) else { return false };
    if RESERVED_PORTS.contains(&port) {
        return false;
    }
    source.zone.is_some_and(|zone| policy.receivers.contains(&(zone, to))) || policy.pairs.contains(&(source.address, to))
}

/// The ports to ask about: usual ones, edges, reserved ones.
pub const PORTS: [u16; 11] = [1, 80, 443, 3000, 5432, 6379, 10000, 18012, 18013, 19099, 65535];

/// The peer an instance is as a target: nothing but a serving instance takes flows.
fn target(instance: &LiveInstance) -> Option<Peer> {
    (instance.purpose == Purpose::Serve).then(|| instance.peer())
}

/// Panics where the policy and the verdict differ.
pub fn agree(state: &DesiredState, live: &[LiveInstance]) {
    let policy = net_policy(state, live);
    for from in live {
        for to in live {
            for (port, proto) in PORTS.into_iter().flat_map(|port| [(port, Proto::Tcp), (port, Proto::Udp)]) {
                let expected = target(to).is_some_and(|to| verdict(state, &from.peer(), &to, Some(Endpoint { proto, port })).is_allowed());
                let found = permits(&policy, &from.id, to.address, port);
                assert_eq!(found, expected, "{} ({:?}) → {} ({:?}):{port}/{proto}", from.slug, from.purpose, to.slug, to.purpose);
            }
        }
        let egress = policy.sources.get(&from.id).map_or(&Egress::None, |s| &s.egress);
        let expected = match verdict(state, &from.peer(), &Peer::Internet, None) {
            Verdict::Allow { by: RuleId::DefaultEgress } => Egress::Internet,
            Verdict::Allow { .. } => state.services[&from.slug].egress.clone(),
            Verdict::Deny { .. } => Egress::None,
        };
        assert_eq!(*egress, expected, "{}", from.slug);
    }
    for to in live {
        for port in PORTS {
            let tcp = Endpoint { proto: Proto::Tcp, port };
            let expected = target(to).is_some_and(|to| verdict(state, &Peer::Ingress, &to, Some(tcp)).is_allowed());
            assert_eq!(policy.ingress.contains(&(to.address, port)), expected, "ingress → {}:{port}", to.slug);
        }
    }
    assert_eq!(policy.sources.len(), live.len());
    for service in state.services.values() {
        let ready: BTreeSet<AddressPair> =
            live.iter().filter(|i| i.ready && i.slug == service.slug && i.purpose == Purpose::Serve).map(|i| i.address).collect();
        assert_eq!(service.vip.map(|vip| policy.services[&vip].clone()), service.vip.map(|_| ready));
        assert_eq!(service.vip.is_some(), service.kind.receives());
    }
    names_agree(state, live);
}

fn names_agree(state: &DesiredState, live: &[LiveInstance]) {
    let view = dns_view(state, live);
    for instance in live {
        let expected: BTreeSet<&str> = visible(state, &instance.peer()).map(|s| s.slug.as_str()).collect();
        let asker = view.askers.iter().find(|a| a.address == instance.address);
        let found: BTreeSet<&str> = asker.map(|a| view.zones[a.zone].iter().map(|n| n.slug.as_str()).collect()).unwrap_or_default();
        assert_eq!(found, expected, "{} ({:?})", instance.slug, instance.purpose);
        // Every serving instance of what it sees has a name of its own, but for those of which there is one at a time.
        let hosts = |name: &moat_planner::policy::DnsName| name.hosts.iter().map(|(host, at)| (host.clone(), *at)).collect::<Vec<_>>();
        let shown: BTreeSet<(String, AddressPair)> = asker.map(|a| view.zones[a.zone].iter().flat_map(hosts).collect()).unwrap_or_default();
        let named = |other: &&LiveInstance| {
            let service = &state.services[&other.slug];
            other.purpose == Purpose::Serve && !service.kind.is_datastore() && service.workload.disk().is_none()
        };
        let named: BTreeSet<(String, AddressPair)> = live
            .iter()
            .filter(|other| expected.contains(other.slug.as_str()))
            .filter(named)
            .map(|other| (other.id.to_string(), other.address))
            .collect();
        assert_eq!(shown, named, "host names that {} sees", instance.slug);
        let egress = verdict(state, &instance.peer(), &Peer::Internet, None).is_allowed();
        assert_eq!(asker.is_some_and(|a| a.forward), egress, "{}", instance.slug);
    }
}

const MIXED: &str = "
services:
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: web, name: admin, runtime: python, buildCommand: b, startCommand: s, envVars: [{key: PORT, value: 3000}], x-moat: {egress: none}}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [shop, mailer, digest, far, secret]}}
  - {type: pserv, name: far, region: ohio, runtime: python, buildCommand: b, startCommand: s, x-moat: {egress: [203.0.113.0/24, '2001:db8::/32']}}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: cron, name: digest, runtime: python, buildCommand: b, startCommand: s, schedule: '* * * * *'}
  - {type: keyvalue, name: queue, ipAllowList: []}
  - {type: keyvalue, name: vault, ipAllowList: [], x-moat: {allowFrom: [shop]}}
projects:
  - name: p
    environments:
      - name: prod
        networking: {isolation: enabled}
        services:
          - {type: pserv, name: secret, runtime: python, buildCommand: b, startCommand: s}
          - {type: worker, name: inside, runtime: python, buildCommand: b, startCommand: s}
          - {type: keyvalue, name: hidden, ipAllowList: []}
        databases:
          - {name: ledger}
databases:
  - {name: orders}
  - {name: far-orders, region: ohio}
";

#[test]
fn the_policy_is_the_verdict() {
    let state = state(MIXED);
    let live = Addresses::default().all(&state);
    assert!(live.len() > 40);
    agree(&state, &live);
}

#[test]
fn a_database_is_open_to_the_ingress_where_this_machine_and_its_list_say_so() {
    let mut state = state(&MIXED.replace("{name: orders}", "{name: orders, ipAllowList: [{source: 192.0.2.0/24}]}"));
    let live = Addresses::default().all(&state);
    let tcp = |port| Some(Endpoint { proto: Proto::Tcp, port });
    let (orders, other) = (peer("orders"), peer("far-orders"));
    assert!(!verdict(&state, &Peer::Internet, &orders, tcp(5432)).is_allowed(), "a list alone opens nothing");
    assert_eq!(state.services["orders"].public.allow, Some(vec!["192.0.2.0/24".parse().unwrap()]));
    assert_eq!(state.services["far-orders"].public.allow, None);
    state.services.get_mut("orders").unwrap().public.open = true;
    agree(&state, &live);
    for (from, rule) in [(Peer::Internet, RuleId::PublicDatabase), (Peer::Ingress, RuleId::DatabaseIngress)] {
        for port in [None, tcp(5432)] {
            assert_eq!(verdict(&state, &from, &orders, port), Verdict::Allow { by: rule }, "{from} {port:?}");
        }
        for (to, port) in
            [(&orders, tcp(80)), (&orders, tcp(18012)), (&orders, Some(Endpoint { proto: Proto::Udp, port: 5432 })), (&other, tcp(5432))]
        {
            assert!(!verdict(&state, &from, to, port).is_allowed(), "{from} {to} {port:?}");
        }
    }
    assert!(!verdict(&state, &Peer::Host, &orders, tcp(5432)).is_allowed());
}

#[test]
fn a_key_value_is_open_to_the_ingress_where_this_machine_and_its_list_say_so() {
    let listed = "{type: keyvalue, name: vault, ipAllowList: [{source: 192.0.2.0/24}], x-moat: {allowFrom: [shop]}}";
    let mut state = state(&MIXED.replace("{type: keyvalue, name: vault, ipAllowList: [], x-moat: {allowFrom: [shop]}}", listed));
    let live = Addresses::default().all(&state);
    let tcp = |port| Some(Endpoint { proto: Proto::Tcp, port });
    let (vault, other) = (peer("vault"), peer("queue"));
    assert!(!verdict(&state, &Peer::Internet, &vault, tcp(6379)).is_allowed(), "a list alone opens nothing");
    assert_eq!(state.services["vault"].public.allow, Some(vec!["192.0.2.0/24".parse().unwrap()]));
    assert_eq!(state.services["queue"].public.allow, None, "an empty list is nobody");
    let before = state.services["vault"].fingerprint.clone();
    state.services.get_mut("vault").unwrap().public.open = true;
    agree(&state, &live);
    for (from, rule) in [(Peer::Internet, RuleId::PublicDatabase), (Peer::Ingress, RuleId::DatabaseIngress)] {
        for port in [None, tcp(6379)] {
            assert_eq!(verdict(&state, &from, &vault, port), Verdict::Allow { by: rule }, "{from} {port:?}");
        }
        for (to, port) in
            [(&vault, tcp(80)), (&vault, tcp(26379)), (&vault, Some(Endpoint { proto: Proto::Udp, port: 6379 })), (&other, None)]
        {
            assert!(!verdict(&state, &from, to, port).is_allowed(), "{from} {to} {port:?}");
        }
    }
    for from in [Peer::Host, peer("mailer"), peer("queue")] {
        assert!(!verdict(&state, &from, &vault, tcp(6379)).is_allowed(), "{from}: `allowFrom` holds inside");
    }
    assert_eq!(state.services["vault"].fingerprint, before);
}

#[test]
fn instances_of_nothing_are_known_and_shut_in() {
    let all = state(MIXED);
    let live = Addresses::default().all(&all);
    let mut fewer = all.clone();
    fewer.services.retain(|slug, _| slug.as_str() == "shop");
    agree(&fewer, &live);
    let policy = net_policy(&fewer, &live);
    let orphan = live.iter().find(|i| i.slug.as_str() == "mailer").unwrap();
    let entry = &policy.sources[&orphan.id];
    assert_eq!((entry.zone, &entry.egress, &entry.service), (None, &Egress::None, &all.services["mailer"].id));
}

#[test]
fn found_ports_are_the_ingress() {
    let state = state(MIXED);
    let mut addresses = Addresses::default();
    let mut live = addresses.live(&state.services["shop"], Purpose::Serve, true);
    live.http_port = Some(4000);
    assert_eq!(net_policy(&state, std::slice::from_ref(&live)).ingress, BTreeSet::from([(live.address, 4000)]));
    live.http_port = Some(18012);
    assert_eq!(net_policy(&state, std::slice::from_ref(&live)).ingress, BTreeSet::new(), "never a reserved one");
}

#[test]
fn askers_that_see_the_same_share_a_zone() {
    let state = state(MIXED);
    let live = Addresses::default().all(&state);
    let view = dns_view(&state, &live);
    assert!(view.zones.len() <= 12, "{} zones for {} askers", view.zones.len(), view.askers.len());
    assert!(visible(&state, &peer("mailer")).all(|s| s.slug.as_str() != "vault"));
}
