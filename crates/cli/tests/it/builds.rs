//! Builds as people write them: each of the package managers that a build finds without installing it, folders of one
//! repository, migrations before a deploy, all with their packages from the registries.

use crate::host::{Host, host, service};
use std::fmt::Write as _;

/// Answers with a value of its own.
const SERVE_PY: &str = r#"
import http.server, json, os, subprocess, sys
from itsdangerous import Signer

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        said = {"tool": os.environ["TOOL"], "package": Signer("k").sign("v").decode()[:2], "prefix": sys.prefix}
        self.wfile.write(json.dumps(said).encode())

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Page).serve_forever()
"#;

const SERVE_JS: &str = r#"
const ms = require("ms");
const built = require("./built.json");
require("http").createServer((_, answer) => {
  answer.end(JSON.stringify({ tool: process.env.TOOL, package: ms("2 days"), agent: built.agent, mode: process.env.NODE_ENV }));
}).listen(process.env.PORT, "0.0.0.0");
"#;

/// Written by a `build` script, with the name and version of the package manager that ran it.
const BUILD_JS: &str = r#"
require("fs").writeFileSync("built.json", JSON.stringify({ agent: process.env.npm_config_user_agent.split(" ")[0] }));
"#;

/// A project in the manner of the large frameworks: `manage.py migrate` before each deploy.
const MANAGE_PY: &str = r#"
import sys
from store import connect
assert sys.argv[1] == "migrate"
with connect() as db:
    db.run("create table if not exists visits (id serial)")
    db.run("insert into visits default values")
print("migrated")
"#;

const STORE_PY: &str = r#"
import contextlib, os, ssl, urllib.parse
import pg8000.native

@contextlib.contextmanager
def connect():
    url = urllib.parse.urlparse(os.environ["DATABASE_URL"])
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    db = pg8000.native.Connection(url.username, url.hostname, url.path[1:], url.port or 5432, urllib.parse.unquote(url.password), ssl_context=trust)
    yield db
    db.close()
"#;

const APP_PY: &str = r#"
import json, os, urllib.request
from store import connect

def app(environ, start_response):
    with connect() as db:
        said = {"visits": db.run("select count(*) from visits")[0][0], "tables": db.run("select n from built")[0][0]}
    for name in os.environ["ASKS"].split():
        with urllib.request.urlopen("http://" + os.environ[name.upper()], timeout=10) as answer:
            said[name] = json.load(answer)
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(said).encode()]
"#;

const PYPROJECT: &str = r#"
[project]
name = "thing"
version = "1.0"
requires-python = ">=3.9,<4"
dependencies = ["itsdangerous==2.2.0"]

[tool.poetry]
package-mode = false

# As with a company's own index, which has pages and no more.
[[tool.poetry.source]]
name = "index"
url = "https://pypi.org/simple/"
priority = "primary"
"#;

/// Name, runtime, build command, start command, further variables.
const SERVICES: [(&str, &str, &str, &str, &str); 5] = [
    ("poet", "python", "poetry install --no-interaction", "poetry run python serve.py", ""),
    ("quick", "python", "./build.sh", "uv run --no-sync serve.py", "{key: UV_VERSION, value: 0.7.22}"),
    ("plain", "node", "npm install && npm run build", "npm start", ""),
    ("classic", "node", "yarn && yarn build", "yarn start", ""),
    ("store", "node", "corepack enable && pnpm install && pnpm build", "pnpm start", ""),
];

fn blueprint() -> String {
    let mut text = String::from("services:\n");
    let mut asks = String::new();
    for (name, runtime, build, start, more) in SERVICES {
        // Writing to a text does not fail.
        let _ = writeln!(
            text,
            "  - {{type: pserv, name: {name}, runtime: {runtime}, rootDir: services/{name}, buildCommand: '{build}', startCommand: '{start}', envVars: [{{key: TOOL, value: {name}}}, {more}]}}"
        );
        let key = name.to_uppercase();
        let _ = writeln!(asks, "      - {{key: {key}, fromService: {{type: pserv, name: {name}, property: hostport}}}}");
    }
    let _ = write!(
        text,
        r#"  - {{type: worker, name: clerk, runtime: python, rootDir: services/quick, buildCommand: ./build.sh, startCommand: 'uv run --no-sync python -c "import itsdangerous, time; print(1); time.sleep(100000)"', envVars: [{{key: UV_VERSION, value: 0.7.22}}]}}
  - type: web
    name: front
    runtime: python
    rootDir: ./front
    buildCommand: |
      pip install -r requirements.txt
      python -c 'from store import *
      with connect() as db: db.run("create table if not exists built (n int)"), db.run("insert into built values (7)")'
    preDeployCommand: python manage.py migrate
    startCommand: gunicorn app:app
    healthCheckPath: /
    envVars:
      - {{key: DATABASE_URL, fromDatabase: {{name: records, property: connectionString}}}}
      - {{key: ASKS, value: "{names}"}}
{asks}databases:
  - name: records
"#,
        names = SERVICES.map(|(name, ..)| name).join(" ")
    );
    text
}

