//! The host, its users, its firewall, and the LAN around it.

use crate::world::*;
use moat_model::policy::NetPolicy;
use moat_net_linux::{Config, Network};
use std::net::IpAddr;

/// The internet as a namespace behind the host, and a neighbour on the host's LAN.
pub struct Surroundings {
    pub internet: Room,
    pub neighbour: Room,
}

pub const HOST_V4: &str = "203.0.113.5";
pub const HOST_V6: &str = "2001:db8:5::5";
pub const INTERNET_V4: &str = "198.51.100.2";
pub const INTERNET_V6: &str = "2606:4700:db8::2";

impl Surroundings {
    pub fn new() -> Self {
        let (internet, neighbour) = (Room::new(), Room::new());
        sh(&format!(
            "ip link add up0 type veth peer name eth0 netns {}; ip link set up0 addrgenmode none
             ip addr add 198.51.100.1/24 dev up0; ip addr add 2606:4700:db8::1/64 dev up0 nodad
             ip addr add {HOST_V4}/32 dev up0; ip addr add {HOST_V6}/128 dev up0 nodad; ip link set up0 up
             ip link add lan0 type veth peer name eth0 netns {}; ip link set lan0 addrgenmode none
             ip addr add 192.0.2.1/24 dev lan0; ip addr add fd00:77::1/64 dev lan0 nodad; ip link set lan0 up
             ip route add 169.254.169.254/32 dev up0; ip -6 route add fd00:ec2::254/128 dev up0 src 2606:4700:db8::1; ip route add 100.100.100.200/32 dev up0; ip route add 192.168.7.7/32 dev up0",
            internet.pid(),
            neighbour.pid()
        ));
        sh_in(
            &internet.ns,
            &format!(
                "ip link set lo up; for a in {INTERNET_V4}/24 169.254.169.254/32 100.100.100.200/32 192.168.7.7/32; do ip addr add $a dev eth0; done
             ip addr add {INTERNET_V6}/64 dev eth0 nodad; ip addr add fd00:ec2::254/128 dev eth0 nodad; ip link set eth0 up; ip -6 route add fd00:77::/64 via 2606:4700:db8::1"
            ),
        );
        sh_in(
            &neighbour.ns,
            "ip link set lo up; ip addr add 192.0.2.9/24 dev eth0; ip addr add fd00:77::9/64 dev eth0 nodad; ip link set eth0 up
             ip route add default via 192.0.2.1; ip -6 route add default via fd00:77::1",
        );
        serve(&internet.ns, 80, "internet");
        serve(&neighbour.ns, 80, "neighbour");
        // Addresses of the links themselves count from when they are up.
        until("the internet", || tcp(&host(), ip(INTERNET_V6), 80).is_open() && tcp(&host(), ip(INTERNET_V4), 80).is_open());
        Self { internet, neighbour }
    }
}

/// The host's namespace.
pub fn host() -> std::fs::File {
    moat_net_linux::ns::current().unwrap()
}

