//! A whole machine: Debian with systemd and version 2 control groups, booted in QEMU. What only such a machine can show: the unit,
//! limits by its controllers, the firewalls that people have, a reboot, and a power cut.
//!
//! One machine for all of it, as a boot is slow under emulation.

use moat_testkit::images::{File, Recipe, docker_archive, layout};
use moat_testkit::vm::{Machine, Root, Said};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const ROOT: Root = Root {
    // firewalld's polkitd wants what libpam-systemd is.
    packages: &["crun", "nftables", "conntrack", "redis-server", "ufw", "libpam-systemd", "firewalld"],
    disabled: &["redis-server", "ufw", "firewalld"],
};

const BUSY: Recipe = Recipe {
    name: "busy",
    files: &[
        File { path: "/usr/local/bin/serve", mode: 0o755, owner: "root", text: include_str!("machine/serve.sh") },
        File { path: "/usr/local/bin/knock", mode: 0o755, owner: "root", text: include_str!("machine/knock.sh") },
    ],
    ..Recipe::BARE
};

const EARLY: &str = "[Unit]\nDescription=asks who answers\nDefaultDependencies=no\nAfter=systemd-remount-fs.service\nBefore=network-pre.target network.target\n\
    [Service]\nExecStart=/usr/local/bin/early\n[Install]\nWantedBy=sysinit.target\n";
const SERVICES: [&str; 5] = ["page", "echo", "knocker", "store", "vault"];

struct Bed {
    machine: Machine,
    began: Instant,
}

impl Bed {
    fn said(&self, what: &str) {
        println!("{:6.1} s {what}", self.began.elapsed().as_secs_f64());
    }

    #[track_caller]
    fn sh(&mut self, script: &str) -> Said {
        self.machine.sh(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    #[track_caller]
    fn ok(&mut self, script: &str) -> String {
        let said = self.sh(script);
        assert_eq!(said.code, 0, "{script}\n{}\n{}", said.out, said.err);
        said.out
    }

    #[track_caller]
    fn json(&mut self, script: &str) -> Value {
        let out = self.sh(script).out;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{script}: {error}: {out}"))
    }

    /// Waits inside, five minutes at most, until a script succeeds.
    #[track_caller]
    fn wait(&mut self, what: &str, script: &str) {
        let said = self.sh(&format!("for turn in $(seq 300); do if ({script}) >/dev/null 2>&1; then exit 0; fi; sleep 1; done; {script}"));
        if said.code != 0 {
            let more = self.sh("moat ps; moat events -n 30; journalctl -u moat -n 40 --no-pager").out;
            panic!("waited for {what}: {}\n{}\n{more}", said.out, said.err);
        }
        self.said(what);
    }

    fn wait_until_live(&mut self) {
        let count = SERVICES.len();
        self.wait("all services are live", &format!("test $(moat ps --output json | grep -c '\"phase\": \"live\"') = {count}"));
    }

    /// What has to be the same after the machine was off: by service, its address and how many instances it has.
    fn shape(&mut self) -> BTreeMap<String, String> {
        let ps = self.json("moat ps --output json");
        let services = ps["services"].as_array().unwrap().iter();
        services
            .map(|s| {
                let name = s["state"]["service"].as_str().unwrap().to_owned();
                (name, format!("{} {} {}", s["address"], s["wanted"], s["url"]))
            })
            .collect()
    }

    #[track_caller]
    fn verify(&mut self, when: &str) {
        let said = self.sh("moat verify --random-ports 0");
        assert_eq!(said.code, 0, "{when}: {}\n{}", said.out, said.err);
        let facts = said.out.lines().last().unwrap_or_default().to_owned();
        self.said(&format!("verify {when}: {facts}"));
    }

    /// Whether a service reaches the internet.
    fn egress(&mut self) -> bool {
        let get = "printf \"GET / HTTP/1.0\\r\\n\\r\\n\" | busybox nc -w 4 203.0.113.9 80 | tail -n1";
        self.sh(&format!("moat exec echo -- sh -c '{get}'")).out.trim() == "internet"
    }

    /// What `doctor` says of a thing.
    #[track_caller]
    fn doctor(&mut self, name: &str) -> Value {
        let findings = self.json("moat doctor --output json");
        findings.as_array().unwrap().iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("{name}: {findings}")).clone()
    }
}

/// A machine with the program that was just built, or `None` (said on the test's output) where there can be none.
fn bed() -> Option<Bed> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to make a machine's disk");
        return None;
    }
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the machine is an x86-64 one");
        return None;
    }
    for tool in ["qemu-system-x86_64", "debootstrap", "mke2fs", "setpriv", "strip"] {
        let found = Command::new("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")]).output();
        assert!(found.is_ok_and(|o| o.status.success()), "`{tool}` is missing: `cargo xtask test` installs it");
    }
    let began = Instant::now();
    let image = ROOT.image().unwrap();
    let payload = tempfile::tempdir().unwrap();
    let put = |name: &str| payload.path().join(name);
    // A tenth of the size without what only a debugger reads.
    let stripped = Command::new("strip").arg("-o").arg(put("moat")).arg(env!("CARGO_BIN_EXE_moat")).status().unwrap();
    assert!(stripped.success());
    docker_archive(&layout(&BUSY).unwrap(), "library/busy:1", &put("busy.tar")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/machine");
    for name in ["render.yaml", "early.sh"] {
        fs::copy(own.join(name), put(name)).unwrap();
    }
    fs::write(put("early.service"), EARLY).unwrap();
    let machine = Machine::new(&image, payload.path()).unwrap();
    let mut bed = Bed { machine, began };
    bed.said("the disk is made");
    bed.machine.start().unwrap();
    bed.said("booted");
    Some(bed)
}

