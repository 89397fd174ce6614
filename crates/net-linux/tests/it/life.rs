//! Repeating, killing half-way, broken records, sabotage.

use crate::outside::inventory;
use crate::world::*;
use moat_model::policy::NetPolicy;
use moat_net_linux::{Config, NetError, Network, Repairs, lower};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The role of the process that is killed: it makes and unmakes everything over and over, in the namespaces of who
/// started it. Runs as a test of its own when asked for by its environment.
#[test]
fn victim() {
    let Ok(run) = std::env::var("MOAT_TEST_VICTIM") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = Network::open(Config { run_dir: run.into(), shortcut: true }).unwrap();
        let instance = Instance::new(9);
        loop {
            network.ensure_router().await.unwrap();
            for step in 0..4 {
                let mut policy = (*network.policy()).clone();
                policy.sources.insert(instance.id.clone(), instance.entry(Some(ZONE), moat_model::Egress::Internet));
                policy.receivers.insert((ZONE, instance.address));
                policy.services.insert(vip(9), [instance.address].into());
                if step % 2 == 1 {
                    policy = NetPolicy::default();
                }
                network.set_policy(policy.clone()).await.unwrap();
                network.attach(instance.pid(), instance.address, &instance.link).await.unwrap();
            }
            network.detach(&instance.link).await.unwrap();
            network.remove_router().await.unwrap();
        }
    });
}

#[test]
fn killed_at_any_moment_everything_converges() {
    on_a_machine(async |world| {
        let run = world.run.path().display().to_string();
        let clean = inventory(&run);
        // The sandboxes of a killed victim outlive it; they end with the group.
        for round in 0..24u64 {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "life::victim", "--nocapture"])
                .env("MOAT_TEST_VICTIM", &run)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Different moments: not a wait for something, but the point of this test.
            std::thread::sleep(Duration::from_millis(20 + round * 13));
            let rooms = children_of(victim.id());
            victim.kill().unwrap();
            victim.wait().unwrap();
            for pid in rooms {
                // One may have ended by itself meanwhile.
                let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                assert!(matches!(killed, Ok(()) | Err(nix::errno::Errno::ESRCH)), "{killed:?}");
            }
            if round % 3 == 0 {
                world.network.remove_router().await.unwrap();
                assert_eq!(inventory(&run), clean, "round {round}");
                continue;
            }
            world.network.ensure_router().await.unwrap();
            assert!(!world.network.ensure_router().await.unwrap(), "round {round}");
            world.policy = NetPolicy::default();
            let (a, b) = (world.open(1).await, world.worker(2).await);
            serve(&a, 80, "a");
            serve(&b, 80, "b");
            must_open(&b, a.v4(), 80);
            must_close(&a, b.v4(), 80);
            assert_eq!(drift(world), Vec::<String>::new(), "round {round}");
            world.network.detach(&a.link).await.unwrap();
            world.network.detach(&b.link).await.unwrap();
        }
        world.network.remove_router().await.unwrap();
        assert_eq!(inventory(&run), clean);
    });
}

fn children_of(pid: u32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(path).unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>())
        .collect()
}

