//! A machine to test on: a host namespace of its own, instances held by child processes, real sockets.

use moat_model::net::{AddressPair, Ula};
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{Egress, InstanceId, LinkName, NetworkId, ServiceId, ZoneId};
use moat_net_linux::{Config, Network, ns};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long an attempt that must fail is given. Attempts that must succeed get longer.
pub const CLOSED: Duration = Duration::from_millis(400);
pub const OPEN: Duration = Duration::from_secs(5);

pub const ULA: Ula = Ula([0xfd12, 0x3456, 0x789a]);
pub const ZONE: ZoneId = ZoneId(1);

/// Whether this machine lets a test make namespaces; says why not.
pub fn possible() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root to make network namespaces");
    }
    root
}

/// Runs a test on a machine of its own, unless that is not possible here.
pub fn on_a_machine(test: impl AsyncFnOnce(&mut World)) {
    if !possible() {
        return;
    }
    // The runtime's threads are made by this one, so they live in its namespaces.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    sh("mount --make-rprivate / && ip link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        test(&mut world).await;
        world.network.remove_router().await.unwrap();
    });
}

/// The same on this kernel, and on one that knows no `tcx`.
pub fn on_both_machines(test: impl AsyncFn(&mut World) + Sync) {
    for old in [false, true] {
        on_its_own_thread(|| {
            if old {
                without_tcx();
            }
            on_a_machine(async |world| test(world).await);
        });
    }
}

/// Runs work on a thread that ends with it.
pub fn on_its_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// From now on the kernel answers the calling thread, and those that it starts, as one before 6.6 does: `bpf` refuses to attach,
/// detach and list programs of a link.
pub fn without_tcx() {
    if !possible() {
        return;
    }
    let jump = |value: u32, yes: u8, no: u8| libc::sock_filter { code: 0x15, jt: yes, jf: no, k: value };
    let load = |offset: u32| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let answer = |value: u32| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: value };
    let first_argument = if cfg!(target_endian = "little") { 16 } else { 20 };
    let mut filter = [
        load(0),
        jump(u32::try_from(libc::SYS_bpf).unwrap(), 0, 4),
        load(first_argument),
        jump(8, 3, 0),
        jump(9, 2, 0),
        jump(16, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EINVAL).unwrap()),
    ];
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the filter within the call.
    #[expect(unsafe_code, reason = "a filter of system calls has no safe wrapper here")]
    let refused = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(refused, 0, "{}", io::Error::last_os_error());
}

/// Programs of a router's link by `tcx`, and those of Moat by filters.
pub fn ways_of(world: &World, link: &LinkName) -> [usize; 2] {
    use aya::programs::SchedClassifier;
    use aya::programs::tc::TcAttachType::{Egress, Ingress};
    let count = |place| SchedClassifier::query_tcx(link.as_str(), place).map_or(0, |(_, programs)| programs.len());
    let tcx = ns::in_ns(&world.router(), || count(Ingress) + count(Egress)).unwrap();
    let filters = format!("for way in ingress egress; do tc filter show dev {link} $way | grep -c moat_ || true; done");
    let filters = sh_in(&world.router(), &filters).lines().map(|line| line.parse::<usize>().unwrap()).sum();
    [tcx, filters]
}

/// Takes the programs of a router's link away, as somebody else would.
pub fn take_away(world: &World, link: &LinkName) {
    use aya::programs::SchedClassifier;
    use aya::programs::tc::TcAttachType::{Egress, Ingress};
    use std::os::fd::AsRawFd;
    let [_, filters] = ways_of(world, link);
    if filters > 0 {
        sh_in(&world.router(), &format!("tc qdisc del dev {link} clsact"));
        return;
    }
    ns::in_ns(&world.router(), || {
        let index = nix::net::if_::if_nametoindex(link.as_str()).unwrap();
        for (place, kind) in [(Ingress, 46), (Egress, 47)] {
            for program in SchedClassifier::query_tcx(link.as_str(), place).unwrap().1 {
                let file = program.fd().unwrap();
                let mut attributes = [0_u32; 16];
                attributes[..3].copy_from_slice(&[index, u32::try_from(file.as_fd().as_raw_fd()).unwrap(), kind]);
                // SAFETY: the attributes are numbers and as long as is said.
                #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
                let refused = unsafe { libc::syscall(libc::SYS_bpf, 9, attributes.as_mut_ptr(), size_of_val(&attributes)) };
                assert_eq!(refused, 0, "{}", io::Error::last_os_error());
            }
        }
    })
    .unwrap();
}

