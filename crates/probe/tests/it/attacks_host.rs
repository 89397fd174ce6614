//! The host as attacker and as victim: its services, its neighbours, its routes, its firewall.

use crate::world::*;
use moat_net_linux::ns;
use moat_probe::{Craft, Observed, ProbeKind, Via, Watch, send_crafted};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(80);

/// Whether anyone answers at an address, by TCP or UDP.
fn answers(ns: &impl AsFd, to: IpAddr, port: u16, limit: Duration) -> bool {
    let tcp = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"hello")?;
        stream.read(&mut [0; 64])
    };
    let udp = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect((to, port))?;
        socket.send(b"hello")?;
        socket.recv(&mut [0; 64])
    };
    ns::in_ns(ns, || tcp().is_ok_and(|n| n > 0) || udp().is_ok_and(|n| n > 0)).unwrap()
}

fn both(test: fn(&mut World)) {
    for on in [false, true] {
        std::thread::spawn(move || with_bridge_filter(on, test)).join().unwrap();
    }
}

#[test]
fn row_10_and_17_the_hosts_services_and_metadata() {
    both(|world| {
        world.example();
        // The host listens everywhere, has a second bridge, and plays the metadata service of its cloud.
        sh(
            "ip link add br9 type bridge; ip addr add 172.29.0.1/24 dev br9; ip link set br9 up; ip addr add 169.254.169.254/32 dev lo; ip addr add 100.100.100.200/32 dev lo; ip -6 addr add fd00:ec2::254/128 dev lo nodad",
        );
        world.refresh();
        serve(&host(), 8000, "host");
        let uplink = world.network.uplink().unwrap().unwrap();
        let addresses: Vec<IpAddr> = ["192.0.2.2", "172.29.0.1", "2001:db8:1::2", "169.254.169.254", "100.100.100.200", "fd00:ec2::254"]
            .iter()
            .map(|a| a.parse().unwrap())
            .chain([uplink.host_address.v4.into(), uplink.host_address.v6.into()])
            .collect();
        for address in addresses {
            assert!(answers(&host(), address, 8000, LONG), "the host itself reaches {address}");
            for name in ["site", "tick", "vault"] {
                assert!(!answers(world.of(name), address, 8000, SHORT), "{name} reached the host at {address}");
            }
        }
        // The gateway's address answers names and nothing else, whoever listens in the router.
        serve(&world.router(), 8001, "router");
        for address in ["169.254.1.1".parse().unwrap(), IpAddr::from(uplink.router_address.v4)] {
            assert!(!answers(world.of("site"), address, 8001, SHORT), "{address} in the router");
        }
        assert!(answers(world.of("site"), world.of("api").v4(), 10000, LONG), "the same tool reaches a service");
    });
}

#[test]
fn row_11_a_neighbour_and_a_user_of_the_host_with_routes() {
    both(|world| {
        world.example();
        let uplink = world.network.uplink().unwrap().unwrap();
        // A user of the host adds routes into the router; a neighbour adds routes to the host; the host forwards.
        sh(&format!(
            "ip route add 10.64.0.0/10 via {r} dev {l}; ip route add 10.128.0.0/10 via {r} dev {l}; echo 1 > /proc/sys/net/ipv4/ip_forward",
            r = uplink.router_address.v4,
            l = uplink.host_link
        ));
        sh(&format!(
            "ip -6 route add fd12:3456:789a::/48 via {r} dev {l}; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            r = uplink.router_address.v6,
            l = uplink.host_link
        ));
        let neighbour = Room::inside(&host());
        sh(&format!(
            "ip link add n0 type veth peer name n1 netns {}; ip addr add 192.168.77.1/24 dev n0; ip -6 addr add fd77::1/64 dev n0 nodad; ip link set n0 up",
            neighbour.pid()
        ));
        sh_in(
            &neighbour,
            "ip addr add 192.168.77.2/24 dev n1; ip -6 addr add fd77::2/64 dev n1 nodad; ip link set n1 up; ip route add default via 192.168.77.1; ip -6 route add default via fd77::1",
        );
        serve(&host(), 8000, "host");
        assert!(answers(&neighbour, "192.168.77.1".parse().unwrap(), 8000, LONG), "the neighbour can send");
        let at_router = Watch::open(&world.router()).unwrap();
        let mut nonce = 100;
        // First with the host's table, which stops neighbours on the host already; then without it.
        for flushed in [false, true] {
            if flushed {
                sh("nft flush ruleset");
            }
            for name in ["site", "api", "tick", "store", "vault"] {
                let at_target = Watch::open(world.of(name)).unwrap();
                let mut addresses = world.of(name).both().to_vec();
                if let Some(vip) = world.state.services[&slug(name)].vip {
                    addresses.extend([IpAddr::V4(vip.v4), IpAddr::V6(vip.v6)]);
                }
                for address in addresses {
                    for (is_host, from, source) in
                        [(false, neighbour.as_fd(), ["192.168.77.2", "fd77::2"]), (true, host().as_fd(), ["192.0.2.2", "2001:db8:1::2"])]
                    {
                        nonce += 1;
                        let source = source[usize::from(address.is_ipv6())].parse().unwrap();
                        send_crafted(
                            &from,
                            &[Craft {
                                source,
                                destination: address,
                                proto: moat_model::Proto::Udp,
                                source_port: 4000,
                                port: 10000,
                                nonce,
                                ttl: 64,
                            }],
                        )
                        .unwrap();
                        if flushed || is_host {
                            assert!(
                                at_router.datagrams(Some(nonce), LONG).contains(&nonce),
                                "it entered the router: {source} -> {address}"
                            );
                        }
                        assert!(!answers(&from, address, 10000, Duration::from_millis(20)), "{source} -> {address}");
                    }
                }
                assert_eq!(at_target.datagrams(None, SHORT), [].into(), "{name}");
            }
        }
        assert!(answers(world.of("site"), world.of("api").v4(), 10000, LONG), "inside, everything goes on");
    });
}

#[test]
fn row_12_the_hosts_firewall_is_flushed() {
    both(|world| {
        world.example();
        let before = world.verify();
        assert!(before.passed(), "{}", troubles(&before));
        // What a reload of ufw, firewalld or a start of Docker does to the host's tables.
        sh(
            "nft flush ruleset; command -v iptables >/dev/null && { iptables -F; iptables -X; iptables -P FORWARD ACCEPT; iptables -t nat -F; } || true",
        );
        let after = world.verify();
        assert!(
            after.rows.iter().filter(|row| !row.expected.is_allowed()).all(|row| row.observed == Observed::NotReached),
            "still closed\n{}",
            troubles(&after)
        );
        let private = |row: &&moat_probe::Row| row.expected.is_allowed() && !matches!(row.what, ProbeKind::Flow { via: Via::Egress, .. });
        assert!(after.rows.iter().filter(private).all(|row| row.agrees), "the private network does not notice\n{}", troubles(&after));
        assert!(!sh("nft list ruleset").contains("masquerade"));
        let done = world.repair();
        assert!(!done.is_empty(), "egress is repaired");
        assert!(sh("nft list ruleset").contains("masquerade"));
        assert!(world.repair().is_empty(), "once");
        let repaired = world.verify();
        assert!(repaired.passed(), "{}", troubles(&repaired));
    });
}
