//! Moat without root: a user of the pretended machine who has nothing but a range of ids.

use crate::host::{Host, Said, example, host, wait_for};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const USER: u32 = 61_234;

/// A user of the machine, called `lena`.
pub struct User<'a> {
    host: &'a Host,
}

/// A user with ids of `/etc/subuid`; `None`, and said, where the kernel has no user namespaces for users.
pub fn user(host: &Host) -> Option<User<'_>> {
    let may = host.sh(&format!("setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all unshare --user --net --mount true"));
    if may.code != 0 {
        println!("skipped: this kernel has no user namespaces for users: {}", may.err.trim());
        return None;
    }
    for (name, line) in [
        ("passwd", format!("lena:x:{USER}:{USER}::{}:/bin/sh\n", host.path("home").display())),
        ("group", format!("lena:x:{USER}:\n")),
        ("subuid", "lena:700000:65536\n".to_owned()),
        ("subgid", "lena:700000:65536\n".to_owned()),
    ] {
        let real = fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        let others: Vec<&str> = real.lines().filter(|line| !line.starts_with("lena:")).collect();
        let own = host.write(&format!("etc/{name}"), &format!("{}\n{line}", others.join("\n")));
        host.sh(&format!("mount --bind {} /etc/{name}", own.display())).ok();
    }
    let folder = host.path("");
    // As udev has it on a machine of its own.
    host.sh(&format!("cd {} && mknod -m 666 tun c 10 200 && mount --bind tun /dev/net/tun", folder.display())).ok();
    host.sh(&format!(
        "cd {0} && chmod a+rx . && mkdir -p home xdg && chown {USER}:{USER} home xdg && chmod 700 home xdg && cp {1} moat-copy && chmod a+rx moat-copy",
        folder.display(),
        env!("CARGO_BIN_EXE_moat")
    ))
    .ok();
    Some(User { host })
}

impl User<'_> {
    /// The number.
    pub const ID: u32 = USER;

    fn command(&self, program: &str) -> Command {
        let id = USER.to_string();
        let mut command = self.host.command("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", program]);
        // The usual folders of a user, which nobody names.
        command.env_remove("MOAT_STATE_DIR").env_remove("MOAT_RUN_DIR").env_remove("XDG_DATA_HOME");
        command.env("HOME", self.host.path("home")).env("XDG_RUNTIME_DIR", self.host.path("xdg")).stdin(Stdio::null());
        command
    }

    /// A command whose process is in a control group.
    pub fn moat_in(&self, group: &Path, args: &[&str]) -> Said {
        let command = self.command(self.host.path("moat-copy").to_str().unwrap());
        let (program, rest) = (command.get_program().to_owned(), command.get_args().map(std::ffi::OsStr::to_owned).collect::<Vec<_>>());
        let mut moved = Command::new("sh");
        moved.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group).arg(program).args(rest).args(args);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved.current_dir(self.host.path("")).stdin(Stdio::null());
        moved.output().unwrap().into()
    }

    pub fn moat(&self, args: &[&str]) -> Said {
        self.command(self.host.path("moat-copy").to_str().unwrap()).args(args).output().unwrap().into()
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(self.host.path("moat-copy").to_str().unwrap());
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn sh(&self, script: &str) -> Said {
        self.command("sh").args(["-c", script]).output().unwrap().into()
    }
}

/// A program of the machine that listens on every address, until it is dropped.
struct Listener(Child);

