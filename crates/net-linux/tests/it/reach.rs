//! Who reaches whom: instances, workers, service addresses, the ingress.

use crate::world::*;
use moat_model::net::RESERVED_PORTS;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn allowed_pairs_answer_and_others_do_not() {
    on_a_machine(async |world| {
        assert!(world.network.ensure_router().await.unwrap());
        assert!(!world.network.ensure_router().await.unwrap(), "a second time there is nothing to do");
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
        assert!(denied.iter().any(|flow| flow.from == a.v4() && flow.to == worker.v4() && flow.proto == 6 && flow.port == 80 && flow.packets > 0), "{denied:?}");
        assert!(denied.iter().any(|flow| flow.from == a.v6() && flow.to == b.v6() && flow.proto == 17 && flow.port == RESERVED_PORTS[0]), "{denied:?}");
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
        for (to, own, none, single) in [(vip(1).v4.into(), client.v4(), vip(2).v4.into(), vip(3).v4.into()), (vip(1).v6.into(), client.v6(), vip(2).v6.into(), vip(3).v6.into())] {
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
