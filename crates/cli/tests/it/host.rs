//! A pretended machine: network and mount namespaces of its own, with its own Moat folders.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The pretended machine; everything in it ends with it.
pub struct Host {
    holder: Child,
    folder: tempfile::TempDir,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.out, self.err))
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A machine to test on, or `None` (said on the test's output) when that can't be made here.
pub fn host() -> Option<Host> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root for network namespaces");
        return None;
    }
    for tool in ["crun", "nft", "redis-server", "ip", "unshare", "nsenter"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool} || command -v valkey-server")])
            .output()
            .is_ok_and(|o| o.status.success());
        assert!(found, "`{tool}` is missing: `cargo xtask test` installs it");
    }
    let mut holder = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && ip link add lan0 type veth peer name lan1 && ip addr add 192.0.2.77/24 dev lan0 && ip link set lan0 up && ip link set lan1 up && while ip link show | grep -q NO-CARRIER; do sleep 0.05; done && echo up && exec sleep 100000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let folder = tempfile::Builder::new().prefix("moat-test-").tempdir().unwrap();
    Some(Host { holder, folder })
}

impl Host {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A process that holds the machine's namespaces.
    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    /// Writes a file below the machine's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A command on this machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--"]).arg(program);
        command
            .env("MOAT_STATE_DIR", self.path("state"))
            .env("MOAT_RUN_DIR", self.path("run"))
            .env("NO_COLOR", "1")
            .current_dir(self.folder.path());
        command
    }

    pub fn moat_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_moat"));
        command.args(args);
        command
    }

    pub fn moat(&self, args: &[&str]) -> Said {
        self.moat_command(args).stdin(Stdio::null()).output().expect("moat").into()
    }

    /// Moat in the background, as in another terminal.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.moat_command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("moat")
    }

    pub fn sh(&self, script: &str) -> Said {
        self.command("bash").args(["-c", script]).stdin(Stdio::null()).output().expect("bash").into()
    }

    /// The same inside the router namespace.
    pub fn router(&self, script: &str) -> Said {
        let ns = self.path("run/netns/router");
        self.command("nsenter")
            .arg(format!("--net={}", ns.display()))
            .args(["bash", "-c", script])
            .stdin(Stdio::null())
            .output()
            .expect("bash")
            .into()
    }

    /// One HTTP request to the ingress: status and body.
    pub fn http(&self, port: u16, host: &str, path: &str) -> (u16, String) {
        let said = self.sh(&format!("curl -s --max-time 10 -w '\\n%{{http_code}}' -H 'Host: {host}' http://127.0.0.1:{port}{path}"));
        let (body, code) = said.out.trim_end().rsplit_once('\n').unwrap_or(("", &said.out));
        (code.trim().parse().unwrap_or(0), body.to_owned())
    }

    /// Everything on the machine that Moat could leave behind.
    pub fn inventory(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut add = |kind: &str, text: &str| found.extend(text.lines().map(|l| format!("{kind}: {}", l.trim())));
        add("link", &self.sh("ip -o link | sed 's/^[0-9]*: //; s/ state .*//; s/@if[0-9]*/@/'").out);
        add("address", &self.sh("ip -o addr | awk '{print $2, $4}'").out);
        add("route", &self.sh("ip route; ip -6 route | grep -v '^fe80'").out);
        add("nft", &self.sh("nft list tables").out);
        add("sysctl", &self.sh("sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding").out);
        let own = self.folder.path().display().to_string();
        add("mount", &self.sh(&format!("grep -F {own} /proc/self/mountinfo | awk '{{print $5}}'")).out);
        add("process", &self.processes().iter().map(|(_, line)| line.clone()).collect::<Vec<_>>().join("\n"));
        add(
            "cgroup",
            &self
                .sh("find /sys/fs/cgroup -type d -path '*moat*' 2>/dev/null | sed 's/^/x/'")
                .out
                .lines()
                .filter(|l| l.contains(&self.tag()))
                .collect::<Vec<_>>()
                .join("\n"),
        );
        add(
            "netns",
            &self
                .sh(&format!("ls {own}/run/netns {own}/run/instances 2>/dev/null"))
                .out
                .lines()
                .filter(|l| !l.ends_with(':') && !l.is_empty())
                .collect::<Vec<_>>()
                .join("\n"),
        );
        found
    }

    fn tag(&self) -> String {
        self.folder.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Processes that carry this machine's folders in their environment or arguments, but the holder.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let own = self.folder.path().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if pid == std::process::id() || pid == self.holder.id() {
                continue;
            }
            let text =
                |name: &str| fs::read(entry.path().join(name)).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).unwrap_or_default();
            let line = text("cmdline");
            if line.contains(&own) || text("environ").contains(&own) {
                found.push((pid, line));
            }
        }
        found
    }

    /// The daemon's pid.
    pub fn daemon(&self) -> Option<u32> {
        self.processes().into_iter().find(|(_, line)| line.contains("__daemon")).map(|(pid, _)| pid)
    }

    #[expect(clippy::unused_self, reason = "a process of this machine")]
    pub fn kill(&self, pid: u32, signal: &str) {
        assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
    }

    pub fn ps(&self) -> Value {
        self.moat(&["ps", "--output", "json"]).ok().json()
    }

    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.path("state/daemon.log")).unwrap_or_default()
    }
}

/// The machine's way to the package registries; it ends when this is dropped.
pub struct Online(Child);

impl Drop for Online {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// Gives the machine a way out, as a person's machine has one. It goes through an ordinary process, so that nothing of
    /// the real machine's network changes, and leads to no address of the real machine.
    pub fn online(&self) -> Online {
        let resolver = self.write("resolv.conf", "nameserver 10.0.2.3\n");
        self.sh(&format!("mount --bind {} \"$(realpath /etc/resolv.conf)\"", resolver.display())).ok();
        let child = Command::new("slirp4netns")
            .args(["--configure", "--mtu=65520", "--disable-host-loopback"])
            .arg(self.holder.id().to_string())
            .arg("tap0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`slirp4netns` is missing: `cargo xtask test` installs it");
        let online = Online(child);
        wait_for("the way out", || !self.sh("ip route show default").out.is_empty());
        online
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.path("run").exists() {
            let said = self.moat(&["down"]);
            if std::thread::panicking() {
                let _ = writeln!(std::io::stderr(), "down: {said:?}\ndaemon.log:\n{}", self.daemon_log());
            }
        }
        for (pid, _) in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Waits until the condition holds; panics with the words after three minutes (builds of several tests share two cores).
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_mins(3), "waited three minutes for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The repository's examples, copied so that a run leaves nothing in them.
pub fn example(host: &Host, name: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    let to = host.path(name);
    assert!(Command::new("cp").arg("-r").arg(&from).arg(&to).status().unwrap().success());
    to.join("render.yaml")
}

/// A service in what `ps` answered.
#[track_caller]
pub fn service<'a>(ps: &'a Value, slug: &str) -> &'a Value {
    ps["services"].as_array().unwrap().iter().find(|s| s["state"]["service"] == slug).unwrap_or_else(|| panic!("no {slug} in {ps}"))
}
