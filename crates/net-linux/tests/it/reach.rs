//! Who reaches whom: instances, workers, service addresses, the ingress.

use crate::world::*;
use moat_model::net::RESERVED_PORTS;
use moat_model::state::Listener;
use moat_model::{Egress, Endpoint, Family, Proto, ZoneId};
use moat_net_linux::{ns, ports};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn allowed_pairs_answer_and_others_do_not() {
    on_a_machine(async |world| {
        assert!(world.network.ensure_router().await.unwrap());
        assert!(!world.network.ensure_router().await.unwrap(), "a second time there is nothing to do");
        // Whatever the host filters on bridges: there are none.
        for (ns, value) in [(&crate::outside::host(), 1), (&world.router(), 0)] {
            sh_in(ns, &format!("for s in /proc/sys/net/bridge/bridge-nf-call-*; do test ! -e $s || echo {value} > $s; done"));
        }
        let (a, b, worker) = (world.open(1).await, world.open(2).await, world.worker(3).await);
        for (instance, name) in [(&a, "a"), (&b, "b"), (&worker, "worker")] {
            serve(instance, 80, name);
            for port in RESERVED_PORTS {
                serve(instance, port, name);
            }
        }
        for i in 0..2 {
            must_open(&a, b.both()[i], 80);
            must_open(&b, a.both()[i], 80);
            must_open(&worker, a.both()[i], 80);
            assert_eq!(tcp(&worker, a.both()[i], 80).answer(), format!("a {}", worker.both()[i]), "the client's address is kept");
            must_close(&a, worker.both()[i], 80);
            must_close(&world.router(), worker.both()[i], 80);
            must_close(&world.router(), a.both()[i], 80);
            for port in RESERVED_PORTS {
                must_close(&a, b.both()[i], port);
            }
        }
        let denied = world.network.denied().await.unwrap();
        assert!(
            denied.iter().any(|flow| flow.from == a.v4()
                && flow.to == worker.v4()
                && flow.proto == 6
                && flow.port == 80
                && flow.packets > 0),
            "{denied:?}"
        );
        assert!(
            denied.iter().any(|flow| flow.from == a.v6() && flow.to == b.v6() && flow.proto == 17 && flow.port == RESERVED_PORTS[0]),
            "{denied:?}"
        );
        assert_eq!(world.network.spoofed().await.unwrap(), 0);
    });
}

#[test]
fn service_addresses_spread_evenly_and_keep_the_client() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let client = world.worker(1).await;
        let ready = [world.open(2).await, world.open(3).await, world.open(4).await];
        for (i, instance) in ready.iter().enumerate() {
            serve(instance, 80, &format!("r{i}"));
        }
        world.policy.services.insert(vip(1), ready.iter().map(|instance| instance.address).collect());
        world.policy.services.insert(vip(2), BTreeSet::new());
        world.policy.services.insert(vip(3), [ready[0].address].into());
        world.apply().await;
        for (to, own, none, single) in [
            (vip(1).v4.into(), client.v4(), vip(2).v4.into(), vip(3).v4.into()),
            (vip(1).v6.into(), client.v6(), vip(2).v6.into(), vip(3).v6.into()),
        ] {
            for dial in [tcp, udp] {
                let mut seen: BTreeMap<String, u32> = BTreeMap::new();
                for _ in 0..30 {
                    *seen.entry(dial(&client, to, 80).answer()).or_default() += 1;
                }
                let expected = (0..3).map(|i| (format!("r{i} {own}"), 10)).collect();
                assert_eq!(seen, expected);
                assert_eq!(dial(&client, single, 80).answer(), format!("r0 {own}"));
                assert_eq!(dial(&client, none, 80), Attempt::Error(std::io::ErrorKind::ConnectionRefused));
            }
            // Hairpin: an instance behind a service calls the service, itself included.
            let mut seen: BTreeSet<String> = BTreeSet::new();
            for _ in 0..3 {
                seen.insert(tcp(&ready[0], to, 80).answer());
                udp(&ready[0], to, 80).answer();
            }
            assert!(tcp(&ready[0], single, 80).is_open());
            assert!(udp(&ready[0], single, 80).is_open());
        }
    });
}