impl Listener {
    fn new(host: &Host, port: u16) -> Self {
        let script =
            format!("import socket\ns = socket.create_server((\"\", {port}))\nwhile True:\n    s.accept()[0].send(b\"the machine\")\n");
        let listener = Self(host.command("python3").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
        wait_for("the machine's listener", || host.sh(&format!("ss -Hltn sport = {port}")).out.contains("LISTEN"));
        listener
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an instance hears from an address, in a second.
fn hears(user: &User, service: &str, address: &str, port: u16) -> String {
    let script = format!("import socket\ns = socket.create_connection((\"{address}\", {port}), 1)\nprint(s.recv(99))");
    let said = user.moat(&["exec", service, "--", "python3", "-c", &script]);
    format!("{}{}", said.out, said.err)
}

#[test]
fn without_root_the_same_runs_is_proved_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let Some(user) = user(&host) else { return };
    let before = host.inventory();
    let file = example(&host, "hello");
    host.sh(&format!("chown -R {USER}:{USER} {}", file.parent().unwrap().display())).ok();
    let file = file.to_str().unwrap();

    // `doctor` says what there is and what there is not, and nothing stays of it.
    let doctor = user.moat(&["doctor"]).ok();
    assert!(doctor.out.contains("a user namespace of your own") && doctor.out.contains("without root: memory and CPU"), "{}", doctor.out);
    wait_for("nothing of doctor", || host.processes().is_empty());

    let up = user.moat(&["up", "-d", "--listen", "127.0.0.1:8471", file]).ok();
    assert!(up.err.contains("without root: memory and CPU of services are not limited"), "{}", up.err);
    assert!(!up.err.contains("don't reach the internet"), "slirp4netns is here: {}", up.err);

    // The machine's own users reach the ingress; everything of Moat belongs to the user, and every instance to an id of the range.
    let (code, page) = host.http(8471, "hello.localhost", "/");
    assert!(code == 200 && page.contains("hello"), "{code}: {page}");
    let verified = user.moat(&["verify"]).ok();
    assert!(verified.out.contains("verified:") && verified.err.contains("without root:"), "{}{}", verified.out, verified.err);
    let mut owners: Vec<u32> = host
        .processes()
        .iter()
        .filter(|(_, line)| line.contains("moat-copy") || line.contains("__"))
        .filter_map(|(pid, _)| fs::metadata(format!("/proc/{pid}")).ok())
        .map(|about| about.uid())
        .collect();
    owners.sort_unstable();
    owners.dedup();
    assert!(owners.iter().all(|&uid| uid == USER || (700_000..765_536).contains(&uid)), "{owners:?}");
    let who =
        user.moat(&["exec", "counter", "--", "sh", "-c", "id -u; cat /proc/self/uid_map; grep 'Max processes' /proc/self/limits"]).ok();
    let lines: Vec<&str> = who.out.lines().map(str::trim).collect();
    assert!(lines[0] == "1000" && lines[1].ends_with("65536") && !lines[2].contains("unlimited"), "{}", who.out);

    // The way out: not the machine itself, by none of its addresses, though the way goes through a process of it (row 10).
    let listener = Listener::new(&host, 8472);
    assert!(host.sh("curl -s --max-time 5 --http0.9 http://192.0.2.77:8472").out.contains("the machine"), "the control");
    for address in ["192.0.2.77", "10.0.2.2", "127.0.0.1", "169.254.1.1"] {
        let heard = hears(&user, "counter", address, 8472);
        assert!(!heard.contains("the machine"), "{address}: {heard}");
    }
    assert!(user.sh("curl -s --max-time 2 http://10.128.0.1:10000").code != 0, "the machine reaches a service address");

    // The background process is killed: what runs goes on, and the next one adopts it.
    let monitors = |host: &Host| -> Vec<u32> {
        host.processes()
            .into_iter()
            .filter(|(_, line)| line.contains("__monitor /") && !line.contains("/crn-"))
            .map(|(pid, _)| pid)
            .collect()
    };
    let before_kill = monitors(&host);
    assert!(before_kill.len() >= 4);
    let daemon = host.daemon().unwrap();
    host.kill(daemon, "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.http(8471, "hello.localhost", "/").0, 200);
    user.moat(&["up", "-d", "--listen", "127.0.0.1:8471", file]).ok();
    assert_eq!(monitors(&host), before_kill);

    // So is the process outside; the next command replaces it.
    let outside = |host: &Host| host.processes().into_iter().find(|(_, line)| line.contains("__outside")).map(|(pid, _)| pid);
    host.kill(outside(&host).unwrap(), "KILL");
    wait_for("the end of the process outside", || outside(&host).is_none());
    user.moat(&["exec", "counter", "--", "true"]).ok();
    assert!(outside(&host).is_some());
    user.moat(&["verify"]).ok();

    user.moat(&["down"]).ok();
    wait_for("everything to end", || host.processes().iter().all(|(_, line)| line.contains("8472") || line.contains("s.accept")));
    drop(listener);
    let left: Vec<String> = host.inventory().difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!host.path("xdg/moat/outside.sock").exists() && !host.path("xdg/moat/holder.json").exists());
}

#[test]
fn without_ids_it_is_refused_and_said_what_to_do() {
    let Some(host) = host() else { return };
    let Some(user) = user(&host) else { return };
    let file = example(&host, "hello");
    host.sh(&format!("chmod -R a+rX {}", file.parent().unwrap().display())).ok();
    fs::write(host.path("etc/subuid"), "lena:700000:1000\n").unwrap();
    for args in [vec!["up", "-d", file.to_str().unwrap()], vec!["exec", "a", "--", "true"]] {
        let said = user.moat(&args);
        assert!(said.code == 1 && said.err.contains("`/etc/subuid` has none for `lena`"), "{}", said.err);
        assert!(said.err.contains("sudo usermod --add-subuids 701000-766535 lena"), "{}", said.err);
    }
    let doctor = user.moat(&["doctor"]);
    assert!(doctor.code == 1 && doctor.out.contains("/etc/subuid") && doctor.out.contains("usermod"), "{}", doctor.out);
    // Somebody else was first where the runtime folder would be.
    fs::write(host.path("etc/subuid"), "lena:700000:65536\n").unwrap();
    host.sh(&format!("mkdir {0}/xdg/moat && chown 0:0 {0}/xdg/moat && chmod 777 {0}/xdg/moat", host.path("").display())).ok();
    let said = user.moat(&["up", "-d", file.to_str().unwrap()]);
    assert!(said.code == 1 && said.err.contains("is not yours"), "{}", said.err);
    assert!(host.processes().is_empty(), "{:?}", host.processes());
    // One that is installed for the machine is not for users to install.
    assert!(user.moat(&["install"]).err.contains("needs root"));
    let mut child = user.spawn(&["ps"]);
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_service_manager_hands_in_ports_that_are_roots() {
    let Some(host) = host() else { return };
    let Some(user) = user(&host) else { return };
    let file = example(&host, "hello");
    host.sh(&format!("chmod -R a+rX {}", file.parent().unwrap().display())).ok();
    // As the units of the guide have it: the service manager listens, and starts Moat as the user with the first connection.
    let folder = |name: &str, path: &str| format!("--setenv={name}={}", host.path(path).display());
    let mut manager = host.command("systemd-socket-activate");
    manager.args([
        "-l",
        "127.0.0.1:80",
        "-l",
        "127.0.0.1:443",
        "--fdname=http:https",
        &folder("HOME", "home"),
        &folder("XDG_RUNTIME_DIR", "xdg"),
    ]);
    let id = USER.to_string();
    manager.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]).arg(host.path("moat-copy")).arg("serve");
    manager.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(host.path("serve.log")).unwrap());
    let mut serve = manager.spawn().expect("`systemd-socket-activate` is missing: it comes with systemd");
    wait_for("the service manager", || host.sh("ss -Hltn 'sport = 80'").out.contains("LISTEN"));
    let mut first =
        host.command("curl").args(["-s", "--max-time", "100", "-H", "Host: hello.localhost", "http://127.0.0.1/healthz"]).spawn().unwrap();
    wait_for("moat serve", || user.moat(&["ps"]).code == 0);
    let ps = || user.moat(&["ps", "-o", "json"]).ok().json();
    let said = user.moat(&["up", "-d", "--listen", "127.0.0.1:9999", file.to_str().unwrap()]);
    assert!(said.code == 1 && said.err.contains("listens on 127.0.0.1:80 already"), "{said:?}");
    user.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    assert_eq!(
        ps()["services"].as_array().unwrap().iter().find_map(|one| one["url"].as_str().map(str::to_owned)).unwrap(),
        "https://hello.localhost"
    );
    assert!(first.wait().unwrap().success(), "who came first waited");
    assert_eq!(host.http(80, "hello.localhost", "/healthz").0, 301, "to HTTPS");
    let https = || host.sh("curl -sk -o /dev/null -w '%{http_code}' --connect-to ::127.0.0.1: https://hello.localhost/healthz").out;
    assert_eq!(https(), "200");