/// The name of the host's end of the uplink.
pub fn uplink() -> String {
    sh("ip -o link | grep -o 'mu-[0-9a-f]*' | head -1").trim().to_owned()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn egress_reaches_the_internet_and_never_the_host() {
    on_a_machine(async |world| {
        let _around = Surroundings::new();
        serve(&host(), 7777, "host");
        world.network.ensure_router().await.unwrap();
        let a = world.open(1).await;
        for to in [INTERNET_V4, INTERNET_V6] {
            must_open(&a, ip(to), 80);
        }
        assert_eq!(tcp(&a, ip(INTERNET_V4), 80).answer(), "internet 198.51.100.1", "masqueraded by the host");
        // Positive control: the host's listener answers a neighbour on the same addresses.
        let uplink = sh("ip -o -4 addr show | grep -o '100\\.127\\.[0-9.]*/30' | cut -d/ -f1");
        for to in [HOST_V4, HOST_V6, "192.0.2.1", "198.51.100.1", "2606:4700:db8::1", "fd00:77::1"] {
            assert!(tcp(&_around.neighbour.ns, ip(to), 7777).is_open(), "{to} must answer the neighbour");
            must_close(&a, ip(to), 7777);
        }
        for to in [uplink.trim(), "169.254.1.1", "fe80::1"] {
            must_close(&a, ip(to), 7777);
        }
        // A new address of the host is seen.
        sh("ip addr add 203.0.113.99/32 dev up0");
        assert!(world.network.refresh_host_addresses().await.unwrap());
        assert!(!world.network.refresh_host_addresses().await.unwrap());
        assert!(world.network.expected_ruleset().contains("203.0.113.99"));
        must_close(&a, ip("203.0.113.99"), 7777);
    });
}

#[test]
fn private_and_metadata_addresses_never_leave_by_the_uplink() {
    on_a_machine(async |world| {
        let _around = Surroundings::new();
        world.network.ensure_router().await.unwrap();
        let a = world.open(1).await;
        let link = uplink();
        let private4 = format!(
            "iifname {link} ip daddr {{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 100.64.0.0/10, 127.0.0.0/8, 224.0.0.0/3 }}"
        );
        let private6 = format!("iifname {link} ip6 daddr {{ fc00::/7, fe80::/10, ff00::/8, ::/96 }}");
        let ear = Counters::new(&host(), &[("all", &format!("iifname {link}")), ("private4", &private4), ("private6", &private6)]);
        for to in ["169.254.169.254", "100.100.100.200", "192.168.7.7", "fd00:ec2::254"] {
            assert!(tcp(&host(), ip(to), 80).is_open(), "{to} must answer the host");
            must_close(&a, ip(to), 80);
        }
        for to in [
            "10.1.2.3",
            "172.20.0.1",
            "10.64.0.99",
            "10.128.0.99",
            "224.0.0.251",
            "255.255.255.255",
            "fe80::9",
            "ff02::fb",
            "fd12:3456:789a:100::99",
            "::ffff:192.168.7.7",
            "64:ff9b::7f00:1",
        ] {
            must_close(&a, ip(to), 80);
        }
        must_open(&a, ip(INTERNET_V4), 80);
        assert!(ear.packets("all") > 0);
        assert_eq!((ear.packets("private4"), ear.packets("private6")), (0, 0));
        let denied = world.network.denied().await.unwrap();
        assert!(denied.iter().any(|flow| flow.to == ip("169.254.169.254")), "{denied:?}");
    });
}

#[test]
fn neither_host_nor_neighbour_gets_in_by_a_route() {
    on_a_machine(async |world| {
        let around = Surroundings::new();
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        serve(&a, 80, "a");
        world.policy.services.insert(vip(1), [a.address].into());
        world.policy.ingress.insert((a.address, 80));
        world.apply().await;
        let router = sh_in(&world.router(), "ip -o addr show uplink | grep -o '\\(inet\\|inet6\\) [0-9a-f.:]*' | cut -d' ' -f2");
        let mut ends = router.lines();
        let (v4, v6) = (ends.next().unwrap(), ends.next().unwrap());
        let targets = [a.v4(), a.v6(), vip(1).v4.into(), vip(1).v6.into()];
        sh(&format!(
            "ip route add 10.64.0.0/10 via {v4}; ip route add 10.128.0.0/10 via {v4}; ip -6 route add fd12:3456:789a::/48 via {v6}"
        ));
        sh_in(&around.neighbour.ns, "ip route add 10.0.0.0/8 via 192.0.2.1; ip -6 route add fd12:3456:789a::/48 via fd00:77::1");
        for sysctl in ["ipv4/conf/all/rp_filter", "ipv6/conf/all/accept_redirects"] {
            sh(&format!("echo 0 > /proc/sys/net/{sysctl}"));
        }
        // With the host's own table, and without any.
        for round in ["with the host's table", "after a flush"] {
            for to in targets {
                assert!(tcp(&b, to, 80).is_open(), "{to} must answer a peer, {round}");
                must_close(&host(), to, 80);
                must_close(&around.neighbour.ns, to, 80);
            }
            for end in [v4, v6] {
                must_close(&host(), ip(end), 80);
                must_close(&host(), ip(end), 53);
            }
            sh("nft flush ruleset");
        }
    });
}

#[test]
fn a_flushed_host_stays_closed_and_is_repaired() {
    on_a_machine(async |world| {
        let _around = Surroundings::new();
        serve(&host(), 7777, "host");
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.worker(2).await);
        serve(&b, 80, "b");
        must_open(&a, ip(INTERNET_V4), 80);
        let link = uplink();
        let sabotages = [
            "nft flush ruleset".to_owned(),
            "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
            format!("ip link del {link}"),
            format!("ip addr flush dev {link}"),
            format!("ip link set {link} down"),
        ];
        for sabotage in sabotages {
            sh(&sabotage);
            must_close(&a, b.v4(), 80);
            must_close(&a, ip(HOST_V4), 7777);
            assert!(!tcp_within(&a, ip(INTERNET_V4), 80, CLOSED).is_open(), "`{sabotage}` must break egress");
            let repaired = world.network.repair().await.unwrap().done;
            assert!(!repaired.is_empty(), "`{sabotage}` must be noticed");
            must_open(&a, ip(INTERNET_V4), 80);
            must_open(&a, ip(INTERNET_V6), 80);
            assert_eq!(world.network.repair().await.unwrap().done, Vec::<String>::new(), "after `{sabotage}`");
        }
        // The same inside the router: whatever is gone comes back, with the policy.
        sh_in(&world.router(), "nft flush ruleset");
        assert!(!world.network.repair().await.unwrap().done.is_empty());
        serve(&a, 80, "a");
        must_open(&b, a.v4(), 80);
        must_close(&a, b.v4(), 80);
    });
}

