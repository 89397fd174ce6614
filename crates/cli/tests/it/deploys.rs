//! Deploys of the real binary: their order, what they leave, and that nobody notices them.

use crate::host::{Host, host, service, wait_for};
use crate::load::{Lane, Load, Talk};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A web service that says its release; the release says how it starts.
const WEB: &str = r#"
import os, socketserver, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
release = open("release.txt").read().strip()
print("release", release, flush=True)
if release.startswith("broken"): sys.exit(3)
if release.startswith("slow"): time.sleep(1000)
class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/socket": return self.echo()
        body = f"{release} {os.environ.get('GREETING', '')}".strip().encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def echo(self):
        import base64, hashlib
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            size = head[1] & 127
            mask, data = self.rfile.read(4), self.rfile.read(size)
            self.wfile.write(bytes([head[0], size]) + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
    def log_message(self, *args): pass
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

/// A private service that echoes lines.
const ECHO: &str = r#"
import os, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
Server(("0.0.0.0", int(os.environ["PORT"])), Echo).serve_forever()
"#;

fn web(more: &str) -> String {
    format!(
        "services:\n  - type: web\n    name: site\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: python3 -u web.py\n    maxShutdownDelaySeconds: 5\n{more}"
    )
}

/// Writes a release of the site and its blueprint.
fn release(host: &Host, text: &str, more: &str) -> PathBuf {
    host.write("app/web.py", WEB);
    host.write("app/release.txt", text);
    host.write("app/render.yaml", &web(more))
}

fn up(host: &Host, file: &std::path::Path) {
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
}

fn page(host: &Host) -> (u16, String) {
    host.http(8080, "site.localhost", "/")
}

/// Cause and state of each deploy of the site, oldest first.
fn deploys(host: &Host) -> Vec<(String, String)> {
    let said = host.moat(&["deploys", "site", "--output", "json"]).ok().json();
    let text = |deploy: &Value, key: &str| deploy[key].as_str().unwrap().to_owned();
    said.as_array().unwrap().iter().map(|deploy| (text(deploy, "cause"), text(deploy, "state"))).collect()
}

fn deploy_ids(host: &Host) -> Vec<String> {
    let said = host.moat(&["deploys", "site", "--output", "json"]).ok().json();
    said.as_array().unwrap().iter().map(|deploy| deploy["id"].as_str().unwrap().to_owned()).collect()
}

fn ready(host: &Host, slug: &str) -> Vec<String> {
    let ps = host.ps();
    let instances = service(&ps, slug)["instances"].as_array().unwrap().clone();
    let ready = instances.iter().filter(|instance| instance["ready"] == true && instance["purpose"] == "serve");
    ready.map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
}

/// Whatever a command that runs beside the test has said by its end.
fn said(child: Child) -> (i32, String) {
    let said = crate::host::Said::from(child.wait_with_output().unwrap());
    (said.code, said.out + &said.err)
}

#[test]
fn a_release_can_be_gone_back_to_and_started_anew() {
    let Some(host) = host() else { return };
    let file = release(&host, "one", "    numInstances: 2\n");
    up(&host, &file);
    assert_eq!(page(&host), (200, "one".to_owned()));
    // The same again is no deploy.
    up(&host, &file);
    assert_eq!(deploys(&host), [("up".to_owned(), "live".to_owned())]);
    release(&host, "two", "    numInstances: 2\n");
    up(&host, &file);
    assert_eq!(page(&host), (200, "two".to_owned()));

    // A failure in the middle leaves as many instances of what ran before.
    let before = ready(&host, "site");
    assert_eq!(before.len(), 2);
    release(&host, "broken", "    numInstances: 2\n");
    let failed = host.moat(&["up", "-d", file.to_str().unwrap()]);
    assert!(failed.code == 1 && failed.err.contains("release broken"), "{}{}", failed.out, failed.err);
    assert_eq!(ready(&host, "site"), before);
    assert_eq!(page(&host), (200, "two".to_owned()));

    host.moat(&["rollback", "site"]).ok();
    assert_eq!(page(&host), (200, "one".to_owned()));
    let ids = deploy_ids(&host);
    let again = host.moat(&["rollback", "site", &ids[0]]);
    assert!(again.code == 1 && again.err.contains("already"), "{}", again.err);
    let never = host.moat(&["rollback", "site", &ids[2]]);
    assert!(never.code == 1 && never.err.contains("no kept release"), "a failed deploy is nothing to go back to: {}", never.err);
    host.moat(&["rollback", "site", &ids[1]]).ok();
    assert_eq!(page(&host), (200, "two".to_owned()));
    let words = |cause: &str, state: &str| (cause.to_owned(), state.to_owned());
    assert_eq!(
        deploys(&host),
        [
            words("up", "replaced"),
            words("up", "replaced"),
            words("up", "failed"),
            words(&format!("rollback to {}", ids[0]), "replaced"),
            words(&format!("rollback to {}", ids[1]), "live"),
        ]
    );

    // A restart brings the same release with other instances; a daemon that comes after this one knows all that.
    let before = ready(&host, "site");
    host.moat(&["restart", "site"]).ok();
    let after = ready(&host, "site");
    assert!(after.len() == 2 && after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    assert_eq!(page(&host), (200, "two".to_owned()));
    let told = deploys(&host);
    assert_eq!(told.last(), Some(&words("restart", "live")));
    host.kill(host.daemon().unwrap(), "KILL");
    revive(&host);
    assert_eq!(deploys(&host), told);
    wait_for("its instances", || ready(&host, "site") == after);
}

/// Any `up` brings a daemon.
fn revive(host: &Host) {
    let file = host.write("other/render.yaml", "services:\n  - type: cron\n    name: never\n    runtime: python\n    schedule: \"0 0 1 1 *\"\n    buildCommand: \"true\"\n    startCommand: echo ran $0\n");
    up(host, &file);
}

#[test]
fn of_deploys_that_wait_only_the_newest_is_done() {
    let Some(host) = host() else { return };
    let file = release(&host, "one", "");
    up(&host, &file);
    release(&host, "slow", "");
    let args = ["up", "-d", file.to_str().unwrap()];
    let slow = host.spawn(&args);
    let state = |nth: usize| deploys(&host).get(nth).map(|(_, state)| state.clone()).unwrap_or_default();
    wait_for("the slow release's start", || service(&host.ps(), "site")["state"]["phase"] == "starting");
    release(&host, "two", "");
    let second = host.spawn(&args);
    wait_for("the second", || state(2) == "waiting");
    release(&host, "three", "");
    let third = host.spawn(&args);
    wait_for("the third", || state(2) == "skipped" && state(3) == "waiting");
    assert_eq!(page(&host), (200, "one".to_owned()), "what ran before goes on");

    host.moat(&["deploy", "cancel", "site"]).ok();
    let (code, told) = said(third);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("waits until"), "{told}");
    let (_, told) = said(second);
    assert!(told.contains("is skipped"), "{told}");
    said(slow);
    assert_eq!(page(&host), (200, "three".to_owned()));
    let states: Vec<String> = deploys(&host).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ["replaced", "canceled", "skipped", "live"]);
    let none = host.moat(&["deploy", "cancel", "site"]);
    assert!(none.code == 1 && none.err.contains("no deploy"), "{}", none.err);
}

