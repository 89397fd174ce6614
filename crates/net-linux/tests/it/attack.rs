//! What an instance with raw sockets, a host user and a neighbour of the LAN try.

use crate::frame;
use crate::world::*;
use moat_net_linux::ns;
use std::net::{IpAddr, UdpSocket};

/// A UDP socket that listens, and what arrives in it until a mark does.
struct Ear {
    socket: UdpSocket,
}

impl Ear {
    fn on(instance: &Instance, port: u16) -> Self {
        let socket = ns::in_ns(instance, || UdpSocket::bind(format!("[::]:{port}")).unwrap()).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        Self { socket }
    }
    /// Everything that came before a datagram with the text `end`.
    fn until_end(&self) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        loop {
            let (count, _) = self.socket.recv_from(&mut buffer).expect("the mark must arrive");
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text == "end" {
                return heard;
            }
            heard.push(text);
        }
    }
}

#[test]
fn a_source_that_is_not_the_links_own_is_dropped() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, c) = (world.open(1).await, world.open(2).await, world.open(3).await);
        let ear = Ear::on(&b, 80);
        let foreign = ["127.0.0.1", "169.254.1.1", "8.8.8.8", "10.128.0.1", "0.0.0.0", "255.255.255.255", "100.127.240.1"];
        for from in foreign.iter().map(|text| text.parse().unwrap()).chain([c.v4(), b.v4()]) {
            frame::send(&a, &frame::udp(from, b.v4(), 80, "spoofed"));
        }
        for from in ["::1", "fe80::1", "fe80::2", "2606:4700::1", "::", "::ffff:10.64.0.3", "ff02::1"]
            .iter()
            .map(|text| text.parse().unwrap())
            .chain([c.v6(), b.v6()])
        {
            frame::send(&a, &frame::udp(from, b.v6(), 80, "spoofed"));
        }
        frame::send(&a, &frame::udp(a.v4(), b.v4(), 80, "mine4"));
        frame::send(&a, &frame::udp(a.v6(), b.v6(), 80, "mine6"));
        frame::send(&a, &frame::udp(a.v4(), b.v4(), 80, "end"));
        assert_eq!(ear.until_end(), ["mine4", "mine6"], "only the link's own sources pass");
        assert!(world.network.spoofed().await.unwrap() >= 8, "spoofed packets are counted");
    });
}

#[test]
fn loopback_and_the_gateway_are_not_reached_from_the_wire() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        let router = world.router();
        // Listeners of the router and of a neighbour, on loopback and on everything.
        let local: Vec<UdpSocket> =
            [(&router, "0.0.0.0:4000"), (&router, "127.0.0.1:4001"), (&router, "[::]:4002"), (&b.room.ns, "127.0.0.1:4000")]
                .iter()
                .map(|(ns, at)| ns::in_ns(*ns, || UdpSocket::bind(at).unwrap()).unwrap())
                .collect();
        for (to, port) in [
            ("127.0.0.1", 4000),
            ("127.0.0.1", 4001),
            ("169.254.1.1", 4000),
            ("0.0.0.0", 4000),
            ("255.255.255.255", 4000),
            ("224.0.0.1", 4000),
        ] {
            frame::send(&a, &frame::udp(a.v4(), to.parse().unwrap(), port, "in"));
        }
        for to in ["::1", "fe80::1", "ff02::1", "ff02::2"] {
            frame::send(&a, &frame::udp(a.v6(), to.parse().unwrap(), 4002, "in"));
        }
        // The mark: DNS to the gateway passes, after all the others on the same wire.
        let dns = ns::in_ns(&router, || UdpSocket::bind("169.254.1.1:53").unwrap()).unwrap();
        dns.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        frame::send(&a, &frame::udp(a.v4(), "169.254.1.1".parse().unwrap(), 53, "question"));
        let (_, from) = dns.recv_from(&mut [0; 64]).expect("DNS must pass");
        assert_eq!(from.ip(), a.v4());
        for socket in local {
            socket.set_nonblocking(true).unwrap();
            let heard = socket.recv_from(&mut [0; 64]);
            assert!(heard.is_err(), "{:?} heard {heard:?}", socket.local_addr());
        }
        must_close(&a, "169.254.1.1".parse().unwrap(), 54);
    });
}

