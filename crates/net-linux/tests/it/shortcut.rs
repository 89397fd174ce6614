//! The shortcut between instances: it is taken, it changes nothing that anybody sees, and it opens nothing.

use crate::world::*;
use crate::{frame, life};
use moat_net_linux::{Config, Counts, Network, ns};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

fn counts(world: &World) -> Counts {
    world.network.shortcut().expect("this kernel has what the shortcut needs")
}

/// A connected stream and its other end.
fn pair(client: &Instance, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let near = ns::in_ns(client, || TcpStream::connect(to).unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (near, far)
}

fn listen(ns: &Instance, to: IpAddr, port: u16) -> TcpListener {
    ns::in_ns(ns, || TcpListener::bind((to, port)).unwrap()).unwrap()
}

fn turn(near: &mut TcpStream, far: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    near.write_all(b"ping").is_ok()
        && far.read_exact(&mut buffer).is_ok()
        && far.write_all(b"pong").is_ok()
        && near.read_exact(&mut buffer).is_ok()
}

#[test]
fn packets_after_the_first_take_it_and_nothing_is_remembered_of_what_ended() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        world.policy.services.insert(vip(1), [b.address].into());
        world.apply().await;
        for (target, own) in [(b.v4(), b.v4()), (b.v6(), b.v6()), (vip(1).v4.into(), b.v4()), (vip(1).v6.into(), b.v6())] {
            let listener = listen(&b, own, 80);
            let before = counts(world);
            let (mut near, mut far) = pair(&a, &listener, (target, 80).into());
            assert_eq!(near.peer_addr().unwrap().ip(), target);
            assert_eq!(far.peer_addr().unwrap().ip(), if own.is_ipv4() { a.v4() } else { a.v6() }, "the client's address is kept");
            for _ in 0..50 {
                assert!(turn(&mut near, &mut far), "{target}");
            }
            let after = counts(world);
            assert_eq!(after.learned, before.learned + 1, "{target}");
            // A turn is two segments with data; acknowledgements come on top.
            assert!(after.taken >= before.taken + 100, "{target}: {after:?}");
            assert_eq!(after.remembered, 2, "{target}");
            // Much at once, both ways: segments larger than a packet.
            let lot: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            for (from, to) in [(&near, &far), (&far, &near)] {
                std::thread::scope(|scope| {
                    let (mut from, lot) = (from, &lot);
                    scope.spawn(move || from.write_all(lot).unwrap());
                    let mut got = vec![0; lot.len()];
                    let mut to = to;
                    to.read_exact(&mut got).unwrap();
                    assert!(got == *lot, "{target}: bytes differ");
                });
            }
            // One end closes, then the other.
            drop(near);
            assert_eq!(far.read(&mut [0; 4]).unwrap(), 0);
            drop(far);
            until("the flow to be forgotten", || counts(world).remembered == 0);
            // Both at once, and a reset.
            let (near, far) = pair(&a, &listener, (target, 80).into());
            std::thread::scope(|scope| {
                scope.spawn(|| drop(near));
                scope.spawn(|| drop(far));
            });
            until("the flow to be forgotten", || counts(world).remembered == 0);
            let (near, mut far) = pair(&a, &listener, (target, 80).into());
            far.write_all(b"unread").unwrap();
            until("the bytes to come", || near.peek(&mut [0; 6]).is_ok_and(|count| count == 6));
            drop(near);
            until("the reset to come", || far.read(&mut [0; 6]).is_err());
            until("the flow to be forgotten", || counts(world).remembered == 0);
        }
        // Nobody listens: refused at once, nothing stays.
        assert_eq!(tcp(&a, b.v4(), 81), Attempt::Error(std::io::ErrorKind::ConnectionRefused));
        until("the flow to be forgotten", || counts(world).remembered == 0);
        assert_eq!(counts(world).no_room, 0);
    });
}

