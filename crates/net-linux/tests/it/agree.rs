//! Three readings of a policy agree: the policy itself, the tracer over what it lowers to, and the kernel's `nft`.

use crate::golden::facts;
use crate::life::{listing, load};
use crate::world::{ULA, on_a_machine, vip};
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{AddressPair, Egress, InstanceId, LinkName, NetworkId, ServiceId, ZoneId};
use moat_net_linux::lower::{check, difference, full, replace, transaction};
use moat_net_linux::trace::trace;
use moat_net_linux::{FlowKind, Origin, Outcome, Packet, decide, ns};
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::net::IpAddr;

fn at(offset: u16) -> AddressPair {
    NetworkId::new(0).unwrap().instance(ULA, offset)
}

fn instances() -> impl Strategy<Value = AddressPair> {
    (1..7u16).prop_map(at)
}

fn egress() -> impl Strategy<Value = Egress> {
    let range = prop::sample::select(vec![
        "1.0.0.0/8",
        "1.1.1.0/24",
        "1.1.1.1/32",
        "2606:4700::/32",
        "0.0.0.0/0",
        "::/0",
        "192.168.0.0/16",
        "1.1.1.77/24",
    ])
    .prop_map(|text| text.parse().unwrap());
    prop_oneof![Just(Egress::None), Just(Egress::Internet), btree_set(range, 0..4).prop_map(Egress::Ranges)]
}

fn policies() -> impl Strategy<Value = NetPolicy> {
    let zones = || (0..3u32).prop_map(ZoneId);
    let sources = btree_map(1..7u16, (prop::option::of(zones()), egress()), 0..6);
    let services = btree_map((1..5u16).prop_map(vip), btree_set(instances(), 0..4), 0..4);
    (
        sources,
        btree_set((zones(), instances()), 0..8),
        btree_set((instances(), instances()), 0..5),
        btree_set((instances(), prop::sample::select(vec![80u16, 10000])), 0..4),
        services,
        btree_set((1..5u16).prop_map(vip), 0..3),
    )
        .prop_map(|(sources, receivers, pairs, ingress, services, held)| NetPolicy {
            held,
            sources: sources
                .into_iter()
                .map(|(offset, (zone, egress))| {
                    let entry = SourceEntry {
                        link: LinkName::of(at(offset).v4),
                        address: at(offset),
                        zone,
                        egress,
                        service: ServiceId::new("srv-a").unwrap(),
                    };
                    (InstanceId::new(format!("srv-{offset}")).unwrap(), entry)
                })
                .collect(),
            receivers,
            pairs,
            ingress,
            services,
        })
}

/// Addresses that mean something, of one family.
fn addresses(v6: bool) -> Vec<IpAddr> {
    let pairs = (1..8).map(at).chain((1..6).map(vip));
    let own = pairs.map(|pair| if v6 { IpAddr::V6(pair.v6) } else { IpAddr::V4(pair.v4) });
    let others = [
        "1.1.1.1",
        "1.2.3.4",
        "8.8.8.8",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.1.1",
        "203.0.113.5",
        "100.127.240.1",
        "100.127.240.2",
        "127.0.0.1",
        "10.64.200.1",
        "224.0.0.1",
    ];
    let others6 = [
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "fd00:ec2::254",
        "fe80::1",
        "2001:db8::5",
        "fd00:1:2::1",
        "fd00:1:2::2",
        "::1",
        "ff02::1",
    ];
    own.chain(if v6 {
        others6.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()
    } else {
        others.iter().map(|text| text.parse().unwrap()).collect()
    })
    .collect()
}

