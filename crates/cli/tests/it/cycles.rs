//! Deploys without end: what is there after many is what was there after a few.

use crate::host::{Host, host, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Says its release to whoever connects. Perl is on every Debian, and starts at once.
const SERVER: &str = r#"use IO::Socket::INET;
my $release = $ENV{RELEASE};
my $server = IO::Socket::INET->new(LocalAddr => "0.0.0.0", LocalPort => $ENV{PORT}, Listen => 100, ReuseAddr => 1) or die $!;
$SIG{TERM} = sub { exit 0 };
while (1) {
    my $client = $server->accept or next;
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ", length($release), "\r\n\r\n$release";
    close $client;
}
"#;

const BLUEPRINT: &str = r#"services:
  - type: web
    name: site
    runtime: python
    buildCommand: "true"
    preDeployCommand: "true"
    startCommand: exec perl server.pl
    maxShutdownDelaySeconds: 2
    envVars: [{key: RELEASE, sync: false}]
  - type: pserv
    name: inner
    runtime: python
    buildCommand: "true"
    startCommand: exec perl server.pl
    maxShutdownDelaySeconds: 2
    envVars: [{key: PORT, value: 7000}, {key: RELEASE, sync: false}]
  - type: worker
    name: mill
    runtime: python
    buildCommand: "true"
    startCommand: exec sleep 100000
    maxShutdownDelaySeconds: 2
    envVars: [{key: RELEASE, sync: false}]
"#;

/// How much there is of everything that a deploy makes and has to take away again.
fn counts(host: &Host) -> BTreeMap<&'static str, usize> {
    let lines = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    let own = host.path("").display().to_string();
    let daemon = host.daemon().expect("a daemon");
    let plane = host.processes().into_iter().find(|(_, line)| line.contains("__dataplane")).expect("a data plane").0;
    let fds = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let below = |name: &str| fs::read_dir(host.path(name)).map_or(0, Iterator::count);
    BTreeMap::from([
        ("lines of the router's ruleset", lines(&host.router("nft list ruleset").out)),
        ("lines of the machine's ruleset", lines(&host.sh("nft list ruleset").out)),
        ("links of the router", lines(&host.router("ip -o link").out)),
        ("routes of the router", lines(&host.router("ip route; ip -6 route").out)),
        ("neighbours of the router", lines(&host.router("ip neigh; ip -6 neigh").out)),
        ("links of the machine", lines(&host.sh("ip -o link").out)),
        ("mounts", lines(&host.sh(&format!("grep -F {own} /proc/self/mountinfo")).out)),
        ("control groups", host.inventory().iter().filter(|line| line.starts_with("cgroup")).count()),
        ("processes", host.processes().len()),
        ("network namespaces", namespaces(host)),
        ("open files of the daemon", fds(daemon)),
        ("open files of the data plane", fds(plane)),
        ("folders of instances that run", below("run/instances")),
        ("folders of instances", below("state/instances")),
        ("releases", below("state/releases")),
        ("build caches", below("state/cache")),
    ])
}

fn namespaces(host: &Host) -> usize {
    let of = |(pid, _): &(u32, String)| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    host.processes().iter().filter_map(of).collect::<std::collections::BTreeSet<_>>().len()
}

/// Kibibytes of a process' memory.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Bytes of the state folder, without logs, which are bounded by themselves.
fn size(folder: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // What a build has just removed is no size.
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            total += if path.ends_with("state/logs") { 0 } else { size(&path) };
        } else {
            total += about.len();
        }
    }
    total
}

/// Waits until nothing of an earlier release is left.
fn settled(host: &Host) {
    wait_for("the old instances' end", || {
        let ps = host.ps();
        ps["services"].as_array().unwrap().iter().all(|service| {
            let instances = service["instances"].as_array().unwrap();
            instances.len() == 1 && instances[0]["ready"] == true && instances[0]["draining"] != true
        })
    });
}

/// Row 31. `MOAT_CYCLES` says how many cycles; each deploys a web service with a pre-deploy command, a private service and a worker anew.
#[test]
fn after_many_deploys_there_is_no_more_than_after_a_few() {
    let Some(host) = host() else { return };
    let cycles: usize = std::env::var("MOAT_CYCLES").ok().map_or(12, |text| text.parse().unwrap());
    let few = (cycles / 3).clamp(7, 100);
    host.write("app/server.pl", SERVER);
    let file = host.write("app/render.yaml", BLUEPRINT);
    let began = Instant::now();
    let mut before = None;
    for n in 0..cycles {
        // One of two releases, which are built once each.
        let release = format!("r{}", n % 2);
        host.moat(&["up", "-d", "--set", &format!("RELEASE={release}"), file.to_str().unwrap()]).ok();
        assert_eq!(host.http(8080, "site.localhost", "/"), (200, release), "cycle {n}");
        if n + 1 == few {
            settled(&host);
            before = Some((counts(&host), size(&host.path("state")), memory(host.daemon().unwrap())));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    settled(&host);
    let (before, size_before, memory_before) = before.unwrap();
    // What follows a stop (files that are closed, what a sweep removes) may take a moment.
    let until = Instant::now() + Duration::from_secs(20);
    let mut after = counts(&host);
    while after != before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(200));
        after = counts(&host);
    }
    let (size_after, memory_after) = (size(&host.path("state")), memory(host.daemon().unwrap()));
    println!(
        "{cycles} cycles of three services in {seconds:.1} s; state {size_before} B after {few}, {size_after} B after all; \
         the daemon's memory {memory_before} kB, {memory_after} kB; {before:?}"
    );
    assert_eq!(after, before, "after {few} and after {cycles} cycles");
    // The history and the log of events have their own bounds, which few cycles do not reach: so much each may add.
    let grown = u64::try_from(cycles - few).unwrap().min(300) * 20_000 + 10_000_000;
    assert!(size_after < size_before + grown, "the state folder grew from {size_before} to {size_after} bytes");
    assert!(memory_after < memory_before + 20_000, "the daemon's memory grew from {memory_before} to {memory_after} kB");
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Daemon,
    DataPlane,
    Monitor,
    Program,
    Up,
}