fn write_sources(host: &Host) -> std::path::PathBuf {
    host.write("shop/front/requirements.txt", "gunicorn==23.0.0\npg8000==1.31.2\nscramp==1.4.5\n");
    for (name, text) in [("manage.py", MANAGE_PY), ("store.py", STORE_PY), ("app.py", APP_PY)] {
        host.write(&format!("shop/front/{name}"), text);
    }
    for (name, runtime, ..) in SERVICES {
        let folder = format!("shop/services/{name}");
        if runtime == "python" {
            host.write(&format!("{folder}/serve.py"), SERVE_PY);
            host.write(&format!("{folder}/pyproject.toml"), PYPROJECT);
        } else {
            host.write(&format!("{folder}/serve.js"), SERVE_JS);
            host.write(&format!("{folder}/build.js"), BUILD_JS);
            let manager = if name == "store" {
                r#""packageManager": "pnpm@9.15.9+sha512.68046141893c66fad01c079231128e9afb89ef87e2691d69e4d40eee228988295fd4682181bae55b58418c3a253bde65a505ec7c5f9403ece5cc3cd37dcf2531","#
            } else {
                ""
            };
            host.write(
                &format!("{folder}/package.json"),
                &format!(r#"{{"name": "{name}", "private": true, {manager} "scripts": {{"build": "node build.js", "start": "node serve.js"}}, "dependencies": {{"ms": "2.1.3"}}}}"#),
            );
        }
    }
    let script = host.write("shop/services/quick/build.sh", "#!/bin/sh\nset -e\nuv --version\nuv sync --no-dev\n");
    host.sh(&format!("chmod +x {}", script.display())).ok();
    host.write("shop/render.yaml", &blueprint())
}

#[test]
fn every_package_manager_builds_and_runs_what_its_users_write() {
    let Some(host) = host() else { return };
    let _online = host.online();
    let file = write_sources(&host);
    let up = host.moat(&["up", "-d", file.to_str().unwrap()]);
    assert_eq!(up.code, 0, "{}\n{}", up.out, up.err);

    let (status, body) = host.http(8080, "front.localhost", "/");
    assert_eq!(status, 200, "{body}");
    let said: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((said["visits"].as_u64(), said["tables"].as_u64()), (Some(1), Some(7)), "{said}");
    for tool in ["poet", "quick"] {
        assert_eq!(said[tool]["package"], "v.", "{said}");
        assert_eq!(said[tool]["prefix"], "/opt/render/project/src/.venv", "{said}");
    }
    for (tool, agent) in [("plain", "npm/"), ("classic", "yarn/1.22."), ("store", "pnpm/9.15.9")] {
        assert_eq!((&said[tool]["package"], &said[tool]["mode"]), (&172_800_000.into(), &"production".into()), "{said}");
        assert!(said[tool]["agent"].as_str().unwrap().starts_with(agent), "{said}");
    }
    assert!(host.moat(&["logs", "front"]).ok().out.contains("migrated"));
    let clerk = host.ps();
    assert_eq!(service(&clerk, "clerk")["state"]["phase"], "live");

    // Each tool is there once, belongs to nobody who could change it, and knows nothing of whom it was installed by.
    let tools = host.sh(&format!("cd {} && ls -d +*", host.path("state/releases").display())).ok().out;
    let mut names: Vec<&str> = tools.lines().map(|name| name.rsplit_once('-').unwrap().0).collect();
    names.sort_unstable();
    assert_eq!(names, ["+pnpm", "+poetry", "+uv", "+yarn"], "{tools}");
    let others = host.sh(&format!("find {}/+* ! -user 0 | head -3", host.path("state/releases").display())).ok().out;
    assert_eq!(others, "");
    let written = host.moat(&["exec", "quick", "--", "sh", "-c", "touch $(dirname $(command -v uv))/x; command -v uv; uv --version"]);
    assert!(written.out.contains("/opt/render/tools/+uv-") && written.out.contains("uv 0.7.22"), "{written:?}");
    assert!(written.err.contains("Read-only file system"), "{written:?}");
}
