//! What people ask of one service: how many instances, whether it is open, its variables, commands beside it.

use crate::host::{Host, host, service, wait_for};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;

/// A web service that shows a variable.
const WEB: &str = r#"
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.path != "/healthz" or not os.path.exists("/tmp/ill")
        self.send_response(200 if ok else 500); self.end_headers(); self.wfile.write(os.environ.get("GREETING", "none").encode())
    def log_message(self, *args): pass
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

fn app(host: &Host, more: &str) -> PathBuf {
    host.write("app/web.py", WEB);
    host.write(
        "app/render.yaml",
        &format!(
            "services:\n  - type: web\n    name: site\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: python3 web.py\n    maxShutdownDelaySeconds: 5\n{more}"
        ),
    )
}

fn up(host: &Host, file: &std::path::Path) {
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
}

fn instances(host: &Host, slug: &str) -> Vec<Value> {
    service(&host.ps(), slug)["instances"].as_array().unwrap().clone()
}

fn serving(host: &Host) -> usize {
    instances(host, "site").iter().filter(|instance| instance["ready"] == true).count()
}

fn page(host: &Host) -> (u16, String) {
    host.http(8080, "site.localhost", "/")
}

#[test]
fn the_number_of_instances_is_asked_for_until_the_blueprint_says_another() {
    let Some(host) = host() else { return };
    let file = app(&host, "");
    up(&host, &file);
    assert_eq!(serving(&host), 1);
    host.moat(&["scale", "site", "3"]).ok();
    assert_eq!(serving(&host), 3);
    // It stays over an `up` and over the daemon.
    host.kill(host.daemon().unwrap(), "KILL");
    up(&host, &file);
    wait_for("three instances", || serving(&host) == 3);
    assert!(host.moat(&["ps"]).ok().out.contains("3 of 3 ready"));
    let plan = host.moat(&["plan", file.to_str().unwrap()]).ok().out;
    assert!(!plan.contains("stop") && plan.contains("site is scaled to 3 (`moat scale`), where its blueprint says 1"), "{plan}");
    assert!(host.moat(&["events", "--kind", "scaled"]).ok().out.contains("it was scaled to 3"));
    host.moat(&["scale", "site"]).ok();
    wait_for("one instance", || instances(&host, "site").len() == 1);
    host.moat(&["scale", "site", "2"]).ok();
    let changed = app(
        &host,
        "    numInstances: 3\n  - type: worker\n    name: more\n    runtime: node\n    buildCommand: \"true\"\n    startCommand: sleep 100000\n",
    );
    let plan = host.moat(&["plan", changed.to_str().unwrap()]).ok().out;
    assert!(plan.contains("~ site `numInstances`: 1 → 3\n") && plan.contains("+ more does not run yet\n"), "{plan}");
    let said = host.moat(&["up", "-d", app(&host, "    numInstances: 3\n").to_str().unwrap()]).ok();
    assert!(said.err.contains("says 3 instances now"), "{}", said.err);
    assert_eq!(serving(&host), 3);
    for (count, word) in [("0", "suspend"), ("101", "from 1 to 100")] {
        let said = host.moat(&["scale", "site", count]);
        assert!(said.code == 1 && said.err.contains(word), "{}", said.err);
    }
}

#[test]
fn a_suspended_service_stays_so_until_it_is_resumed_and_a_page_can_answer() {
    let Some(host) = host() else { return };
    let file = app(&host, "");
    up(&host, &file);
    assert_eq!(page(&host).0, 200);

    let shown = host.write("page.html", "<h1>back at nine</h1>");
    host.moat(&["maintenance", "site", "on", "--page", shown.to_str().unwrap()]).ok();
    let running = instances(&host, "site");
    wait_for("the page", || page(&host) == (503, "<h1>back at nine</h1>".to_owned()));
    assert_eq!(instances(&host, "site")[0]["pid"], running[0]["pid"], "it goes on running");
    host.moat(&["maintenance", "site", "off"]).ok();
    wait_for("the service", || page(&host).0 == 200);
    up(&host, &app(&host, "    maintenanceMode:\n      enabled: true\n"));
    wait_for("the blueprint's maintenance mode", || page(&host).1.contains("maintenance mode"));
    app(&host, "");
    up(&host, &file);
    wait_for("the service", || page(&host).0 == 200);

    host.moat(&["suspend", "site"]).ok();
    assert!(instances(&host, "site").is_empty());
    wait_for("the page of what is suspended", || page(&host).1.contains("suspended"));
    host.kill(host.daemon().unwrap(), "KILL");
    up(&host, &file);
    let ps = host.ps();
    assert_eq!(service(&ps, "site")["state"]["phase"], "suspended");
    assert!(instances(&host, "site").is_empty());
    assert_eq!(host.moat(&["restart", "site"]).code, 1);
    host.moat(&["resume", "site"]).ok();
    assert_eq!(page(&host).0, 200);
    assert_eq!(host.moat(&["resume", "site"]).code, 1, "it is not suspended any more");
    let told = host.moat(&["events", "--service", "site"]).ok().out;
    for (word, times) in [(" maintenance  ", 4), (" suspended  ", 1), (" resumed  ", 1)] {
        assert_eq!(told.matches(word).count(), times, "{word}: {told}");
    }
}