#[test]
#[ignore = "takes some ten minutes of two processors; `cargo xtask test --run-ignored only machine::` runs it"]
fn a_machine_with_systemd_is_installed_on_limited_and_comes_back_from_a_reboot_and_a_power_cut() {
    let Some(mut bed) = bed() else { return };
    install(&mut bed);
    limits(&mut bed);
    firewalls(&mut bed);
    let before = bed.shape();
    comes_back(&mut bed, &before, "a reboot", |bed| {
        bed.machine.reboot().unwrap();
    });
    comes_back(&mut bed, &before, "a power cut", |bed| {
        // In the middle of a deploy.
        bed.ok("setsid moat restart echo >/dev/null 2>&1 & sleep 1");
        bed.machine.cut_power();
        bed.machine.start().unwrap();
    });
    uninstall(&mut bed);
}

fn install(bed: &mut Bed) {
    bed.ok("cp /payload/moat /usr/local/bin/moat && cp /payload/early.sh /usr/local/bin/early && chmod 755 /usr/local/bin/early");
    bed.ok("mkdir /root/app && cp /payload/render.yaml /root/app && touch /etc/knock-at");
    bed.ok("cp /payload/early.service /etc/systemd/system && systemctl enable -q --now early");
    let findings = bed.json("moat doctor --output json");
    let lacking: Vec<&Value> = findings.as_array().unwrap().iter().filter(|f| f["required"] == true && f["ok"] != true).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
    for (name, found) in [("cgroups", "version 2"), ("egress", "no firewall of this machine is in the way")] {
        let finding = findings.as_array().unwrap().iter().find(|f| f["name"] == name).unwrap();
        assert_eq!(finding["found"], found);
    }
    bed.said("doctor");

    bed.ok("moat install");
    assert_eq!(
        bed.ok("systemctl show -P ActiveState -P SubState -P UnitFileState moat").split_whitespace().collect::<Vec<_>>(),
        ["active", "running", "enabled"]
    );
    bed.ok("moat image load /payload/busy.tar");
    bed.said("installed");
    bed.ok("moat up -d --listen 0.0.0.0:8080 --set KNOCK_AT=127.0.0.1 /root/app/render.yaml");
    bed.said("up");
    bed.wait_until_live();

    println!("{}", bed.ok("moat ps"));
    aim(bed);
    bed.wait("the knocker hears whom it may reach", "moat logs knocker -n 200 | grep -w echo");
    bed.wait("the neighbour hears the public page", "grep 'neighbour heard public page' /var/log/early-*");
    assert!(bed.egress());
}

