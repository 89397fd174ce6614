//! Backups, restores and snapshots: real servers and a disk that is written all the time, on two pretended machines.

use crate::host::{Host, Said, host, service, wait_for};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

/// Writes one number to two files, one after the other: a copy of one moment has the same in both, or the first one ahead.
const WRITER: &str = r"
n=$(cat /data/first 2>/dev/null || echo 0)
while :; do
  n=$((n + 1))
  echo $n > /data/first.new && mv /data/first.new /data/first
  echo $n > /data/second.new && mv /data/second.new /data/second
done
";

const BLUEPRINT: &str = r#"
services:
  - type: worker
    name: writer
    runtime: node
    buildCommand: "true"
    startCommand: sh writer.sh
    disk: {name: numbers, mountPath: /data, sizeGB: 1}
  - type: worker
    name: clerk
    runtime: node
    buildCommand: echo built > built.txt
    startCommand: sleep 100000
    envVars:
      - {key: DATABASE_URL, fromDatabase: {name: orders, property: connectionString}}
      - {key: CACHE_URL, fromService: {type: keyvalue, name: sessions, property: connectionString}}
      - {key: MADE, generateValue: true}
  - {type: keyvalue, name: sessions, ipAllowList: []}
databases:
  - name: orders
"#;

/// The row and the value that the clerk finds.
fn found(host: &Host) -> String {
    let script = "psql -XAtqw \"$DATABASE_URL\" -c 'select v from t' && redis-cli -u \"$CACHE_URL\" get k";
    let said = host.moat(&["exec", "clerk", "--", "sh", "-c", script]);
    said.out.trim().replace('\n', " ")
}

#[track_caller]
fn write(host: &Host, word: &str) {
    let sql = format!("create table if not exists t (v text); delete from t; insert into t values ('{word}')");
    let script = format!("psql -Xqw \"$DATABASE_URL\" -c \"{sql}\" && redis-cli -u \"$CACHE_URL\" set k {word}");
    host.moat(&["exec", "clerk", "--", "sh", "-c", &script]).ok();
}

/// The two numbers of the disk's folder, or of a copy of it.
fn numbers(folder: &Path) -> [u64; 2] {
    ["first", "second"].map(|name| fs::read_to_string(folder.join(name)).unwrap().trim().parse().unwrap())
}

#[track_caller]
fn one_moment(folder: &Path) -> u64 {
    let [first, second] = numbers(folder);
    assert!(first - second <= 1, "{first} and {second} are of two moments");
    first
}

