//! `runtime: static`: files that a build made, served by the ingress under their rules; nothing of it on the network.

use crate::host::{Host, Said, example, host, service, wait_for};
use std::fs;
use std::path::PathBuf;

const BUILD: &str = r#"#!/bin/bash
set -e
mkdir -p dist/docs dist/assets dist/.well-known dist/.private
python3 -c 'import sys; print("python", sys.version_info[0])'
node -p '"node here"'
echo "<h1>$GREETING</h1>" > dist/index.html
echo "<p>no such page</p>" > dist/404.html
echo "<p>docs</p>" > dist/docs/index.html
echo "about" > dist/about.html
printf 'body{}' > dist/assets/app.css
printf '0123456789' > dist/digits.txt
node -e 'const z=require("zlib"),f=require("fs"),t="console.log(1);\n".repeat(50);f.writeFileSync("dist/app.js",t);f.writeFileSync("dist/app.js.gz",z.gzipSync(t));f.writeFileSync("dist/app.js.br",z.brotliCompressSync(t))'
head -c 3000000 /dev/urandom > dist/large.bin
sha256sum < dist/large.bin | cut -c1-64 > dist/large.sum
echo secret > dist/.env; echo secret > dist/.private/x; echo contact > dist/.well-known/security.txt
ln -s ../build.sh dist/outside; ln -s /etc/passwd dist/passwd; ln -s assets dist/latest
{ (exec 3<>/dev/tcp/store/6379) 2>/dev/null && echo "store: reached" || echo "store: refused"; } | tee dist/reach.txt
{ (exec 3<>/dev/tcp/api/10000) 2>/dev/null && echo "api: reached" || echo "api: refused"; } | tee -a dist/reach.txt
echo "$RENDER_SERVICE_TYPE $RENDER_EXTERNAL_URL" > dist/env.txt
test "$BREAK" != yes || { echo "this build breaks"; exit 7; }
"#;

/// Variables that are no longer written stay.
const NO_BREAK: &str = "      - {key: BREAK, value: 'no'}";

