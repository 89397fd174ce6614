//! A real browser: Chromium opens a site by HTTPS, as the machine's own authority makes it trusted, and uses its services.

use crate::host::{Host, host, wait_for};
use std::process::{Command, Stdio};

const SERVICES: &str = r"
services:
  - type: web
    name: app
    runtime: static
    buildCommand: mkdir dist && cp page.html dist/index.html && cp page.js dist/page.js
    staticPublishPath: dist
    routes:
      - {type: rewrite, source: '/api/*', destination: 'https://live.onrender.com/*'}
      - {type: rewrite, source: '/*', destination: /index.html}
  - type: web
    name: live
    runtime: python
    buildCommand: python3 -m py_compile live.py
    startCommand: python3 live.py
    maxShutdownDelaySeconds: 1
";

const PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>asking</title><h1>A site by Moat</h1><pre id=out></pre><script src=/page.js></script>";

/// Asks for everything, shows it, and reports it.
const SCRIPT: &str = r"
const live = `https://live.localhost:${location.port}`;
const text = async (url) => (await fetch(url)).text();
const socket = () => new Promise((done) => {
  const opened = new WebSocket(live.replace('https', 'wss') + '/socket');
  opened.onopen = () => opened.send('hello');
  opened.onmessage = (message) => { done(message.data); opened.close(); };
  opened.onerror = () => done('no socket');
});
const events = () => new Promise((done) => {
  const seen = [];
  const source = new EventSource(live + '/events');
  source.onmessage = (event) => { seen.push(event.data); if (seen.length === 3) { source.close(); done(seen.join()); } };
  source.onerror = () => { source.close(); done(`no events after ${seen}`); };
});
const ask = async () => {
  const [page] = performance.getEntriesByType('navigation');
  const answers = await Promise.allSettled([text('/api/who'), text(live + '/who'), socket(), events(), text('/page.js')]);
  const said = answers.map((answer) => String(answer.value ?? answer.reason));
  said[4] = said[4].length > 100 ? 'a script' : said[4];
  const report = [location.href, page.nextHopProtocol, isSecureContext, ...said].join(' | ');
  document.title = 'done';
  document.getElementById('out').textContent = report.replaceAll(' | ', '\n');
  await fetch('/api/report', { method: 'POST', body: report });
};
ask();
";

/// A service with an answer, a report, events and a WebSocket, of Python alone.
const LIVE: &str = r#"
import base64, hashlib, http.server, os, time

class Live(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    report = b"nothing yet"

    def say(self, body):
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        Live.report = self.rfile.read(int(self.headers["Content-Length"]))
        self.say(b"thanks")

    def do_GET(self):
        if self.path == "/report":
            return self.say(Live.report)
        if self.path == "/events":
            self.close_connection = True
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for n in range(3):
                self.wfile.write(f"data: {n}\n\n".encode())
                self.wfile.flush()
            return time.sleep(5)
        if self.path == "/socket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.close_connection = True
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            head = self.rfile.read(2)
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[n % 4] for n, byte in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(text)]) + text.upper())
            return self.rfile.read(2)
        self.say(f"{self.headers['X-Forwarded-Proto']} {self.headers['Host'].split(':')[0]}".encode())

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Live).serve_forever()
"#;

/// The browser with a home of its own, without a window.
fn chromium(host: &Host, more: &[&str]) -> Command {
    let mut browser = host.command("chromium");
    browser.env("HOME", host.path("home"));
    // Its own sandbox is for people who are not root, and wants namespaces that this pretended machine does not give.
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]);
    browser.arg(format!("--user-data-dir={}", host.path("home/chromium").display())).args(more);
    browser.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    browser
}

#[test]
fn a_site_in_chromium() {
    let Some(host) = host() else { return };
    for program in ["chromium", "certutil"] {
        if !host.sh(&format!("command -v {program}")).out.contains(program) {
            return eprintln!("skipped: there is no `{program}`; `cargo xtask test` installs it");
        }
    }
    for (name, text) in [("render.yaml", SERVICES), ("page.html", PAGE), ("page.js", SCRIPT), ("live.py", LIVE)] {
        host.write(&format!("site/{name}"), text);
    }
    let file = host.path("site/render.yaml");
    host.moat(&["up", "-d", file.to_str().unwrap(), "--listen-tls", "127.0.0.1:8443"]).ok();
    let address = "http://app.localhost:8080/deep/link?a=b";
    let report = || {
        let script = "curl -sk --connect-to ::127.0.0.1: https://live.localhost:8443/report";
        host.sh(script).out
    };
    // Who does not trust the authority gets no page.
    let mut stranger = chromium(&host, &["--dump-dom"]).arg(address).stdout(Stdio::piped()).spawn().unwrap();
    let mut dom = String::new();
    std::io::Read::read_to_string(&mut stranger.stdout.take().unwrap(), &mut dom).unwrap();
    stranger.wait().unwrap();
    assert!(!dom.contains("A site by Moat"), "{dom}");
    assert_eq!(report(), "nothing yet");

    host.write("authority.pem", &host.moat(&["trust", "--print"]).ok().out);
    let trust = format!(
        "export HOME='{0}/home'; mkdir -p $HOME/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -N --empty-password && \
         certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n moat -i '{0}/authority.pem'",
        host.path("").display()
    );
    host.sh(&trust).ok();
    let mut browser = chromium(&host, &["--remote-debugging-port=0"]).arg(address).spawn().unwrap();
    wait_for("the page's report", || report() != "nothing yet");
    browser.kill().unwrap();
    browser.wait().unwrap();
    let want = [
        "https://app.localhost:8443/deep/link?a=b",
        "h2",
        "true",
        "https live.localhost",
        "https live.localhost",
        "HELLO",
        "0,1,2",
        "a script",
    ];
    assert_eq!(report(), want.join(" | "));
}
