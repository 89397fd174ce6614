//! Published images: pulled from a registry, run as private services, reached by whom they should, kept over restarts.

use crate::host::{Host, host, service, wait_for};
use moat_testkit::images::{Folder, Recipe, Registry, docker_archive, layout, recipes};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::Path;

/// A registry on the machine's own loopback.
pub fn registry(host: &Host, images: &[(&str, &Path)]) -> Registry {
    registry_with(host, images, Registry::start)
}

fn registry_with(host: &Host, images: &[(&str, &Path)], start: fn(&Path) -> std::io::Result<Registry>) -> Registry {
    let net = File::open(format!("/proc/{}/ns/net", host.holder_pid())).unwrap();
    let folder = host.path("registry");
    // A thread of its own enters the machine; what it starts stays there.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            setns(&net, CloneFlags::CLONE_NEWNET).unwrap();
            let registry = start(&folder).unwrap();
            for (name, layout) in images {
                registry.push(layout, name).unwrap();
            }
            registry
        });
        work.join().unwrap()
    })
}

const ASK: &str = r#"
import os, socket, time

def ask(where, words):
    host, port = where.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as s:
        s.sendall(words)
        return s.recv(200).decode().strip()

while True:
    try:
        print("count", ask(os.environ["CACHE"], b"INCR n\r\n"), "and", ask(os.environ["MEMORY"], b"version\r\n"), flush=True)
    except OSError as error:
        print("fail", error, flush=True)
    time.sleep(0.5)
"#;

fn blueprint(redis: &str, memcached: &str) -> String {
    format!(
        r#"
services:
  - type: pserv
    name: cache
    runtime: image
    image: {{url: "{redis}"}}
    dockerCommand: redis-server --appendonly yes --appendfsync always --port $PORT
    envVars: [{{key: PORT, value: "6379"}}]
    disk: {{name: data, mountPath: /data, sizeGB: 1}}
  - type: pserv
    name: memory
    runtime: image
    image: {{url: "{memcached}"}}
    preDeployCommand: test "$(id -un)" = memcache && echo prepared
    envVars: [{{key: PORT, value: "11211"}}]
  - type: worker
    name: asker
    runtime: python
    buildCommand: "true"
    startCommand: python3 ask.py
    envVars:
      - {{key: CACHE, fromService: {{type: pserv, name: cache, property: hostport}}}}
      - {{key: MEMORY, fromService: {{type: pserv, name: memory, property: hostport}}}}
projects:
  - name: elsewhere
    environments:
      - name: closed
        networking: {{isolation: enabled}}
        services:
          - {{type: worker, name: stranger, runtime: python, buildCommand: "true", startCommand: sleep 100000}}
"#
    )
}

/// The last count that the worker has seen.
fn counted(host: &Host) -> Option<u64> {
    let logs = host.moat(&["logs", "asker"]).ok().out;
    let line = logs.lines().rev().find(|line| line.contains("count :") && line.contains("VERSION"))?.to_owned();
    line.split("count :").nth(1)?.split_whitespace().next()?.parse().ok()
}