fn packets() -> impl Strategy<Value = Packet> {
    any::<bool>().prop_flat_map(|v6| {
        let address = move || prop::sample::select(addresses(v6));
        let own = move || instances().prop_map(move |pair| if v6 { IpAddr::V6(pair.v6) } else { IpAddr::V4(pair.v4) });
        let origin = prop_oneof![6 => (1..8u16).prop_map(|offset| Origin::Link(LinkName::of(at(offset).v4))), 1 => Just(Origin::Uplink), 1 => Just(Origin::Router)];
        let state = prop_oneof![
            4 => Just(FlowKind::New),
            2 => prop::option::of(own()).prop_map(|translated| FlowKind::Opener { translated }),
            2 => prop::option::of(own()).prop_map(|translated| FlowKind::Reply { translated }),
            1 => (own(), own()).prop_map(|(opener, responder)| FlowKind::Error { opener, responder }),
            1 => Just(FlowKind::Invalid),
        ];
        let proto = prop::sample::select(vec![6u8, 17, 132, if v6 { 58 } else { 1 }, 47]);
        let port = prop::sample::select(vec![80u16, 53, 10000, 18012, 19099]);
        let kind = prop::sample::select(vec![8u8, 128, 0, 3, 1, 2, 5, 11, 134, 137]);
        (origin, address(), address(), proto, port, kind, state, 0..4usize, any::<bool>()).prop_map(move |(origin, source, destination, proto, port, icmp_type, state, turn, honest)| {
            // Most packets carry their own source, or nothing would get past the first rule.
            let source = match &origin {
                Origin::Link(link) if honest => {
                    let pair = (1..8).map(at).find(|pair| LinkName::of(pair.v4) == *link).unwrap();
                    if v6 { pair.v6.into() } else { pair.v4.into() }
                }
                _ => source,
            };
            // Nobody opens a flow from the uplink, so connection tracking translates no such packet.
            let state = match state {
                FlowKind::Opener { .. } if origin == Origin::Uplink => FlowKind::Opener { translated: None },
                other => other,
            };
            Packet { origin, source, destination, proto, port, icmp_type, state, turn }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_tracer_over_the_ruleset_says_what_the_policy_says(policy in policies(), packets in prop::collection::vec(packets(), 1..12)) {
        prop_assume!(check(&policy).is_ok());
        let ruleset = full(&facts(), &policy);
        for packet in packets {
            let traced = trace(&ruleset, &packet);
            let expected = decide::decide(&facts(), &policy, &packet);
            prop_assert_eq!(&traced.outcome, &expected, "{:?}\n{}", packet, traced.steps.join("\n"));
            if let Outcome::Instance { address, .. } = &expected {
                prop_assert!(policy.sources.values().any(|entry| entry.address.contains(*address)), "only listed instances receive");
            }
        }
    }

    #[test]
    fn the_difference_lowers_to_the_whole_transaction(old in policies(), new in policies()) {
        let (gone, come) = difference(&old, &new);
        let whole = transaction(&full(&facts(), &old), &full(&facts(), &new));
        prop_assert_eq!(transaction(&full(&facts(), &gone), &full(&facts(), &come)), whole);
    }
}

#[test]
fn a_transaction_makes_what_a_fresh_load_makes() {
    on_a_machine(async |_| {
        let mut runner =
            proptest::test_runner::TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() });
        runner
            .run(&(policies(), policies()), |(old, new)| {
                let (changed, fresh) = (ns::scratch().unwrap(), ns::scratch().unwrap());
                load(&changed, &replace(&full(&facts(), &old)));
                load(&changed, &transaction(&full(&facts(), &old), &full(&facts(), &new)));
                load(&fresh, &replace(&full(&facts(), &new)));
                prop_assert_eq!(listing(&changed), listing(&fresh));
                Ok(())
            })
            .unwrap();
    });
}

/// The engine's own way of changing the filter (elements straight to the kernel, the rest as text) against a fresh load.
#[test]
fn a_changed_policy_leaves_what_a_fresh_load_leaves() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let mut runner =
            proptest::test_runner::TestRunner::new(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() });
        let mut plain = 0;
        for _ in 0..60 {
            let policy = policies().new_tree(&mut runner).unwrap().current();
            if check(&policy).is_ok() {
                let before = world.network.policy();
                let (gone, come) = difference(&before, &policy);
                let chains = full(&facts(), &gone).chains != full(&facts(), &come).chains;
                plain += u32::from(!chains);
                world.network.set_policy(policy.clone()).await.unwrap();
                assert_eq!(crate::life::drift(world), Vec::<String>::new(), "{before:#?}\n{policy:#?}");
            }
        }
        assert!(plain > 5, "only {plain} changes were of elements alone");
    });
}