/// Runs a shell command in the host namespace of the test and returns what it printed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "`{command}` failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a shell command in a namespace.
pub fn sh_in(ns: &impl AsFd, command: &str) -> String {
    ns::in_ns(ns, || sh(command)).unwrap()
}

pub struct World {
    pub network: Network,
    pub policy: NetPolicy,
    pub run: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let network = Network::open(Config { run_dir: run.path().to_owned(), shortcut: true }).unwrap();
        Self { network, policy: NetPolicy::default(), run }
    }

    /// Lists an instance of network 0 in the policy, applies it and attaches a namespace.
    pub async fn instance(&mut self, offset: u16, zone: Option<ZoneId>, egress: Egress) -> Instance {
        let instance = Instance::new(offset);
        self.policy.sources.insert(instance.id.clone(), instance.entry(zone, egress));
        self.apply().await;
        self.network.attach(instance.pid(), instance.address, &instance.link).await.unwrap();
        instance
    }

    /// An instance that sends and receives in [`ZONE`], with egress.
    pub async fn open(&mut self, offset: u16) -> Instance {
        let instance = self.instance(offset, Some(ZONE), Egress::Internet).await;
        self.policy.receivers.insert((ZONE, instance.address));
        self.apply().await;
        instance
    }

    /// An instance that only sends.
    pub async fn worker(&mut self, offset: u16) -> Instance {
        self.instance(offset, Some(ZONE), Egress::Internet).await
    }

    pub async fn apply(&self) {
        self.network.set_policy(self.policy.clone()).await.unwrap();
    }

    pub fn router(&self) -> File {
        self.network.router_ns().unwrap()
    }
}

/// A namespace that a child process holds.
pub struct Room {
    child: Child,
    pub ns: File,
}

impl Room {
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "infinity"]).stdin(Stdio::null()).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", child.id());
        until("the child's namespace", || std::fs::read_link(&path).is_ok_and(|link| link != own));
        Self { ns: File::open(path).unwrap(), child }
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Instance {
    pub room: Room,
    pub id: InstanceId,
    pub address: AddressPair,
    pub link: LinkName,
}

impl Instance {
    pub fn new(offset: u16) -> Self {
        let address = NetworkId::new(0).unwrap().instance(ULA, offset);
        Self { room: Room::new(), id: InstanceId::new(format!("srv-{offset:020}-aaaaa")).unwrap(), link: LinkName::of(address.v4), address }
    }
    pub fn entry(&self, zone: Option<ZoneId>, egress: Egress) -> SourceEntry {
        SourceEntry { link: self.link.clone(), address: self.address, zone, egress, service: ServiceId::new("srv-a").unwrap() }
    }
    pub fn pid(&self) -> u32 {
        self.room.pid()
    }
    pub fn v4(&self) -> IpAddr {
        self.address.v4.into()
    }
    pub fn v6(&self) -> IpAddr {
        self.address.v6.into()
    }
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }
}

impl AsFd for Instance {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.room.ns.as_fd()
    }
}

