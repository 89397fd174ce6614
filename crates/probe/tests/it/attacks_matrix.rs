//! Rows of the attack list that are a whole matrix of attempts: made by `verify`, held here one by one.
//!
//! Each row needs attempts that had to fail, and its positive control: the same prober reaching what it may reach.

use crate::world::*;
use moat_model::net::RESERVED_PORTS;
use moat_model::{Family, Peer, Proto, Purpose};
use moat_probe::{Observed, Pair, ProbeKind, Report, Row, Via, sweep};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

fn flow(row: &Row) -> Option<(Proto, Family, Via)> {
    match row.what {
        ProbeKind::Flow { proto, family, via } => Some((proto, family, via)),
        ProbeKind::Name { .. } => None,
    }
}

/// Attempts of a row of the list: every one was denied, by both protocols and both families.
fn denied<'a>(report: &'a Report, what: &str, of: impl Fn(&Row) -> bool) -> Vec<&'a Row> {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| flow(row).is_some() && of(row)).collect();
    for family in [Family::V4, Family::V6] {
        for proto in [Proto::Tcp, Proto::Udp] {
            assert!(
                rows.iter().any(|row| flow(row).is_some_and(|(p, f, _)| (p, f) == (proto, family))),
                "{what}: no attempt by {proto}, {family:?}"
            );
        }
    }
    for row in &rows {
        assert_eq!(row.observed, Observed::NotReached, "{what}: {} -> {} {} port {}", row.from, row.to, row.what, row.port);
    }
    rows
}

fn reached(report: &Report, from: &Peer) -> bool {
    report.rows.iter().any(|row| row.from == *from && flow(row).is_some() && row.observed == Observed::Reached)
}

fn service(name: &str) -> Peer {
    Peer::Service(slug(name))
}

fn matrix(bridge_filter: bool) {
    with_bridge_filter(bridge_filter, |world| {
        world.example();
        for (offset, purpose) in [(300, Purpose::Build), (301, Purpose::PreDeploy), (302, Purpose::Job)] {
            let at = world.instance("api", offset, purpose);
            world.serve(at, 10000);
        }
        world.apply();
        let report = world.verify();
        assert!(report.passed(), "{}", troubles(&report));

        // Positive controls: who may reach anything does, by the same probes.
        for name in ["site", "api", "tick", "ledger", "vault", "abroad"] {
            let allowed = report.rows.iter().any(|row| row.from == service(name) && row.expected.is_allowed() && flow(row).is_some());
            assert!(!allowed || reached(&report, &service(name)), "{name} reaches nothing");
        }
        assert!(reached(&report, &Peer::Ingress) && reached(&report, &Peer::Build(slug("api"))));

        // 1: forbidden services and reserved ports, each way.
        for (from, to) in [("site", "vault"), ("vault", "site"), ("site", "ledger"), ("site", "abroad"), ("abroad", "site")] {
            denied(&report, "row 1", |row| row.from == service(from) && row.to == service(to));
        }
        for port in RESERVED_PORTS {
            denied(&report, "row 1, reserved", |row| row.port == port && matches!(row.to, Peer::Service(_)));
        }
        // 2: a worker, a build, a pre-deploy sandbox, a job: from every peer.
        for to in [service("tick"), Peer::Build(slug("api"))] {
            let from: BTreeSet<Peer> = denied(&report, "row 2", |row| row.to == to).iter().map(|row| row.from.clone()).collect();
            for peer in [Peer::Host, Peer::Internet, Peer::Ingress, service("site"), service("api"), service("store"), service("ledger")] {
                assert!(from.contains(&peer), "row 2: {peer} never tried {to}");
            }
        }
        let job = world.instances.iter().find(|i| i.live.purpose == Purpose::Job).unwrap().live.id.clone();
        denied(&report, "row 2, job", |row| row.to_instance.as_ref() == Some(&job));
        // 3: a closed environment: no packet, and no name either, not even for who knows it.
        let names: Vec<&Row> =
            report.rows.iter().filter(|row| flow(row).is_none() && row.to == service("vault") && row.from != service("vault")).collect();
        assert!(names.len() > 8 && names.iter().all(|row| row.observed == Observed::NotReached), "row 3");
        assert!(
            report.rows.iter().any(|row| flow(row).is_none()
                && row.from == service("vault")
                && row.to == service("vault")
                && row.observed == Observed::Reached),
            "row 3: it knows itself"
        );
        // 4: the instance's own address, past name and service address.
        for (from, to) in [("site", "vault"), ("site", "tick"), ("abroad", "api")] {
            denied(&report, "row 4", |row| {
                row.from == service(from) && row.to == service(to) && flow(row).is_some_and(|(_, _, via)| via == Via::InstanceAddress)
            });
        }
        // 10: the host's addresses and the uplink's.
        denied(&report, "row 10", |row| flow(row).is_some_and(|(_, _, via)| via == Via::HostAddress));
        // 11: the host, and a LAN neighbour.
        for from in [Peer::Host, Peer::Internet] {
            denied(&report, "row 11", |row| row.from == from);
        }
        // 17: metadata and link-local addresses.
        denied(&report, "row 17", |row| flow(row).is_some_and(|(_, _, via)| via == Via::Metadata));
        assert!(
            report.rows.iter().any(|row| flow(row).is_some_and(|(_, _, via)| via == Via::Egress) && row.observed == Observed::Reached),
            "row 17: egress works"
        );
    });
}

#[test]
fn rows_1_to_4_10_11_17_with_bridge_filter_off() {
    matrix(false);
}

#[test]
fn rows_1_to_4_10_11_17_with_bridge_filter_on() {
    matrix(true);
}

#[test]
fn row_29_all_ports_of_every_pair() {
    with_bridge_filter(true, |world| {
        world.service("site", &plain(moat_model::ServiceKind::Web), 1);
        world.service("store", &plain(moat_model::ServiceKind::KeyValue), 1);
        world.service("tick", &plain(moat_model::ServiceKind::Worker), 1);
        world.apply();
        for (from, to) in [("site", "store"), ("site", "tick"), ("store", "site"), ("store", "tick"), ("tick", "site"), ("tick", "store")] {
            let (a, b) = (world.of(from), world.of(to));
            let link = b.link();
            let router = world.router();
            let pair = Pair {
                from: a.as_fd(),
                source: a.live.address,
                to: b.as_fd(),
                destination: b.live.address,
                router: router.as_fd(),
                link: &link,
            };
            let found = sweep(&pair).unwrap();
            assert_eq!(found.entered, 4 * 65_535, "{from} -> {to}: every packet entered the router");
            assert_eq!(found.arrived.len(), 4);
            for ((proto, family), arrived) in found.arrived {
                let expected = |port: u16| {
                    let endpoint = moat_model::Endpoint { proto, port };
                    moat_planner::reach::verdict(&world.state, &service(from), &service(to), Some(endpoint)).is_allowed()
                };
                let wrong: Vec<u16> = (1..=u16::MAX).filter(|port| arrived.contains(port) != expected(*port)).take(10).collect();
                assert!(wrong.is_empty(), "{from} -> {to} {proto} {family:?}: {wrong:?} and maybe more");
            }
        }
    });
}
