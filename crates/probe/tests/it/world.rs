//! A machine to probe: seven services of every kind, two networks, a closed environment, real servers, a real name server.

use arc_swap::ArcSwap;
use moat_dns::{Asker, Forward, NameEntry, View, ViewId, Zones};
use moat_model::net::{AddressPair, GATEWAY_V4, Ula};
use moat_model::state::{DesiredState, EnvironmentRef, KeyValueWorkload, NativeWorkload, Persistence, Workload};
use moat_model::{Egress, InstanceId, Limits, LinkName, NativeRuntime, NetworkId, Purpose, Service, ServiceId, ServiceKind, Slug, ZoneId};
use moat_net_linux::{Config, Network, ns, ports};
use moat_planner::policy::{LiveInstance, dns_view, net_policy};
use moat_probe::{Report, Scene, Target, UplinkFacts};
use nix::sched::{CloneFlags, unshare};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const ULA: Ula = Ula([0xfd12, 0x3456, 0x789a]);

/// Runs a shell command in the namespaces of the calling thread and returns what it printed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "`{command}` failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

pub fn sh_in(ns: &impl AsFd, command: &str) -> String {
    ns::in_ns(ns, || sh(command)).unwrap()
}

/// Runs a test on a machine of its own; says why when that is not possible here.
pub fn on_a_machine(test: impl FnOnce(&mut World)) {
    with_bridge_filter(false, test);
}

/// The same with the settings of br_netfilter at 0 or 1, where this kernel has them.
pub fn with_bridge_filter(on: bool, test: impl FnOnce(&mut World)) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to make network namespaces");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    sh("mount --make-rprivate / && ip link set lo up");
    // A machine has a LAN and a default route.
    sh(
        "ip link add lan type veth peer name lan1 && ip link set lan1 up && ip addr add 192.0.2.2/24 dev lan && ip -6 addr add 2001:db8:1::2/64 dev lan nodad && ip link set lan up && ip route add default via 192.0.2.1",
    );
    let mut world = World::new();
    bridge_filter(&host(), on);
    bridge_filter(&world.router(), on);
    test(&mut world);
    world.stop();
}

fn bridge_filter(ns: &impl AsFd, on: bool) {
    for name in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
        match ns::in_ns(ns, || std::fs::write(&path, if on { "1" } else { "0" })).unwrap() {
            Ok(()) => {}
            Err(error) => println!("this kernel has no {path} ({error}): nothing to set"),
        }
    }
}

/// A namespace that a child process holds.
pub struct Room {
    child: Child,
    pub ns: File,
}

impl Room {
    /// A new one, made by a process that runs in the namespace `from`.
    pub fn inside(from: &impl AsFd) -> Self {
        ns::in_ns(from, || {
            let child = Command::new("unshare").args(["-n", "sleep", "infinity"]).stdin(Stdio::null()).spawn().unwrap();
            let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            let path = format!("/proc/{}/ns/net", child.id());
            until("the child's namespace", || std::fs::read_link(&path).is_ok_and(|link| link != own));
            let room = Self { ns: File::open(path).unwrap(), child };
            sh_in(&room, "ip link set lo up");
            room
        })
        .unwrap()
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl AsFd for Room {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ns.as_fd()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The namespace of the test's machine.
pub fn host() -> File {
    ns::current().unwrap()
}

/// One instance.
pub struct Instance {
    room: Room,
    pub live: LiveInstance,
}

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }
}

impl Instance {
    pub fn v4(&self) -> IpAddr {
        self.live.address.v4.into()
    }
    pub fn v6(&self) -> IpAddr {
        self.live.address.v6.into()
    }
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }
    pub fn link(&self) -> LinkName {
        LinkName::of(self.live.address.v4)
    }
}

pub struct World {
    pub network: Network,
    pub state: DesiredState,
    pub instances: Vec<Instance>,
    runtime: tokio::runtime::Runtime,
    zones: Arc<ArcSwap<Zones>>,
    _run: tempfile::TempDir,
}

/// What makes a service differ from the default one.
pub struct Shape {
    pub kind: ServiceKind,
    pub network: u8,
    pub zone: u32,
    pub isolated: bool,
    pub allow_from: Option<&'static [&'static str]>,
    pub egress: Egress,
}

pub const fn plain(kind: ServiceKind) -> Shape {
    Shape { kind, network: 0, zone: 10, isolated: false, allow_from: None, egress: Egress::Internet }
}

pub fn slug(text: &str) -> Slug {
    Slug::new(text).unwrap()
}

