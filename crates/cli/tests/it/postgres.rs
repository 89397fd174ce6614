//! A database in a blueprint: who uses it, who does not, and what it keeps.

use crate::host::{Host, host, service, wait_for};
use std::io::Write as _;
use std::process::Stdio;

const APP: &str = r#"
import http.server, os, subprocess

def count():
    url = os.environ["DATABASE_URL"] + "?sslmode=require"
    sql = "insert into visits default values; select count(*) from visits"
    return subprocess.run(["psql", "-XAtq", url, "-c", sql], capture_output=True, text=True)

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        done = count()
        self.send_response(200 if done.returncode == 0 else 500)
        self.end_headers()
        self.wfile.write((done.stdout + done.stderr).encode())

# As many programs do: no database at the start, no program.
subprocess.run(["psql", os.environ["DATABASE_URL"], "-c", "select 1"], check=True)
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Page).serve_forever()
"#;

const BLUEPRINT: &str = r#"
services:
  - type: web
    name: front
    runtime: python
    buildCommand: psql "$DATABASE_URL" -c 'create table if not exists visits (id serial)'
    preDeployCommand: psql "postgresql://$PGHOST:$PGPORT/" -c 'insert into visits default values'
    startCommand: python3 app.py
    envVars:
      - {key: DATABASE_URL, fromDatabase: {name: orders, property: connectionString}}
      - {key: PGHOST, fromDatabase: {name: orders, property: host}}
      - {key: PGPORT, fromDatabase: {name: orders, property: port}}
      - {key: PGUSER, fromDatabase: {name: orders, property: user}}
      - {key: PGPASSWORD, fromDatabase: {name: orders, property: password}}
      - {key: PGDATABASE, fromDatabase: {name: orders, property: database}}
  - {type: worker, name: clerk, runtime: python, buildCommand: "true", startCommand: sleep 100000}
databases:
  - name: orders
projects:
  - name: elsewhere
    environments:
      - name: closed
        networking: {isolation: enabled}
        services:
          - {type: worker, name: stranger, runtime: python, buildCommand: "true", startCommand: sleep 100000}
"#;

/// The page's number of visits; each request is one.
fn visit(host: &Host) -> Result<u32, String> {
    let (status, body) = host.http(8080, "front.localhost", "/");
    if status == 200 { body.trim().parse().map_err(|_| body) } else { Err(format!("{status}: {body}")) }
}

#[test]
fn a_database_is_used_kept_and_closed_to_others() {
    let Some(host) = host() else { return };
    host.write("shop/app.py", APP);
    let file = host.write("shop/render.yaml", BLUEPRINT);
    let file = file.to_str().unwrap();
    let before = host.inventory();
    let up = host.moat(&["up", "-d", file]).ok();
    assert!(up.out.contains("orders:5432"), "{}\n{}", up.out, up.err);

    // The build made the table, the pre-deploy command wrote a row.
    assert_eq!(visit(&host), Ok(2));
    let ps = host.ps();
    let orders = service(&ps, "orders");
    assert_eq!((orders["state"]["phase"].as_str(), orders["state"]["kind"].as_str()), (Some("live"), Some("postgres")));
    assert!(orders["instances"][0].to_string().contains("5432"), "{orders}");

    // Reachability: what is said, and what is so.
    for (from, to, word) in [
        ("front", "orders:5432", "allow: front"),
        ("clerk", "orders:5432", "allow: clerk"),
        ("build:front", "orders:5432", "build-to-datastore"),
        ("stranger", "orders:5432", "isolated-environment"),
        ("host", "orders:5432", "host-is-outside"),
        ("internet", "orders:5432", "not-public"),
        ("orders", "front:10000", "sends-nothing"),
    ] {
        let said = host.moat(&["explain", from, to]).ok();
        assert!(said.out.contains(word), "{from} → {to}: {}", said.out);
    }
    let url = host.moat(&["exec", "front", "--", "sh", "-c", "echo $DATABASE_URL"]).ok().out.trim().to_owned();
    let vip = orders["address"]["v4"].as_str().unwrap();
    let instance = orders["instances"][0]["address"]["v4"].as_str().unwrap();
    let ask =
        |address: &str| format!("PGCONNECT_TIMEOUT=3 psql -XAtqw '{}' -c 'select 7'", url.replace("@orders/", &format!("@{address}/")));
    assert_eq!(host.moat(&["exec", "clerk", "--", "sh", "-c", &ask("orders")]).ok().out.trim(), "7");
    assert_eq!(host.moat(&["exec", "clerk", "--", "sh", "-c", &ask(vip)]).ok().out.trim(), "7");
    for address in ["orders", vip, instance] {
        let said = host.moat(&["exec", "stranger", "--", "sh", "-c", &ask(address)]);
        assert!(said.code != 0 && !said.out.contains('7'), "{address}: {said:?}");
        let said = host.sh(&ask(address));
        assert!(said.code != 0 && !said.out.contains('7'), "{address}: {said:?}");
    }
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // A kill of everything at once loses nothing that was committed.
    let visits = visit(&host).unwrap();
    let pid = orders["instances"][0]["pid"].as_u64().unwrap();
    host.kill(u32::try_from(pid).unwrap(), "9");
    wait_for("the database after a kill", || visit(&host).is_ok());
    assert!(visit(&host).unwrap() > visits + 1);

    // A copy of the data, and back.
    let dump = host.moat(&["exec", "orders", "--", "pg_dump", "--clean"]).ok().out;
    assert!(dump.contains("CREATE TABLE public.visits"), "{dump}");
    host.moat(&["exec", "orders", "--", "psql", "-c", "drop table visits"]).ok();
    assert!(visit(&host).is_err());
    let mut restore =
        host.moat_command(&["exec", "orders", "--", "psql", "-q"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    restore.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
    let visits = visit(&host).unwrap();

    // The password is nowhere that it does not have to be.
    let password = url.split([':', '@']).nth(2).unwrap();
    assert_eq!(password.len(), 24, "{url}");
    for (what, text) in [
        ("up", format!("{}{}", up.out, up.err)),
        ("plan", host.moat(&["plan", file]).out),
        ("ps", host.ps().to_string()),
        ("logs", host.moat(&["logs", "orders"]).ok().out),
        ("the daemon's log", host.daemon_log()),
        ("arguments", host.processes().into_iter().map(|(_, line)| line).collect()),
    ] {
        assert!(!text.contains(password), "{what}: {text}");
    }

    // Down and up: nothing runs meanwhile, and the data is the same.
    host.moat(&["down", file]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    host.moat(&["up", "-d", file]).ok();
    // One more by the pre-deploy command, where that runs again.
    assert!(visit(&host).unwrap() > visits);
}

#[test]
fn what_ends_without_its_database_starts_after_it() {
    let Some(host) = host() else { return };
    // Nothing is built and no command runs before it: only the start itself is left to wait.
    let text = r#"
services:
  - type: worker
    name: hasty
    runtime: python
    startCommand: psql "$URL" -c 'select 1' || exit 9; echo served; sleep 100000
    envVars:
      - {key: URL, fromDatabase: {name: zoo, property: connectionString}}
databases:
  - name: zoo
"#;
    let file = host.write("b/render.yaml", text);
    for _ in 0..2 {
        host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
        assert!(host.moat(&["logs", "hasty"]).ok().out.contains("served"));
        host.moat(&["down"]).ok();
        wait_for("the daemon's end", || host.daemon().is_none());
    }
}