/// Service address pair.
pub fn vip(offset: u16) -> AddressPair {
    NetworkId::new(0).unwrap().service(ULA, offset)
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A TCP and UDP server on one port of a namespace, both families, that answers `NAME CLIENT-ADDRESS`.
pub fn serve(ns: &impl AsFd, port: u16, name: &str) {
    let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
    let (tcp, udp) = ns::in_ns(ns, || (std::net::TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
    let (a, b) = (name.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let (Ok(mut stream), name) = (stream, a.clone()) else { return };
            std::thread::spawn(move || {
                let client = plain(stream.peer_addr()?.ip());
                let mut line = [0; 64];
                while stream.read(&mut line)? > 0 {
                    stream.write_all(format!("{name} {client}").as_bytes())?;
                }
                io::Result::Ok(())
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{b} {}", plain(client.ip())).as_bytes(), client);
        }
    });
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The target answered with this.
    Answer(String),
    /// Nothing came.
    Silence,
    /// Refused, unreachable, no route.
    Error(io::ErrorKind),
}

impl Attempt {
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Answer(_))
    }
    pub fn answer(self) -> String {
        match self {
            Self::Answer(text) => text,
            other => panic!("no answer but {other:?}"),
        }
    }
}

fn attempt(result: io::Result<String>) -> Attempt {
    match result {
        Ok(text) if text.is_empty() => Attempt::Error(io::ErrorKind::UnexpectedEof),
        Ok(text) => Attempt::Answer(text),
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Attempt::Silence,
        Err(error) => Attempt::Error(error.kind()),
    }
}

pub fn tcp_within(ns: &impl AsFd, to: IpAddr, port: u16, limit: Duration) -> Attempt {
    let dial = || {
        let mut stream = TcpStream::connect_timeout(&(to, port).into(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        talk(&mut stream)
    };
    attempt(ns::in_ns(ns, dial).unwrap())
}

/// One question and answer on an open stream.
pub fn talk(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"hello")?;
    let mut buffer = [0; 128];
    let count = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

pub fn udp_within(ns: &impl AsFd, to: IpAddr, port: u16, limit: Duration) -> Attempt {
    let dial = || {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect((to, port))?;
        ask(&socket)
    };
    attempt(ns::in_ns(ns, dial).unwrap())
}

/// One datagram and its answer on a connected socket.
pub fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"hello")?;
    let mut buffer = [0; 128];
    let count = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// TCP and UDP must both answer.
pub fn must_open(ns: &impl AsFd, to: IpAddr, port: u16) {
    assert!(tcp_within(ns, to, port, OPEN).is_open(), "tcp {to}:{port} must be open");
    assert!(udp_within(ns, to, port, OPEN).is_open(), "udp {to}:{port} must be open");
}

/// TCP and UDP must both fail.
pub fn must_close(ns: &impl AsFd, to: IpAddr, port: u16) {
    for (what, got) in [("tcp", tcp_within(ns, to, port, CLOSED)), ("udp", udp_within(ns, to, port, CLOSED))] {
        assert!(!got.is_open(), "{what} {to}:{port} must be closed, got {got:?}");
    }
}

pub fn tcp(ns: &impl AsFd, to: IpAddr, port: u16) -> Attempt {
    tcp_within(ns, to, port, OPEN)
}

pub fn udp(ns: &impl AsFd, to: IpAddr, port: u16) -> Attempt {
    udp_within(ns, to, port, OPEN)
}

/// Counters of what arrives in a namespace, before any filter.
pub struct Counters {
    ns: File,
}

impl Counters {
    /// One counter per (name, match of nft).
    pub fn new(ns: &impl AsFd, kinds: &[(&str, &str)]) -> Self {
        let mut text = "table inet ear {\n".to_owned();
        for (name, _) in kinds {
            text += &format!("counter ear_{name} {{ }}\n");
        }
        text += "chain in {\ntype filter hook prerouting priority raw - 10\n";
        for (name, what) in kinds {
            text += &format!("{what} counter name ear_{name}\n");
        }
        text += "}\n}\n";
        sh_in(ns, &format!("nft '{text}'"));
        Self { ns: ns.as_fd().try_clone_to_owned().unwrap().into() }
    }
    pub fn packets(&self, name: &str) -> u64 {
        let listing: serde_json::Value =
            serde_json::from_str(&sh_in(&self.ns, &format!("nft -j list counter inet ear ear_{name}"))).unwrap();
        listing["nftables"].as_array().unwrap().iter().find_map(|item| item["counter"]["packets"].as_u64()).unwrap()
    }
}