#[test]
fn published_images_run_private_keep_their_disk_and_are_proved() {
    let Some(host) = host() else { return };
    let (redis, memcached) = (layout(&recipes::REDIS).unwrap(), layout(&recipes::MEMCACHED).unwrap());
    let registry = registry(&host, &[("library/redis:7", &redis), ("library/memcached:1.6", &memcached)]);
    let names = [registry.reference("library/redis:7"), registry.reference("library/memcached:1.6")];
    host.write("shop/ask.py", ASK);
    let file = host.write("shop/render.yaml", &blueprint(&names[0], &names[1]));
    let file = file.to_str().unwrap();
    let before = host.inventory();
    let up = host.moat(&["up", "-d", file]).ok();
    assert!(up.out.contains("cache:6379") && up.out.contains("memory:11211"), "{}\n{}", up.out, up.err);
    wait_for("the worker to use both", || counted(&host).is_some_and(|n| n > 1));
    assert!(host.moat(&["logs", "memory"]).ok().out.contains("prepared"));

    wait_for("the disk to be measured", || host.ps().to_string().contains("\"used\""));

    // Its ports are found, and nobody gets there from outside or from another environment.
    let ps = host.ps().to_string();
    assert!(ps.contains("11211") && ps.contains("6379"), "{ps}");
    assert_eq!(host.http(8080, "cache.localhost", "/").0, 404);
    assert!(host.moat(&["explain", "stranger", "cache:6379"]).out.starts_with("deny"));
    host.moat(&["verify"]).ok();

    // Inside it is root of its own users only, and sees nothing of this machine.
    let inside =
        host.moat(&["exec", "cache", "--", "sh", "-c", "id -u; cat /proc/self/uid_map; ls -A /home /opt /mnt; ls -ld /data"]).ok().out;
    let mut lines = inside.lines();
    assert_eq!(lines.next(), Some("0"));
    let map: Vec<u64> = lines.next().unwrap().split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(map[0] == 0 && map[1] >= 1_000_000 && map[2] == 65_536, "{inside}");
    assert!(inside.contains("redis") && !inside.contains("moat"), "{inside}");
    let exec = |command: &[&str]| host.moat(&[&["exec", "cache", "--"], command].concat());
    exec(&["sh", "-c", "echo text > /data/text; cp /data/text /data/script; chmod 755 /data/script; echo '#!/no/such' > /data/script"])
        .ok();
    for (command, code, words) in [
        (&["no-such-command"][..], 127, "`no-such-command`: command not found"),
        (&["/no/such/command"], 127, "command not found"),
        (&["/data/text"], 126, "it can't be run"),
        (&["/data"], 126, "it can't be run"),
        (&["/data/script"], 127, "its interpreter `/no/such`"),
        (&["sh", "-c", "exit 9"], 9, ""),
    ] {
        let said = exec(command);
        assert!(said.code == code && said.err.contains(words), "{command:?}: {said:?}");
    }
    exec(&["rm", "/data/text", "/data/script"]).ok();
    for escape in ["mount -t tmpfs x /mnt", "unshare -U true", "mknod /tmp/d c 1 3", "echo 1 > /proc/sys/kernel/panic"] {
        assert_ne!(host.moat(&["exec", "cache", "--", "sh", "-c", escape]).code, 0, "{escape}");
    }

    // Killed at any moment, it comes back with what it had acknowledged.
    let seen = counted(&host).unwrap();
    let pid = service(&host.ps(), "cache")["instances"][0]["pid"].clone();
    host.kill(u32::try_from(pid.as_u64().unwrap()).unwrap(), "KILL");
    wait_for("the count to go on", || counted(&host).is_some_and(|n| n > seen));

    // Down leaves nothing; up again needs no registry, and the disk is the same.
    let seen = counted(&host).unwrap();
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    drop(registry);
    let up = host.moat(&["up", "-d", file]).ok();
    assert!(up.err.contains("using the image that is here"), "{}\n{}", up.out, up.err);
    wait_for("the count to go on", || counted(&host).is_some_and(|n| n > seen));
    host.moat(&["down"]).ok();

    // The images are there until they are pruned.
    let list = host.moat(&["image", "list", "--output", "json"]).ok().json();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    let shared = |n: usize| list[n]["layers"][0].as_str().unwrap().to_owned();
    assert_eq!(shared(0), shared(1), "both are made on one base");
    assert!(host.moat(&["image", "prune"]).ok().out.starts_with("2 images removed"));
    assert!(host.moat(&["image", "list"]).ok().out.contains("no images"));
}

#[test]
fn a_private_registry_is_given_its_credential() {
    let Some(host) = host() else { return };
    let memcached = layout(&recipes::MEMCACHED).unwrap();
    let registry = registry_with(&host, &[("ours/memcached:1", &memcached)], Registry::start_with_login);
    let (user, password) = Registry::LOGIN;
    let image = registry.reference("ours/memcached:1");
    let file = host.write(
        "render.yaml",
        &format!("services:\n  - type: pserv\n    name: memory\n    runtime: image\n    image: {{url: '{image}', creds: {{fromRegistryCreds: {{name: ours}}}}}}\n    envVars: [{{key: PORT, value: '11211'}}]\n"),
    );
    let file = file.to_str().unwrap();

    // Asked for, and refused by the registry when it is wrong.
    let missing = host.moat(&["up", "-d", file]);
    assert!(missing.code == 2 && missing.err.contains("registry.ours"), "{}", missing.err);
    let wrong = host.moat(&["up", "-d", "--set", &format!("registry.ours={user}:wrong"), file]);
    assert!(wrong.code == 1 && wrong.err.contains(&image), "{}", wrong.err);
    let up = host.moat(&["up", "-d", "--set", &format!("registry.ours={user}:{password}"), file]).ok();
    assert!(up.out.contains("memory:11211"), "{}", up.out);

    // It is remembered, shown nowhere, and is not the image's to see.
    host.moat(&["up", "-d", file]).ok();
    assert!(!host.moat(&["exec", "memory", "--", "cat", "/proc/1/environ"]).ok().out.contains(password));
    let said = format!("{}{}{}{}", up.out, up.err, wrong.err, host.daemon_log());
    assert!(!said.contains(password), "{said}");
}

