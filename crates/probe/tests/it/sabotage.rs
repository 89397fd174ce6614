//! Every change of the router or of the host's routes is seen, and named by the pair it concerns.

use crate::world::*;
use moat_model::Peer;
use moat_probe::Report;

fn peer(name: &str) -> Peer {
    match name {
        "host" => Peer::Host,
        "ingress" => Peer::Ingress,
        "internet" => Peer::Internet,
        _ => Peer::Service(slug(name)),
    }
}

fn names(report: &Report, from: &str, to: &str) -> bool {
    let (from, to) = (peer(from), peer(to));
    let by_drift = report.drift.iter().any(|drift| drift.pair.as_ref() == Some(&(from.clone(), to.clone())));
    by_drift || report.disagreements().any(|row| (&row.from, &row.to) == (&from, &to))
}

/// Sabotages and holds that the report fails and names the pairs; then undoes it and holds that it passes again.
fn check(world: &World, sabotage: impl FnOnce(&World), pairs: &[(&str, &str)], moved: bool) {
    sabotage(world);
    let report = world.verify();
    assert!(!report.passed(), "the sabotage was not seen");
    assert!(!report.drift.is_empty(), "{}", troubles(&report));
    for (from, to) in pairs {
        assert!(names(&report, from, to), "`{from} -> {to}` is not named\n{}", troubles(&report));
    }
    assert_eq!(report.disagreements().count() > 0, moved, "{}", troubles(&report));
    let summary = report.summary();
    assert!(pairs.iter().all(|(from, to)| summary.iter().any(|s| s.from == peer(from) && s.to == peer(to) && !s.agrees())));
}

fn in_router(world: &World, command: &str) {
    sh_in(&world.router(), command);
}

/// The part of the mark that receivers are listed by.
const fn mark(zone: u32) -> u32 {
    zone + 1
}

fn handle_of(world: &World, chain: &str, text: &str) -> String {
    let list = sh_in(&world.router(), &format!("nft -a list chain inet moat {chain}"));
    let line = list.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no `{text}` in {list}"));
    line.rsplit("handle ").next().unwrap().trim().to_owned()
}

#[test]
fn an_element_that_opens_a_worker() {
    on_a_machine(|world| {
        world.example();
        let address = world.of("tick").live.address.v4;
        check(
            world,
            |w| in_router(w, &format!("nft add element inet moat receivers4 '{{ {} . {address} }}'", mark(10))),
            &[("site", "tick"), ("api", "tick")],
            true,
        );
    });
}

#[test]
fn an_element_that_opens_a_worker_for_ipv6_only() {
    on_a_machine(|world| {
        world.example();
        let address = world.of("tick").live.address.v6;
        check(
            world,
            |w| in_router(w, &format!("nft add element inet moat receivers6 '{{ {} . {address} }}'", mark(10))),
            &[("site", "tick")],
            true,
        );
    });
}

#[test]
fn a_missing_element() {
    on_a_machine(|world| {
        world.example();
        let address = world.of("api").live.address.v4;
        check(
            world,
            |w| in_router(w, &format!("nft delete element inet moat receivers4 '{{ {} . {address} }}'", mark(10))),
            &[("site", "api"), ("tick", "api")],
            true,
        );
    });
}

#[test]
fn a_missing_pair() {
    on_a_machine(|world| {
        world.example();
        let (from, to) = (world.of("api").live.address.v4, world.of("ledger").live.address.v4);
        check(world, |w| in_router(w, &format!("nft delete element inet moat pairs4 '{{ {from} . {to} }}'")), &[("api", "ledger")], true);
    });
}

#[test]
fn a_foreign_rule_for_a_port_that_nobody_tries() {
    on_a_machine(|world| {
        world.example();
        let (from, to) = (world.of("site").live.address.v4, world.of("vault").live.address.v4);
        check(
            world,
            |w| in_router(w, &format!("nft insert rule inet moat forward ip saddr {from} ip daddr {to} tcp dport 54321 accept")),
            &[("site", "vault")],
            true,
        );
    });
}

#[test]
fn a_foreign_rule_that_names_only_a_port_is_tried_for_every_pair() {
    on_a_machine(|world| {
        world.example();
        check(
            world,
            |w| in_router(w, "nft insert rule inet moat opens udp dport 54321 accept"),
            &[("site", "tick"), ("abroad", "vault"), ("vault", "site")],
            true,
        );
    });
}