#[test]
fn single_pairs_pass_one_way_only() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.worker(2).await);
        let target = world.instance(3, Some(ZoneId(9)), Egress::None).await;
        for (instance, name) in [(&a, "a"), (&b, "b"), (&target, "t")] {
            serve(instance, 80, name);
        }
        world.policy.pairs.insert((a.address, target.address));
        world.policy.services.insert(vip(1), [target.address].into());
        world.apply().await;
        for i in 0..2 {
            must_open(&a, target.both()[i], 80);
            must_close(&b, target.both()[i], 80);
            must_close(&target, a.both()[i], 80);
        }
        must_open(&a, vip(1).v4.into(), 80);
        must_open(&a, vip(1).v6.into(), 80);
        must_close(&b, vip(1).v4.into(), 80);
        must_close(&b, vip(1).v6.into(), 80);
    });
}

#[test]
fn zones_are_closed_against_each_other() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.instance(2, Some(ZoneId(2)), Egress::Internet).await);
        world.policy.receivers.insert((ZoneId(2), b.address));
        // A datastore receives from both and opens nothing.
        let store = world.instance(3, None, Egress::None).await;
        world.policy.receivers.insert((ZoneId(2), store.address));
        world.policy.receivers.insert((ZONE, store.address));
        world.apply().await;
        for (instance, name) in [(&a, "a"), (&b, "b"), (&store, "store")] {
            serve(instance, 80, name);
        }
        for i in 0..2 {
            must_close(&a, b.both()[i], 80);
            must_close(&b, a.both()[i], 80);
            must_close(&store, a.both()[i], 80);
            must_open(&a, store.both()[i], 80);
            must_open(&b, store.both()[i], 80);
        }
    });
}

#[test]
fn the_ingress_dials_one_port_of_one_instance() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (web, private) = (world.open(1).await, world.open(2).await);
        for instance in [&web, &private] {
            serve(instance, 10000, "http");
            serve(instance, 80, "other");
        }
        world.policy.ingress.insert((web.address, 10000));
        world.apply().await;
        let router = world.router();
        for i in 0..2 {
            assert!(tcp(&router, web.both()[i], 10000).is_open());
            assert!(!udp_within(&router, web.both()[i], 10000, CLOSED).is_open());
            must_close(&router, web.both()[i], 80);
            must_close(&router, private.both()[i], 10000);
            must_close(&router, private.both()[i], 80);
        }
        // A socket made there by hand, as the ingress makes them.
        let socket = ns::tcp_socket_in(&router, Family::V4).unwrap();
        let stream = tokio::net::TcpSocket::from_std_stream(socket.into()).connect((web.v4(), 10000).into()).await;
        assert!(stream.is_ok(), "{stream:?}");
    });
}

#[test]
fn listeners_are_found_with_their_protocol_and_whether_they_are_local() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let a = world.open(1).await;
        assert_eq!(ports::listeners(&a).unwrap(), []);
        let kept = ns::in_ns(&a, || {
            let tcp: Vec<_> = ["0.0.0.0:80", "[::]:81", "127.0.0.1:82", "[::1]:83", "[::1]:84", "0.0.0.0:84"]
                .map(|at| std::net::TcpListener::bind(at).unwrap())
                .into();
            let udp: Vec<_> = ["0.0.0.0:80", "127.0.0.1:5353"].map(|at| std::net::UdpSocket::bind(at).unwrap()).into();
            let client = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            client.connect("127.0.0.1:80").unwrap();
            (tcp, udp, client)
        })
        .unwrap();
        let row = |proto, port, loopback_only| Listener { endpoint: Endpoint { proto, port }, loopback_only };
        let expected = [
            row(Proto::Tcp, 80, false),
            row(Proto::Tcp, 81, false),
            row(Proto::Tcp, 82, true),
            row(Proto::Tcp, 83, true),
            row(Proto::Tcp, 84, false),
            row(Proto::Udp, 80, false),
            row(Proto::Udp, 5353, true),
        ];
        assert_eq!(ports::listeners(&a).unwrap(), expected);
        drop(kept);
    });
}

#[test]
fn work_in_a_namespace_does_not_leak_out() {
    if !possible() {
        return;
    }
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let room = Room::new();
    let inside = ns::in_ns(&room.ns, || std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
    assert_ne!(inside, own);
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    let scratch = ns::scratch().unwrap();
    assert_ne!(ns::in_ns(&scratch, || std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap(), inside);
}