/// The one folder below.
fn only(folder: &Path) -> PathBuf {
    let all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

fn disk(host: &Host) -> PathBuf {
    only(&host.path("state/disks")).join("numbers")
}

#[track_caller]
fn refused(said: &Said, word: &str) {
    assert!(said.code == 1 && said.err.contains(word), "{said:?}");
}

/// Files that a restore, a backup or a snapshot makes for a while.
fn half_made(host: &Host) -> String {
    host.sh(&format!("cd {}; find state/snapshots -name '*.part' -o -name '*.ready'; find files -name '.*'", host.path("").display())).out
}

#[test]
fn what_services_keep_comes_back_here_and_on_another_machine() {
    let Some(host) = host() else { return };
    host.write("app/writer.sh", WRITER);
    let file = host.write("app/render.yaml", BLUEPRINT);
    let up = || host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    up();
    write(&host, "first");
    let secret = host.moat(&["exec", "clerk", "--", "sh", "-c", "echo $MADE"]).ok().out;
    fs::create_dir(host.path("files")).unwrap();
    let at = |name: &str| host.path("files").join(name).to_str().unwrap().to_owned();

    // Everything, and one service.
    let running = service(&host.ps(), "writer")["instances"][0]["pid"].clone();
    let whole = host.moat(&["backup", &at(""), "--output", "json"]).ok().json();
    let whole = PathBuf::from(whole["file"].as_str().unwrap());
    let orders = host.path("files/orders.moat");
    let orders = orders.to_str().unwrap();
    host.moat(&["backup", orders, "--service", "orders"]).ok();
    assert_eq!(service(&host.ps(), "writer")["instances"][0]["pid"], running, "nothing was stopped");
    refused(&host.moat(&["backup", orders, "--service", "orders"]), "already exists");
    refused(&host.moat(&["backup", &at("x"), "--service", "clerk"]), "keeps nothing");
    let bytes = fs::read(&whole).unwrap();
    for text in [secret.trim(), "first", "writer.sh"] {
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "`{text}` is in clear");
    }

    // One service alone comes back; the others keep what they have.
    write(&host, "second");
    assert_eq!(found(&host), "second second");
    refused(&host.moat(&["restore", orders]), "--yes");
    refused(&host.moat(&["restore", orders, "--yes", "--service", "sessions"]), "nothing of `sessions` is in it");
    let restored = host.moat(&["restore", orders, "--yes"]).ok();
    assert!(restored.out.contains("restored orders"), "{restored:?}");
    assert_eq!(found(&host), "first second");

    // All of them. What is there before stays until all of it is there.
    let before = one_moment(&disk(&host));
    host.moat(&["restore", whole.to_str().unwrap(), "--yes"]).ok();
    assert_eq!(found(&host), "first first");
    let aside: Vec<PathBuf> =
        fs::read_dir(only(&host.path("state/snapshots/disks")).join("numbers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(aside.len() == 1 && one_moment(&aside[0]) >= before, "what was replaced is kept");
    assert!(fs::metadata(disk(&host).join("first")).is_ok());

    // A byte that changed, somewhere in the middle.
    let mut spoilt = bytes.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    fs::write(host.path("files/spoilt.moat"), spoilt).unwrap();
    refused(&host.moat(&["restore", &at("spoilt.moat"), "--yes"]), "it is damaged");
    assert_eq!(half_made(&host), "");

    // Snapshots: of one moment, while it writes; and back.
    let taken = host.moat(&["disk", "snapshot", "writer", "--output", "json"]).ok().json();
    let name = taken[0]["name"].as_str().unwrap();
    let then = one_moment(&only(&host.path("state/snapshots/disks")).join("numbers").join(name));
    wait_for("more numbers", || numbers(&disk(&host))[1] > then + 10);
    host.sh(&format!("mkdir {0}/sub && echo x > {0}/sub/later", disk(&host).display())).ok();
    host.moat(&["disk", "restore", "writer", name, "--yes"]).ok();
    assert!(!disk(&host).join("sub").exists());
    wait_for("the service on it", || numbers(&disk(&host))[1] > then);
    let listed = host.moat(&["disk", "snapshots", "writer"]).ok().out;
    assert!(listed.contains("asked") && listed.matches("before-restore").count() >= 4, "{listed}");
    refused(&host.moat(&["disk", "restore", "writer", "20200101T000000Z-daily", "--yes"]), "has no snapshot");
    refused(&host.moat(&["disk", "snapshot", "orders"]), "moat backup FILE --service orders");
    let events = host.moat(&["events"]).ok().out;
    for word in ["backed-up", "restored", "snapshot  ", "came to nothing"] {
        assert!(events.contains(word), "{word}: {events}");
    }

    // Killed in the middle, it leaves all of the old or all of the new, and nothing else once the next one looked.
    for args in [&["backup", &at("killed.moat")][..], &["restore", whole.to_str().unwrap(), "--yes"]] {
        write(&host, "third");
        let mut child = host.spawn(args);
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("back"), "{said}");
        host.kill(host.daemon().unwrap(), "KILL");
        assert!(!child.wait().unwrap().success());
        // A daily snapshot is due by now, and another is over.
        let snapshots = only(&host.path("state/snapshots/disks")).join("numbers");
        let _ = fs::rename(snapshots.join(name), snapshots.join("20200101T000000Z-daily"));
        // The newest three stay, however old they are.
        for day in 2..5 {
            fs::create_dir_all(snapshots.join(format!("2020010{day}T000000Z-daily"))).unwrap();
        }
        up();
        wait_for("what services keep", || ["first first", "third third", "first third", "third first"].contains(&found(&host).as_str()));
        wait_for("the order of things", || half_made(&host).lines().all(|line| line.contains(".killed.moat.new")));
        wait_for("the end of an old snapshot", || !snapshots.join("20200101T000000Z-daily").exists());
        wait_for("the writer", || service(&host.ps(), "writer")["state"]["phase"] == "live");
    }
    assert!(!host.path("files/killed.moat").exists());

    another_machine(&host, &whole, &secret);
}

/// The same on a machine that has nothing of it but the file and the key.
fn another_machine(first: &Host, whole: &Path, secret: &str) {
    let vip = service(&first.ps(), "orders")["address"]["v4"].clone();
    let key = first.path("state/key");
    let Some(host) = host() else { return };
    let (file, key) = (whole.to_str().unwrap(), key.to_str().unwrap());
    refused(&host.moat(&["restore", file, "--yes"]), "--key FILE");
    refused(
        &host.moat(&["restore", file, "--yes", "--key", host.write("wrong.key", &"x".repeat(32)).to_str().unwrap()]),
        "another machine",
    );
    refused(
        &host.moat(&["restore", first.path("files/orders.moat").to_str().unwrap(), "--yes", "--key", key]),
        "nothing of Moat runs here",
    );
    // That one made a key of its own.
    wait_for("the daemon's end", || host.daemon().is_none());
    fs::remove_dir_all(host.path("state")).unwrap();

    let said = host.moat(&["restore", file, "--yes", "--key", key]).ok();
    for slug in ["clerk", "orders", "sessions", "writer"] {
        assert!(said.out.contains(&format!("restored {slug}")), "{said:?}");
        assert_eq!(service(&host.ps(), slug)["state"]["phase"], "live");
    }
    assert_eq!(found(&host), "first first");
    assert_eq!(host.moat(&["exec", "clerk", "--", "sh", "-c", "echo $MADE"]).ok().out, secret);
    assert_eq!(host.moat(&["exec", "clerk", "--", "cat", "built.txt"]).ok().out, "built\n");
    assert_eq!(service(&host.ps(), "orders")["address"]["v4"], vip);
    wait_for("the writer", || numbers(&disk(&host))[1] > 1);
    let plan = host.moat(&["plan", first.path("app/render.yaml").to_str().unwrap()]).ok();
    assert!(!plan.out.contains("start"), "it goes on with the very same: {}", plan.out);
    refused(&host.moat(&["restore", file, "--yes", "--key", key, "--service", "clerk"]), "nothing of `clerk` is in it");
}
