//! `moat-bench net`: what the private network costs. Its path beside the least there can be, and changes of a large policy.
//!
//! Everything is in network namespaces of its own, a pretended host included, so the machine's network is not touched.

mod change;
mod load;
pub mod peers;
pub mod policy;
pub mod scene;

use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::process::found;
use load::Kind;
use moat_model::LinkName;
use moat_net_linux::{Config, Network};
use scene::{PORT, Path, Room};
use tokio::runtime::Runtime;

/// How many services the policies have.
const SIZES: [u16; 3] = [10, 1_000, 10_000];

/// One Moat network with two instances that are there, the first and the last of its policy.
pub struct Site {
    /// The network.
    pub network: Network,
    first: Room,
    last: Room,
    size: u16,
    shortcut: bool,
    // Last, so that the rooms go first.
    _folder: Folder,
}

impl Site {
    fn new(runtime: &Runtime, size: u16, shortcut: bool) -> Outcome<Self> {
        let folder = Folder::new()?;
        let network = Network::open(Config { run_dir: folder.path().to_owned(), shortcut }).doing("open the network")?;
        let made = Self { network, first: Room::new()?, last: Room::new()?, size, shortcut, _folder: folder };
        runtime.block_on(async {
            made.network.ensure_router().await.doing("make the router")?;
            made.network.set_policy(policy::of(size)).await.doing("set the policy")?;
            for (room, number) in [(&made.first, 1), (&made.last, size)] {
                let address = policy::instance(number).ok_or_else(|| Failure::new("no such address"))?;
                made.network.attach(room.pid(), address, &LinkName::of(address.v4)).await.doing("attach an instance")?;
            }
            Ok(made)
        })
    }
    fn paths(&self) -> Outcome<[Path; 3]> {
        let way = if self.shortcut { "" } else { " by the filter alone" };
        let (Some(address), Some(vip)) = (policy::instance(self.size), policy::service(self.size)) else {
            return Err(Failure::new("no such address"));
        };
        let path = |what: &str, target, port| {
            Path::new(format!("Moat{way}, {} services, {what}", self.size), &self.first, &self.last, target, port)
        };
        Ok([
            path("instance address", address.v4.into(), PORT)?,
            path("service address", vip.v4.into(), PORT + 1)?,
            path("instance address, IPv6", std::net::IpAddr::from(address.v6), PORT + 2)?,
        ])
    }
}

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    let runtime = runtime()?;
    // The last one shows what the filter costs where the kernel has no shortcut.
    let sites = [(SIZES[0], true), (SIZES[1], true), (SIZES[2], true), (SIZES[2], false)]
        .map(|(size, shortcut)| Site::new(&runtime, size, shortcut));
    let mut measured: Vec<Measured> = Vec::new();
    let mut rooms = Vec::new();
    for peer in [peers::direct()?, peers::routed()?] {
        measured.push(Measured::new(peer.0));
        rooms.extend(peer.1);
    }
    for site in &sites {
        let site = site.as_ref().map_err(|error| Failure::new(error.to_string()))?;
        measured.extend(site.paths()?.map(Measured::new));
    }
    let iptables = found("iptables-restore");
    if iptables {
        for size in SIZES {
            let peer = peers::listed(usize::from(size))?;
            measured.push(Measured::new(peer.0));
            rooms.extend(peer.1);
        }
    }
    for round in 0..rounds {
        for kind in Kind::ALL {
            // Another path begins each round: what comes first finds another machine than what comes last.
            let count = measured.len();
            for number in (0..count).map(|place| (round + place) % count) {
                let Some(one) = measured.get_mut(number) else { continue };
                let figure = load::measure(&one.path, kind)?;
                one.of(kind).push(figure);
            }
        }
    }
    print_paths(&measured, rounds);
    if !iptables {
        println!("skipped: `iptables` (apt-get install iptables)\n");
    }
    print_goals(&measured);
    drop(measured);
    drop(rooms);
    for site in sites {
        let site = site?;
        if site.size == SIZES[2] && site.shortcut {
            apart(|runtime| change::run(runtime, &site, "whose links have just carried the load above", rounds))?;
        }
        runtime.block_on(site.network.remove_router()).doing("remove the router")?;
    }
    change(rounds)
}

