//! Languages that the machine does not have: their official images are pulled, built with and run over.

use crate::host::{Host, Said, host, service, wait_for};
use crate::images::registry;
use moat_testkit::images::{Recipe, layout};
use std::process::Stdio;

/// As `python:3.11.2`: its tag says its version, its `PATH` has it.
const PYTHON: Recipe = Recipe {
    name: "python",
    packages: &[
        "libpython3-stdlib",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
        "media-types",
        "python3",
        "python3-minimal",
        "python3-venv",
        "python3.11",
        "python3.11-minimal",
    ],
    links: &[("/usr/bin/python", "python3")],
    env: &[("PYTHON_VERSION", "3.11.2")],
    cmd: &["python3"],
    ..Recipe::BARE
};

/// As `node:18`.
const NODE: Recipe = Recipe { name: "node", packages: &["nodejs"], cmd: &["node"], ..Recipe::BARE };

const APP: &str = r#"
import http.server, json, os, sys, urllib.request
import thing

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with urllib.request.urlopen("http://" + os.environ["SCRIPT"], timeout=10) as answer:
            script = json.load(answer)
        said = {"version": sys.version.split()[0], "prefix": sys.prefix, "thing": thing.VALUE, "script": script,
                "user": os.getuid(), "git": os.path.exists("/usr/bin/git"), "cwd": os.getcwd()}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Page).serve_forever()
"#;

const SCRIPT: &str = r#"
const built = require("./built.json");
require("http").createServer((_, answer) => answer.end(JSON.stringify({ now: process.version, built }))).listen(process.env.PORT, "0.0.0.0");
"#;

const BLUEPRINT: &str = r#"
services:
  - type: web
    name: app
    runtime: python
    rootDir: app
    buildCommand: pip install --no-index --no-build-isolation ./thing
    startCommand: python app.py
    envVars:
      - {key: PYTHON_VERSION, value: 3.11.2}
      - {key: SCRIPT, fromService: {type: pserv, name: script, property: hostport}}
  - type: pserv
    name: script
    runtime: node
    rootDir: script
    buildCommand: node -e 'require("fs").writeFileSync("built.json", JSON.stringify(process.version))'
    startCommand: node serve.js
"#;

/// `moat` as it is on a machine that has no Python, and Node only as the system has it.
fn moat(host: &Host, mirrors: &str, args: &[&str]) -> Said {
    let mut command = host.moat_command(args);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", host.path("home")).env("MOAT_REGISTRY_MIRRORS", mirrors);
    command.stdin(Stdio::null()).output().expect("moat").into()
}

#[test]
fn a_language_that_is_missing_comes_from_its_image() {
    let Some(host) = host() else { return };
    host.sh("for python in /usr/bin/python3.[0-9]* /usr/local/bin/python3*; do test ! -f $python || mount --bind /dev/null $python; done")
        .ok();
    let (python, node) = (layout(&PYTHON).unwrap(), layout(&NODE).unwrap());
    let registry = registry(&host, &[("library/python:3.11.2", &python), ("library/node:18", &node)]);
    let mirrors = format!("docker.io={}", registry.address);
    host.write("shop/app/app.py", APP);
    host.write("shop/app/thing/setup.py", "from setuptools import setup\nsetup(name='thing', version='1', py_modules=['thing'])\n");
    host.write("shop/app/thing/thing.py", "VALUE = 41 + 1\n");
    host.write("shop/script/serve.js", SCRIPT);
    host.write("shop/script/.nvmrc", "18\n");
    let file = host.write("shop/render.yaml", BLUEPRINT);
    let file = file.to_str().unwrap();

    for verb in ["check", "plan"] {
        let said = moat(&host, &mirrors, &[verb, file]).ok();
        let said = format!("{}{}", said.out, said.err);
        for image in ["`docker.io/library/python:3.11.2` is used", "`docker.io/library/node:18` is used"] {
            assert!(said.contains("N0310") && said.contains(image), "{verb}: {said}");
        }
    }
    let before = host.inventory();
    let up = moat(&host, &mirrors, &["up", "-d", file]);
    assert_eq!(up.code, 0, "{}\n{}", up.out, up.err);
    assert!(up.err.contains("`docker.io/library/python:3.11.2` is used"), "{}", up.err);

    let (status, body) = host.http(8080, "app.localhost", "/");
    assert_eq!(status, 200, "{body}");
    let said: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&said["version"], &said["thing"]), (&"3.11.2".into(), &42.into()), "{said}");
    assert_eq!((&said["prefix"], &said["cwd"]), (&"/opt/render/project/src/.venv".into(), &"/opt/render/project/src/app".into()), "{said}");
    assert_eq!((&said["user"], &said["git"]), (&1000.into(), &false.into()), "the machine's own programs show: {said}");
    let [now, built] = ["now", "built"].map(|key| said["script"][key].as_str().unwrap().to_owned());
    assert!(now.starts_with("v18.") && now == built, "{said}");

    // Commands run in it as in every sandbox, nothing of the image can be written, and its signal reaches the program.
    let inside = moat(&host, &mirrors, &["exec", "app", "--", "sh", "-c", "python --version; touch /usr/bin/x; id -un"]);
    assert!(
        inside.out.contains("Python 3.11.2") && inside.out.contains("render") && inside.err.contains("Permission denied"),
        "{inside:?}"
    );
    moat(&host, &mirrors, &["verify"]).ok();

    // The release says which image it is over, and that image is kept for it.
    let locks = host.sh(&format!("cat {}/app-*/lock.json", host.path("state/releases").display())).ok().out;
    let lock: serde_json::Value = serde_json::from_str(&locks).unwrap();
    assert_eq!(lock["image"]["reference"], "docker.io/library/python:3.11.2");
    let id = lock["image"]["image"].as_str().unwrap();
    assert!(id.starts_with("sha256:"), "{lock}");
    moat(&host, &mirrors, &["image", "prune"]).ok();
    let listed = moat(&host, &mirrors, &["image", "list", "--output", "json"]).ok().out;
    assert!(listed.contains(id), "{listed}");

    // Without the registry, what is unchanged stays as it is, and what is changed is built over the image that is here.
    drop(registry);
    let pid = service(&host.ps(), "app")["instances"][0]["pid"].clone();
    moat(&host, &mirrors, &["up", "-d", file]).ok();
    assert_eq!(service(&host.ps(), "app")["instances"][0]["pid"], pid);
    host.write("shop/app/thing/thing.py", "VALUE = 43\n");
    let again = moat(&host, &mirrors, &["up", "-d", file]).ok();
    assert!(again.err.contains("using the image that is here"), "{}", again.err);
    let (_, body) = host.http(8080, "app.localhost", "/");
    assert!(body.contains("\"thing\": 43"), "{body}");

    // What is neither here nor to be had is said with both ways out; a file's wish is not an order.
    host.write("shop/render.yaml", &BLUEPRINT.replace("3.11.2", "3.9.1"));
    host.write("shop/script/.nvmrc", "16.1.0\n");
    let failed = moat(&host, &mirrors, &["up", "-d", file]);
    assert_ne!(failed.code, 0);
    for words in
        ["docker.io/library/python:3.9.1", "MOAT_REGISTRY_MIRRORS", "what ran before stays", "`script/.nvmrc` asks for node 16.1.0"]
    {
        assert!(failed.err.contains(words), "{words}: {}", failed.err);
    }
    let (_, body) = host.http(8080, "app.localhost", "/");
    assert!(body.contains("\"thing\": 43") && !body.contains("v18."), "{body}");

    moat(&host, &mirrors, &["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
    let left: Vec<_> = host.inventory().difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
}
