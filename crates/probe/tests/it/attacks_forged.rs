//! Packets that lie: sources, loopback, link-local and multicast destinations, nested namespaces, claimed addresses.
//!
//! Watched at the target; each attack runs between two honest datagrams that must arrive (the positive control, and the
//! sign that everything before it has arrived or never will).

use crate::world::*;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use moat_model::{AddressPair, Proto, Purpose, ServiceKind};
use moat_net_linux::ns;
use moat_probe::{Craft, Watch, send_crafted};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(100);

fn craft(source: IpAddr, destination: IpAddr, nonce: u64) -> Craft {
    Craft { source, destination, proto: Proto::Udp, source_port: 4000, port: 8125, nonce, ttl: 64 }
}

/// Sends the lies from `from`, and an honest datagram before and after; none of the lies may arrive at `to`.
fn must_not_arrive(from: &Instance, to: &Instance, lies: &[Craft]) {
    let watch = Watch::open(to).unwrap();
    for (i, lie) in lies.iter().enumerate() {
        let honest = |nonce| match lie.destination {
            IpAddr::V4(_) => craft(from.v4(), to.v4(), nonce),
            IpAddr::V6(_) => craft(from.v6(), to.v6(), nonce),
        };
        let (before, after) = (1_000 + i as u64, 2_000 + i as u64);
        send_crafted(from, &[honest(before)]).unwrap();
        assert!(watch.datagrams(Some(before), LONG).contains(&before), "the honest datagram before {lie:?}");
        // A lie may also be refused by the kernel it is told to.
        let _ = send_crafted(from, &[*lie]);
        send_crafted(from, &[honest(after)]).unwrap();
        let mut seen = watch.datagrams(Some(after), LONG);
        assert!(seen.contains(&after), "the honest datagram after {lie:?}");
        seen.extend(watch.datagrams(None, SHORT));
        assert!(!seen.contains(&lie.nonce), "arrived: {lie:?}");
    }
}

fn both(bridge: fn(&mut World)) {
    // Each test is a process of its own, and each machine a namespace of its own.
    for on in [false, true] {
        std::thread::spawn(move || with_bridge_filter(on, bridge)).join().unwrap();
    }
}

#[test]
fn row_8_forged_sources() {
    both(|world| {
        world.example();
        let (from, to, other) = (world.of("tick"), world.of("api"), world.of("site"));
        let uplink = world.network.uplink().unwrap().unwrap();
        let mut lies = Vec::new();
        for source in [
            other.v4(),
            to.v4(),
            GATEWAY_V4.into(),
            Ipv4Addr::LOCALHOST.into(),
            uplink.host_address.v4.into(),
            uplink.router_address.v4.into(),
            world.vip("site").v4.into(),
            Ipv4Addr::new(8, 8, 8, 8).into(),
            Ipv4Addr::BROADCAST.into(),
            Ipv4Addr::new(224, 0, 0, 1).into(),
        ] {
            lies.push(craft(source, to.v4(), 9_000 + lies.len() as u64));
        }
        for source in [
            other.v6(),
            to.v6(),
            GATEWAY_V6.into(),
            Ipv6Addr::LOCALHOST.into(),
            world.vip("site").v6.into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).into(),
            Ipv4Addr::new(10, 64, 0, 16).to_ipv6_mapped().into(),
        ] {
            lies.push(craft(source, to.v6(), 9_000 + lies.len() as u64));
        }
        must_not_arrive(from, to, &lies);
        // The same at a service address.
        let vip = world.vip("api");
        must_not_arrive(from, to, &[craft(other.v4(), vip.v4.into(), 9_100), craft(other.v6(), vip.v6.into(), 9_101)]);
        // A datastore opens nothing, with its own address or another's.
        let store = world.of("store");
        let watch = Watch::open(to).unwrap();
        send_crafted(store, &[craft(store.v4(), to.v4(), 1), craft(from.v4(), to.v4(), 2), craft(store.v6(), to.v6(), 3)]).unwrap();
        send_crafted(from, &[craft(from.v4(), to.v4(), 4)]).unwrap();
        assert_eq!(watch.datagrams(Some(4), LONG), [4].into());
        assert!(
            moat_in_router(world, "nft list counter inet moat spoofed").contains("packets")
                && !moat_in_router(world, "nft list counter inet moat spoofed").contains("packets 0 "),
            "lies are counted"
        );
    });
}

fn moat_in_router(world: &World, command: &str) -> String {
    sh_in(&world.router(), command)
}