#[test]
fn datagrams_take_it_both_ways_with_right_checksums() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        world.policy.services.insert(vip(1), [b.address].into());
        world.apply().await;
        for target in [b.v4(), b.v6(), vip(1).v4.into(), vip(1).v6.into()] {
            let own = if target.is_ipv4() { b.v4() } else { b.v6() };
            let ear = ns::in_ns(&b, || UdpSocket::bind((own, 80)).unwrap()).unwrap();
            let mouth = ns::in_ns(&a, || UdpSocket::bind((if target.is_ipv4() { a.v4() } else { a.v6() }, 0)).unwrap()).unwrap();
            mouth.connect((target, 80)).unwrap();
            for socket in [&ear, &mouth] {
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            }
            let before = counts(world).taken;
            let mut buffer = [0; 9000];
            for size in [1, 2, 3, 512, 1472 - 20, 1, 1400] {
                let text: Vec<u8> = (0..size).map(|i: usize| i.to_le_bytes()[0]).collect();
                mouth.send(&text).unwrap();
                let (count, peer) = ear.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..count], text[..], "{target}");
                assert_eq!(peer, mouth.local_addr().unwrap());
                ear.send_to(&text, peer).unwrap();
                let count = mouth.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..count], text[..], "{target}");
            }
            assert_eq!(counts(world).taken, before + 13, "all but the first: {target}");
            // One that must be cut in pieces takes the router's path and arrives as well.
            let large = vec![7; 6000];
            mouth.send(&large).unwrap();
            let (count, peer) = ear.recv_from(&mut buffer).unwrap();
            assert_eq!((count, peer), (6000, mouth.local_addr().unwrap()), "{target}");
            ear.send_to(&large, peer).unwrap();
            assert_eq!(mouth.recv(&mut buffer).unwrap(), 6000, "{target}");
        }
    });
}

#[test]
fn two_flows_that_look_alike_behind_a_service_address_are_told_apart() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        world.policy.services.insert(vip(1), [b.address].into());
        world.policy.services.insert(vip(2), [b.address].into());
        world.apply().await;
        let listener = listen(&b, b.v4(), 80);
        // The same port of the client, to the instance and to two service addresses before it: one and the same for the
        // target, unless somebody gives one of them another port.
        let targets = [b.v4(), vip(1).v4.into(), vip(2).v4.into()];
        let mut streams = Vec::new();
        for target in targets {
            let socket = ns::in_ns(&a, || {
                use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
                use std::os::fd::AsRawFd;
                let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
                setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
                let IpAddr::V4(own) = a.v4() else { panic!() };
                let IpAddr::V4(target) = target else { panic!() };
                bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(own, 45_000))).unwrap();
                connect(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(target, 80))).unwrap();
                socket
            })
            .unwrap();
            let near = TcpStream::from(socket);
            let (far, _) = listener.accept().unwrap();
            for stream in [&near, &far] {
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            }
            streams.push((near, far));
            // The router's own memory of the first packet fades within seconds; here it is made to.
            sh_in(&world.router(), "conntrack -F 2>/dev/null");
        }
        for _ in 0..3 {
            for (near, far) in &mut streams {
                assert!(turn(near, far), "from {:?}", near.peer_addr());
            }
        }
        let ports: std::collections::BTreeSet<u16> = streams.iter().map(|(_, far)| far.peer_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3, "{ports:?}");
        assert!(streams.iter().all(|(near, _)| near.local_addr().unwrap().port() == 45_000));
        assert_eq!(counts(world).remembered, 6);
        drop(streams);
        until("the flows to be forgotten", || counts(world).remembered == 0);
    });
}

#[test]
fn an_instance_behind_its_own_service_address_takes_it_too() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let b = world.open(2).await;
        world.policy.services.insert(vip(1), [b.address].into());
        world.apply().await;
        for (target, own) in [(IpAddr::V4(vip(1).v4), b.v4()), (IpAddr::V6(vip(1).v6), b.v6())] {
            let listener = listen(&b, own, 80);
            let before = counts(world).taken;
            let (mut near, mut far) = pair(&b, &listener, (target, 80).into());
            for _ in 0..20 {
                assert!(turn(&mut near, &mut far));
            }
            assert!(counts(world).taken >= before + 40);
        }
    });
}