/// Lines in which the live filter and the expected one differ.
pub fn drift(world: &World) -> Vec<String> {
    let scratch = moat_net_linux::ns::scratch().unwrap();
    load(&scratch, &world.network.expected_ruleset());
    let (expected, live) = (listing(&scratch), listing(&world.router()));
    let only = |sign: &str, a: &[String], b: &[String]| {
        a.iter().filter(|line| !b.contains(line)).map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    let mut lines = only("-", &expected, &live);
    lines.extend(only("+", &live, &expected));
    lines
}

/// Loads text into a namespace.
pub fn load(ns: &impl std::os::fd::AsFd, text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    sh_in(ns, &format!("nft -f {}", file.path().display()));
}

/// The filter of a namespace: rules in order, elements sorted, one per line; without handles, counts and what packets left.
pub fn listing(ns: &impl std::os::fd::AsFd) -> Vec<String> {
    let text = sh_in(ns, "nft -j list ruleset");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut lines = Vec::new();
    let mut place = std::collections::BTreeMap::<String, usize>::new();
    for item in value["nftables"].as_array().unwrap() {
        let mut item = item.clone();
        if item.get("metainfo").is_some() {
            continue;
        }
        let (kind, body) = item.as_object_mut().unwrap().iter_mut().next().map(|(kind, body)| (kind.clone(), body)).unwrap();
        let body = body.as_object_mut().unwrap();
        for key in ["handle", "packets", "bytes"] {
            body.remove(key);
        }
        let elements = body.remove("elem");
        if kind == "rule" {
            let chain = body["chain"].to_string();
            let index = place.entry(chain).or_default();
            *index += 1;
            body.insert("place".to_owned(), (*index).into());
        }
        let dynamic = body.contains_key("timeout");
        lines.push(format!("{kind} {}", serde_json::to_string(body).unwrap()));
        for element in elements.iter().filter_map(|elements| elements.as_array()).flatten().filter(|_| !dynamic) {
            lines.push(format!("element {} {element}", body["name"]));
        }
    }
    lines.sort();
    lines
}

#[test]
fn whatever_is_changed_in_the_filter_is_seen_and_reloaded() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.worker(2).await);
        world.policy.services.insert(vip(1), [a.address, b.address].into());
        world.policy.services.insert(vip(2), [a.address].into());
        world.apply().await;
        assert_eq!(drift(world), Vec::<String>::new());
        let router = world.router();
        for sabotage in [
            format!("nft add element inet moat receivers4 {{ 2 . {} }}", b.v4()),
            format!("nft delete element inet moat receivers4 {{ 2 . {} }}", a.v4()),
            "nft flush chain inet moat denied".to_owned(),
            "nft insert rule inet moat forward accept".to_owned(),
            "nft flush chain inet moat service_0a800001".to_owned(),
            format!("nft delete element inet moat sources6 {{ {} . {} }}", a.link, a.v6()),
        ] {
            sh_in(&router, &sabotage);
            assert_ne!(drift(world), Vec::<String>::new(), "{sabotage}");
            assert_ne!(world.network.foreign_changes().await.unwrap(), [], "{sabotage}");
            let repaired = world.network.repair().await.unwrap().done;
            assert!(repaired.len() == 1 && repaired[0].starts_with("loaded the filter of the router again: "), "{sabotage}: {repaired:?}");
            assert_eq!(drift(world), Vec::<String>::new(), "{sabotage}");
            assert_eq!(world.network.repair().await.unwrap(), Repairs::default(), "{sabotage}");
            assert_eq!(world.network.foreign_changes().await.unwrap(), [], "{sabotage}");
        }
        // What somebody does between two changes of ours is seen too.
        world.open(3).await;
        assert_eq!(world.network.repair().await.unwrap(), Repairs::default());
        sh_in(&router, &format!("nft delete element inet moat receivers4 {{ 2 . {} }}", a.v4()));
        world.open(4).await;
        let repaired = world.network.repair().await.unwrap().done;
        assert!(
            matches!(&repaired[..], [what] if what.contains("lacks the element") && what.contains(&a.v4().to_string())),
            "{repaired:?}"
        );
        // A change that the live filter refuses makes it load as a whole.
        sh_in(&router, &format!("nft delete element inet moat receivers4 {{ 2 . {} }}", a.v4()));
        world.policy.receivers.clear();
        world.apply().await;
        assert_eq!(drift(world), Vec::<String>::new());
        sh_in(&router, "nft flush ruleset");
        assert!(world.network.set_policy(world.policy.clone()).await.unwrap(), "the same policy, but the table is gone");
        assert!(!world.network.set_policy(world.policy.clone()).await.unwrap());
        assert_eq!(drift(world), Vec::<String>::new());
    });
}

#[test]
fn whatever_is_changed_of_links_and_routes_is_mended_and_told() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        serve(&a, 80, "a");
        let router = world.router();
        assert_eq!(world.network.repair().await.unwrap(), Repairs::default());
        let (link, v4, v6) = (&a.link, a.v4(), a.v6());
        for (sabotage, told) in [
            (format!("ip route del {v4}"), format!("no route to `{v4}`")),
            (format!("ip route replace {v4} dev {}", b.link), format!("no route to `{v4}`")),
            (format!("ip -6 route del {v6}"), format!("no route to `{v6}`")),
            (format!("ip neigh del {v4} dev {link}"), format!("its neighbour `{v4}`")),
            (format!("ip neigh replace {v6} lladdr 02:00:00:00:00:09 nud permanent dev {link}"), format!("its neighbour `{v6}`")),
            (format!("ip link set {link} down"), format!("`{link}` was down")),
            (format!("ip addr add 10.64.7.7/24 dev {}", b.link), "the address `10.64.7.7/24`".to_owned()),
            ("ip route add 10.64.9.0/24 dev uplink".to_owned(), "the route to `10.64.9.0/24`".to_owned()),
            (format!("ip route add {v4} dev {} table 77", b.link), format!("the route to `{v4}/32`")),
            ("ip link add sly type veth peer name sly2; ip link set sly up".to_owned(), "the link `sly`".to_owned()),
        ] {
            sh_in(&router, &sabotage);
            let (first, second) = (world.network.repair().await.unwrap(), world.network.repair().await.unwrap());
            let done = [first.done, second.done].concat();
            assert!(done.iter().any(|what| what.contains(&told)), "{sabotage}: {done:?}");
            must_open(&b, v4, 80);
            must_open(&b, v6, 80);
            for _ in 0..2 {
                assert_eq!(world.network.repair().await.unwrap(), Repairs::default(), "{sabotage}");
            }
        }
        for (place, sabotage) in [(&router, format!("ip link del {link}")), (&a.room.ns, "ip link set eth0 down".to_owned())] {
            sh_in(place, &sabotage);
            assert_eq!(world.network.repair().await.unwrap(), Repairs::default(), "a link may just be coming");
            let repairs = world.network.repair().await.unwrap();
            assert!(repairs.done.is_empty() && repairs.lost.len() == 1, "{sabotage}: {repairs:?}");
            world.network.attach(a.pid(), a.address, link).await.unwrap();
            must_open(&b, v4, 80);
            must_open(&b, v6, 80);
            assert_eq!(world.network.repair().await.unwrap(), Repairs::default(), "{sabotage}");
        }
    });
}