#[test]
fn a_maintenance_page_may_be_at_another_address() {
    let Some(host) = host() else { return };
    // A public address of a machine that this one reaches.
    host.sh("ip address add 93.184.215.14/32 dev lo");
    host.write("status/soon.html", "<h1>back on Monday</h1>");
    let mut status = host.command("python3");
    status.args(["-m", "http.server", "9000", "--bind", "93.184.215.14", "--directory"]).arg(host.path("status"));
    let mut status = status.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mode = |uri: &str| format!("    maintenanceMode:\n      enabled: true\n      uri: http://93.184.215.14:9000/{uri}\n");
    up(&host, &app(&host, &mode("soon.html")));
    wait_for("the page", || page(&host) == (503, "<h1>back on Monday</h1>".to_owned()));
    assert_eq!(instances(&host, "site").len(), 1, "it goes on running");

    // One given by hand comes first; without one it is shown again, as it is by then.
    let own = host.write("own.html", "own");
    host.moat(&["maintenance", "site", "on", "--page", own.to_str().unwrap()]).ok();
    wait_for("the page given by hand", || page(&host) == (503, "own".to_owned()));
    host.write("status/soon.html", "later");
    host.moat(&["maintenance", "site", "on"]).ok();
    wait_for("the page as it is now", || page(&host) == (503, "later".to_owned()));

    // An error there is the answer; a page that can't be had is told, and Moat's own is shown.
    up(&host, &app(&host, &mode("nothing.html")));
    wait_for("the error", || page(&host).0 == 404);
    status.kill().unwrap();
    status.wait().unwrap();
    up(&host, &app(&host, &mode("other.html")));
    wait_for("Moat's own page", || page(&host).1.contains("maintenance mode"));
    wait_for("the notice", || {
        host.moat(&["events"]).ok().out.contains("the maintenance page `http://93.184.215.14:9000/other.html` can't be had")
    });
    up(&host, &app(&host, "    maintenanceMode:\n      enabled: true\n      uri: http://127.0.0.1:8080/\n"));
    wait_for("the notice", || host.moat(&["events"]).ok().out.contains("it is at no public address"));
    up(&host, &app(&host, ""));
    wait_for("the service", || page(&host).0 == 200);
}