fn service(name: &str, offset: u16, kind: &Shape) -> Service {
    let network = NetworkId::new(kind.network).unwrap();
    let native = NativeWorkload {
        runtime: NativeRuntime::Python,
        version: None,
        source: "/src".into(),
        root_dir: PathBuf::new(),
        build_command: None,
        pre_deploy_command: None,
        initial_deploy_hook: None,
        start_command: "serve".to_owned(),
        schedule: None,
        disk: None,
    };
    Service {
        id: ServiceId::new(format!("srv-{offset:020}")).unwrap(),
        name: name.to_owned(),
        slug: slug(name),
        kind: kind.kind,
        blueprint: PathBuf::from("/render.yaml"),
        region: "oregon".to_owned(),
        network,
        environment: kind.isolated.then(|| EnvironmentRef { project: "p".to_owned(), name: name.to_owned(), isolated: true }),
        zone: ZoneId(kind.zone),
        vip: kind.kind.receives().then(|| network.service(ULA, offset)),
        port: match kind.kind {
            ServiceKind::Web | ServiceKind::Pserv => Some(10000),
            ServiceKind::KeyValue => Some(6379),
            ServiceKind::Postgres => Some(5432),
            ServiceKind::Worker | ServiceKind::Cron | ServiceKind::Static => None,
        },
        start: moat_model::state::StartOrder::Together,
        port_given_to: std::collections::BTreeSet::new(),
        allow_from: kind.allow_from.map(|names| names.iter().map(|name| slug(name)).collect()),
        egress: kind.egress.clone(),
        instances: 1,
        limits: Limits { memory_bytes: 1 << 29, cpu_millis: 500, pids: 100 },
        workload: if kind.kind.is_datastore() {
            Workload::KeyValue(KeyValueWorkload { maxmemory_policy: "noeviction".to_owned(), persistence: Persistence::Off })
        } else {
            Workload::Native(native)
        },
        env: BTreeMap::new(),
        build_env: BTreeMap::new(),
        written_keys: BTreeSet::new(),
        secret_files: BTreeMap::new(),
        health_check_path: None,
        max_shutdown_delay_seconds: 30,
        scaling: None,
        maintenance: false,
        public: moat_model::state::Public::default(),
        fingerprint: String::new(),
        build_fingerprint: String::new(),
    }
}