/// Several deploys, and a daemon that is killed in the middle, under load. `MOAT_LOAD_DEPLOYS` says how many.
#[test]
fn nobody_notices_deploys() {
    let Some(host) = host() else { return };
    let count: u32 = std::env::var("MOAT_LOAD_DEPLOYS").ok().map_or(4, |text| text.parse().unwrap());
    let file = release(&host, "r0", "    numInstances: 2\n");
    up(&host, &file);
    // Their releases stay: a restart replaces their instances just the same, and takes no build.
    let pserv = |name: &str, more: &str, port: u16, start: &str| {
        format!(
            "  - type: pserv\n    name: {name}\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: {start}\n    envVars: [{{key: PORT, value: {port}}}]\n{more}"
        )
    };
    host.write("stores/echo.py", ECHO);
    let redis = "redis-server --bind 0.0.0.0 --protected-mode no --save '' --port 6379";
    let stores = host.write(
        "stores/render.yaml",
        &format!(
            "services:\n{}{}  - type: worker\n    name: load\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: exec sleep 100000\n",
            pserv("echo", "    numInstances: 2\n", 7000, "python3 -u echo.py"),
            pserv("cache", "", 6379, redis)
        ),
    );
    up(&host, &stores);

    let ps = host.ps();
    let address = |slug: &str| service(&ps, slug)["address"]["v4"].as_str().unwrap().to_owned();
    let inside = service(&ps, "load")["instances"][0]["pid"].as_u64().unwrap();
    let lane = |name: &str, at: &str, talk: Talk, held: u64| Lane { name: name.to_owned(), at: at.parse().unwrap(), talk, held };
    let (ingress, site) = ("127.0.0.1:8080", || "site.localhost".to_owned());
    let public = [
        lane("http, a connection each", ingress, Talk::Http(site()), 0),
        lane("http, connections kept", ingress, Talk::Http(site()), 5000),
        lane("websocket", ingress, Talk::WebSocket(site()), 5000),
    ];
    let echo = format!("{}:7000", address("echo"));
    let private = [lane("echo, a connection each", &echo, Talk::Echo, 0), lane("echo, connections kept", &echo, Talk::Echo, 3000)];
    let loads = [Load::start(&host, None, &public), Load::start(&host, Some(inside), &private)];
    let stop = host.path("stop");
    // A client of Redis' own: it ends with an error when a connection is refused, reset or closed.
    let redis = format!(
        "n=0; while [ ! -e {} ]; do redis-benchmark -h {} -n 400 -c 2 -t set,get -q >/dev/null || exit 1; n=$((n+800)); done; echo $n",
        stop.display(),
        address("cache")
    );
    let mut redis_client = host.command("nsenter");
    redis_client.arg(format!("--net=/proc/{inside}/ns/net")).args(["bash", "-c", &redis]);
    let redis_client = redis_client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One of HTTP/2's: it says how many of its requests were answered, and how.
    let http2 = format!(
        "n=0; while [ ! -e {} ]; do said=$(h2load --connect-to=127.0.0.1:8080 -n 300 -c 2 -m 5 http://site.localhost:8080/); grep -q ' 300 succeeded, 0 failed, 0 errored, 0 timeout' <<<\"$said\" && grep -q ' 300 2xx' <<<\"$said\" || {{ echo \"$said\" >&2; exit 1; }}; n=$((n+300)); sleep 0.05; done; echo $n",
        stop.display(),
    );
    let http2_client =
        host.command("bash").args(["-c", &http2]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    for n in 1..=count {
        release(&host, &format!("r{n}"), "    numInstances: 2\n");
        let before: Vec<Vec<String>> = ["site", "echo", "cache"].map(|slug| ready(&host, slug)).into();
        if n == count / 2 {
            host.kill(host.daemon().unwrap(), "KILL");
        }
        up(&host, &file);
        for slug in ["echo", "cache"] {
            host.moat(&["restart", slug]).ok();
        }
        assert_eq!(page(&host), (200, format!("r{n}")));
        for (slug, before) in ["site", "echo", "cache"].iter().zip(before) {
            let after = ready(&host, slug);
            assert!(after.len() == before.len() && after.iter().all(|id| !before.contains(id)), "{slug}: {before:?} {after:?}");
        }
    }
    std::fs::write(&stop, "").unwrap();
    let (code, told) = said(redis_client);
    assert_eq!(code, 0, "a client of Redis noticed: {told}");
    let mut requests: u64 = told.trim().parse().unwrap();
    let (code, told) = said(http2_client);
    assert_eq!(code, 0, "a client of HTTP/2 noticed: {told}");
    let answered: u64 = told.trim().parse().unwrap();
    assert!(answered > 300, "{answered} requests over HTTP/2");
    requests += answered;
    for load in loads {
        let counted = load.end();
        println!("{count} deploys of each service: {counted:?}");
        assert!(counted.faults.is_empty(), "{counted:?}");
        assert!(counted.counts.len() >= 2 && counted.counts.values().all(|count| *count > 50), "{counted:?}");
        requests += counted.counts.values().sum::<u64>();
    }
    println!("{requests} requests, none failed");
}
