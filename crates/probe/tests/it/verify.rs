//! A clean machine passes, and every kind of attempt is made.

use crate::world::*;
use moat_model::{Family, Peer, Proto, Purpose};
use moat_probe::{Observed, ProbeKind, Via};
use std::collections::BTreeSet;

#[test]
fn a_clean_machine_passes() {
    on_a_machine(|world| {
        world.example();
        let report = world.verify();
        assert!(report.passed(), "{}", troubles(&report));
        println!("{} rows, {} probes, {} ms", report.rows.len(), report.probes, report.duration_ms);
        let pairs = report.summary();
        let from: BTreeSet<String> = pairs.iter().map(|pair| pair.from.to_string()).collect();
        for name in ["site", "api", "store", "tick", "vault", "ledger", "abroad", "internet", "ingress", "host"] {
            assert!(from.contains(name), "{name} made no attempt: {from:?}");
        }
        assert!(pairs.iter().all(moat_probe::PairSummary::agrees));
        let kinds: BTreeSet<ProbeKind> = report.rows.iter().map(|row| row.what).collect();
        for family in [Family::V4, Family::V6] {
            for proto in [Proto::Tcp, Proto::Udp] {
                for via in [Via::InstanceAddress, Via::ServiceAddress, Via::Uplink, Via::HostAddress, Via::Metadata, Via::Egress] {
                    assert!(kinds.contains(&ProbeKind::Flow { proto, family, via }), "{proto} {family:?} {via:?}");
                }
                for discovery in [false, true] {
                    assert!(kinds.contains(&ProbeKind::Name { transport: proto, family, discovery }), "{proto} {family:?} {discovery}");
                }
            }
            assert!(kinds.contains(&ProbeKind::Flow { proto: Proto::Tcp, family, via: Via::Gateway }));
        }
        // Both say something: allowed attempts arrived, denied ones did not.
        let reached = |from: &str, to: &str| {
            report.rows.iter().any(|row| row.from.to_string() == from && row.to.to_string() == to && row.observed == Observed::Reached)
        };
        for (from, to) in [
            ("site", "api"),
            ("site", "store"),
            ("tick", "api"),
            ("api", "ledger"),
            ("ingress", "site"),
            ("api", "internet"),
            ("abroad", "internet"),
            ("site", "site"),
        ] {
            assert!(reached(from, to), "{from} -> {to}");
        }
        for (from, to) in [
            ("site", "tick"),
            ("site", "vault"),
            ("vault", "site"),
            ("site", "ledger"),
            ("site", "abroad"),
            ("ingress", "api"),
            ("host", "site"),
            ("internet", "site"),
            ("store", "api"),
            ("vault", "internet"),
            ("api", "host"),
        ] {
            assert!(!reached(from, to), "{from} -> {to}");
        }
        // Egress by a list: what it names, and nothing else.
        let listed = |row: &&moat_probe::Row| {
            row.from == Peer::Service(slug("abroad")) && matches!(row.what, ProbeKind::Flow { via: Via::Egress, .. })
        };
        let by_list = |observed: &Observed| report.rows.iter().filter(listed).filter(|row| row.observed == *observed).count();
        assert!(by_list(&Observed::Reached) > 0 && by_list(&Observed::NotReached) > 0);
        assert!(serde_json::to_string(&report).unwrap().contains("\"from\""));
    });
}

#[test]
fn builds_jobs_and_instances_that_are_not_ready() {
    on_a_machine(|world| {
        world.example();
        for (name, offset, purpose) in [("api", 400, Purpose::Build), ("api", 401, Purpose::Job), ("api", 402, Purpose::Serve)] {
            let at = world.instance(name, offset, purpose);
            world.serve(at, 10000);
            world.instances[at].live.ready = false;
        }
        world.apply();
        let report = world.verify();
        assert!(report.passed(), "{}", troubles(&report));
        let build = Peer::Build(slug("api"));
        let to_store = report.rows.iter().filter(|row| row.from == build && row.to == Peer::Service(slug("store")));
        assert!(to_store.clone().any(|row| row.observed == Observed::Reached));
        assert!(report.rows.iter().any(|row| row.to == build));
        // Nothing that is not ready is behind the service address.
        let waiting: BTreeSet<_> = world.instances.iter().filter(|i| !i.live.ready).map(|i| i.live.id.clone()).collect();
        let by_service = report.rows.iter().filter(|row| matches!(row.what, ProbeKind::Flow { via: Via::ServiceAddress, .. }));
        assert!(by_service.filter_map(|row| row.to_instance.as_ref()).all(|id| !waiting.contains(id)));
    });
}

#[test]
fn nothing_is_left_of_the_neighbour() {
    on_a_machine(|world| {
        world.example();
        // Without what changes by itself: the state of links and of link-local addresses.
        let now = || {
            sh(
                "ip -o link | cut -d: -f2 | sort; ip -o addr | grep -v fe80: | awk '{print $2, $4}' | sort; ip route; ip -6 route | grep -v fe80: | awk '{print $1, $2, $3}'",
            )
        };
        let before = now();
        assert!(world.verify().passed());
        until("the neighbour's link to go", || now() == before);
    });
}

#[test]
fn what_can_not_be_probed_is_unproven() {
    on_a_machine(|world| {
        world.example();
        // The api's end of the wire is cut: its sniffer hears no marker, its probes go nowhere.
        sh_in(world.of("api"), "ip link set eth0 down");
        let report = world.verify();
        assert!(!report.passed());
        assert!(report.controls.iter().any(|control| !control.ok && control.name.starts_with("sniffer in api")), "{}", troubles(&report));
    });
}

#[test]
fn a_name_server_that_is_dead_fails() {
    on_a_machine(|world| {
        world.example();
        sh_in(&world.router(), "ip addr del 169.254.1.1/32 dev lo");
        let report = world.verify();
        let names: Vec<_> = report.disagreements().filter(|row| matches!(row.what, ProbeKind::Name { .. })).collect();
        assert!(!names.is_empty() && names.iter().all(|row| matches!(row.observed, Observed::Unproven(_))), "{}", troubles(&report));
        assert!(report.controls.iter().any(|control| !control.ok && control.name.starts_with("names asked by api")));
    });
}
