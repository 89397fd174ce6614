//! Datastores on a machine that has no servers of its own: from images, used, kept and closed to others as with its own.

use crate::host::{Host, Said, host, service, wait_for};
use crate::images::registry;
use moat_testkit::images::{Registry, layout, recipes};
use std::process::Stdio;

const BLUEPRINT: &str = r#"
services:
  - type: worker
    name: clerk
    runtime: python
    buildCommand: psql "$DATABASE_URL" -c 'create table if not exists visits (id serial)'
    startCommand: sleep 100000
    envVars:
      - {key: DATABASE_URL, fromDatabase: {name: orders, property: connectionString}}
      - {key: CACHE_URL, fromService: {type: keyvalue, name: sessions, property: connectionString}}
  - {type: keyvalue, name: sessions, maxmemoryPolicy: allkeys-lfu, ipAllowList: []}
databases:
  - {name: orders, postgresMajorVersion: "15"}
projects:
  - name: elsewhere
    environments:
      - name: closed
        networking: {isolation: enabled}
        services:
          - {type: worker, name: stranger, runtime: python, buildCommand: "true", startCommand: sleep 100000}
"#;

/// Takes the servers' programs from the machine; their clients stay.
fn hide_servers(host: &Host) {
    host.sh("for server in /usr/lib/postgresql/*/bin/postgres $(command -v redis-server valkey-server); do mount --bind /dev/null $server; done").ok();
}

fn show_servers(host: &Host) {
    host.sh("umount /usr/lib/postgresql/*/bin/postgres $(command -v redis-server valkey-server)").ok();
}

fn images(host: &Host, postgres: &str) -> Registry {
    let (own, redis) = (layout(&recipes::POSTGRES).unwrap(), layout(&recipes::REDIS).unwrap());
    registry(host, &[(postgres, &own), ("valkey/valkey:8", &redis)])
}

/// `moat` on a machine whose copy of Docker Hub is there.
fn moat(host: &Host, registry: &str, args: &[&str]) -> Said {
    let mut command = host.moat_command(args);
    command.env("MOAT_REGISTRY_MIRRORS", format!("docker.io={registry}")).stdin(Stdio::null());
    command.output().unwrap().into()
}

/// What a client in an instance of `from` gets of both stores.
fn ask(host: &Host, from: &str, sql: &str, words: &str) -> (Said, Said) {
    let run = |script: String| host.moat(&["exec", from, "--", "sh", "-c", &script]);
    (
        run(format!("PGCONNECT_TIMEOUT=3 psql -XAtqw \"${{DATABASE_URL}}?sslmode=require\" -c \"{sql}\"")),
        run(format!("timeout 5 redis-cli -u \"$CACHE_URL\" {words}")),
    )
}

#[track_caller]
fn answers(host: &Host, sql: &str, words: &str) -> [String; 2] {
    let (row, value) = ask(host, "clerk", sql, words);
    [row, value].map(|said| said.ok().out.trim().to_owned())
}

fn pid(host: &Host, slug: &str) -> u32 {
    u32::try_from(service(&host.ps(), slug)["instances"][0]["pid"].as_u64().unwrap()).unwrap()
}