#[test]
fn only_listed_protocols_pass() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        let kinds = [
            ("gre", "meta l4proto 47"),
            ("ipip", "meta l4proto 4"),
            ("dccp", "meta l4proto 33"),
            ("redirect", "icmp type 5"),
            ("unreachable", "icmp type 3"),
            ("echo", "icmp type 8"),
        ];
        let ear = Counters::new(&b, &kinds);
        let (from, to) = (a.address.v4, b.address.v4);
        frame::send(&a, &frame::v4(from, to, 47, &[0; 32]));
        frame::send(&a, &frame::v4(from, to, 4, &[0x45; 40]));
        frame::send(&a, &frame::v4(from, to, 33, &[0; 32]));
        // ICMP errors about no flow, and a redirect.
        for kind in [3, 5] {
            let inner = &frame::udp(b.v4(), a.v4(), 9, "")[14..];
            let mut message = [&[kind, 1, 0, 0, 0, 0, 0, 0][..], inner].concat();
            let checksum = icmp_sum(&message);
            message[2..4].copy_from_slice(&checksum);
            frame::send(&a, &frame::v4(from, to, 1, &message));
        }
        let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
        let checksum = icmp_sum(&echo);
        echo[2..4].copy_from_slice(&checksum);
        frame::send(&a, &frame::v4(from, to, 1, &echo));
        until("the echo request, sent last", || ear.packets("echo") == 1);
        for (name, _) in kinds {
            assert_eq!(ear.packets(name), u64::from(name == "echo"), "{name}");
        }
        let denied = world.network.denied().await.unwrap();
        assert!(denied.iter().any(|flow| flow.proto == 47 && flow.port == 0 && flow.from == a.v4()), "{denied:?}");
    });
}

fn icmp_sum(message: &[u8]) -> [u8; 2] {
    let mut total: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    (!u16::try_from(total).unwrap()).to_be_bytes()
}

#[test]
fn router_advertisements_change_nothing() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        serve(&b, 80, "b");
        let router = world.router();
        let state = || (sh_in(&router, "ip -6 route; ip -6 addr"), sh_in(&b, "ip -6 route; ip -6 addr"));
        let before = state();
        frame::send(&a, &frame::router_advertisement());
        must_open(&a, b.v6(), 80);
        assert_eq!(state(), before);
        for (ns, link) in [(&router, a.link.as_str()), (&router, "uplink"), (&a.room.ns, "eth0")] {
            for setting in ["accept_ra", "autoconf", "accept_redirects", "accept_source_route"] {
                assert_eq!(sh_in(ns, &format!("cat /proc/sys/net/ipv6/conf/{link}/{setting}")).trim(), "0", "{link} {setting}");
            }
        }
    });
}

#[test]
fn a_withdrawn_permission_cuts_open_flows_both_ways() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, c) = (world.worker(1).await, world.open(2).await, world.open(3).await);
        for i in 0..2 {
            let (from, to): (IpAddr, IpAddr) = (a.both()[i], b.both()[i]);
            let listener = ns::in_ns(&b, || std::net::TcpListener::bind((to, 80)).unwrap()).unwrap();
            let ear = ns::in_ns(&b, || UdpSocket::bind((to, 80)).unwrap()).unwrap();
            let mut client = ns::in_ns(&a, || std::net::TcpStream::connect((to, 80)).unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let datagrams = ns::in_ns(&a, || UdpSocket::bind((from, 0)).unwrap()).unwrap();
            datagrams.connect((to, 80)).unwrap();
            // Both flows work, both ways, and are established.
            let answer = |text: &[u8]| {
                datagrams.send(text).unwrap();
                let (_, peer) = ear.recv_from(&mut [0; 8]).unwrap();
                ear.send_to(b"y", peer).unwrap();
                datagrams.recv(&mut [0; 8]).unwrap();
                peer
            };
            let peer = answer(b"x");
            exchange(&mut client, &mut server);
            // Another service joins: open flows stay.
            world.policy.receivers.remove(&(ZONE, c.address));
            world.apply().await;
            answer(b"x");
            exchange(&mut client, &mut server);
            // The permission goes.
            world.policy.receivers.remove(&(ZONE, b.address));
            world.apply().await;
            for stream in [&mut client, &mut server] {
                stream.set_read_timeout(Some(CLOSED)).unwrap();
            }
            use std::io::{Read, Write};
            let _ = client.write(b"x");
            assert!(server.read(&mut [0; 8]).is_err(), "tcp from {from} is cut");
            let _ = server.write(b"y");
            assert!(client.read(&mut [0; 8]).is_err(), "tcp back to {from} is cut");
            ear.set_read_timeout(Some(CLOSED)).unwrap();
            datagrams.set_read_timeout(Some(CLOSED)).unwrap();
            // A "reply" to the port once used, first, while nothing re-opened the flow.
            ear.send_to(b"y", peer).unwrap();
            assert!(datagrams.recv(&mut [0; 8]).is_err(), "udp back to {from} is cut");
            datagrams.send(b"x").unwrap();
            assert!(ear.recv_from(&mut [0; 8]).is_err(), "udp from {from} is cut");
            // It comes back: new flows pass.
            world.policy.receivers.insert((ZONE, b.address));
            world.policy.receivers.insert((ZONE, c.address));
            world.apply().await;
            ear.set_read_timeout(None).unwrap();
            datagrams.set_read_timeout(None).unwrap();
            answer(b"x");
        }
    });
}