/// The entry of a flow belongs to its link: the same addresses and ports from another one are what they always were.
#[test]
fn another_instance_that_pretends_to_be_in_a_flow_does_not_get_on_it() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, spy) = (world.worker(1).await, world.open(2).await, world.worker(3).await);
        for i in 0..2 {
            let (from, to) = (a.both()[i], b.both()[i]);
            let ear = ns::in_ns(&b, || UdpSocket::bind((to, 80)).unwrap()).unwrap();
            ear.set_read_timeout(Some(CLOSED)).unwrap();
            let mouth = ns::in_ns(&a, || UdpSocket::bind((from, 4444)).unwrap()).unwrap();
            mouth.connect((to, 80)).unwrap();
            mouth.set_read_timeout(Some(CLOSED)).unwrap();
            let mut buffer = [0; 64];
            for _ in 0..3 {
                mouth.send(b"honest").unwrap();
                assert_eq!(ear.recv_from(&mut buffer).unwrap().0, 6);
                ear.send_to(b"answer", (from, 4444)).unwrap();
                assert_eq!(mouth.recv(&mut buffer).unwrap(), 6);
            }
            let taken = counts(world).taken;
            // The hand-made datagram has the port 4444 as its source, as the honest one has.
            frame::send(&spy, &frame::udp(from, to, 80, "forged"));
            assert!(ear.recv_from(&mut buffer).is_err(), "a forged question from {from} arrived");
            frame::send(&spy, &frame::udp(to, from, 4444, "forged"));
            assert!(mouth.recv(&mut buffer).is_err(), "a forged answer to {from} arrived");
            assert_eq!(counts(world).taken, taken);
            // The positive control: the same frame from the right link passes.
            frame::send(&a, &frame::udp(from, to, 80, "forged"));
            assert_eq!(ear.recv_from(&mut buffer).unwrap().0, 6);
            assert_eq!(counts(world).taken, taken + 1);
        }
    });
}

#[test]
fn what_the_policy_closes_leaves_it_at_once() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b, c) = (world.worker(1).await, world.open(2).await, world.open(3).await);
        let (to_b, to_c) = (listen(&b, b.v4(), 80), listen(&c, c.v4(), 80));
        let mut kept = pair(&a, &to_c, (c.v4(), 80).into());
        let mut cut = pair(&a, &to_b, (b.v4(), 80).into());
        assert!(turn(&mut kept.0, &mut kept.1) && turn(&mut cut.0, &mut cut.1));
        assert_eq!(counts(world).remembered, 4);
        // An instance that the policy does not list any more, though its link is still there.
        let entry = world.policy.sources.remove(&b.id).unwrap();
        world.policy.receivers.remove(&(ZONE, b.address));
        world.apply().await;
        assert_eq!(counts(world).remembered, 2);
        cut.1.set_read_timeout(Some(CLOSED)).unwrap();
        assert!(!turn(&mut cut.0, &mut cut.1));
        assert!(turn(&mut kept.0, &mut kept.1));
        // It may send again, but not receive.
        world.policy.sources.insert(b.id.clone(), entry);
        world.apply().await;
        assert!(!turn(&mut cut.0, &mut cut.1));
        must_close(&a, b.v4(), 80);
        assert!(turn(&mut kept.0, &mut kept.1));
        // The filter is loaded anew: what is allowed goes on.
        world.network.reload().await.unwrap();
        assert!(turn(&mut kept.0, &mut kept.1));
        world.network.detach(&c.link).await.unwrap();
        world.network.links().await.unwrap();
        until("the flows of a link that is gone to be forgotten", || counts(world).remembered == 0);
    });
}

#[test]
fn another_process_takes_over_what_runs() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        let listener = listen(&b, b.v4(), 80);
        let mut open = pair(&a, &listener, (b.v4(), 80).into());
        assert!(turn(&mut open.0, &mut open.1));
        let taken = counts(world).taken;
        // As after a kill: whoever comes next knows nothing but what is in the kernel.
        world.network = Network::open(Config { run_dir: world.run.path().to_owned(), shortcut: true }).unwrap();
        assert!(turn(&mut open.0, &mut open.1), "nobody is there and packets still take it");
        assert_eq!(world.network.repair().await.unwrap().done, Vec::<String>::new());
        assert_eq!(counts(world).remembered, 2);
        assert!(counts(world).taken > taken);
        // A link made by the second takes part in flows with one made by the first.
        let c = world.open(3).await;
        let listener = listen(&c, c.v4(), 80);
        let mut more = pair(&a, &listener, (c.v4(), 80).into());
        for _ in 0..5 {
            assert!(turn(&mut more.0, &mut more.1) && turn(&mut open.0, &mut open.1));
        }
        assert_eq!(counts(world).remembered, 4);
        // And what the policy closes is closed by the second.
        world.policy.receivers.remove(&(ZONE, b.address));
        world.apply().await;
        assert_eq!(counts(world).remembered, 2);
    });
}

