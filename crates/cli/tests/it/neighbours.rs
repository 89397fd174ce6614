//! A service that takes whatever it can get: its neighbours, the public side and the private network go on (attack row 30).

use crate::host::{host, service, wait_for};

/// Says what it does before each attack, and does each for two seconds, again and again but for the flood of lines.
const GREEDY: &str = r#"
import os, random, signal, socket, sys, time

STOCK = socket.gethostbyname("stock")

def until():
    end = time.monotonic() + 2
    return lambda: time.monotonic() < end

def processes(on):
    children = []
    while on() and len(children) < 3000:
        try:
            child = os.fork()
        except OSError:
            time.sleep(0.01)
            continue
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

def files(on):
    held = []
    while on():
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            time.sleep(0.01)
    for file in held:
        os.close(file)

def connections(on):
    to, held = (STOCK, 9000), []
    while on():
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(to)
        held.append(one)
        if len(held) == 500:
            for one in held:
                one.close()
            held = []

def names(on):
    gateway = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
    asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asks.setblocking(False)
    while on():
        label = b"%08x" % random.getrandbits(32)
        try:
            asks.sendto(random.randbytes(2) + b"\x01\0\0\x01\0\0\0\0\0\0\x08" + label + b"\x04test\0\0\x01\0\x01", (gateway, 53))
        except OSError:
            pass

def lines(on):
    block = "\n" * 65536
    while on():
        sys.stdout.write(block)

def flows(on):
    for _ in range(8):
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for port in range(20000, 50000):
            try:
                each.sendto(b"x", (STOCK, port))
            except OSError:
                pass

attacks = [lines, processes, files, connections, names, flows]
while True:
    for attack in attacks:
        print("attack:", attack.__name__, flush=True)
        attack(until())
    print("attack: over", flush=True)
    # Of a log the newest lines are kept: another flood would wash away what was said.
    attacks = attacks[-5:]
"#;

const SHOP: &str = r#"
import http.server, os, urllib.request

class Shop(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        got = urllib.request.urlopen("http://stock:9000/what", timeout=20).read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(got)))
        self.end_headers()
        self.wfile.write(got)

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Shop).serve_forever()
"#;

#[test]
fn row_30_what_one_service_takes_its_neighbours_have() {
    let Some(host) = host() else { return };
    host.write("app/greedy.py", GREEDY);
    host.write("app/shop.py", SHOP);
    host.write("app/what", "nails");
    let entry = |kind: &str, name: &str, command: &str| {
        format!("  - {{type: {kind}, name: {name}, runtime: python, buildCommand: \"true\", startCommand: {command}}}\n")
    };
    let services = [
        entry("web", "shop", "python3 shop.py"),
        entry("pserv", "stock", "python3 -m http.server 9000"),
        entry("worker", "greedy", "python3 greedy.py"),
    ];
    let file = host.write("app/render.yaml", &format!("services:\n{}", services.concat()));
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let instances = || {
        let ps = host.ps();
        ["shop", "stock"].map(|name| service(&ps, name)["instances"][0]["id"].as_str().unwrap().to_owned())
    };
    let before = instances();
    let said = |what: &str| host.moat(&["logs", "greedy", "--grep", &format!("^attack: {what}$")]).out.contains(what);
    let mut asked = 0;
    wait_for("every attack", || {
        for _ in 0..5 {
            assert_eq!(host.http(8080, "shop.localhost", "/"), (200, "nails".to_owned()), "after {asked} answers");
            asked += 1;
        }
        said("over")
    });
    // Of its flood of lines the newest are kept, and what came after it.
    for attack in ["processes", "files", "connections", "names", "flows"] {
        assert!(said(attack), "{attack}");
    }
    assert!(asked > 10, "{asked}");
    wait_for("word of its flows", || host.moat(&["events", "--kind", "problem"]).out.contains("flows open"));
    wait_for("word of those it did not get", || host.moat(&["denied"]).out.contains("too-many-flows"));
    assert_eq!(instances(), before, "none of the others was started again");
    host.moat(&["suspend", "greedy"]).ok();
    host.moat(&["verify"]).ok();
}