#[test]
fn other_firewalls_that_drop_forwarding_are_named() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        assert_eq!(world.network.egress_obstacles().await.unwrap(), []);
        sh("nft 'table ip filter {\nchain FORWARD {\ntype filter hook forward priority filter; policy drop;\n}\n}'");
        let obstacles = world.network.egress_obstacles().await.unwrap();
        assert!(obstacles.len() == 1 && obstacles[0].what.contains("`FORWARD`"), "{obstacles:?}");
        let hints: Vec<&str> = obstacles[0].hint.split('`').filter(|part| part.starts_with("nft insert")).collect();
        for hint in hints {
            sh(hint);
        }
        assert_eq!(world.network.egress_obstacles().await.unwrap(), []);
    });
}

#[test]
fn a_watch_tells_of_new_addresses() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let mut watch = world.network.watch_host_addresses().unwrap();
        sh("ip addr add 203.0.113.7/32 dev lo");
        watch.changed().await.unwrap();
        assert!(world.network.refresh_host_addresses().await.unwrap());
    });
}

#[test]
fn teardown_leaves_nothing() {
    on_a_machine(async |world| {
        let _around = Surroundings::new();
        for before in ["0", "1"] {
            // One link may have a mind of its own.
            sh(&format!("echo {before} > /proc/sys/net/ipv4/ip_forward; echo $((1 - {before})) > /proc/sys/net/ipv4/conf/lan0/forwarding"));
            let run = world.run.path().display().to_string();
            let inventory = || inventory(&run);
            let clean = inventory();
            world.network.ensure_router().await.unwrap();
            let a = world.open(1).await;
            must_open(&a, ip(INTERNET_V4), 80);
            assert_ne!(inventory(), clean);
            assert!(world.network.remove_router().await.unwrap());
            assert_eq!(inventory(), clean);
            assert!(!world.network.remove_router().await.unwrap());
            assert_eq!(*world.network.policy(), NetPolicy::default());
            assert_eq!(sh_in(&a, "ip -o link").lines().count(), 1, "only loopback is left in the instance");
            world.policy = NetPolicy::default();
        }
    });
}

#[test]
fn two_moats_share_a_host() {
    on_a_machine(async |world| {
        let _around = Surroundings::new();
        let run = world.run.path().display().to_string();
        let clean = inventory(&run);
        let folder = tempfile::tempdir().unwrap();
        let other = Network::open(Config { run_dir: folder.path().to_owned(), shortcut: true }).unwrap();
        world.network.ensure_router().await.unwrap();
        other.ensure_router().await.unwrap();
        // Who came first goes first; the other one's egress stays.
        world.network.remove_router().await.unwrap();
        let a = Instance::new(1);
        let mut policy = NetPolicy::default();
        policy.sources.insert(a.id.clone(), a.entry(Some(ZONE), moat_model::Egress::Internet));
        other.set_policy(policy.clone()).await.unwrap();
        other.attach(a.pid(), a.address, &a.link).await.unwrap();
        must_open(&a, ip(INTERNET_V4), 80);
        must_open(&a, ip(INTERNET_V6), 80);
        // Who goes last restores what the first one found.
        other.remove_router().await.unwrap();
        assert_eq!(inventory(&run), clean);
    });
}

/// Links, routes, rules, tables, forwarding, mounts and files.
pub fn inventory(run: &str) -> String {
    sh(&format!(
        "ip -o link | sed 's/ qdisc.*//'; ip route show table all; ip -6 route show table all; ip rule; nft list ruleset
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra
         cat /proc/sys/net/ipv6/conf/*/force_forwarding 2>/dev/null || true
         grep -F '{run}' /proc/thread-self/mountinfo || true; find '{run}' | sort"
    ))
}
