//! What clients of Redis and Memcached get: through the private network, on plain loopback, through one bare veth pair, through
//! Docker's bridge. The same servers, clients and flags everywhere.

pub mod figure;
mod lanes;
pub mod memcached;

use super::Stage;
use crate::failure::Outcome;
use crate::figures::{Samples, Table, verdict};
use figure::read;
use lanes::Lane;

/// What a bare veth pair gives may be lessened to this.
const GOAL: f64 = 0.95;
/// Connections of a client.
const CONNECTIONS: &str = "50";

/// What a client is told.
pub struct Load {
    /// What the table calls it.
    name: &'static str,
    /// Of Redis, or of Memcached.
    redis: bool,
    /// Requests sent at once on a connection.
    batch: &'static str,
    /// Requests in all, of each test.
    requests: &'static str,
}

const LOADS: [Load; 4] = [
    Load { name: "one request at a time", redis: true, batch: "1", requests: "30000" },
    Load { name: "16 requests at a time", redis: true, batch: "16", requests: "240000" },
    Load { name: "Memcached, 9 gets to a set, one request at a time", redis: false, batch: "1", requests: "30000" },
    Load { name: "Memcached, 9 gets to a set, 16 requests at a time", redis: false, batch: "16", requests: "120000" },
];

impl Load {
    /// The client's command line; `own` is the path of this program where the client runs.
    fn arguments<'a>(&self, own: &'a str, host: &'a str) -> Vec<&'a str> {
        if self.redis {
            let flags = ["redis-benchmark", "-h", host, "-p", "6379", "-t", "set,get", "-d", "100", "-c", CONNECTIONS];
            [&flags[..], &["-P", self.batch, "-n", self.requests, "--csv"]].concat()
        } else {
            vec![own, memcached::CLIENT, host, "11211", CONNECTIONS, self.batch, self.requests]
        }
    }
    /// The tests in what the client says.
    fn tests(&self) -> &'static [Option<&'static str>] {
        if self.redis { &[Some("SET"), Some("GET")] } else { &[None] }
    }
}

/// Throughput and latency of one test over one lane.
#[derive(Clone, Default)]
struct Measured {
    thousands: Samples,
    p99_ms: Samples,
}

/// Measures and prints.
pub fn run(stage: &Stage, rounds: usize) -> Outcome {
    let mut lanes = vec![Lane::veth()?, Lane::loopback()?, Lane::routed()?, Lane::moat_rooms(&stage.site)?, Lane::moat(stage)?];
    if let Some(docker) = &stage.docker {
        lanes.push(Lane::docker(stage, docker)?);
    }
    // By load, then test, then lane.
    let mut measured: Vec<Vec<Vec<Measured>>> =
        LOADS.iter().map(|load| vec![vec![Measured::default(); lanes.len()]; load.tests().len()]).collect();
    for round in 0..rounds {
        for (load, tests) in LOADS.iter().zip(&mut measured) {
            // Another lane begins each round: what comes first finds another machine than what comes last.
            let count = lanes.len();
            for number in (0..count).map(|place| (round + place) % count) {
                let Some(lane) = lanes.get_mut(number) else { continue };
                let said = lane.load(load)?;
                for (test, measured) in load.tests().iter().zip(tests.iter_mut()) {
                    let figure = read(&said, *test)?;
                    if let Some(one) = measured.get_mut(number) {
                        one.thousands.push(figure.thousands);
                        one.p99_ms.push(figure.p99_ms);
                    }
                }
            }
        }
    }
    let mut goals = Table::new(
        "The goal: throughput against one veth pair, ratios within each round; between plain processes only the path differs",
        [
            "what",
            "Moat's network, plain processes",
            "goal of its median",
            "routed, no policy",
            "Moat, instances",
            "Docker's bridge, containers",
        ],
    );
    for (load, tests) in LOADS.iter().zip(&measured) {
        for (test, by_lane) in load.tests().iter().zip(tests) {
            let name = test.map_or(load.name.to_owned(), |test| format!("Redis, {test}, {}", load.name));
            print(&name, &lanes, by_lane, rounds);
            let ratio = |lane: usize| {
                let (veth, one) = (by_lane.first()?, by_lane.get(lane)?);
                Some(one.thousands.over(&veth.thousands))
            };
            let show = |lane| ratio(lane).map_or("–".to_owned(), |ratio| ratio.show(2));
            let met = ratio(3).is_some_and(|ratio| ratio.median() >= GOAL);
            goals.row([&name, &show(3), &format!("≥ {GOAL}: {}", verdict(met)), &show(2), &show(4), &show(5)]);
        }
    }
    println!("{goals}");
    lanes.into_iter().try_for_each(Lane::close)
}

fn print(name: &str, lanes: &[Lane<'_>], measured: &[Measured], rounds: usize) {
    let mut table = Table::new(
        format!("{name}; {CONNECTIONS} connections, 100 bytes; {rounds} rounds; × is against one veth pair"),
        ["path", "thousand/s", "×", "p99, ms", "×"],
    );
    let Some(veth) = measured.first() else { return };
    for (lane, one) in lanes.iter().zip(measured) {
        let times = |a: &Samples, b: &Samples| format!("{:.2}", a.over(b).median());
        table.row([
            &lane.name,
            &one.thousands.show(1),
            &times(&one.thousands, &veth.thousands),
            &one.p99_ms.show(2),
            &times(&one.p99_ms, &veth.p99_ms),
        ]);
    }
    println!("{table}");
}