fn exchange(client: &mut std::net::TcpStream, server: &mut std::net::TcpStream) {
    use std::io::{Read, Write};
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_reused_address_inherits_no_flow() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        serve(&b, 80, "old");
        let datagrams = ns::in_ns(&a, || UdpSocket::bind((a.v4(), 0)).unwrap()).unwrap();
        datagrams.connect((b.v4(), 80)).unwrap();
        ask(&datagrams).unwrap();
        let flows = || sh_in(&world.router(), "conntrack -L -p udp 2>/dev/null");
        assert!(flows().contains("dport=80"), "{}", flows());
        assert!(world.network.detach(&b.link).await.unwrap());
        assert!(!world.network.detach(&b.link).await.unwrap());
        assert_eq!(world.network.links().await.unwrap(), [a.link.clone()]);
        // A new namespace with the old address.
        let next = Room::new();
        world.network.attach(next.pid(), b.address, &b.link).await.unwrap();
        assert!(!flows().contains("dport=80"), "{}", flows());
        serve(&next.ns, 80, "new");
        assert!(ask(&datagrams).unwrap().starts_with("new"));
    });
}

#[test]
fn an_instance_that_no_policy_lists_is_closed() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let a = world.open(1).await;
        serve(&a, 80, "a");
        let early = Instance::new(2);
        world.network.attach(early.pid(), early.address, &early.link).await.unwrap();
        serve(&early, 80, "early");
        for i in 0..2 {
            must_close(&early, a.both()[i], 80);
            must_close(&a, early.both()[i], 80);
        }
        must_close(&early, "169.254.1.1".parse().unwrap(), 53);
        // Listed, it sends; listed as a receiver, it receives.
        world.policy.sources.insert(early.id.clone(), early.entry(Some(ZONE), moat_model::Egress::None));
        world.apply().await;
        must_open(&early, a.v4(), 80);
        must_close(&a, early.v4(), 80);
        world.policy.receivers.insert((ZONE, early.address));
        world.apply().await;
        must_open(&a, early.v6(), 80);
    });
}

#[test]
fn errors_about_a_flow_come_from_its_ends_only() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, c) = (world.open(1).await, world.open(2).await, world.open(3).await);
        let ear = Counters::new(&a, &[("fragment", "icmp type 3 icmp code 4"), ("port", "icmp type 3 icmp code 3")]);
        let flow = ns::in_ns(&a, || UdpSocket::bind((a.v4(), 4444)).unwrap()).unwrap();
        let other = ns::in_ns(&b, || UdpSocket::bind((b.v4(), 80)).unwrap()).unwrap();
        flow.connect((b.v4(), 80)).unwrap();
        flow.send(b"x").unwrap();
        other.recv_from(&mut [0; 8]).unwrap();
        // "Fragmentation needed, 576 bytes", about the flow from a to b: first forged by c, then sent by b.
        let inner = &frame::udp(a.v4(), b.v4(), 80, "x")[14..];
        let mut message = [&[3, 4, 0, 0, 0, 0, 2, 64][..], inner].concat();
        let checksum = icmp_sum(&message);
        message[2..4].copy_from_slice(&checksum);
        frame::send(&c, &frame::v4(c.address.v4, a.address.v4, 1, &message));
        drop(other);
        flow.send(b"x").unwrap();
        until("the honest error, sent last", || ear.packets("port") == 1);
        assert_eq!(ear.packets("fragment"), 0, "forged by a third");
        frame::send(&b, &frame::v4(b.address.v4, a.address.v4, 1, &message));
        until("the same from the flow's end", || ear.packets("fragment") == 1);
    });
}