#[test]
fn images_from_an_archive_run_and_what_can_t_be_pulled_says_why() {
    let Some(host) = host() else { return };
    let memcached = layout(&recipes::MEMCACHED).unwrap();
    let archive = host.path("memcached.tar");
    docker_archive(&memcached, "ours/memcached:1", &archive).unwrap();
    let loaded = host.moat(&["image", "load", archive.to_str().unwrap()]).ok();
    assert!(loaded.out.contains("ours/memcached:1"), "{}", loaded.out);
    let with = |image: &str, more: &str| {
        let text = format!("services:\n  - type: pserv\n    name: memory\n    runtime: image\n    image: {{url: '{image}'}}\n{more}");
        host.write("render.yaml", &text).to_str().unwrap().to_owned()
    };
    let up = |file: &str| host.moat(&["up", "-d", file]);

    // Nothing answers there, and nothing of that name is here.
    let said = up(&with("127.0.0.1:1/nothing:here", ""));
    assert_ne!(said.code, 0);
    assert!(said.err.contains("127.0.0.1:1") && said.err.contains("nothing:here"), "{}", said.err);

    // The archive's image, with a command it does not have, then with its own.
    let said = up(&with("ours/memcached:1", "    dockerCommand: nosuchprogram --flag\n"));
    assert_ne!(said.code, 0);
    assert!(said.err.contains("nosuchprogram"), "{}", said.err);
    let file = with("ours/memcached:1", "    dockerCommand: memcached -p ${PORT} -U $PORT\n    envVars: [{key: PORT, value: '11300'}]\n");
    up(&file).ok();
    let ps = host.ps().to_string();
    assert!(ps.contains("11300") && ps.contains("udp"), "a listener of each protocol: {ps}");
    // PID 1 is the program; it ends by its own signal, quickly.
    assert_eq!(host.moat(&["exec", "memory", "--", "cat", "/proc/1/comm"]).ok().out.trim(), "memcached");
    let began = std::time::Instant::now();
    host.moat(&["down"]).ok();
    assert!(began.elapsed().as_secs() < 25, "it was killed after its grace");

    // A wrong reference is told before anything happens.
    let said = up(&with("Ours/Memcached", ""));
    assert_eq!(said.code, 2);
    assert!(said.err.contains("U0302") && said.err.contains("did you mean `ours`?"), "{}", said.err);
}

#[test]
fn a_port_that_was_given_out_and_is_not_open_is_told_with_what_to_write() {
    let Some(host) = host() else { return };
    let with = |port: &str| {
        let text = format!(
            "services:\n  - type: pserv\n    name: stock\n    runtime: python\n    buildCommand: 'true'\n    startCommand: python3 -m http.server 8123 --bind 0.0.0.0\n{port}  - type: worker\n    name: asker\n    runtime: python\n    buildCommand: 'true'\n    startCommand: sleep 100000\n    envVars: [{{key: STOCK, fromService: {{type: pserv, name: stock, property: hostport}}}}]\n"
        );
        host.write("a/render.yaml", &text).to_str().unwrap().to_owned()
    };
    let words = "it listens on 8123/tcp, but `asker` was given `stock:10000`, where nobody answers: write `PORT: 8123`";
    let up = host.moat(&["up", "-d", &with("")]).ok();
    assert!(up.err.contains(words) || up.out.contains(words), "{}\n{}", up.out, up.err);
    let stock = service(&host.ps(), "stock").clone();
    assert!(stock["warning"].as_str().unwrap().contains(words), "{stock}");
    assert_eq!(stock["openPorts"], serde_json::json!([{"port": 8123, "protocol": "TCP"}]));
    assert!(host.moat(&["ps"]).ok().out.contains(words));
    assert!(host.moat(&["events", "--service", "stock"]).ok().out.contains(words));

    let up = host.moat(&["up", "-d", &with("    envVars: [{key: PORT, value: '8123'}]\n")]).ok();
    assert!(!format!("{}{}", up.out, up.err).contains("nobody answers"), "{}\n{}", up.out, up.err);
    assert!(service(&host.ps(), "stock").get("warning").is_none());
    host.moat(&["down"]).ok();
}

