//! Traces of requests by OpenTelemetry, read by its own messages for Python.

use crate::host::{Host, host, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};

/// Takes OTLP over HTTP: one line of JSON for each span, with the resource's name.
const COLLECTOR: &str = r#"
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

def values(attributes):
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}

class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf"), (self.path, self.headers)
        message = ExportTraceServiceRequest.FromString(body)
        with open(sys.argv[1], "a") as out:
            for resource in MessageToDict(message)["resourceSpans"]:
                of = values(resource["resource"]["attributes"])
                raw = [span for each in message.resource_spans for scope in each.scope_spans for span in scope.spans]
                for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                    one = next(r for r in raw if r.name == span["name"] and r.start_time_unix_nano == int(span["startTimeUnixNano"]))
                    out.write(json.dumps({
                        "resource": of, "name": span["name"], "kind": span["kind"], "trace": one.trace_id.hex(), "id": one.span_id.hex(),
                        "parent": one.parent_span_id.hex(), "status": span.get("status", {}), "with": values(span["attributes"]),
                        "nanos": one.end_time_unix_nano - one.start_time_unix_nano,
                    }) + "\n")
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200); self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer))); self.end_headers(); self.wfile.write(answer)
    def log_message(self, *args): pass
HTTPServer(("127.0.0.1", 4318), Collector).serve_forever()
"#;

/// Says which trace it is asked as part of; breaks on demand.
const WEB: &str = r#"
import os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/broken"):
            self.connection.close()
            return
        if self.path == "/slow": time.sleep(0.3)
        text = f"{self.headers['traceparent']} {self.headers['tracestate']}".encode()
        self.send_response(500 if self.path == "/fails" else 200)
        self.send_header("Content-Length", str(len(text))); self.end_headers(); self.wfile.write(text)
    def log_message(self, *args): pass
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

const SERVICES: &str = "services:\n  - type: web\n    name: site\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: python3 web.py\n    maxShutdownDelaySeconds: 1\n";

fn collector(host: &Host, spans: &Path) -> Option<Child> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin/python3");
    if !python.exists() {
        println!("skipped: `cargo xtask test` makes the environment of PyPI that this needs");
        assert!(std::env::var_os("CI").is_none(), "CI skips nothing");
        return None;
    }
    let program = host.write("collector.py", COLLECTOR);
    let child = host.command(python).arg(program).arg(spans).stdin(Stdio::null()).spawn().unwrap();
    wait_for("the collector", || host.sh("exec 3<>/dev/tcp/127.0.0.1/4318").code == 0);
    Some(child)
}

/// The span of the request with this path, once it was sent.
fn span(spans: &Path, path: &str) -> Value {
    let find = || {
        let text = std::fs::read_to_string(spans).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|span| span["with"]["url.path"] == path)
    };
    wait_for(&format!("the span of {path}"), || find().is_some());
    find().unwrap()
}

