//! A whole machine: Debian with systemd and version 2 control groups, booted in QEMU. What only such a machine can show: the unit,
//! limits by its controllers, the firewalls that people have, a reboot, and a power cut.
//!
//! Two machines for all of it, as a boot is slow under emulation, and a third for what a user of one has ([`delegated`]).

mod delegated;

use moat_testkit::images::busybox_archive;
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
    packages: &[
        "crun",
        "nftables",
        "conntrack",
        "redis-server",
        "ufw",
        "libpam-systemd",
        "firewalld",
        "uidmap",
        "slirp4netns",
        "dbus-user-session",
    ],
    disabled: &["redis-server", "ufw", "firewalld"],
};

const EARLY: &str = "[Unit]\nDescription=asks who answers\nDefaultDependencies=no\nAfter=systemd-remount-fs.service\nBefore=sysinit.target network-pre.target network.target\n\
    [Service]\nType=notify\nTimeoutStartSec=300\nExecStart=/usr/bin/python3 /usr/local/lib/early.py\n[Install]\nWantedBy=sysinit.target\n";
/// The control groups of all instances.
const GROUPS: &str = "/sys/fs/cgroup/moat-*/*-*";
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
        let said = self.sh(&format!("for turn in $(seq 150); do if ({script}) >/dev/null 2>&1; then exit 0; fi; sleep 2; done; {script}"));
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

    /// What has to be the same after the machine was off: by service, its address and how many instances it has. All of it is asked at.
    fn shape(&mut self) -> BTreeMap<String, String> {
        let ps = self.json("moat ps --output json");
        let services = ps["services"].as_array().unwrap().iter();
        let of = |value: &Value| value["address"]["v4"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok()).map(u32::from);
        for service in services.clone() {
            let instances = service["instances"].as_array().unwrap().iter().filter_map(of);
            assert!(of(service).is_none_or(|at| (VIPS..VIPS + 5).contains(&at)), "nobody asks at {service}");
            assert!(instances.into_iter().all(|at| (INSTANCES..INSTANCES + 60).contains(&at)), "nobody asks at {service}");
        }
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

    /// What `doctor` complains of. Nothing that is required is missing.
    #[track_caller]
    fn doctor(&mut self, name: &str) -> Value {
        let findings = self.json("moat doctor --output json");
        let findings = findings.as_array().unwrap();
        let lacking: Vec<&Value> = findings.iter().filter(|f| f["required"] == true && f["ok"] != true).collect();
        assert!(lacking.is_empty(), "{lacking:?}");
        assert!(findings.iter().any(|f| f["name"] == "cgroups" && f["found"] == "version 2"), "{findings:?}");
        findings.iter().find(|f| f["name"] == name && f["ok"] == false).unwrap_or_else(|| panic!("{name}: {findings:?}")).clone()
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
    let scripts = [("/bin/serve", include_str!("machine/serve.sh")), ("/bin/knock", include_str!("machine/knock.sh"))];
    busybox_archive("library/busy:1", &scripts, &put("busy.tar")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/machine");
    for name in ["render.yaml", "early.py"] {
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
#[ignore = "takes some six minutes of a processor; `cargo xtask test --run-ignored only machine::` runs it"]
fn a_machine_with_systemd_is_installed_on_limited_and_comes_back_from_a_power_cut() {
    let Some(mut bed) = bed() else { return };
    install(&mut bed);
    limits(&mut bed);
    firewalld(&mut bed);
    comes_back(&mut bed, "a power cut in the middle of a deploy", |bed| {
        let count = format!("$(ls -d {GROUPS} | wc -l)");
        bed.ok(&format!(
            "before={count}; setsid moat restart echo >/dev/null 2>&1 & for turn in $(seq 600); do test {count} -gt $before && exit 0; sleep 0.2; done; exit 1"
        ));
        bed.machine.cut_power();
        bed.machine.start().unwrap();
    });
    uninstall(&mut bed);
}

#[test]
#[ignore = "takes some six minutes of a processor; `cargo xtask test --run-ignored only machine::` runs it"]
fn ufw_comes_and_goes_and_a_machine_comes_back_from_a_reboot() {
    let Some(mut bed) = bed() else { return };
    install(&mut bed);
    ufw(&mut bed);
    comes_back(&mut bed, "a reboot", |bed| {
        bed.machine.reboot().unwrap();
    });
}

fn install(bed: &mut Bed) {
    bed.ok("cp /payload/moat /usr/local/bin/moat && cp /payload/early.py /usr/local/lib");
    bed.ok("mkdir /root/app && cp /payload/render.yaml /root/app");
    bed.ok(&format!("echo {} >/etc/knock-at", asked_at(VIPS + 8, INSTANCES + 60)));
    bed.ok("cp /payload/early.service /etc/systemd/system && systemctl enable -q --now early");
    bed.ok("moat install");
    assert_eq!(
        bed.ok("systemctl show -P ActiveState -P SubState -P UnitFileState moat").split_whitespace().collect::<Vec<_>>(),
        ["active", "running", "enabled"]
    );
    bed.said("installed");
    bed.ok("moat image load /payload/busy.tar");
    bed.said("the image is there");
    bed.ok(&format!("moat up -d --listen 0.0.0.0:8080 --set KNOCK_AT='{}' /root/app/render.yaml", asked_at(VIPS + 5, INSTANCES + 12)));
    bed.said("up");
    println!("{}", bed.ok("moat ps"));
    bed.shape();
    bed.wait("the knocker hears whom it may reach", "moat logs knocker -n 200 | grep -w echo");
    bed.wait("the neighbour hears the public page", "grep 'neighbour heard public page' /var/log/early-*");
    assert!(bed.egress());
}

/// The first address of services, and of instances.
const VIPS: u32 = u32::from_be_bytes([10, 128, 0, 1]);
const INSTANCES: u32 = u32::from_be_bytes([10, 64, 0, 1]);

/// Addresses from the first ones on: those that services have, that instances have, and that the next ones will get.
fn asked_at(services: u32, instances: u32) -> String {
    let all = (VIPS..services).chain(INSTANCES..instances);
    all.map(|address| Ipv4Addr::from(address).to_string()).collect::<Vec<_>>().join(" ")
}

/// What the controllers do to the instances in these groups, not what was written to them.
fn controllers(bed: &mut Bed, groups: &str, services: usize) {
    let limits = bed.ok(&format!("for group in {groups}; do echo $(cat $group/memory.max $group/pids.max $group/cpu.max); done"));
    assert!(limits.lines().count() >= services && limits.lines().all(|line| line == "536870912 513 100000 100000"), "{limits}");

    // Memory: the kernel ends what takes too much, and Moat says so.
    let said = bed.sh("moat run echo -- tail /dev/zero");
    assert_eq!(said.code, 137, "{} {}", said.out, said.err);
    bed.wait("the event of the kill", "moat events --service echo --kind instance-exited --output json | grep -q '\"oom\": *true'");
    assert!(bed.ok("moat events --service echo --kind instance-exited").contains("it used more memory than its plan allows"));

    // Processes: 512 of them are a plan's.
    let said = bed.sh("moat run echo -- sh -c 'mkfifo /tmp/f; exec 3<>/tmp/f; for n in $(seq 600); do read x <&3 & done; echo all'");
    assert!(said.code != 0 && !said.out.contains("all"), "{} {}", said.out, said.err);

    // CPU: two that never rest get one processor between them, and more as soon as nothing limits them. They need the second one.
    let job =
        bed.ok("moat run -d echo -- sh -c 'for n in 1 2; do timeout 300 sh -c \"while :; do :; done\" & done; wait'").trim().to_owned();
    let group = groups.replace("*-*", &job);
    bed.ok("echo 1 >/sys/devices/system/cpu/cpu1/online");
    bed.wait("the busy job", &format!("grep -q '^nr_throttled [1-9]' {group}/cpu.stat"));
    // In one go: whoever asks is slow beside them.
    let used = "begin=$(sed -n 's/^usage_usec //p' cpu.stat) then=$(date +%s%N); sleep 3; echo $((($(sed -n 's/^usage_usec //p' cpu.stat) - begin) * 1000000 / ($(date +%s%N) - then)))";
    let measured = bed.ok(&format!(
        "cd {group}; echo 500 >cpu.weight; echo 500 >../cpu.weight; {used}; echo max >cpu.max; {used}; echo 100 >../cpu.weight; echo 1 >cgroup.kill"
    ));
    let thousandths: Vec<u32> = measured.lines().map(|line| line.parse().unwrap()).collect();
    let [limited, free] = thousandths[..] else { panic!("{measured}") };
    assert!(limited < 1150 && free > limited + 200, "{limited} and {free} thousandths of a processor");
    bed.ok("echo 0 >/sys/devices/system/cpu/cpu1/online");
    bed.wait("its end", &format!("! test -e {group}"));
    bed.said("limits");
}

fn limits(bed: &mut Bed) {
    controllers(bed, GROUPS, SERVICES.len());

    // What systemd does to its own groups leaves them alone, and a restart what runs.
    let pids = |bed: &mut Bed| bed.ok("moat ps --output json | grep -E '\"(id|pid)\"'");
    let before = pids(bed);
    bed.ok("systemctl daemon-reload; systemctl restart moat; systemctl is-active moat");
    bed.wait_until_live();
    assert_eq!(pids(bed), before);
    assert_eq!(bed.ok(&format!("cat {GROUPS}/cpu.max | sort -u")), "100000 100000\n");
}

/// A firewall comes, reloads and goes: nothing opens, nothing private closes, and what it takes from egress is said with what gives it
/// back. It drops what is forwarded by default.
fn ufw(bed: &mut Bed) {
    bed.ok("ufw --force enable");
    assert!(!bed.egress(), "ufw drops what is forwarded");
    bed.verify("with ufw");
    bed.wait("what Moat says of it", "moat events --kind problem | grep -q 'ufw drops what is forwarded'");
    let finding = bed.doctor("egress");
    told(bed, &finding);
    bed.ok("ufw reload");
    assert!(bed.egress(), "{finding}");
    bed.ok("ufw disable");
    assert!(bed.egress());
    bed.said("ufw");
}

/// Another one, which rejects by a rule at the end of its chain.
fn firewalld(bed: &mut Bed) {
    bed.ok("systemctl start firewalld");
    bed.wait("firewalld", "firewall-cmd --state");
    let finding = bed.doctor("egress");
    assert!(!bed.egress(), "firewalld rejects what is forwarded");
    bed.verify("with firewalld");
    // What is to be said ends with a reload of it.
    told(bed, &finding);
    bed.wait("its reload", "firewall-cmd --state");
    assert!(bed.egress(), "{finding}");
    bed.ok("systemctl stop firewalld");
    assert!(bed.egress());
    bed.said("firewalld");
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
    let heard: Vec<&str> = early.lines().filter(|line| line.contains("heard") && !line.contains("heard public ")).collect();
    assert!(heard.is_empty(), "{heard:?}");
    for who in ["host round", "neighbour round"] {
        assert!(early.contains(who), "{who}");
    }
    assert_eq!(bed.ok("moat logs knocker -n 100000 | grep -cw vault || true").trim(), "0");
}

/// The machine is off and on again: all is as it was, and nothing was open before.
fn comes_back(bed: &mut Bed, how: &str, off: impl Fn(&mut Bed)) {
    let before = bed.shape();
    // Its server writes each second what it was told.
    bed.ok("moat exec store -- redis-cli set before there && sleep 2");
    let heard = "$(moat logs knocker -n 100000 | grep -cw echo)";
    let heard_before = bed.ok(&format!("echo {heard}")).trim().to_owned();
    off(bed);
    bed.said(how);
    bed.wait_until_live();
    assert_eq!(bed.shape(), before, "{how}");
    assert_eq!(bed.ok("moat exec store -- redis-cli get before").trim(), "there");
    bed.wait("the public page", "python3 /usr/local/lib/early.py 127.0.0.1 8080 page.localhost | grep page");
    assert!(bed.egress());
    bed.verify(&format!("after {how}"));
    // The neighbour and the host have asked since before Moat was there.
    let log = "/var/log/early-$(cut -c1-8 /proc/sys/kernel/random/boot_id)";
    let moat = bed.ok("systemctl show -P ExecMainStartTimestampMonotonic moat").trim().parse::<f64>().unwrap() / 1e6;
    for who in ["host", "neighbour"] {
        let began = bed.ok(&format!("grep -m1 '{who} round' {log} | cut -d' ' -f1")).trim().parse::<f64>().unwrap();
        assert!(began < moat, "{who} asked since {began}, Moat since {moat}");
    }
    bed.wait("the knocker", &format!("test {heard} -gt {heard_before}"));
    bed.wait("nothing is left of another instance", &format!("test $(ls -d {GROUPS} | wc -l) = {}", SERVICES.len()));
    closed(bed);
}

fn uninstall(bed: &mut Bed) {
    bed.ok("moat down && moat uninstall");
    let left = bed.ok("ls -d /sys/fs/cgroup/moat-* /run/moat/netns/* 2>/dev/null; ip -o link | grep -o 'mu-[^@:]*'; nft list tables | grep moat; pgrep -x moat; true");
    assert_eq!(left, "", "left behind");
    bed.said("uninstalled");
}