#[test]
fn a_link_that_lost_its_programs_works_and_gets_them_back() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        serve(&b, 80, "b");
        for link in [&a.link, &b.link] {
            take_away(world, link);
            assert_eq!(ways_of(world, link), [0, 0]);
            must_open(&a, b.v4(), 80);
            must_close(&b, a.v4(), 80);
            // Of a program by `tcx` the kernel tells nobody: that is seen at the look that comes anyway.
            let mut repaired = Vec::new();
            for _ in 0..61 {
                repaired.extend(world.network.repair().await.unwrap().done);
            }
            assert_eq!(repaired, [format!("gave the link `{link}` its shortcut back")]);
            assert_eq!(ways_of(world, link).iter().sum::<usize>(), 2);
            assert!(world.network.repair().await.unwrap().done.is_empty());
        }
        let before = counts(world).taken;
        must_open(&a, b.v4(), 80);
        assert!(counts(world).taken > before);
    });
}

#[test]
fn without_it_everything_is_the_same() {
    on_a_machine(async |world| {
        world.network = Network::open(Config { run_dir: world.run.path().to_owned(), shortcut: false }).unwrap();
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        world.policy.services.insert(vip(1), [b.address].into());
        world.apply().await;
        serve(&b, 80, "b");
        serve(&a, 80, "a");
        assert_eq!(world.network.shortcut(), None);
        for target in [b.v4(), b.v6(), vip(1).v4.into(), vip(1).v6.into()] {
            must_open(&a, target, 80);
        }
        must_close(&b, a.v4(), 80);
        assert_eq!(life::drift(world), Vec::<String>::new());
        assert_eq!(ways_of(world, &a.link), [0, 0]);
    });
}

/// As after an update of the kernel's way: an older Moat attached filters, and its flows are open.
#[test]
fn filters_that_run_are_taken_over_with_their_flows_and_moved() {
    on_a_machine(async |world| {
        let (older, a, b, mut open, listener) = on_its_own_thread(|| {
            without_tcx();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut world = World::new();
                world.network.ensure_router().await.unwrap();
                let (a, b) = (world.worker(1).await, world.open(2).await);
                let listener = listen(&b, b.v4(), 80);
                let mut open = pair(&a, &listener, (b.v4(), 80).into());
                assert!(turn(&mut open.0, &mut open.1));
                (world, a, b, open, listener)
            })
        });
        *world = older;
        for link in [&a.link, &b.link] {
            assert_eq!(ways_of(world, link), [0, 2], "{link}");
        }
        world.network = Network::open(Config { run_dir: world.run.path().to_owned(), shortcut: true }).unwrap();
        world.network.repair().await.unwrap();
        for link in [&a.link, &b.link] {
            assert_eq!(ways_of(world, link), [2, 0], "{link}");
        }
        let before = counts(world);
        assert_eq!(before.remembered, 2, "its flows are still known");
        for _ in 0..10 {
            assert!(turn(&mut open.0, &mut open.1));
        }
        assert!(counts(world).taken >= before.taken + 20);
        let mut more = pair(&a, &listener, (b.v4(), 80).into());
        assert!(turn(&mut more.0, &mut more.1));
        assert_eq!(counts(world).learned, before.learned + 1);
        assert!(world.network.repair().await.unwrap().done.is_empty());
        world.policy.receivers.remove(&(ZONE, b.address));
        world.apply().await;
        assert_eq!(counts(world).remembered, 0);
        open.1.set_read_timeout(Some(CLOSED)).unwrap();
        assert!(!turn(&mut open.0, &mut open.1));
    });
}

/// Nobody would cut the flows that programs of an earlier process know.
#[test]
fn who_wants_no_shortcut_takes_away_what_runs() {
    on_both_machines(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.worker(1).await, world.open(2).await);
        let listener = listen(&b, b.v4(), 80);
        let mut open = pair(&a, &listener, (b.v4(), 80).into());
        assert!(turn(&mut open.0, &mut open.1));
        assert_eq!(counts(world).remembered, 2);
        world.network = Network::open(Config { run_dir: world.run.path().to_owned(), shortcut: false }).unwrap();
        world.policy.receivers.remove(&(ZONE, b.address));
        world.apply().await;
        for link in [&a.link, &b.link] {
            assert_eq!(ways_of(world, link), [0, 0], "{link}");
        }
        open.1.set_read_timeout(Some(CLOSED)).unwrap();
        assert!(!turn(&mut open.0, &mut open.1));
    });
}
