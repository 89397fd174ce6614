//! Free plans sleep and wake.

use crate::host::{Host, Said, host, service, wait_for};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

/// Says hello, or what a WebSocket says; ends where `gate` does not let it start.
const WEB: &str = r#"
import base64, hashlib, os, socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if "GATE" in os.environ: socket.create_connection((os.environ["GATE"], 7000), timeout=5).close()
class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/socket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.wfile.write(self.rfile.read1()); self.rfile.read()
            self.close_connection = True
            return
        self.send_response(200); self.send_header("Content-Length", "6"); self.end_headers(); self.wfile.write(b"hello\n")
    def log_message(self, *args): pass
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

fn blueprint(more: &str) -> String {
    let web = |name: &str, plan: &str, more: &str| {
        format!(
            "  - type: web\n    name: {name}\n    plan: {plan}\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: python3 web.py\n    \
             maxShutdownDelaySeconds: 1\n{more}"
        )
    };
    let gate = "  - type: pserv\n    name: gate\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: PORT=7000 python3 web.py\n    \
                maxShutdownDelaySeconds: 1\n    envVars: [{key: PORT, value: 7000}]\n";
    let site = web("site", "free", &format!("    envVars: [{{key: GATE, value: gate}}{more}]\n"));
    format!("services:\n{gate}{site}{}{}", web("other", "free", ""), web("paid", "starter", ""))
}

fn phase(host: &Host, slug: &str) -> String {
    service(&host.ps(), slug)["state"]["phase"].as_str().unwrap().to_owned()
}

fn sleeps(host: &Host, slug: &str) {
    wait_for(&format!("`{slug}` to sleep"), || {
        let ps = host.ps();
        service(&ps, slug)["state"]["phase"] == "sleeping" && service(&ps, slug)["instances"].as_array().unwrap().is_empty()
    });
}

fn curl(more: &str) -> String {
    format!("curl -s --max-time 60 -w '%{{http_code}}' {more}")
}

const SITE: &str = "-H 'Host: site.localhost' http://127.0.0.1:8080/";

/// A WebSocket that said something, was answered, and stays open.
fn websocket(host: &Host) -> Child {
    let client = "import socket, sys\n\
        s = socket.create_connection(('127.0.0.1', 8080), timeout=60)\n\
        s.sendall(b'GET /socket HTTP/1.1\\r\\nHost: site.localhost\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n')\n\
        head = b''\n\
        while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)\n\
        frame = b'\\x81\\x82\\0\\0\\0\\0hi'\n\
        s.sendall(frame)\n\
        print(head.split()[1].decode(), s.recv(99) == frame, flush=True)\n\
        sys.stdin.read()\n";
    let mut child = host.command("python3").args(["-c", client]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "101 True\n");
    child
}

#[test]
fn free_plans_sleep_and_a_request_wakes_them() {
    let Some(host) = host() else { return };
    host.write("app/web.py", WEB);
    let file = host.write("app/render.yaml", &blueprint(""));
    let up = ["up", "-d", file.to_str().unwrap()];
    host.moat(&up).ok();
    let settings = host.moat(&["ingress"]).ok().out;
    assert!(settings.lines().any(|line| line.split_whitespace().eq(["free-plans-sleep", "off"])), "{settings}");
    assert_eq!(host.moat(&["ingress", "free-plans-sleep=soon"]).code, 2);
    host.moat(&["ingress", "free-plans-sleep=1s"]).ok();

    // Nothing of it runs, which is no fault of the network's; a crawler and the private network wake nobody.
    sleeps(&host, "site");
    sleeps(&host, "other");
    assert_eq!((phase(&host, "paid"), phase(&host, "gate")), ("live".to_owned(), "live".to_owned()));
    assert!(host.moat(&["ps"]).ok().out.contains("sleeping"));
    host.moat(&["verify"]).ok();
    assert!(host.http(8080, "site.localhost", "/robots.txt").1.contains("Disallow: /"));
    let private =
        host.moat(&["exec", "paid", "--", "python3", "-c", "import socket; socket.create_connection(('site', 10000), timeout=9)"]);
    assert!(private.err.contains("ConnectionRefusedError"), "{private:?}");
    let plan = host.moat(&["plan", file.to_str().unwrap()]).ok().out;
    assert!(!plan.contains("start") && !plan.contains("numInstances"), "{plan}");
    // What changes nothing leaves it alone.
    host.moat(&up).ok();
    assert_eq!(phase(&host, "site"), "sleeping");

    // Each kind of request is held until an instance is there; a connection that is open keeps it awake.
    assert_eq!(host.sh(&curl(SITE)).out, "hello\n200");
    sleeps(&host, "site");
    let both = host.sh(&format!("cat <({}) <({})", curl(SITE), curl(&format!("--http2-prior-knowledge {SITE}"))));
    assert_eq!(both.out, "hello\n200hello\n200");
    sleeps(&host, "site");
    let mut open = websocket(&host);
    assert_eq!(host.http(8080, "other.localhost", "/").0, 200);
    sleeps(&host, "other");
    assert_eq!(phase(&host, "site"), "live", "somebody is connected");
    drop(open.stdin.take());
    open.wait().unwrap();
    sleeps(&host, "site");

    // Whoever asks while there is no daemon is answered once there is one.
    host.kill(host.daemon().unwrap(), "KILL");
    let asks = host.command("bash").args(["-c", &curl(SITE)]).stdout(Stdio::piped()).spawn().unwrap();
    host.moat(&["ingress"]).ok();
    assert_eq!(phase(&host, "other"), "sleeping", "it still does after a restart");
    assert_eq!(Said::from(asks.wait_with_output().unwrap()).out, "hello\n200");
    let told = host.moat(&["events", "--service", "site"]).ok().out;
    assert!(told.matches(" slept ").count() >= 4 && told.matches(" woke ").count() >= 4, "{told}");

    // A start that fails is said, and tried again as any other.
    host.moat(&["suspend", "gate"]).ok();
    sleeps(&host, "site");
    let failed = host.sh(&curl(SITE)).out;
    assert!(failed.ends_with("503") && failed.contains("restarting"), "{failed}");
    host.moat(&["resume", "gate"]).ok();
    wait_for("it to be back", || host.sh(&curl(SITE)).out == "hello\n200");

    // Suspended it is not woken; a deploy wakes it, and so does the setting's end.
    sleeps(&host, "site");
    host.moat(&["suspend", "site"]).ok();
    assert!(host.http(8080, "site.localhost", "/").1.contains("suspended"));
    host.moat(&["resume", "site"]).ok();
    assert_eq!(host.http(8080, "site.localhost", "/").0, 200);
    sleeps(&host, "site");
    host.write("app/render.yaml", &blueprint(", {key: MORE, value: more}"));
    let said = host.moat(&up).ok();
    assert!(said.err.contains("site") && host.moat(&["deploys", "site"]).ok().out.contains("live"), "{said:?}");
    sleeps(&host, "other");
    host.moat(&["ingress", "free-plans-sleep=off"]).ok();
    wait_for("it to wake by itself", || phase(&host, "other") == "live");
    let kinds = host.moat(&["events", "--service", "gate"]).ok().out;
    assert!(kinds.contains(" suspended ") && kinds.contains(" resumed "), "{kinds}");
}