#[test]
fn variables_stay_until_they_are_taken_away_and_reach_who_refers_to_them() {
    let Some(host) = host() else { return };
    let text = "    envVars:\n      - key: FIXED\n        value: by blueprint\n      - key: ASKED\n        sync: false\n  - type: worker\n    name: other\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: echo asked=$COPY extra=$EXTRA && sleep 100000\n    envVars:\n      - key: COPY\n        fromService:\n          type: web\n          name: site\n          envVarKey: ASKED\n      - fromGroup: shared\nenvVarGroups:\n  - name: shared\n    envVars:\n      - key: TEAM\n        value: blue\n";
    let file = app(&host, text);
    let path = file.to_str().unwrap();
    host.moat(&["up", "-d", "--set", "ASKED=first", path]).ok();
    assert_eq!(page(&host), (200, "none".to_owned()));
    let other = instances(&host, "other")[0]["id"].clone();

    host.moat(&["env", "set", "site", "GREETING=hi there"]).ok();
    assert_eq!(page(&host), (200, "hi there".to_owned()));
    assert_eq!(instances(&host, "other")[0]["id"], other, "only what it changes is deployed");
    host.moat(&["env", "set", "site", "ASKED=second"]).ok();
    wait_for("the variable where it is referred to", || host.moat(&["logs", "other"]).out.contains("asked=second"));
    // Kept over the next `up`.
    up(&host, &file);
    assert_eq!(page(&host), (200, "hi there".to_owned()));
    assert_eq!(host.moat(&["env", "get", "site", "ASKED"]).ok().out, "second\n");

    // A group's, for all who use it.
    let site = instances(&host, "site")[0]["id"].clone();
    host.moat(&["env", "set", "--group", "shared", "EXTRA=more"]).ok();
    wait_for("the group's variable", || host.moat(&["logs", "other"]).out.contains("extra=more"));
    assert_eq!(instances(&host, "site")[0]["id"], site, "it does not use the group");
    assert_eq!(host.moat(&["env", "get", "--group", "shared", "TEAM"]).ok().out, "blue\n");
    let fixed = host.moat(&["env", "set", "--group", "shared", "TEAM=red"]);
    assert!(fixed.code == 1 && fixed.err.contains("what its blueprint writes"), "{}", fixed.err);
    assert_eq!(host.moat(&["env", "set", "--group", "other", "A=b"]).code, 1);
    host.moat(&["env", "unset", "--group", "shared", "EXTRA"]).ok();
    assert!(!host.moat(&["env", "list", "other"]).ok().out.contains("EXTRA"));

    let list = host.moat(&["env", "list", "site"]).ok().out;
    assert!(list.contains("GREETING=***") && list.contains("RENDER=***  (default)") && !list.contains("hi there"), "{list}");
    assert!(host.moat(&["env", "list", "site", "--show"]).ok().out.contains("GREETING=hi there"));
    let fixed = host.moat(&["env", "set", "site", "FIXED=mine"]);
    assert!(fixed.code == 1 && fixed.err.contains("what its blueprint writes"), "{}", fixed.err);
    assert_eq!(host.moat(&["env", "set", "site", "1BAD=x"]).code, 1);
    host.moat(&["env", "unset", "site", "GREETING"]).ok();
    assert_eq!(page(&host), (200, "none".to_owned()));
    let asked = host.moat(&["env", "unset", "site", "ASKED"]);
    assert!(asked.code == 2 && asked.err.contains("ASKED"), "the blueprint asks for it: {}", asked.err);
    assert_eq!(host.moat(&["env", "get", "site", "ASKED"]).ok().out, "second\n");
}