#[test]
fn changes_add_up_for_another_process_too() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let other = Network::open(Config { run_dir: world.run.path().to_owned(), shortcut: true }).unwrap();
        for offset in 1..=12 {
            world.open(offset).await;
            assert_eq!(*other.policy(), world.policy);
        }
        // The other process writes, and this one sees it.
        let mut policy = world.policy.clone();
        policy.receivers.pop_last();
        other.set_policy(policy.clone()).await.unwrap();
        assert_eq!(*world.network.policy(), policy);
        assert_eq!(other.expected_ruleset(), world.network.expected_ruleset());
        assert_eq!(drift(world), Vec::<String>::new());
    });
}

#[test]
fn attaching_twice_changes_nothing_and_mends_what_is_broken() {
    on_a_machine(async |world| {
        world.network.ensure_router().await.unwrap();
        let (a, b) = (world.open(1).await, world.open(2).await);
        serve(&a, 80, "a");
        let index = || sh_in(&a, "cat /sys/class/net/eth0/ifindex 2>/dev/null || ip -o link show eth0 | cut -d: -f1");
        let before = index();
        world.network.attach(a.pid(), a.address, &a.link).await.unwrap();
        assert_eq!(index(), before, "the link is the same");
        for sabotage in ["ip link del eth0", "ip addr flush dev eth0", "ip link set eth0 down", "ip neigh flush all nud permanent"] {
            sh_in(&a, sabotage);
            world.network.attach(a.pid(), a.address, &a.link).await.unwrap();
            must_open(&b, a.v4(), 80);
            must_open(&b, a.v6(), 80);
        }
        // A process without a namespace of its own is refused: its link would be the host's.
        let refused = world.network.attach(std::process::id(), b.address, &b.link).await;
        let own = std::fs::read_link(format!("/proc/{}/ns/net", std::process::id())).unwrap()
            == std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert!(!own || matches!(refused, Err(NetError::Io { .. })), "{refused:?}");
        let gone = world.network.attach(u32::MAX / 2, b.address, &b.link).await;
        assert!(matches!(gone, Err(NetError::Io { .. })), "{gone:?}");
    });
}

#[test]
fn without_a_router_operations_say_so() {
    on_a_machine(async |world| {
        let missing = |result: Result<bool, NetError>| matches!(result, Err(NetError::NoRouter { .. }));
        assert!(missing(world.network.set_policy(NetPolicy::default()).await));
        assert!(missing(world.network.refresh_host_addresses().await));
        assert!(matches!(world.network.router_ns(), Err(NetError::NoRouter { .. })));
        let instance = Instance::new(1);
        assert!(matches!(world.network.attach(instance.pid(), instance.address, &instance.link).await, Err(NetError::NoRouter { .. })));
        assert!(!world.network.detach(&instance.link).await.unwrap());
        assert!(!world.network.remove_router().await.unwrap());
    });
}

#[test]
fn policies_that_contradict_themselves_are_refused() {
    let [a, b] = [1, 2].map(|offset| moat_model::NetworkId::new(0).unwrap().instance(ULA, offset));
    let entry = |address: moat_model::AddressPair| moat_model::policy::SourceEntry {
        link: moat_model::LinkName::of(address.v4),
        address,
        zone: Some(ZONE),
        egress: moat_model::Egress::Internet,
        service: moat_model::ServiceId::new("srv-a").unwrap(),
    };
    let id = |text: &str| moat_model::InstanceId::new(text).unwrap();
    let mixed = moat_model::AddressPair { v4: a.v4, v6: b.v6 };
    let with = |change: &dyn Fn(&mut NetPolicy)| {
        let mut policy = NetPolicy::default();
        policy.sources.insert(id("a"), entry(a));
        change(&mut policy);
        lower::check(&policy).map_err(|error| error.to_string())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    for (what, change) in [
        ("share the address", &(|policy: &mut NetPolicy| drop(policy.sources.insert(id("b"), entry(a)))) as &dyn Fn(&mut NetPolicy)),
        ("belongs to", &|policy| {
            drop(policy.sources.insert(id("b"), moat_model::policy::SourceEntry { link: moat_model::LinkName::of(a.v4), ..entry(b) }));
        }),
        ("only in part", &|policy| policy.receivers.extend([(ZONE, mixed)])),
        ("only in part", &|policy| policy.pairs.extend([(a, mixed)])),
        ("service address and", &|policy| drop(policy.services.insert(a, [b].into()))),
        ("too large", &|policy| policy.receivers.extend([(moat_model::ZoneId(u32::MAX), a)])),
    ] {
        let found = with(change);
        assert!(found.as_ref().is_err_and(|message| message.contains(what)), "{what}: {found:?}");
    }
}