#[test]
fn the_signal_that_an_image_names_ends_it_and_what_it_keeps_without_a_disk_is_told() {
    let Some(host) = host() else { return };
    let recipe = Recipe {
        name: "stops",
        stop_signal: "SIGUSR1",
        volumes: &["/kept"],
        cmd: &[
            "/bin/sh",
            "-c",
            "trap 'echo by USR1; exit 0' USR1; trap 'echo by TERM; exit 0' TERM; echo begun; while :; do sleep 0.1; done",
        ],
        ..Recipe::BARE
    };
    let archive = host.path("stops.tar");
    docker_archive(&layout(&recipe).unwrap(), "ours/stops:1", &archive).unwrap();
    host.moat(&["image", "load", archive.to_str().unwrap()]).ok();
    let text = "services:\n  - {type: worker, name: w, runtime: image, image: {url: 'ours/stops:1'}, maxShutdownDelaySeconds: 20}\n";
    let up = host.moat(&["up", "-d", host.write("a/render.yaml", text).to_str().unwrap()]).ok();
    let said = format!("{}{}", up.out, up.err);
    assert!(said.contains("keeps data in `/kept`, and it has no disk") && said.contains("mountPath: /kept"), "{said}");
    wait_for("it to begin", || host.moat(&["logs", "w"]).ok().out.contains("begun"));
    // The first instance is stopped, the next one runs.
    host.moat(&["restart", "w"]).ok();
    wait_for("its last word", || host.moat(&["logs", "w"]).ok().out.contains("by USR1"));
    assert!(!host.moat(&["logs", "w"]).ok().out.contains("by TERM"));
    host.moat(&["down"]).ok();
}

#[test]
fn links_of_an_image_lead_nowhere_outside() {
    let Some(host) = host() else { return };
    // Where the machine writes files of its own for the instance, the image has links: to the machine's root, up and out, to nothing.
    let recipe = Recipe {
        name: "links",
        links: &[
            ("/etc/hosts", "/moat-test-escape"),
            ("/etc/hostname", "../../../../../../../../moat-test-escape"),
            ("/etc/resolv.conf", "/proc/1/root/moat-test-escape"),
            ("/run", "/moat-test-folder"),
        ],
        folders: &[Folder { path: "/moat-test-folder", mode: 0o755, owner: "root" }],
        cmd: &["/bin/sleep", "100000"],
        ..Recipe::BARE
    };
    let archive = host.path("links.tar");
    docker_archive(&layout(&recipe).unwrap(), "ours/links:1", &archive).unwrap();
    host.moat(&["image", "load", archive.to_str().unwrap()]).ok();
    host.write("a/token", "inside only");
    let file = host.write(
        "a/render.yaml",
        "services:\n  - type: worker\n    name: w\n    runtime: image\n    image: {url: 'ours/links:1'}\n    maxShutdownDelaySeconds: 1\n    x-moat: {secretFiles: {token: token}}\n    disk: {name: d, mountPath: /run/data, sizeGB: 1}\n",
    );
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let inside = |script: &str| host.moat(&["exec", "w", "--", "sh", "-c", script]).ok().out;
    assert_eq!(inside("cat /etc/hostname; test -L /etc/hosts || echo file; cat /etc/secrets/token"), "w\nfile\ninside only");
    assert!(inside("cat /etc/resolv.conf").contains("169.254.1.1"));
    // Its own link is followed as inside: the disk is below the folder that it leads to.
    inside("touch /moat-test-folder/data/here");
    for path in ["/moat-test-escape", "/moat-test-folder"] {
        assert!(!Path::new(path).exists(), "{path} was made on the machine");
    }
    let disk = std::fs::read_dir(host.path("state/disks")).unwrap().next().unwrap().unwrap().path();
    assert!(disk.join("d/here").exists());
    host.moat(&["down"]).ok();
}