#[test]
fn row_5_ipv6_side_doors() {
    both(|world| {
        world.example();
        let (from, to) = (world.of("site"), world.of("tick"));
        // Link-local and multicast destinations, and IPv4 in the clothes of IPv6, from everyone to a worker.
        let watch = Watch::open(to).unwrap();
        let honest = world.of("api");
        let honest_watch = Watch::open(honest).unwrap();
        let IpAddr::V4(worker) = to.v4() else { panic!("not IPv4") };
        let suffix = worker.octets();
        let destinations = [
            to.v6(),
            worker.to_ipv6_mapped().into(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([suffix[0], suffix[1]]), u16::from_be_bytes([suffix[2], suffix[3]]))
                .into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
            Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2).into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0x6d, 0x6fff, 0xfe61, 0x7402).into(),
        ];
        sh_in(from, "ip -6 route add ff00::/8 dev eth0 table local metric 1 || true");
        for (n, destination) in destinations.into_iter().enumerate() {
            let _ = send_crafted(from, &[craft(from.v6(), destination, 500 + n as u64)]);
        }
        // An ordinary socket to an IPv4-mapped address speaks IPv4: the same policy.
        let _ = ns::in_ns(from, || UdpSocket::bind("[::]:0").unwrap().send_to(&[0; 12], (worker.to_ipv6_mapped(), 8125))).unwrap();
        send_crafted(from, &[craft(from.v6(), honest.v6(), 600)]).unwrap();
        assert!(honest_watch.datagrams(Some(600), LONG).contains(&600), "the same sender reaches who it may");
        assert_eq!(watch.datagrams(None, SHORT), [].into());
        // No instance has an address of link-local scope that a neighbour could know, nor takes router advertisements.
        for instance in &world.instances {
            let value = sh_in(instance, "cat /proc/sys/net/ipv6/conf/eth0/accept_ra");
            assert_eq!(value.trim(), "0");
        }
    });
}