#[test]
fn fragments_and_extension_headers_open_nothing() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, worker) = (world.open(1).await, world.open(2).await, world.worker(3).await);
        let (open, closed) = (Ear::on(&b, 80), Ear::on(&worker, 80));
        let reserved = Ear::on(&b, 18012);
        for (ear, target, port, passes) in [(&open, &b, 80, true), (&closed, &worker, 80, false), (&reserved, &b, 18012, false)] {
            for datagram in [
                frame::fragments(a.address.v4, target.address.v4, port, "pieces"),
                frame::behind_options(a.address.v6, target.address.v6, port, "options"),
            ] {
                for piece in datagram {
                    frame::send(&a, &piece);
                }
            }
            ear.socket.set_read_timeout(Some(if passes { std::time::Duration::from_secs(5) } else { CLOSED })).unwrap();
            let mut heard = [0; 16];
            let both = [ear.socket.recv(&mut heard).is_ok(), ear.socket.recv(&mut heard).is_ok()];
            assert_eq!(both, [passes; 2], "port {port} of {}", target.v4());
        }
    });
}

#[test]
fn row_30_one_source_does_not_fill_the_table_of_flows() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, c) = (world.open(1).await, world.open(2).await, world.open(3).await);
        serve(&b, 80, "b");
        let number = |name: &str| sh_in(&world.router(), &format!("cat /proc/sys/net/netfilter/{name}")).trim().parse::<usize>().unwrap();
        let most = number("nf_conntrack_max");
        for i in 0..2 {
            let to = b.both()[i];
            let mut other = ns::in_ns(&c, || std::net::TcpStream::connect((to, 80)).unwrap()).unwrap();
            assert_eq!(world.network.relieve().await.unwrap(), [], "there is room");
            let mut datagrams_sent = 0;
            while number("nf_conntrack_count") <= most / 2 {
                let datagrams = ns::in_ns(&a, || UdpSocket::bind((a.both()[i], 0)).unwrap()).unwrap();
                for port in 20_000..52_000 {
                    datagrams.send_to(b"x", (to, port)).unwrap();
                }
                datagrams_sent += 32_000;
                assert!(datagrams_sent < 2 * most, "{} of {datagrams_sent}", number("nf_conntrack_count"));
            }
            let found = world.network.relieve().await.unwrap();
            assert!(matches!(found[..], [crowd] if crowd.source == a.both()[i] && crowd.flows > most / 8), "{found:?}");
            assert!(number("nf_conntrack_count") < 100, "{}", number("nf_conntrack_count"));
            // No more for the one, for a while; the others go on, and so do their open flows.
            assert_eq!(tcp_within(&a, to, 80, CLOSED), Attempt::Silence);
            assert!(tcp_within(&c, to, 80, OPEN).is_open());
            assert_eq!(tcp_within(&b, c.both()[i], 81, CLOSED), Attempt::Error(std::io::ErrorKind::ConnectionRefused), "b goes on");
            assert!(talk(&mut other).unwrap().starts_with('b'));
            let denied = world.network.denied().await.unwrap();
            assert!(denied.iter().any(|flow| flow.from == a.both()[i] && flow.to == to && flow.proto == 6 && flow.port == 0), "{denied:?}");
            assert_eq!(world.network.foreign_changes().await.unwrap(), [], "it is our own doing");
            let set = ["crowded4", "crowded6"][i];
            sh_in(&world.router(), &format!("nft flush set inet moat {set}"));
            assert!(tcp_within(&a, to, 80, OPEN).is_open(), "later it is as it was");
        }
    });
}