fn program(host: &Host, slug: &str) -> String {
    let pid = pid(host, slug);
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

#[track_caller]
fn shows(said: &Said, words: &[&str]) {
    let text = format!("{}{}", said.out, said.err);
    for word in words {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
}

fn down(host: &Host) {
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
}

#[test]
fn datastores_run_from_images_where_the_machine_has_no_servers() {
    let Some(host) = host() else { return };
    hide_servers(&host);
    let registry = images(&host, "library/postgres:15");
    let mirror = registry.reference("");
    let mirror = mirror.trim_end_matches('/');
    let file = host.write("shop/render.yaml", BLUEPRINT);
    let file = file.to_str().unwrap();
    let before = host.inventory();
    shows(&host.moat(&["doctor"]), &["the image `docker.io/valkey/valkey:8` is used instead", "the image `docker.io/library/postgres:18`"]);
    shows(&host.moat(&["plan", file]).ok(), &["docker.io/library/postgres:15", "PostgreSQL 15 is not on this machine", "docker.io/valkey"]);

    let up = moat(&host, mirror, &["up", "-d", file]).ok();
    shows(
        &up,
        &[
            "PostgreSQL 15 is not on this machine: the image `docker.io/library/postgres:15` is used",
            "neither Valkey nor Redis is on this machine: the image `docker.io/valkey/valkey:8` is used",
            "orders:5432",
            "sessions:6379",
        ],
    );
    // Used with TLS and by the settings of the blueprint; the build has made the table.
    assert_eq!(answers(&host, "insert into visits values (7) returning id", "set v kept"), ["7", "OK"]);
    assert_eq!(answers(&host, "select ssl from pg_stat_ssl where pid = pg_backend_pid()", "get v"), ["t", "kept"]);
    assert!(answers(&host, "show server_encoding", "config get maxmemory-policy")[1].contains("allkeys-lfu"));
    assert_eq!(host.moat(&["exec", "orders", "--", "psql", "-XAtc", "select id from visits"]).ok().out.trim(), "7");

    // Closed to others, and proved.
    let urls = host.moat(&["exec", "clerk", "--", "sh", "-c", "echo $DATABASE_URL $CACHE_URL"]).ok().out;
    let [database, cache] = urls.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{urls}") };
    for script in [format!("PGCONNECT_TIMEOUT=3 psql -XAtqw '{database}' -c 'select 7'"), format!("timeout 5 redis-cli -u '{cache}' get v")]
    {
        assert!(host.moat(&["exec", "clerk", "--", "sh", "-c", &script]).ok().out.contains(['7', 'k']));
        for said in [host.moat(&["exec", "stranger", "--", "sh", "-c", &script]), host.sh(&script)] {
            assert!(said.code != 0 && !said.out.contains("kept"), "{said:?}");
        }
    }
    host.moat(&["verify"]).ok();

    // The program is PID 1, the service's own user without rights, and sees the image's files, not the machine's.
    for (slug, name) in [("orders", "postgres"), ("sessions", "redis-server")] {
        assert_eq!(program(&host, slug), name);
        let inside = host.moat(&["exec", slug, "--", "sh", "-c", "id -un; grep CapBnd /proc/self/status; ls /run /usr/bin"]).ok().out;
        assert!(
            inside.starts_with("render\nCapBnd:\t0000000000000000\n") && !inside.contains("moat-init") && !inside.contains("crun"),
            "{inside}"
        );
    }

    // A kill of everything at once loses nothing that was committed, or written to the journal.
    wait_for("the journal", || answers(&host, "select 1", "info persistence")[1].contains("aof_buffer_length:0"));
    let ids = |slug: &str| service(&host.ps(), slug)["instances"][0]["id"].clone();
    let monitor = |slug: &str| {
        let instance = format!("__monitor {}/{}", host.path("run/instances").display(), ids(slug).as_str().unwrap());
        host.processes().into_iter().find(|(_, line)| line.contains(&instance)).unwrap().0
    };
    // Of a monitor too: the program that it leaves is gone before another one has the data.
    for (slug, victim) in [("orders", pid(&host, "orders")), ("sessions", pid(&host, "sessions")), ("orders", 0)] {
        let old = ids(slug);
        host.kill(if victim == 0 { monitor(slug) } else { victim }, "9");
        wait_for("the instance after it", || {
            let ps = host.ps();
            let instance = &service(&ps, slug)["instances"][0];
            instance["id"] != old && instance["ready"] == true
        });
        assert_eq!(answers(&host, "select id from visits", "get v"), ["7", "kept"]);
    }

    // What runs stays as it is: by the same blueprint again, and by a removal of images.
    let running = ["orders", "sessions"].map(ids);
    let again = moat(&host, mirror, &["up", "-d", file]).ok();
    assert!(!again.err.contains("is used"), "{}", again.err);
    assert_eq!(["orders", "sessions"].map(ids), running);
    assert!(host.moat(&["image", "prune"]).ok().out.starts_with("0 images removed"));

    // Down leaves nothing; up needs no registry, and the data is the same.
    down(&host);
    assert_eq!(host.inventory(), before);
    drop(registry);
    let up = moat(&host, mirror, &["up", "-d", file]).ok();
    shows(&up, &["using the image that is here"]);
    assert_eq!(answers(&host, "select id from visits", "get v"), ["7", "kept"]);

    // Once the machine has servers that fit, these run, on the very same data.
    down(&host);
    show_servers(&host);
    let up = moat(&host, mirror, &["up", "-d", file]).ok();
    assert!(!up.err.contains("docker.io"), "{}", up.err);
    assert_ne!(program(&host, "orders"), "postgres", "PID 1 is ours over the machine's files");
    assert_eq!(answers(&host, "select id from visits", "get v"), ["7", "kept"]);
    down(&host);
}

#[test]
fn a_server_that_can_t_be_had_says_what_to_do_and_data_keeps_its_version() {
    let Some(host) = host() else { return };
    let database = |version: &str| host.write("b/render.yaml", &format!("databases:\n  - {{name: old{version}}}\n"));
    let up = |registry: &str, version: &str| moat(&host, registry, &["up", "-d", database(version).to_str().unwrap()]);
    up("127.0.0.1:1", "").ok();
    down(&host);

    // Another server has written it since.
    let data = std::fs::read_dir(host.path("state/data")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(data.join("data/PG_VERSION"), "17\n").unwrap();
    let said = up("127.0.0.1:1", "");
    assert_eq!(said.code, 1, "{said:?}");
    shows(
        &said,
        &[
            "docker.io/library/postgres:17",
            "PostgreSQL 17 is not on this machine, which has 15",
            "apt-get install postgresql-17",
            "MOAT_REGISTRY_MIRRORS",
            "moat image load",
        ],
    );
    let said = up("127.0.0.1:1", ", postgresMajorVersion: \"15\"");
    assert_eq!(said.code, 1, "{said:?}");
    shows(&said, &["its data is PostgreSQL 17's, and PostgreSQL 15 is asked for", "pg_dump"]);

    // An image is what it holds, not what it is called.
    down(&host);
    let registry = images(&host, "library/postgres:17");
    let said = up(registry.reference("").trim_end_matches('/'), "");
    assert_eq!(said.code, 1, "{said:?}");
    shows(&said, &["the image holds PostgreSQL 15.", "not 17"]);
    down(&host);

    // A Key Value's data of a later server is not shown to one that can't read it.
    let file = host.write("kv/render.yaml", "services:\n  - {type: keyvalue, name: kv, ipAllowList: []}\n");
    let up = |registry: &str| moat(&host, registry, &["up", "-d", file.to_str().unwrap()]);
    up("127.0.0.1:1").ok();
    down(&host);
    let mut folders = std::fs::read_dir(host.path("state/data")).unwrap().flatten().map(|entry| entry.path());
    let data = folders.find(|path| *path != data).unwrap();
    std::fs::write(data.join("dump.rdb"), "REDIS0012").unwrap();
    let said = up("127.0.0.1:1");
    assert_eq!(said.code, 1, "{said:?}");
    shows(&said, &["does not read the data", "can't read the data either", "MOAT_KEYVALUE_IMAGE"]);
    down(&host);
}

#[test]
fn settings_name_other_images() {
    let Some(host) = host() else { return };
    let registry = images(&host, "ours/postgres-with-more:15");
    let file = host.write("shop/render.yaml", BLUEPRINT);
    let mut command = host.moat_command(&["up", "-d", file.to_str().unwrap()]);
    command.env("MOAT_POSTGRES_IMAGE", registry.reference("ours/postgres-with-more:{major}"));
    command.env("MOAT_KEYVALUE_IMAGE", registry.reference("valkey/valkey:8")).stdin(Stdio::null());
    shows(&Said::from(command.output().unwrap()).ok(), &["`MOAT_POSTGRES_IMAGE` is set", "`MOAT_KEYVALUE_IMAGE` is set"]);
    assert_eq!([program(&host, "orders"), program(&host, "sessions")], ["postgres", "redis-server"]);
    assert_eq!(answers(&host, "insert into visits values (7) returning id", "set v kept"), ["7", "OK"]);
    down(&host);
}