#[test]
fn a_missing_rule() {
    on_a_machine(|world| {
        world.example();
        let handle = handle_of(world, "ported", "receivers6");
        check(world, |w| in_router(w, &format!("nft delete rule inet moat ported handle {handle}")), &[("site", "api")], true);
    });
}

#[test]
fn a_missing_rule_for_echoes_that_nobody_tries() {
    on_a_machine(|world| {
        world.example();
        let handle = handle_of(world, "zones", "receivers6");
        check(world, |w| in_router(w, &format!("nft delete rule inet moat zones handle {handle}")), &[("site", "api")], false);
    });
}

#[test]
fn a_policy_turned_to_accept() {
    on_a_machine(|world| {
        world.example();
        check(world, |w| in_router(w, "nft add chain inet moat forward '{ policy accept; }'"), &[], false);
    });
}

#[test]
fn a_missing_dial_of_the_ingress() {
    on_a_machine(|world| {
        world.example();
        let address = world.of("site").live.address.v4;
        check(
            world,
            |w| in_router(w, &format!("nft delete element inet moat http4 '{{ {address} . 10000 }}'")),
            &[("ingress", "site")],
            true,
        );
    });
}

#[test]
fn a_service_address_that_leads_astray() {
    on_a_machine(|world| {
        world.example();
        let (vip, wrong) = (world.vip("api").v4, world.of("tick").live.address.v4);
        let right = world.of("api").live.address.v4;
        check(
            world,
            |w| {
                in_router(
                    w,
                    &format!(
                        "nft 'delete element inet moat single4 {{ {vip} : {right} }}; add element inet moat single4 {{ {vip} : {wrong} }}'"
                    ),
                );
            },
            &[("site", "api")],
            true,
        );
    });
}

#[test]
fn a_flushed_router() {
    on_a_machine(|world| {
        world.example();
        check(world, |w| in_router(w, "nft flush ruleset"), &[("site", "tick"), ("site", "vault")], true);
    });
}

#[test]
fn a_route_of_the_host_into_the_router() {
    on_a_machine(|world| {
        world.example();
        let uplink = world.network.uplink().unwrap().unwrap();
        let to = world.of("vault").live.address.v4;
        check(
            world,
            |_| drop(sh(&format!("ip route add {to}/32 via {} dev {}", uplink.router_address.v4, uplink.host_link))),
            &[("host", "vault")],
            false,
        );
    });
}

#[test]
fn a_wide_route_of_the_host_in_another_table() {
    on_a_machine(|world| {
        world.example();
        let uplink = world.network.uplink().unwrap().unwrap();
        check(
            world,
            |_| drop(sh(&format!("ip route add 10.64.0.0/10 dev {} table 77", uplink.host_link))),
            &[("host", "site"), ("host", "tick"), ("host", "abroad")],
            false,
        );
    });
}

#[test]
fn a_route_of_the_host_with_an_open_filter_is_seen_by_the_attempts_too() {
    on_a_machine(|world| {
        world.example();
        let uplink = world.network.uplink().unwrap().unwrap();
        let to = world.of("tick").live.address.v4;
        let break_both = |w: &World| {
            sh(&format!("ip route add {to}/32 via {} dev {}", uplink.router_address.v4, uplink.host_link));
            in_router(w, "nft flush ruleset");
        };
        check(world, break_both, &[("host", "tick"), ("internet", "tick")], true);
    });
}

#[test]
fn a_setting_of_the_router() {
    on_a_machine(|world| {
        world.example();
        check(world, |w| in_router(w, "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"), &[], false);
    });
}

#[test]
fn a_listener_and_a_link_in_the_router() {
    on_a_machine(|world| {
        world.example();
        serve(&world.router(), 4444, "intruder");
        in_router(
            world,
            "ip link add odd type veth peer name odd1 && ip link set odd1 up && ip addr add 10.99.0.1/24 dev odd && ip link set odd up",
        );
        let report = world.verify();
        assert!(!report.passed());
        for what in
            ["listens on tcp port 4444", "listens on udp port 4444", "link `odd`", "address `10.99.0.1/24`", "route to `10.99.0.0/24`"]
        {
            assert!(report.drift.iter().any(|drift| drift.what.contains(what)), "{what}\n{}", troubles(&report));
        }
    });
}
