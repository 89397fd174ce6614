//! The daemon of a service manager: it stays, comes back after a reboot, keeps its secrets, tells what happened, and hears
//! only those who may ask it.

use crate::host::{Host, Said, example, host, service, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const SECRET: &str = "correct-horse-battery-staple";

/// `moat serve`, ended with the test.
struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(host: &Host) -> Serve {
    serve_by(host, Path::new(env!("CARGO_BIN_EXE_moat")))
}

fn serve_by(host: &Host, program: &Path) -> Serve {
    let child = host
        .command(program)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(host.path("serve.log")).unwrap())
        .spawn()
        .unwrap();
    let serve = Serve(child);
    // Another one may answer until it is relieved. nsenter executes the program in place.
    let own = format!("\"daemon_pid\": {}", serve.0.id());
    wait_for("moat serve", || host.moat(&["ps", "--output", "json"]).out.contains(&own));
    serve
}

fn events(host: &Host, args: &[&str]) -> Vec<Value> {
    let said = host.moat(&[&["events", "--output", "json"], args].concat()).ok();
    said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has(events: &[Value], kind: &str, service: &str) -> bool {
    events.iter().any(|e| e["kind"] == kind && (service.is_empty() || e["service"] == service))
}

/// Everything of Moat ends, what a reboot empties is empty, and the kernel's settings are as they are at boot.
fn reboot(host: &Host, settings: &str) {
    for _ in 0..3 {
        for (pid, _) in host.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
    wait_for("the end of all processes", || host.processes().is_empty());
    let run = host.path("run").display().to_string();
    host.sh(&format!(
        "grep -F {run} /proc/self/mountinfo | awk '{{print $5}}' | sort -r | xargs -r -n1 umount -l; rm -rf {run}; nft flush ruleset; \
         for link in $(ip -o link | grep -o 'mo[a-z0-9-]*@' | tr -d @); do ip link del $link; done; \
         echo '{settings}' | sed 's/ = /=/' | xargs sysctl -qw"
    ))
    .ok();
    assert!(!host.path("run").exists());
}

#[test]
fn serve_stays_and_brings_everything_back_after_a_reboot() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let file = file.to_str().unwrap();
    let before = host.inventory();
    let settings = host.sh("sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding").ok().out;
    let first = serve(&host);
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(host.http(8080, "hello.localhost", "/healthz").0, 200);
    let address = |ps: &Value| service(ps, "greeter")["address"]["v4"].as_str().unwrap().to_owned();
    let ps = host.ps();
    let (vip, instance) = (address(&ps), service(&ps, "greeter")["instances"][0]["id"].as_str().unwrap().to_owned());
    let another = host.moat(&["serve"]);
    assert!(another.code == 3 && another.err.contains("runs with"), "{}", another.err);

    reboot(&host, &settings);
    drop(first);
    let mut second = serve(&host);
    // Closed from the first moment on; open again without anybody's help.
    wait_for("the page", || host.http(8080, "hello.localhost", "/healthz").0 == 200);
    wait_for("all instances", || {
        let ps = host.ps();
        ["hello", "greeter", "counter", "store"].iter().all(|slug| service(&ps, slug)["state"]["phase"] == "live")
    });
    let ps = host.ps();
    assert_eq!(address(&ps), vip, "a service keeps its address");
    assert_ne!(service(&ps, "greeter")["instances"][0]["id"], instance.as_str());
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // It does not end with what it ran, leaves nothing of it, and runs the next.
    host.moat(&["down"]).ok();
    assert_eq!(host.ps()["services"].as_array().unwrap().len(), 0);
    let kept = host.inventory();
    let extra: Vec<_> = kept.difference(&before).filter(|line| !line.contains("moat serve")).collect();
    assert!(extra.is_empty(), "{extra:?}");
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(host.http(8080, "hello.localhost", "/healthz").0, 200);
    host.moat(&["down"]).ok();

    // Told to end, it ends in order.
    host.kill(second.0.id(), "TERM");
    wait_for("its end", || second.0.try_wait().is_ok_and(|ended| ended.is_some()));
    let all = events(&host, &[]);
    assert!(has(&all, "daemon-stopped", "") && all.iter().filter(|e| e["kind"] == "daemon-started").count() >= 2, "{all:?}");
}

#[test]
fn serve_takes_the_place_of_a_background_daemon_and_secrets_are_sealed() {
    let Some(host) = host() else { return };
    let blueprint = "services:\n  - type: worker\n    name: probe\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"sleep 100000\"\n    envVars:\n      - {key: TOKEN, sync: false}\n      - {key: MADE, generateValue: true}\n    x-moat:\n      secretFiles: {word: word.txt}\n";
    let file = host.write("b/render.yaml", blueprint);
    host.write("b/word.txt", "a-word-from-a-secret-file");
    host.moat(&["up", "-d", "--set", &format!("TOKEN={SECRET}"), file.to_str().unwrap()]).ok();
    let pids = |host: &Host| service(&host.ps(), "probe")["instances"][0]["pid"].as_u64().unwrap();
    let pid = pids(&host);
    let made = host.moat(&["exec", "probe", "--", "sh", "-c", "printf %s \"$MADE\""]).ok().out;
    assert!(made.len() > 20, "{made}");

    let serves = serve(&host);
    assert_eq!(pids(&host), pid, "what ran goes on");
    assert_eq!(host.moat(&["exec", "probe", "--", "sh", "-c", "echo $TOKEN"]).ok().out.trim(), SECRET);

    // No file of the state folder holds a secret, but the sandbox's own.
    let state = host.path("state").display().to_string();
    for secret in [SECRET, &made, "a-word-from-a-secret-file"] {
        let found = host.sh(&format!("grep -rlaF -e '{secret}' {state} || true")).out;
        let clear: Vec<_> = found.lines().filter(|line| !line.contains("/releases/")).collect();
        assert!(clear.is_empty(), "{secret}: {clear:?}");
    }
    // The search finds what is there in clear.
    assert!(host.sh(&format!("grep -laF deployed {state}/moat.db {state}/moat.db-wal")).out.contains("moat.db"));
    for name in ["key", "moat.db", "moat.db-wal", "events.db"] {
        assert_eq!(fs::metadata(host.path("state").join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }

    // A lost key: refused, nothing overwritten, and what runs goes on.
    drop(serves);
    wait_for("its end", || host.moat(&["ps"]).code != 0);
    let key = host.path("state/key");
    let bytes = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let refused = host.moat(&["serve"]);
    assert!(refused.code == 3 && refused.err.contains("is missing") && refused.err.contains("put the key back"), "{}", refused.err);
    assert!(!key.exists() && Path::new(&format!("/proc/{pid}")).exists());
    fs::write(&key, bytes).unwrap();
    let _serves = serve(&host);
    assert_eq!(pids(&host), pid);
    host.moat(&["down"]).ok();
}

#[test]
fn events_tell_what_happened() {
    let Some(host) = host() else { return };
    let text = |start: &str| {
        format!(
            "services:\n  - type: worker\n    name: probe\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"{start}\"\n  - type: worker\n    name: other\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"sleep 100000\"\n"
        )
    };
    let file = host.write("b/render.yaml", &text("sleep 100000"));
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let following = host.spawn(&["events", "-f", "--service", "probe", "--output", "json"]);
    // They are written beside the loop.
    wait_for("the last event of the deploys", || ["probe", "other"].iter().all(|slug| has(&events(&host, &[]), "deploy-succeeded", slug)));
    let first = events(&host, &[]);
    for kind in ["daemon-started", "accepted"] {
        assert!(has(&first, kind, ""), "{kind}: {first:?}");
    }
    for kind in ["deploy-started", "instance-started", "ready", "deploy-succeeded"] {
        assert!(has(&first, kind, "probe"), "{kind}: {first:?}");
    }
    assert!(!has(&events(&host, &["--service", "probe"]), "ready", "other"));
    assert!(events(&host, &["--kind", "ready"]).iter().all(|e| e["kind"] == "ready"));
    assert!(!events(&host, &["--since", "10m"]).is_empty() && events(&host, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    assert_eq!(events(&host, &["-n", "2"]).len(), 2);
    let unknown = host.moat(&["events", "--kind", "nothing"]);
    assert!(unknown.code == 2 && unknown.err.contains("instance-exited"), "{}", unknown.err);

    // A program that is killed: how it ended, and that it is started again.
    let pid = service(&host.ps(), "probe")["instances"][0]["pid"].as_u64().unwrap();
    host.kill(u32::try_from(pid).unwrap(), "KILL");
    wait_for("the restart", || has(&events(&host, &["--service", "probe"]), "restarting", "probe"));
    let all = events(&host, &["--service", "probe", "--kind", "instance-exited"]);
    let exit = all.iter().find(|e| e["details"]["purpose"] == "serve").unwrap_or_else(|| panic!("{all:?}"));
    assert!(exit["details"]["exit"]["signal"] == 9 || exit["details"]["exit"]["code"] == 137, "{exit}");

    // A forbidden flow, once for many packets.
    host.moat(&[
        "exec",
        "other",
        "--",
        "python3",
        "-c",
        "import socket\nfor n in range(200):\n  s=socket.socket(2,2)\n  s.sendto(b'x',('169.254.169.254',80))",
    ]);
    wait_for("the denied flow", || has(&events(&host, &[]), "denied", "other"));
    let denied = events(&host, &["--kind", "denied"]);
    assert!(denied.len() < 10, "{denied:?}");

    // A deploy that fails.
    host.write("b/render.yaml", &text("exit 3"));
    assert_ne!(host.moat(&["up", "-d", file]).code, 0);
    let failed = events(&host, &["--kind", "deploy-failed"]);
    assert!(failed[0]["message"].as_str().unwrap().contains("status 3"), "{failed:?}");

    // What was put right.
    host.sh("nft flush ruleset").ok();
    wait_for("the repair", || has(&events(&host, &[]), "repaired", ""));

    host.kill(following.id(), "INT");
    let followed = Said::from(following.wait_with_output().unwrap());
    for kind in ["ready", "restarting", "deploy-failed"] {
        assert!(followed.out.contains(&format!("\"{kind}\"")), "{kind}: {}", followed.out);
    }
    let ids: Vec<i64> = followed.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].as_i64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order: {ids:?}");

    // They outlive the daemon.
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert!(has(&events(&host, &[]), "stopped", ""));
    let shown = host.moat(&["events", "--kind", "deploy-failed"]).ok();
    assert!(shown.out.contains("deploy-failed") && shown.out.contains("probe"), "{}", shown.out);
}

#[test]
fn row_28_the_socket_hears_root_and_the_group_only() {
    let Some(host) = host() else { return };
    // The group exists on this machine only, with nobody of the real one in it.
    let group =
        host.write("group", &format!("{}moat:x:4242:member\n", fs::read_to_string("/etc/group").unwrap().replace("moat:", "was-moat:")));
    let passwd = host.write(
        "passwd",
        &format!("{}member:x:4243:4243::/:/bin/sh\n", fs::read_to_string("/etc/passwd").unwrap().replace("member:", "was-member:")),
    );
    host.sh(&format!("mount --bind {} /etc/group && mount --bind {} /etc/passwd", group.display(), passwd.display())).ok();
    host.sh(&format!(
        "chmod a+rx {0} && cp {1} {0}/moat-copy && chmod a+rx {0}/moat-copy",
        host.path("").display(),
        env!("CARGO_BIN_EXE_moat")
    ))
    .ok();
    let _serves = serve(&host);
    let socket = host.path("run/moat.sock");
    let mode = |socket: &Path| fs::metadata(socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o660);
    let as_user = |uid: u32, groups: &str, command: &str| {
        host.sh(&format!("setpriv --reuid {uid} --regid {uid} {groups} --inh-caps=-all sh -c '{command}'"))
    };
    let ps = format!("{}/moat-copy ps --output json", host.path("").display());
    let script = host.write(
        "ask.py",
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(b'{\"request\":\"status\"}\\n')\nf = s.makefile()\nf.readline()\nprint(f.readline())\n",
    );
    let raw = format!("python3 {} {}", script.display(), socket.display());

    // The controls: root, and a member by each way of asking.
    assert!(host.sh(&ps).ok().out.contains("daemon_pid"));
    assert!(as_user(4243, "--groups 4242", &ps).ok().out.contains("daemon_pid"));
    assert!(as_user(4243, "--groups 4242", &raw).ok().out.contains("daemon_pid"));

    // A stranger: the mode, and what the kernel tells of the peer once the mode is wide.
    let stranger = as_user(65_534, "--clear-groups", &ps);
    assert!(stranger.code != 0 && stranger.err.contains("no permission") && stranger.err.contains("group `moat`"), "{}", stranger.err);
    assert!(as_user(65_534, "--clear-groups", &raw).err.contains("PermissionError"));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    for command in [&ps, &raw] {
        let stranger = as_user(65_534, "--clear-groups", command);
        assert!(format!("{}{}", stranger.out, stranger.err).contains("members of the group `moat`"), "{}{}", stranger.out, stranger.err);
        assert!(!stranger.out.contains("daemon_pid"));
    }

    // From inside an instance there is no socket.
    let file = host.write(
        "b/render.yaml",
        "services:\n  - type: worker\n    name: probe\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"sleep 100000\"\n",
    );
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let inside = host.moat(&["exec", "probe", "--", "sh", "-c", &format!("ls {} /run/moat; ls /", host.path("run").display())]);
    assert!(!inside.out.contains("moat.sock") && inside.out.contains("usr"), "{}", inside.out);
    host.moat(&["down"]).ok();
}

/// Has a machine whose /etc may be changed.
fn cover_etc(host: &Host) -> bool {
    let over = host.path("over");
    host.sh(&format!(
        "mkdir {0} && mount -t tmpfs none {0} && mkdir {0}/up {0}/work && mount -t overlay none -o lowerdir=/etc,upperdir={0}/up,workdir={0}/work /etc && groupdel moat; true",
        over.display()
    ))
    .ok();
    let covered = host.sh("findmnt -n -o FSTYPE /etc").out.trim() == "overlay";
    if !covered {
        println!("not installed: /etc can't be covered here");
    }
    covered
}

#[test]
fn install_writes_a_unit_that_systemd_takes() {
    let Some(host) = host() else { return };
    let unit = host.moat(&["install", "--dry-run"]).ok().out;
    for line in ["KillMode=process", "Restart=always", "Delegate=yes", "Type=notify", "After=network-online.target"] {
        assert!(unit.lines().any(|l| l.starts_with(line)), "{line}:\n{unit}");
    }
    assert!(unit.contains(&format!("MOAT_STATE_DIR={}", host.path("state").display())), "{unit}");
    let file = host.write("moat.service", &unit);
    if Command::new("systemd-analyze").arg("--version").output().is_ok() {
        let verify = host.sh(&format!("systemd-analyze verify {} 2>&1", file.display()));
        assert!(verify.code == 0 && !verify.out.contains("moat.service"), "{}", verify.out);
    } else {
        println!("not verified: there is no systemd-analyze");
    }

    if !cover_etc(&host) {
        return;
    }
    let said = host.moat(&["install", "--no-start"]).ok();
    assert!(said.err.contains("made the group") && said.err.contains("wrote /etc/systemd/system/moat.service"), "{}", said.err);
    assert_eq!(host.sh("cat /etc/systemd/system/moat.service").ok().out, unit);
    assert!(host.sh("getent group moat").ok().out.starts_with("moat:"));
    assert!(host.path("state").is_dir());
    // Once more changes nothing.
    assert!(!host.moat(&["install", "--no-start"]).ok().err.contains("made the group"));
    host.moat(&["uninstall"]).ok();
    assert_ne!(host.sh("test -e /etc/systemd/system/moat.service").code, 0);
    assert!(host.moat(&["uninstall"]).ok().err.contains("not installed"));
}

/// What the service manager starts next is what was upgraded to, wherever that came from.
#[test]
fn an_upgrade_of_what_is_installed_outlives_the_next_start() {
    let Some(host) = host() else { return };
    if !cover_etc(&host) {
        return;
    }
    let (installed, new) = (host.path("bin/moat"), host.path("downloads/moat"));
    for path in [&installed, &new] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_moat"), path).unwrap();
    }
    // Another program, which does the same.
    let mut bytes = fs::read(&new).unwrap();
    bytes.extend(b"newer");
    fs::write(&new, &bytes).unwrap();
    let old = fs::read(&installed).unwrap();
    let moat = |args: &[&str]| Said::from(host.command(&installed).args(args).stdin(Stdio::null()).output().unwrap());
    moat(&["install", "--no-start"]).ok();
    assert!(host.sh("cat /etc/systemd/system/moat.service").ok().out.contains(&format!("ExecStart=\"{}\" serve", installed.display())));
    let serve = serve_by(&host, &installed);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(host.path("bin")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // What can't take over takes no place.
    let refused = moat(&["upgrade", "--binary", "/bin/true"]);
    assert!(refused.code == 1 && refused.err.contains("can't take over"), "{}", refused.err);
    assert!(fs::read(&installed).unwrap() == old && names() == ["moat"]);

    let said = moat(&["upgrade", "--binary", new.to_str().unwrap()]).ok();
    assert!(said.err.contains("runs now"), "{}", said.err);
    assert!(fs::read(&installed).unwrap() == bytes && names() == ["moat"]);
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(program(serve.0.id()), installed);
    // It is not needed where it came from.
    fs::remove_file(&new).unwrap();
    drop(serve);
    let again = serve_by(&host, &installed);
    assert_eq!(program(again.0.id()), installed);
    drop(again);
    // A Moat that the service manager does not start goes on with the program that was named.
    let other = host.path("other");
    fs::copy(env!("CARGO_BIN_EXE_moat"), &other).unwrap();
    let alone = serve_by(&host, &other);
    fs::write(&new, &old).unwrap();
    fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    moat(&["upgrade", "--binary", new.to_str().unwrap()]).ok();
    assert_eq!(program(alone.0.id()), new);
    assert!(fs::read(&installed).unwrap() == bytes);
}