    // Who answers can do nothing, and nobody but Moat's two processes holds the ports.
    let (daemon, plane) = (ps()["daemon_pid"].clone(), ps()["dataplane_pid"].as_u64().unwrap());
    assert_eq!(daemon, serve.id());
    let status = fs::read_to_string(format!("/proc/{plane}/status")).unwrap();
    let last = (700_000 + 65_535).to_string();
    assert!(status.contains(&format!("Uid:\t{last}\t{last}")) && status.contains(&format!("CapEff:\t{}", "0".repeat(16))), "{status}");
    let holders = host.sh("ss -Hltnp 'sport = 80 or sport = 443'").ok().out;
    let mut pids: Vec<&str> = holders.split("pid=").skip(1).filter_map(|rest| rest.split(',').next()).collect();
    pids.sort_unstable();
    pids.dedup();
    let mut own = [daemon.to_string(), plane.to_string()];
    own.sort_unstable();
    assert_eq!(pids, own, "{holders}");

    // The next one goes on with them, whether it is another program or this one after a crash.
    user.moat(&["upgrade", "--binary", host.path("moat-copy").to_str().unwrap()]).ok();
    assert_eq!(host.http(80, "hello.localhost", "/healthz").0, 301);
    host.kill(u32::try_from(ps()["dataplane_pid"].as_u64().unwrap()).unwrap(), "KILL");
    assert_eq!((host.http(80, "hello.localhost", "/healthz").0, https().as_str()), (301, "200"));
    user.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    user.moat(&["down"]).ok();
    host.kill(serve.id(), "TERM");
    wait_for("its end", || serve.try_wait().is_ok_and(|ended| ended.is_some()));
    wait_for("free ports", || host.sh("ss -Hltn 'sport = 80 or sport = 443'").out.is_empty());
}