/// Has the knockers ask at every service address, and at those that the next instances get.
fn aim(bed: &mut Bed) {
    let ps = bed.json("moat ps --output json");
    let v4 = |value: &Value| value["address"]["v4"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
    let services = ps["services"].as_array().unwrap();
    let asked = services.iter().filter(|s| s["state"]["kind"] != "keyvalue").filter_map(v4);
    let last = services.iter().flat_map(|s| s["instances"].as_array().unwrap()).filter_map(v4).max().unwrap();
    let next = (1..=8).map(|n| Ipv4Addr::from(u32::from(last) + n));
    let at = asked.chain(next).map(|address| address.to_string()).collect::<Vec<_>>().join(" ");
    bed.ok(&format!("echo {at} >/etc/knock-at; moat env set knocker KNOCK_AT='{at}'"));
}

/// What the controllers do, not what was written to them.
fn limits(bed: &mut Bed) {
    let folder = "/sys/fs/cgroup/moat-*";
    let limits = bed.ok(&format!("for group in {folder}/*-*; do echo $(cat $group/memory.max $group/pids.max $group/cpu.max); done"));
    assert!(limits.lines().count() >= SERVICES.len() && limits.lines().all(|line| line == "536870912 513 100000 100000"), "{limits}");

    // Memory: the kernel ends what takes too much, and Moat says so.
    let said = bed.sh("moat run echo -- tail /dev/zero");
    assert_eq!(said.code, 137, "{} {}", said.out, said.err);
    bed.wait("the event of the kill", "moat events --service echo --kind instance-exited --output json | grep -q '\"oom\": *true'");
    assert!(bed.ok("moat events --service echo --kind instance-exited").contains("it used more memory than its plan allows"));

    // Processes: 512 of them are a plan's.
    let said = bed.sh("moat run echo -- sh -c 'mkfifo /tmp/f; exec 3<>/tmp/f; for n in $(seq 600); do read x <&3 & done; echo all'");
    assert!(said.code != 0 && !said.out.contains("all"), "{} {}", said.out, said.err);

    // CPU: two that never rest get one between them; without a limit they get two.
    let used = |bed: &mut Bed, group: &str| -> f64 {
        let script = format!(
            "cd {group}; a=$(sed -n 's/^usage_usec //p' cpu.stat) t=$(date +%s%N); sleep 4; b=$(sed -n 's/^usage_usec //p' cpu.stat) u=$(date +%s%N); echo $(((b - a) * 1000000 / (u - t)))"
        );
        bed.ok(&script).trim().parse::<f64>().unwrap() / 1000.0
    };
    let busy = "for n in 1 2; do timeout 12 sh -c \"while :; do :; done\" & done; wait";
    let job = bed.ok(&format!("moat run -d echo -- sh -c '{busy}'")).trim().to_owned();
    let group = format!("{folder}/{job}");
    bed.wait("the busy job", &format!("grep -q '^nr_throttled [1-9]' {group}/cpu.stat"));
    let limited = used(bed, &group);
    bed.wait("its end", &format!("! test -e {group}"));
    bed.ok(&format!("setsid sh -c '{busy}' >/dev/null 2>&1 & sleep 1"));
    let free = used(bed, "/sys/fs/cgroup/system.slice/agent.service");
    assert!(limited < 1.15 && free > limited + 0.3, "{limited} of {free} processors");
    bed.said("limits");

    // What systemd does to its own groups leaves them alone, and a restart what runs.
    let pids = |bed: &mut Bed| bed.ok("moat ps --output json | grep -E '\"(id|pid)\"'");
    let before = pids(bed);
    bed.ok("systemctl daemon-reload; systemctl restart moat; systemctl is-active moat");
    bed.wait_until_live();
    assert_eq!(pids(bed), before);
    assert_eq!(bed.ok(&format!("cat {folder}/*-*/cpu.max | sort -u")), "100000 100000\n");
}

/// Firewalls come, reload and go: nothing opens, nothing private closes, and what they take from egress is said with what gives it back.
fn firewalls(bed: &mut Bed) {
    // It drops what is forwarded by default.
    bed.ok("ufw --force enable");
    assert!(!bed.egress(), "ufw drops what is forwarded");
    bed.verify("with ufw");
    bed.wait("what Moat says of it", "moat events --kind problem | grep -q 'ufw drops what is forwarded'");
    let finding = bed.doctor("egress");
    assert_eq!(finding["ok"], false, "{finding}");
    told(bed, &finding);
    bed.ok("ufw reload");
    assert!(bed.egress(), "{finding}");
    bed.ok("ufw disable");
    assert!(bed.egress());

    // It rejects by a rule at the end of its chain.
    bed.ok("systemctl start firewalld && firewall-cmd --state");
    let finding = bed.doctor("egress");
    assert!(!bed.egress(), "firewalld rejects what is forwarded");
    // What is to be said ends with a reload of it.
    assert_eq!(finding["ok"], false, "{finding}");
    told(bed, &finding);
    bed.wait("firewalld", "firewall-cmd --state");
    assert!(bed.egress(), "{finding}");
    bed.verify("with firewalld, after its reload and ufw's end");
    bed.ok("systemctl stop firewalld");
    assert!(bed.egress());
    bed.said("firewalls");
}

/// Runs what a hint says.
fn told(bed: &mut Bed, finding: &Value) {
    let hint = finding["hint"].as_str().unwrap();
    for command in hint.split('`').skip(1).step_by(2) {
        let said = bed.sh(command);
        // firewalld takes longer than its own client waits, under emulation.
        assert!(said.code == 0 || said.err.contains("Did not receive a reply"), "{command}: {} {}", said.out, said.err);
    }
}

/// Nobody has heard anybody that they may not reach, since the machine began.
#[track_caller]
fn closed(bed: &mut Bed) {
    let early = bed.ok("cat /var/log/early-*");
    let heard: Vec<&str> = early.lines().filter(|line| line.contains("heard") && !line.contains("heard public page")).collect();
    assert!(heard.is_empty(), "{heard:?}");
    for who in ["host round", "neighbour round"] {
        assert!(early.contains(who), "{who}");
    }
    assert_eq!(bed.ok("moat logs knocker -n 100000 | grep -cw vault || true").trim(), "0");
}

/// The machine is off and on again: all is as it was, and nothing was open before.
fn comes_back(bed: &mut Bed, before: &BTreeMap<String, String>, how: &str, off: impl Fn(&mut Bed)) {
    bed.ok("moat exec store -- redis-cli set before there && sleep 2");
    aim(bed);
    let events = bed.ok("moat events | wc -l").trim().parse::<u64>().unwrap();
    off(bed);
    bed.said(how);
    bed.wait("moat", "systemctl is-active moat && moat ps");
    bed.wait_until_live();
    assert_eq!(&bed.shape(), before, "{how}");
    assert_eq!(bed.ok("moat exec store -- redis-cli get before").trim(), "there");
    assert!(bed.ok("moat events | wc -l").trim().parse::<u64>().unwrap() > events);
    bed.wait("the public page", "early get 127.0.0.1 8080 page.localhost | grep page");
    assert!(bed.egress());
    bed.verify(&format!("after {how}"));
    // The neighbour and the host have asked since before Moat was there.
    let log = "/var/log/early-$(cut -c1-8 /proc/sys/kernel/random/boot_id)";
    let began = bed.ok(&format!("head -n1 {log} | cut -d' ' -f1")).trim().parse::<f64>().unwrap();
    let moat = bed.ok("systemctl show -P ExecMainStartTimestampMonotonic moat").trim().parse::<f64>().unwrap() / 1e6;
    assert!(began < moat, "asked since {began}, Moat since {moat}");
    bed.wait("the knocker", "moat logs knocker -n 20 | grep -w echo");
    closed(bed);
}

fn uninstall(bed: &mut Bed) {
    bed.ok("moat down && moat uninstall");
    let left = bed.ok("ls -d /sys/fs/cgroup/moat-* /run/moat/netns/* 2>/dev/null; ip -o link | grep -o 'mu-[^@:]*'; nft list tables | grep moat; pgrep -x moat; true");
    assert_eq!(left, "", "left behind");
    bed.said("uninstalled");
}