#[test]
fn requests_are_traced_and_go_on_as_part_of_their_trace() {
    let Some(host) = host() else { return };
    let spans = host.path("spans.json");
    let Some(mut collector) = collector(&host, &spans) else { return };
    host.write("app/web.py", WEB);
    let file = host.write("app/render.yaml", SERVICES);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let get = |path: &str, more: &str| {
        host.sh(&format!("curl -s --max-time 20 -A tester -H 'Host: site.localhost' {more} 'http://127.0.0.1:8080{path}'")).out
    };

    // Off, what a client says goes through.
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let header = format!("-H 'traceparent: {theirs}' -H 'tracestate: a=b'");
    assert_eq!(get("/before", &header), format!("{theirs} a=b"));
    let refused = host.moat(&["ingress", "traces=https://collector.test"]);
    assert!(refused.code == 2 && refused.err.contains("http://127.0.0.1:4318"), "{refused:?}");
    host.moat(&["ingress", "traces=http://localhost:4318"]).ok();

    // A trace that begins here.
    let seen = get("/first?secret=1", "");
    let mine = span(&spans, "/first");
    assert_eq!(seen, format!("00-{}-{}-01 None", mine["trace"].as_str().unwrap(), mine["id"].as_str().unwrap()));
    assert_eq!((&mine["name"], &mine["kind"], &mine["parent"]), (&"GET".into(), &"SPAN_KIND_SERVER".into(), &"".into()));
    assert_eq!(mine["resource"]["service.name"], "moat-ingress");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", &seen.len().to_string()),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("server.address", "site.localhost"),
        ("user_agent.original", "tester"),
        ("client.address", "127.0.0.1"),
        ("moat.service", "site"),
    ] {
        assert_eq!(mine["with"][name], value, "{name} of {mine}");
    }
    assert!(mine["with"]["moat.instance"].as_str().unwrap().starts_with("srv-") && !mine.to_string().contains("secret"), "{mine}");

    // One that a client began goes on, by HTTP/2 too; what of it is recorded is not the client's to say.
    let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let seen = get("/second", &format!("--http2-prior-knowledge -H 'traceparent: {unsampled}' -H 'tracestate: a=b'"));
    let second = span(&spans, "/second");
    assert_eq!(seen, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01 a=b", second["id"].as_str().unwrap()));
    assert_eq!((&second["parent"], &second["with"]["network.protocol.version"]), (&"00f067aa0ba902b7".into(), &"2".into()));
    assert!(get("/garbled", "-H 'traceparent: 00-zz-1-01'").starts_with("00-"), "what is no trace is replaced");

    // Failures, and how long it took.
    get("/fails", "");
    let failed = span(&spans, "/fails");
    assert_eq!((&failed["status"]["code"], &failed["with"]["error.type"]), (&"STATUS_CODE_ERROR".into(), &"500".into()));
    get("/broken", "");
    let broken = span(&spans, "/broken");
    assert_eq!(broken["with"]["http.response.status_code"], "502", "{broken}");
    assert!(!broken["status"]["message"].as_str().unwrap().is_empty(), "{broken}");
    get("/slow", "");
    assert!(span(&spans, "/slow")["nanos"].as_u64().unwrap() >= 300_000_000);
    host.http(8080, "nobody.localhost", "/nowhere");
    assert_eq!(span(&spans, "/nowhere")["with"]["moat.service"], Value::Null);

    // A part only: by the trace's id, whatever the client asks for.
    host.moat(&["ingress", "traces-share=0.0001%"]).ok();
    let outside = "00-ffffffffffffffffffffffffffffffff-b7ad6b7169203331-01";
    wait_for("the share to hold", || get("/unseen", &format!("-H 'traceparent: {outside}'")).ends_with("-00 None"));
    host.moat(&["ingress", "traces-share=100%"]).ok();
    wait_for("the share to hold", || get("/seen", &format!("-H 'traceparent: {outside}'")).ends_with("-01 None"));
    span(&spans, "/seen");

    // Without its collector requests go on, which is told; a process that ends sends what it has.
    collector.kill().unwrap();
    collector.wait().unwrap();
    assert!(get("/lost", "").starts_with("00-"));
    let failures = || {
        let text = host.moat(&["metrics"]).ok().out;
        let line = text.lines().find(|line| line.starts_with("moat_trace_batches_total{outcome=\"failed\"}")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    wait_for("it to be counted", || failures() > 0);
    let mut collector = self::collector(&host, &spans).unwrap();
    get("/last", "");
    host.moat(&["ingress", "traces=off"]).ok();
    span(&spans, "/last");
    wait_for("no traces", || get("/after", &header) == format!("{theirs} a=b"));
    host.moat(&["ingress", "traces=http://127.0.0.1:4318"]).ok();
    wait_for("traces", || get("/again", &header) != format!("{theirs} a=b"));
    host.moat(&["down"]).ok();
    span(&spans, "/again");
    collector.kill().unwrap();
    collector.wait().unwrap();
}