/// Numbers that a seed decides (SplitMix64, Steele and others, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone())
    }
}

fn number(key: &str) -> Option<u64> {
    std::env::var(key).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("`{key}` holds `{text}`, which is no number")))
}

/// A process of the kind, of those that are there now.
fn victim(host: &Host, dice: &mut Dice, kind: Victim, up: u32) -> Option<u32> {
    let named = |word: &str| host.processes().into_iter().filter(|(_, line)| line.contains(word)).map(|(pid, _)| pid).collect::<Vec<_>>();
    match kind {
        Victim::Daemon => host.daemon(),
        Victim::DataPlane => named("__dataplane").first().copied(),
        Victim::Monitor => dice.pick(&named("__monitor")),
        Victim::Program => {
            let folders = fs::read_dir(host.path("run/instances")).into_iter().flatten().flatten();
            let pids = folders.filter_map(|entry| {
                let text = fs::read(entry.path().join("program.json")).ok()?;
                serde_json::from_slice::<serde_json::Value>(&text).ok()?["pid"].as_u64()
            });
            dice.pick(&pids.collect::<Vec<_>>()).and_then(|pid| u32::try_from(pid).ok())
        }
        Victim::Up => Some(up),
    }
}

/// Anything is killed at any moment of a deploy over what runs: the next `up` brings all, and nothing is left of what was before.
/// `MOAT_KILL_SEED` has the same happen again, `MOAT_KILL_ROUNDS` says how often.
#[test]
fn whatever_is_killed_while_deploys_go_on_all_comes_about_and_nothing_is_left() {
    let Some(host) = host() else { return };
    let chance = || -> u64 { std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into() };
    let seed = number("MOAT_KILL_SEED").unwrap_or_else(chance);
    let rounds = number("MOAT_KILL_ROUNDS").unwrap_or(6);
    println!("MOAT_KILL_SEED={seed}");
    let mut dice = Dice(seed);
    host.write("app/server.pl", SERVER);
    let file = host.write("app/render.yaml", BLUEPRINT);
    let file = file.to_str().unwrap();
    // Of other processes than before, which open what they need.
    let counted = |host: &Host| {
        // What the filter learned of `verify`'s attempts is none of its rules.
        host.router("for set in denied4 denied6 denied_proto4 denied_proto6; do nft flush set inet moat $set; done").ok();
        counts(host).into_iter().filter(|(what, _)| !what.starts_with("open files")).collect::<BTreeMap<_, _>>()
    };
    let up = |release: &str| ["up", "-d", "--set", &format!("RELEASE={release}"), file].map(str::to_owned);
    let mut before = BTreeMap::new();
    for n in 0..2 {
        host.moat(&up(&format!("r{n}")).each_ref().map(String::as_str)).ok();
        settled(&host);
        host.moat(&["verify"]).ok();
        before = counted(&host);
    }
    for round in 0..rounds {
        let release = format!("r{}", round % 2);
        let mut asked = host.spawn(&up(&release).each_ref().map(String::as_str));
        let millis = dice.below(2500);
        std::thread::sleep(Duration::from_millis(millis));
        let kind = dice.pick(&[Victim::Daemon, Victim::DataPlane, Victim::Monitor, Victim::Program, Victim::Up]).unwrap();
        let pid = victim(&host, &mut dice, kind, asked.id());
        println!("round {round}: {kind:?} ({pid:?}) after {millis} ms");
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        // Whatever it answers.
        let _ = asked.wait();
        host.moat(&up(&release).each_ref().map(String::as_str)).ok();
        settled(&host);
        wait_for("the page of this release", || host.http(8080, "site.localhost", "/") == (200, release.clone()));
        let verify = host.moat(&["verify"]);
        assert_eq!(verify.code, 0, "seed {seed}, round {round}: {}\n{}", verify.out, verify.err);
        let until = Instant::now() + Duration::from_secs(20);
        let mut after = counted(&host);
        while after != before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            after = counted(&host);
        }
        assert_eq!(after, before, "seed {seed}, round {round}: {kind:?} after {millis} ms");
    }
}