/// Measures and prints changes of the largest policy in a network that is otherwise idle.
pub fn change(rounds: usize) -> Outcome {
    apart(|runtime| {
        let site = Site::new(runtime, SIZES[2], true)?;
        change::run(runtime, &site, "otherwise idle", rounds)?;
        runtime.block_on(site.network.remove_router()).doing("remove the router").map(drop)
    })
}

/// Runs work in a thread that, with all the threads and programs it starts, comes before other work of the machine.
fn apart(work: impl FnOnce(&Runtime) -> Outcome + Send) -> Outcome {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            crate::sys::run_first().doing("come before other work")?;
            work(&runtime()?)
        });
        thread.join().map_err(|_| Failure::new("a thread panicked"))?
    })
}

fn runtime() -> Outcome<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().doing("start the runtime")
}

struct Measured {
    path: Path,
    turn_us: Samples,
    connects: Samples,
    gbits: Samples,
}

impl Measured {
    fn new(path: Path) -> Self {
        Self { path, turn_us: Samples::default(), connects: Samples::default(), gbits: Samples::default() }
    }
    fn of(&mut self, kind: Kind) -> &mut Samples {
        match kind {
            Kind::Turns => &mut self.turn_us,
            Kind::Connects => &mut self.connects,
            Kind::Bulk => &mut self.gbits,
        }
    }
}

fn print_paths(measured: &[Measured], rounds: usize) {
    let mut table = Table::new(
        format!("The private path: median (least–most) of {rounds} rounds; × is against one veth pair"),
        ["path", "turn p50, µs", "×", "new connections, thousand/s", "×", "Gbit/s", "×"],
    );
    let Some(direct) = measured.first() else { return };
    for one in measured {
        let times = |a: &Samples, b: &Samples| format!("{:.2}", a.over(b).median());
        table.row([
            &one.path.name,
            &one.turn_us.show(2),
            &times(&one.turn_us, &direct.turn_us),
            &one.connects.show(1),
            &times(&one.connects, &direct.connects),
            &one.gbits.show(1),
            &times(&one.gbits, &direct.gbits),
        ]);
    }
    println!("{table}");
}

/// Places in the list of paths: two peers, then three paths of each site.
fn print_goals(measured: &[Measured]) {
    let [direct, routed, few, few_service, _, _, _, _, many, many_service, ..] = measured else { return };
    let title = "The goals of the private path: ratios within each round, and between the best rounds, which other work disturbed least";
    let mut table = Table::new(title, ["what", "median (least–most)", "best", "goal of the median"]);
    let mut turns = |what: &str, a: &Measured, b: &Measured, bound: f64| {
        let ratio = a.turn_us.over(&b.turn_us);
        let best = a.turn_us.least() / b.turn_us.least();
        table.row([&what, &ratio.show(3), &format!("{best:.3}"), &format!("≤ {bound:.2}: {}", verdict(ratio.median() <= bound))]);
    };
    turns("turn p50, 10,000 services / one veth pair", many, direct, 1.30);
    turns("turn p50, 10,000 services / 10 services", many, few, 1.05);
    turns("turn p50, service address / instance address, 10,000 services", many_service, many, 1.0 / 0.90);
    let mut rates = |what: &str, of: fn(&Measured) -> &Samples, a: &Measured, b: &Measured| {
        let ratio = of(a).over(of(b));
        let best = of(a).most() / of(b).most();
        table.row([&what, &ratio.show(3), &format!("{best:.3}"), &format!("≥ 0.90: {}", verdict(ratio.median() >= 0.90))]);
    };
    rates("new connections, 10 services / routed without policy", |m| &m.connects, few, routed);
    rates("new connections, 10,000 services / routed without policy", |m| &m.connects, many, routed);
    rates("new connections, service address / instance address, 10 services", |m| &m.connects, few_service, few);
    rates("new connections, service address / instance address, 10,000 services", |m| &m.connects, many_service, many);
    rates("throughput, 10,000 services / one veth pair", |m| &m.gbits, many, direct);
    rates("throughput, 10,000 services / routed without policy", |m| &m.gbits, many, routed);
    println!("{table}");
}