#[test]
fn row_9_loopback_from_the_wire() {
    both(|world| {
        world.example();
        let from = world.of("site");
        // The instance gives its loopback range away, and sends it to the router instead.
        sh_in(
            from,
            "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local; ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
        );
        let router = world.router();
        let socket = ns::udp_bound_in(&router, (Ipv4Addr::LOCALHOST, 8125).into()).unwrap();
        let watch = Watch::open(&router).unwrap();
        send_crafted(from, &[craft(from.v4(), Ipv4Addr::LOCALHOST.into(), 70)]).unwrap();
        assert!(watch.datagrams(Some(70), LONG).contains(&70), "it entered the router");
        let marker = craft(from.v4(), world.of("api").v4(), 71);
        send_crafted(from, &[marker]).unwrap();
        assert!(watch.datagrams(Some(71), LONG).contains(&71));
        let mut buffer = [0; 64];
        assert_eq!(socket.recv(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "loopback was reached from the wire");
        for link in ["all", "default", from.link().as_str(), "uplink"] {
            let value = sh_in(&router, &format!("cat /proc/sys/net/ipv4/conf/{link}/route_localnet"));
            assert_eq!(value.trim(), "0", "{link}");
        }
    });
}

#[test]
fn row_23_an_instance_that_takes_anothers_address() {
    both(|world| {
        world.example();
        let (thief, owner, client) = (world.of("tick"), world.of("api"), world.of("site"));
        for address in [owner.v4(), owner.v6(), world.vip("api").v4.into(), world.vip("api").v6.into()] {
            let length = if address.is_ipv4() { 32 } else { 128 };
            sh_in(thief, &format!("ip addr add {address}/{length} dev eth0 {}", if address.is_ipv6() { "nodad" } else { "" }));
        }
        let (at_thief, at_owner) = (Watch::open(thief).unwrap(), Watch::open(owner).unwrap());
        let vip = world.vip("api");
        let packets = [(owner.v4(), 1), (IpAddr::V4(vip.v4), 2), (owner.v6(), 3), (IpAddr::V6(vip.v6), 4)];
        for (to, nonce) in packets {
            let own = if to.is_ipv4() { client.v4() } else { client.v6() };
            send_crafted(client, &[craft(own, to, nonce)]).unwrap();
            assert!(at_owner.datagrams(Some(nonce), LONG).contains(&nonce), "{to} still is its owner's");
        }
        assert_eq!(at_thief.datagrams(None, SHORT), [].into());
        must_not_arrive(
            thief,
            client,
            &[craft(owner.v4(), client.v4(), 50), craft(owner.v6(), client.v6(), 51), craft(vip.v4.into(), client.v4(), 52)],
        );
    });
}

#[test]
fn row_25_namespaces_nested_in_an_instance() {
    both(|world| {
        world.example();
        let (outer, to) = (world.of("tick"), world.of("api"));
        // A namespace made inside has no way out at all.
        let nested = Room::inside(outer);
        assert!(sh_in(&nested, "ip route get 10.64.0.32 2>&1 || true").contains("unreachable"));
        // With a pair of links and forwarding in the instance its packets carry an address that is not the instance's.
        sh_in(
            outer,
            &format!(
                "ip link add in0 type veth peer name in1 netns {}; ip addr add 10.200.0.1/30 dev in0; ip link set in0 up; echo 1 > /proc/sys/net/ipv4/ip_forward",
                nested.pid()
            ),
        );
        sh_in(&nested, "ip addr add 10.200.0.2/30 dev in1; ip link set in1 up; ip route add default via 10.200.0.1");
        let (at_target, at_router) = (Watch::open(to).unwrap(), Watch::open(&world.router()).unwrap());
        send_crafted(&nested, &[craft("10.200.0.2".parse().unwrap(), to.v4(), 80)]).unwrap();
        assert!(at_router.datagrams(Some(80), LONG).contains(&80), "it entered the router");
        send_crafted(&nested, &[craft(outer.v4(), world.of("vault").v4(), 81)]).unwrap();
        send_crafted(outer, &[craft(outer.v4(), to.v4(), 82)]).unwrap();
        let mut seen = at_target.datagrams(Some(82), LONG);
        seen.extend(at_target.datagrams(None, SHORT));
        assert_eq!(seen, [82].into(), "only the instance's own datagram arrives");
    });
}

#[test]
fn row_26_before_the_policy_covers_an_instance_and_after_it_is_withdrawn() {
    both(|world| {
        world.example();
        let at = world.instance("api", 900, Purpose::Serve);
        world.serve(at, 10000);
        // Withdrawn: as an instance is that runs before (or after) the policy has it.
        let late = world.instances.remove(at);
        world.apply();
        let other = world.of("site");
        let (at_late, at_other, at_router) =
            (Watch::open(&late).unwrap(), Watch::open(other).unwrap(), Watch::open(&world.router()).unwrap());
        for (n, (from, to)) in [(other.v4(), late.v4()), (other.v6(), late.v6())].into_iter().enumerate() {
            let nonce = 20 + 10 * n as u64;
            send_crafted(other, &[craft(from, to, nonce)]).unwrap();
            send_crafted(&late, &[craft(to, from, nonce + 1)]).unwrap();
            assert!(at_router.datagrams(Some(nonce + 1), LONG).contains(&(nonce + 1)), "it entered the router");
        }
        assert_eq!((at_late.datagrams(None, SHORT), at_other.datagrams(None, SHORT)), ([].into(), [].into()));
        world.instances.push(late);
        world.apply();
        let (late, other) = (world.instances.last().unwrap(), world.of("site"));
        send_crafted(other, &[craft(other.v4(), late.v4(), 60)]).unwrap();
        send_crafted(late, &[craft(late.v4(), other.v4(), 61)]).unwrap();
        assert!(at_late.datagrams(Some(60), LONG).contains(&60) && at_other.datagrams(Some(61), LONG).contains(&61), "covered: open");
    });
}

#[test]
fn row_26_a_new_router_is_closed_until_it_has_a_policy() {
    on_a_machine(|world| {
        world.service("site", &plain(ServiceKind::Web), 1);
        world.service("api", &plain(ServiceKind::Pserv), 1);
        let pair = |world: &World, name: &str| -> AddressPair { world.of(name).live.address };
        let (a, b) = (pair(world, "site"), pair(world, "api"));
        let watch = Watch::open(world.of("api")).unwrap();
        // What is loaded before anything else: the filter without a single permission.
        let closed = moat_net_linux::lower::text(&moat_net_linux::lower::base(&moat_net_linux::lower::Facts::default()));
        ns::in_ns(&world.router(), || moat_net_linux::nft::apply(&format!("flush ruleset\n{closed}"), "close the router"))
            .unwrap()
            .unwrap();
        let at_router = Watch::open(&world.router()).unwrap();
        send_crafted(world.of("site"), &[craft(a.v4.into(), b.v4.into(), 1), craft(a.v6.into(), b.v6.into(), 2)]).unwrap();
        assert!(at_router.datagrams(Some(2), LONG).contains(&2));
        assert_eq!(watch.datagrams(None, SHORT), [].into());
        let open = world.network.expected_ruleset();
        ns::in_ns(&world.router(), || moat_net_linux::nft::apply(&format!("flush ruleset\n{open}"), "open the router")).unwrap().unwrap();
        send_crafted(world.of("site"), &[craft(a.v4.into(), b.v4.into(), 3)]).unwrap();
        assert!(watch.datagrams(Some(3), LONG).contains(&3));
    });
}