fn blueprint(more: &str) -> String {
    format!(
        r"
services:
  - type: web
    name: pages
    runtime: static
    rootDir: web
    buildCommand: bash build.sh
    staticPublishPath: ./dist
    envVars:
      - {{key: GREETING, value: hello}}
{more}
    headers:
      - {{path: /*, name: X-Everywhere, value: 'yes'}}
      - {{path: /assets/*, name: Cache-Control, value: 'public, max-age=31536000, immutable'}}
      - {{path: '/*.css', name: X-Top, value: 'no'}}
    routes:
      - {{type: redirect, source: /old/*, destination: /docs/*}}
      - {{type: redirect, source: '/go/:where', destination: 'https://example.com/:where'}}
      - {{type: rewrite, source: /api/*, destination: 'https://api.onrender.com/:splat'}}
      - {{type: rewrite, source: /assets/app.css, destination: /index.html}}
      - {{type: rewrite, source: /app/*, destination: /index.html}}
  - type: web
    name: api
    runtime: python
    buildCommand: echo from-the-api > page
    startCommand: python3 -m http.server $PORT
    maxShutdownDelaySeconds: 1
  - {{type: keyvalue, name: store, ipAllowList: []}}
"
    )
}

/// A request as it is written, and the answer: status line and headers in lower case, and the body.
fn raw(host: &Host, path: &str, more: &[&str]) -> (String, Vec<u8>) {
    let (head, body) = (host.path("head"), host.path("body"));
    let mut command = host.command("curl");
    command.args(["-s", "--path-as-is", "--max-time", "20", "-H", "Host: pages.localhost", "-D"]).arg(&head).arg("-o").arg(&body);
    let _ = fs::remove_file(&body);
    let url = format!("http://127.0.0.1:8080{path}");
    assert!(command.args(more).arg(url).status().unwrap().success(), "{path} {more:?}");
    (fs::read_to_string(head).unwrap().to_lowercase(), fs::read(body).unwrap_or_default())
}

#[track_caller]
fn shows(said: &Said, words: &[&str]) {
    let text = format!("{}{}", said.out, said.err);
    for word in words {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
}

#[track_caller]
fn answers(host: &Host, path: &str, more: &[&str], status: u16, words: &[&str]) -> Vec<u8> {
    let (head, body) = raw(host, path, more);
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{path} {more:?}: {head}\n{}", String::from_utf8_lossy(&body));
    for word in words {
        assert!(head.contains(&word.to_lowercase()), "{path} {more:?}: `{word}` is missing:\n{head}");
    }
    body
}

fn releases(host: &Host) -> Vec<PathBuf> {
    let all = fs::read_dir(host.path("state/releases")).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("pages-")).collect()
}

fn etag(head: &str) -> String {
    head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap_or_else(|| panic!("no tag: {head}")).trim().to_owned()
}

#[test]
fn a_site_is_built_published_and_served_by_its_rules() {
    let Some(host) = host() else { return };
    host.write("shop/web/build.sh", BUILD);
    let file = host.write("shop/render.yaml", &blueprint(""));
    let file = file.to_str().unwrap();
    let before = host.inventory();
    shows(&host.moat(&["plan", file]).ok(), &["bash build.sh", "web/./dist"]);
    let up = host.moat(&["up", "-d", file]).ok();
    shows(&up, &["pages", "not published, since they lead out of the folder", "`outside`", "`passwd`"]);

    // Files, folders, types.
    assert_eq!(answers(&host, "/", &[], 200, &["content-type: text/html; charset=utf-8", "x-everywhere: yes"]), b"<h1>hello</h1>\n");
    answers(&host, "/docs", &[], 301, &["location: /docs/\r"]);
    answers(&host, "/docs?a=b", &[], 301, &["location: /docs/?a=b\r"]);
    assert_eq!(answers(&host, "/docs/", &[], 200, &[]), b"<p>docs</p>\n");
    assert_eq!(answers(&host, "/about", &[], 200, &[]), b"about\n");
    assert_eq!(answers(&host, "/latest/app.css", &[], 200, &["content-type: text/css"]), b"body{}");
    assert_eq!(answers(&host, "/.well-known/security.txt", &[], 200, &[]), b"contact\n");
    assert_eq!(answers(&host, "/nowhere", &[], 404, &["content-type: text/html"]), b"<p>no such page</p>\n");
    answers(&host, "/digits.txt", &["-I"], 200, &["content-length: 10\r"]);
    answers(&host, "/digits.txt", &["-X", "POST", "-d", "x"], 405, &["allow: get, head"]);
    let env = String::from_utf8(answers(&host, "/env.txt", &[], 200, &[])).unwrap();
    assert_eq!(env, "static http://pages.localhost:8080\n");

    // Rules.
    answers(&host, "/old/a/b?c", &[], 301, &["location: /docs/a/b?c\r"]);
    answers(&host, "/go/there", &[], 301, &["location: https://example.com/there\r"]);
    assert_eq!(answers(&host, "/app/any/where", &[], 200, &[]), b"<h1>hello</h1>\n");
    assert_eq!(answers(&host, "/assets/app.css", &[], 200, &["cache-control: public, max-age=31536000, immutable"]), b"body{}");
    assert_eq!(answers(&host, "/api/page", &[], 200, &[]), b"from-the-api\n");
    answers(&host, "/api/none", &[], 404, &["server: simplehttp"]);

    // Validators, parts, codings.
    let (head, _) = raw(&host, "/digits.txt", &[]);
    let tag = etag(&head);
    answers(&host, "/digits.txt", &["-H", &format!("If-None-Match: {tag}")], 304, &["etag: "]);
    assert_eq!(answers(&host, "/digits.txt", &["-H", "Range: bytes=2-4"], 206, &["content-range: bytes 2-4/10"]), b"234");
    let parts = answers(&host, "/digits.txt", &["-H", "Range: bytes=0-1,-2"], 206, &["multipart/byteranges"]);
    let parts = String::from_utf8(parts).unwrap();
    assert!(parts.contains("bytes 0-1/10\r\n\r\n01\r\n") && parts.contains("bytes 8-9/10\r\n\r\n89\r\n"), "{parts}");
    answers(&host, "/digits.txt", &["-H", "Range: bytes=10-"], 416, &["content-range: bytes */10"]);
    let plain = answers(&host, "/app.js", &[], 200, &["vary: accept-encoding", "content-type: text/javascript"]);
    for coding in ["br", "gzip"] {
        let coded =
            answers(&host, "/app.js", &["-H", &format!("Accept-Encoding: {coding}")], 200, &[&format!("content-encoding: {coding}")]);
        assert!(coded.len() < plain.len());
    }
    assert_eq!(answers(&host, "/app.js", &["--compressed"], 200, &["content-encoding: "]), plain);
    let large = answers(&host, "/large.bin", &[], 200, &["content-length: 3000000"]);
    fs::write(host.path("large"), large).unwrap();
    let sum = String::from_utf8(answers(&host, "/large.sum", &[], 200, &[])).unwrap();
    assert_eq!(host.sh(&format!("sha256sum < {} | cut -c1-64", host.path("large").display())).out, sum);

    // Nothing outside the folder, nothing hidden.
    for (path, status) in [
        ("/../../../../etc/passwd", 400),
        ("/..%2f..%2f..%2fetc/passwd", 400),
        ("/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/docs/../.env", 400),
        ("/%00", 400),
        ("/passwd", 404),
        ("/outside", 404),
        ("/.env", 404),
        ("/.private/x", 404),
        ("//etc/passwd", 404),
        ("/docs//index.html", 404),
        ("/latest/../../sealed", 400),
    ] {
        let body = answers(&host, path, &[], status, &[]);
        let body = String::from_utf8_lossy(&body);
        assert!(!body.contains("root:") && !body.contains("secret") && !body.contains("set -e"), "{path}: {body}");
    }
    answers(&host, "/old/%0d%0aset-cookie:%20a", &[], 301, &["location: /docs/%0d%0aset-cookie:%20a\r"]);
    answers(&host, "/old//example.com/", &[], 301, &["location: /docs//example.com/\r"]);

    // What the build could reach, and what is said of it.
    let reach = String::from_utf8(answers(&host, "/reach.txt", &[], 200, &[])).unwrap();
    assert_eq!(reach, "store: refused\napi: refused\n");
    for (from, to, word) in [
        ("internet", "pages", "public-site"),
        ("ingress", "pages", "not-on-the-network"),
        ("api", "pages", "not-on-the-network"),
        ("pages", "store", "sends-nothing"),
        ("build:pages", "store:6379", "not-on-the-network"),
        ("build:pages", "internet", "default-egress"),
    ] {
        shows(&host.moat(&["explain", from, to]), &[word]);
    }
    shows(&host.moat(&["logs", "pages"]).ok(), &["python 3", "node here", "store: refused"]);
    let ps = host.ps();
    let pages = service(&ps, "pages");
    assert_eq!((pages["state"]["kind"].as_str(), pages["state"]["phase"].as_str()), (Some("static"), Some("live")), "{pages}");
    assert_eq!(pages["url"], "http://pages.localhost:8080");
    assert!(pages["address"].is_null() && pages["internal"].is_null() && pages["instances"].as_array().unwrap().is_empty(), "{pages}");
    shows(&host.moat(&["ps"]).ok(), &["static site", "http://pages.localhost:8080"]);
    assert_ne!(host.moat(&["exec", "pages", "--", "true"]).code, 0);
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // A deploy replaces all of it at once: no request fails, or gets a mixture.
    let first = releases(&host);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(!first[0].join("project").exists(), "what was not published is gone");
    host.write("shop/web/build.sh", &BUILD.replace("<h1>$GREETING</h1>", "<h1>$GREETING again</h1>"));
    let script = format!(
        "cd {}; while test ! -e stop; do curl -s -w ' %{{http_code}}\\n' -H 'Host: pages.localhost' http://127.0.0.1:8080/; done > asked",
        host.path("").display()
    );
    let mut asking = host.command("bash").args(["-c", &script]).spawn().unwrap();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello again</h1>\n");
    host.write("stop", "");
    asking.wait().unwrap();
    let asked = fs::read_to_string(host.path("asked")).unwrap().replace("</h1>\n 200", "</h1> 200");
    let odd: Vec<&str> = asked.lines().filter(|line| !["<h1>hello</h1> 200", "<h1>hello again</h1> 200"].contains(line)).collect();
    assert!(odd.is_empty() && asked.contains("hello</h1>"), "{odd:?} of {}", asked.lines().count());
    let (head, _) = raw(&host, "/digits.txt", &[]);
    assert_eq!(etag(&head), tag, "an unchanged file keeps its tag");
    assert_eq!(releases(&host).len(), 2, "the old one can be gone back to");
    host.moat(&["rollback", "pages"]).ok();
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello</h1>\n");
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello again</h1>\n");

    // A build that fails, and one that leaves nothing: what was there stays.
    host.write("shop/render.yaml", &blueprint("      - {key: BREAK, value: 'yes'}"));
    let failed = host.moat(&["up", "-d", file]);
    assert_eq!(failed.code, 1, "{failed:?}");
    shows(&failed, &["its build exited with status 7", "this build breaks", "what ran before stays"]);
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello again</h1>\n");
    host.write("shop/render.yaml", &blueprint(NO_BREAK).replace("./dist", "build"));
    let missing = host.moat(&["up", "-d", file]);
    assert_eq!(missing.code, 1, "{missing:?}");
    shows(&missing, &["publish `build`", "the build made no such folder", "`dist`", "did you mean `staticPublishPath: dist`?"]);
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello again</h1>\n");
    host.write("shop/render.yaml", &blueprint(NO_BREAK));
    host.moat(&["up", "-d", file]).ok();

    // The next daemon serves it without a build.
    host.kill(host.daemon().unwrap(), "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(answers(&host, "/", &[], 200, &[]), b"<h1>hello again</h1>\n");
    assert_eq!(service(&host.ps(), "pages")["state"]["phase"], "live");

    host.moat(&["down", file]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

#[test]
fn the_example_and_a_plain_folder() {
    let Some(host) = host() else { return };
    let file = example(&host, "site");
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let get = |path: &str| host.http(8080, "site.localhost", path);
    assert!(get("/").1.contains("A site by Moat"));
    assert!(get("/api/now").1.starts_with("it is "), "{:?}", get("/api/now"));
    assert_eq!(get("/blog/files").0, 301);
    assert!(get("/pages/files").1.contains("Served without an instance"));
    let (status, page) = get("/pages/none");
    assert!(status == 404 && page.contains("Not here"), "{status} {page}");

    // No build: the files of the source, but what is hidden, and a command before the deploy that sees the source.
    let plain = "
services:
  - type: web
    name: plain
    runtime: static
    staticPublishPath: .
    preDeployCommand: grep -q first index.html && touch /tmp/looked && echo the page is there
";
    host.write("plain/index.html", "first");
    host.write("plain/.env", "secret");
    let file = host.write("plain/render.yaml", plain);
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(host.http(8080, "plain.localhost", "/"), (200, "first".to_owned()));
    assert_eq!(host.http(8080, "plain.localhost", "/.env").0, 404);
    shows(&host.moat(&["logs", "plain"]).ok(), &["the page is there"]);
    host.write("plain/index.html", "second");
    let refused = host.moat(&["up", "-d", file]);
    assert_eq!(refused.code, 1, "{refused:?}");
    shows(&refused, &["its pre-deploy command exited with status 1", "what ran before stays"]);
    assert_eq!(host.http(8080, "plain.localhost", "/"), (200, "first".to_owned()));

    host.write("plain/index.html", "first");
    host.moat(&["up", "-d", file]).ok();

    // No longer named, and removed when that is asked for.
    host.write("plain/render.yaml", "services: [{type: web, name: other, runtime: static, staticPublishPath: .}]");
    host.moat(&["up", "-d", file]).ok();
    assert_eq!((host.http(8080, "plain.localhost", "/").0, host.http(8080, "other.localhost", "/").1.as_str()), (200, "first"));
    host.moat(&["up", "-d", "--prune", file]).ok();
    wait_for("the site's end", || host.http(8080, "plain.localhost", "/").0 == 404);
}