#[test]
fn a_command_runs_beside_the_service_and_a_cron_job_when_asked() {
    let Some(host) = host() else { return };
    let text = "    envVars:\n      - key: GREETING\n        value: hi\n  - type: cron\n    name: tick\n    runtime: python\n    schedule: \"0 0 1 1 *\"\n    buildCommand: \"true\"\n    startCommand: echo ticked; test -f long && sleep 100000; true\n";
    let file = app(&host, text);
    up(&host, &file);

    let said = host.moat(&["run", "site", "--", "sh", "-c", "echo \"out $GREETING\"; echo err >&2; exit 7"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (7, "out hi\n", "err\n"));
    let said = host.moat(&["run", "site", "--", "ls web.py && echo $GREETING"]).ok();
    assert_eq!(said.out, "web.py\nhi\n");
    assert_eq!(instances(&host, "site").iter().filter(|i| i["purpose"] == "serve").count(), 1);
    let said = host.moat(&["run", "site"]);
    assert!(said.code == 1 && said.err.contains("moat run site -- COMMAND"), "{}", said.err);

    // Ctrl-C ends it.
    let child = host.spawn(&["run", "site", "--", "sleep", "100000"]);
    let jobs = || instances(&host, "site").iter().filter(|i| i["purpose"] == "job").count();
    wait_for("the job", || instances(&host, "site").iter().any(|i| i["purpose"] == "job" && i["pid"].is_u64()));
    let moat = host.processes().into_iter().find(|(_, line)| line.contains("run site -- sleep") && !line.contains("nsenter")).unwrap();
    host.kill(moat.0, "INT");
    assert_eq!(crate::host::Said::from(child.wait_with_output().unwrap()).code, 130);
    wait_for("the job's end", || jobs() == 0);

    // A detached one goes on, over the daemon's end too.
    let id = host.moat(&["run", "--detach", "site", "--", "sleep", "100000"]).ok().out.trim().to_owned();
    wait_for("the job", || instances(&host, "site").iter().any(|i| i["id"] == id.as_str() && i["pid"].is_u64()));
    let pid = |id: &str| instances(&host, "site").iter().find(|i| i["id"] == id).map(|i| i["pid"].clone());
    let before = pid(&id);
    host.kill(host.daemon().unwrap(), "KILL");
    up(&host, &file);
    assert_eq!(pid(&id), before);

    // A cron job runs now; asked for again, it begins anew.
    assert_eq!(host.moat(&["run", "tick"]).ok().out, "ticked\n");
    host.write("app/long", "");
    up(&host, &file);
    let runs = || instances(&host, "tick");
    let first = host.moat(&["run", "--detach", "tick"]).ok().out.trim().to_owned();
    wait_for("the first run", || runs().iter().any(|i| i["id"] == first.as_str() && i["pid"].is_u64()));
    let second = host.moat(&["run", "--detach", "tick"]).ok().out.trim().to_owned();
    wait_for("the second run alone", || runs().len() == 1 && runs()[0]["id"] == second.as_str());
}

#[test]
fn connections_wait_while_a_service_with_a_disk_is_started_anew() {
    let Some(host) = host() else { return };
    let server = "import os, socketserver, time\ntime.sleep(2)\nclass One(socketserver.BaseRequestHandler):\n    def handle(self): self.request.sendall(b'here')\nsocketserver.ThreadingTCPServer.allow_reuse_address = True\nsocketserver.ThreadingTCPServer(('0.0.0.0', 7000), One).serve_forever()\n";
    host.write("app/store.py", server);
    let file = app(
        &host,
        "  - type: pserv\n    name: store\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: python3 store.py\n    envVars:\n      - key: PORT\n        value: 7000\n    disk:\n      name: data\n      mountPath: /data\n",
    );
    up(&host, &file);
    // One connection after the other, until the service was away and is back: none is refused, those of the gap take longer.
    let client = "import socket, sys, time\ncount = longest = 0\nuntil = time.monotonic() + 12\nwhile time.monotonic() < until:\n    began = time.monotonic()\n    with socket.create_connection(('store', 7000), timeout=30) as s:\n        assert s.recv(10) == b'here'\n    count += 1; longest = max(longest, time.monotonic() - began); time.sleep(.01)\nprint(count, longest > 1)\n";
    let child = host.spawn(&["exec", "site", "--", "python3", "-c", client]);
    host.moat(&["restart", "store"]).ok();
    let said = crate::host::Said::from(child.wait_with_output().unwrap()).ok();
    assert!(said.out.trim().ends_with("True"), "{}{}", said.out, said.err);
    // Stopped for good it refuses.
    host.moat(&["suspend", "store"]).ok();
    let refused =
        host.moat(&["exec", "site", "--", "python3", "-c", "import socket; socket.create_connection(('store', 7000), timeout=5)"]);
    assert!(refused.err.contains("ConnectionRefusedError"), "{}", refused.err);
}

#[test]
fn an_unhealthy_instance_is_taken_out_and_started_anew() {
    let Some(host) = host() else { return };
    up(&host, &app(&host, "    healthCheckPath: /healthz\n"));
    let before = instances(&host, "site")[0]["id"].clone();
    host.moat(&["exec", "site", "--", "touch", "/tmp/ill"]).ok();
    assert_eq!(page(&host).0, 200, "not at once");
    wait_for("its end in rotation", || page(&host).0 == 503);
    assert_eq!(instances(&host, "site")[0]["id"], before, "it is given time to come back");
    wait_for("another instance", || page(&host).0 == 200);
    assert_ne!(instances(&host, "site").iter().find(|i| i["ready"] == true).unwrap()["id"], before);
}

#[test]
fn the_number_of_instances_follows_the_load() {
    let Some(host) = host() else { return };
    let text = "services:\n  - type: worker\n    name: burn\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"python3 -c 'while True: pass'\"\n    scaling: {minInstances: 1, maxInstances: 2, targetCPUPercent: 20}\n";
    up(&host, &host.write("app/render.yaml", text));
    assert_eq!(instances(&host, "burn").len(), 1);
    wait_for("a second instance", || instances(&host, "burn").iter().filter(|i| i["ready"] == true).count() == 2);
    let said = host.moat(&["scale", "burn", "1"]);
    assert!(said.code == 1 && said.err.contains("follows its load"), "{}", said.err);
}