impl World {
    fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let network = Network::open(Config { run_dir: run.path().to_owned(), shortcut: true }).unwrap();
        // Its threads are made by this one, so they live in the test's namespaces.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(network.ensure_router()).unwrap();
        let zones = Arc::new(ArcSwap::from_pointee(Zones::default()));
        let router = network.router_ns().unwrap();
        let gateway: SocketAddr = (GATEWAY_V4, 53).into();
        let udp = ns::udp_bound_in(&router, gateway).unwrap();
        let tcp = ns::tcp_listener_in(&router, gateway).unwrap();
        {
            let zones = Arc::clone(&zones);
            runtime.spawn(async move {
                let udp = tokio::net::UdpSocket::from_std(udp).unwrap();
                let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
                moat_dns::serve(vec![udp], vec![tcp], zones, Arc::new(ArcSwap::from_pointee(vec![])), std::future::pending()).await;
            });
        }
        Self { network, state: DesiredState::default(), instances: Vec::new(), runtime, zones, _run: run }
    }

    fn stop(&mut self) {
        self.instances.clear();
        self.runtime.block_on(self.network.remove_router()).unwrap();
    }

    pub fn router(&self) -> File {
        self.network.router_ns().unwrap()
    }

    /// The services that most tests probe, each with one instance that serves its port and 8125.
    pub fn example(&mut self) {
        self.service("site", &plain(ServiceKind::Web), 2);
        self.service("api", &plain(ServiceKind::Pserv), 1);
        self.service("store", &plain(ServiceKind::KeyValue), 1);
        self.service("tick", &plain(ServiceKind::Worker), 1);
        self.service("vault", &Shape { zone: 20, isolated: true, egress: Egress::None, ..plain(ServiceKind::Pserv) }, 1);
        self.service("ledger", &Shape { allow_from: Some(&["api"]), ..plain(ServiceKind::Pserv) }, 1);
        let listed = Egress::Ranges(["203.0.113.0/24".parse().unwrap()].into());
        self.service("abroad", &Shape { network: 1, zone: 30, egress: listed, ..plain(ServiceKind::Pserv) }, 1);
        self.apply();
    }

    /// Adds a service with this many instances, that listen before they are attached.
    pub fn service(&mut self, name: &str, kind: &Shape, instances: u16) {
        let offset = u16::try_from(self.state.services.len()).unwrap() + 1;
        let service = service(name, offset, kind);
        let port = service.port.unwrap_or(9000);
        self.state.services.insert(service.slug.clone(), service);
        for n in 0..instances {
            let at = self.instance(name, offset * 16 + n, Purpose::Serve);
            for port in [port, 8125] {
                self.serve(at, port);
            }
        }
    }

    /// Adds an instance; its index.
    pub fn instance(&mut self, name: &str, offset: u16, purpose: Purpose) -> usize {
        let service = &self.state.services[&slug(name)];
        let room = Room::inside(&host());
        let id = InstanceId::new(format!("{}-{offset:05}", service.id)).unwrap();
        let live = LiveInstance {
            id,
            slug: service.slug.clone(),
            purpose,
            address: service.network.instance(ULA, offset),
            ready: purpose == Purpose::Serve,
            http_port: None,
        };
        self.instances.push(Instance { room, live });
        self.apply();
        let instance = self.instances.last().unwrap();
        self.runtime.block_on(self.network.attach(instance.room.pid(), instance.live.address, &instance.link())).unwrap();
        self.instances.len() - 1
    }

    /// A TCP and UDP server on all addresses of an instance; it answers with its service's name.
    pub fn serve(&self, at: usize, port: u16) {
        let instance = &self.instances[at];
        serve(instance, port, instance.live.slug.as_str());
    }

    /// Applies the policy of the state and publishes the names.
    pub fn apply(&self) {
        let live: Vec<LiveInstance> = self.instances.iter().map(|i| i.live.clone()).collect();
        self.runtime.block_on(self.network.set_policy(net_policy(&self.state, &live))).unwrap();
        let view = dns_view(&self.state, &live);
        let id = |n: usize| ViewId(u32::try_from(n).unwrap());
        let entry = |name: moat_planner::policy::DnsName| {
            (name.slug, NameEntry { service: name.vip, ready: name.ready.into_iter().collect(), hosts: name.hosts })
        };
        let views =
            view.zones.into_iter().enumerate().map(|(n, names)| (id(n), View::new(names.into_iter().map(entry).collect()))).collect();
        let mut askers = HashMap::new();
        for asker in view.askers {
            let entry = Asker { view: id(asker.zone), forward: if asker.forward { Forward::All } else { Forward::None } };
            askers.insert(IpAddr::V4(asker.address.v4), entry);
            askers.insert(IpAddr::V6(asker.address.v6), entry);
        }
        self.zones.store(Arc::new(Zones { askers, views }));
    }

    pub fn of(&self, name: &str) -> &Instance {
        self.instances.iter().find(|i| i.live.slug.as_str() == name).unwrap()
    }

    pub fn vip(&self, name: &str) -> AddressPair {
        self.state.services[&slug(name)].vip.unwrap()
    }

    pub fn scene(&self) -> Scene<'_> {
        let target = |i: &Instance| Target {
            slug: i.live.slug.clone(),
            instance: i.live.id.clone(),
            purpose: i.live.purpose,
            address: i.live.address,
            vip: self.state.services[&i.live.slug].vip,
            ready: i.live.ready,
            ns: i.as_fd().try_clone_to_owned().unwrap(),
            listeners: ports::listeners(i).unwrap(),
            http_port: i.live.http_port,
        };
        Scene {
            state: &self.state,
            targets: self.instances.iter().map(target).collect(),
            router_ns: self.router().into(),
            expected_ruleset: self.network.expected_ruleset(),
            uplink: UplinkFacts::of(self.network.uplink().unwrap().unwrap()),
            random_ports: 2,
            seed: 7,
            names: true,
        }
    }

    /// Makes good what was broken; what was done.
    pub fn repair(&self) -> Vec<String> {
        self.runtime.block_on(self.network.repair()).unwrap().done
    }

    /// Tells the router which addresses the host has now.
    pub fn refresh(&self) {
        self.runtime.block_on(self.network.refresh_host_addresses()).unwrap();
    }

    pub fn verify(&self) -> Report {
        moat_probe::verify(&self.scene())
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A TCP and UDP server on one port of a namespace, both families, that answers `NAME`.
pub fn serve(ns: &impl AsFd, port: u16, name: &str) {
    let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
    let (tcp, udp) = ns::in_ns(ns, || (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
    let (a, b) = (name.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let (Ok(mut stream), name) = (stream, a.clone()) else { return };
            std::thread::spawn(move || {
                let mut line = [0; 64];
                while stream.read(&mut line).is_ok_and(|n| n > 0) && stream.write_all(name.as_bytes()).is_ok() {}
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(b.as_bytes(), client);
        }
    });
}

/// What a report says that is not as it should be, for a test's message.
pub fn troubles(report: &Report) -> String {
    let rows = report.disagreements().take(20).map(|row| {
        format!(
            "{} -> {} {} {}:{} expected {:?} observed {:?} {:?}",
            row.from, row.to, row.what, row.address, row.port, row.expected, row.observed, row.detail
        )
    });
    let controls = report.controls.iter().filter(|c| !c.ok).map(|c| format!("control {}: {}", c.name, c.detail));
    let drift = report.drift.iter().map(|d| format!("drift {:?}: {}", d.pair, d.what));
    let all: Vec<String> = rows.chain(controls).chain(drift.take(20)).collect();
    format!("{} rows, {} disagree, {} ms\n{}", report.rows.len(), report.disagreements().count(), report.duration_ms, all.join("\n"))
}
