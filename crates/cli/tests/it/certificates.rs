//! Certificates of servers that give them by themselves (RFC 8555), by two that nobody here wrote; and where names must lead for that.

use crate::edge::{check, sh};
use crate::host::{Host, host, wait_for};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const CUSTOM: &str = r"
services:
  - type: web
    name: pages
    runtime: static
    buildCommand: mkdir dist && echo hello > dist/index.html
    staticPublishPath: dist
    domains: [shop.example.org, '*.wild.example.org']
";

/// Where pebble's names of the world outside are.
const NAMES: &str = "127.0.0.1:8053";

/// A server of certificates that looks at names at this machine's ports.
struct Server {
    processes: Vec<Child>,
    /// Its directory.
    url: &'static str,
    /// The file with the authority that its own certificate is trusted by.
    root: &'static str,
    /// Where it looks, for HTTP and HTTPS.
    ports: (u16, u16),
    /// A word of who signs.
    signer: &'static str,
    /// What it writes down, a line of it that says of an account that it was made, and one of an order.
    log: (&'static str, &'static str, &'static str),
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a program of the machine, with its output in a file.
fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = std::fs::File::create(log).unwrap();
    let program = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}: `cargo xtask test` installs it"))
}

/// A server of names that answers 127.0.0.1, or another address, for every name.
fn names(host: &Host, port: &str, address: &str) -> Child {
    let mut arguments = vec!["-dns01", port, "-defaultIPv4", address];
    for off in ["-http01", "-https01", "-tlsalpn01", "-management", "-defaultIPv6"] {
        arguments.extend([off, ""]);
    }
    let child = spawn(host.command("pebble-challtestsrv").args(arguments), &host.path("names.log"));
    wait_for("its names", || !sh(host, &format!("ss -Hlun 'sport = {port}'")).out.is_empty());
    child
}

/// Debian's pebble, whose certificates last so many seconds.
fn pebble(host: &Host, lasts: u64) -> Server {
    sh(
        host,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN=pebble \
         -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout pebble-key.pem -out pebble.pem",
    )
    .ok();
    let path = |name: &str| host.path(name).display().to_string();
    let settings = serde_json::json!({ "pebble": {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
        "certificate": path("pebble.pem"), "privateKey": path("pebble-key.pem"),
        "httpPort": 8080, "tlsPort": 8443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        "certificateValidityPeriod": lasts,
    }});
    host.write("pebble.json", &settings.to_string());
    let names = names(host, ":8053", "127.0.0.1");
    let mut command = host.command("pebble");
    command.args(["-config", &path("pebble.json"), "-dnsserver", NAMES]);
    // Each order is proved.
    command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
    let server = spawn(&mut command, &host.path("pebble.log"));
    wait_for("pebble", || sh(host, "curl -sk https://127.0.0.1:14000/dir").out.contains("newOrder"));
    sh(host, "curl -sk https://127.0.0.1:15000/roots/0 > authority.pem").ok();
    Server {
        processes: vec![names, server],
        url: "https://localhost:14000/dir",
        root: "pebble.pem",
        ports: (8080, 8443),
        signer: "Pebble",
        log: ("pebble.log", "accounts in memory", "orders in the db"),
    }
}

/// Caddy's own authority. It looks at the ports of the world, by the machine's names.
fn caddy(host: &Host) -> Option<Server> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin/caddy");
    if !program.exists() {
        println!("skipped: there is no {}; `cargo xtask test` installs it", program.display());
        return None;
    }
    let hosts = host.write("hosts", "127.0.0.1 localhost shop.example.org\n");
    sh(host, &format!("mount --bind {} /etc/hosts", hosts.display())).ok();
    let settings = format!(
        "{{\n admin off\n skip_install_trust\n auto_https disable_redirects\n http_port 14080\n https_port 14443\n}}\n\
         https://localhost:14443 {{\n bind 127.0.0.1\n tls internal\n log {{\n  output file {}\n }}\n acme_server\n}}\n",
        host.path("access.log").display()
    );
    let settings = host.write("Caddyfile", &settings);
    let mut command = host.command(program);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(settings).env("HOME", host.path("")).env_remove("XDG_DATA_HOME");
    let server = spawn(&mut command, &host.path("caddy.log"));
    wait_for("caddy", || sh(host, "curl -sk https://localhost:14443/acme/local/directory").out.contains("newOrder"));
    sh(host, "cp .local/share/caddy/pki/authorities/local/root.crt authority.pem").ok();
    Some(Server {
        processes: vec![server],
        url: "https://localhost:14443/acme/local/directory",
        root: "authority.pem",
        ports: (80, 443),
        signer: "Caddy",
        log: ("access.log", "/acme/local/new-account", "/acme/local/new-order"),
    })
}

impl Server {
    /// Has Moat serve [`CUSTOM`] at its ports, and ask it for certificates.
    fn used(&self, host: &Host, more: &[&str]) {
        let file = host.write("shop/render.yaml", CUSTOM);
        let (http, https) = (format!("127.0.0.1:{}", self.ports.0), format!("127.0.0.1:{}", self.ports.1));
        host.moat(&["up", "-d", "--listen", &http, "--listen-tls", &https, file.to_str().unwrap()]).ok();
        let (acme, root) = (format!("acme={}", self.url), format!("acme-root={}", host.path(self.root).display()));
        host.moat(&[&["ingress", &acme, &root], more].concat()).ok();
    }

    /// Serial number and signer of the certificate that clients are shown.
    fn shown(&self, host: &Host) -> String {
        let port = self.ports.1;
        sh(host, &format!("openssl s_client -connect 127.0.0.1:{port} -servername shop.example.org </dev/null 2>/dev/null | openssl x509 -noout -serial -issuer")).out
    }

    /// A URL of the name at HTTPS, or at HTTP.
    fn at(&self, secure: bool) -> String {
        match (secure, self.ports) {
            (true, (_, 443)) => "https://shop.example.org/".to_owned(),
            (true, (_, port)) => format!("https://shop.example.org:{port}/"),
            (false, (port, _)) => format!("http://shop.example.org:{port}/"),
        }
    }

    /// How many accounts and orders were made.
    fn made(&self, host: &Host) -> (usize, usize) {
        let log = std::fs::read_to_string(host.path(self.log.0)).unwrap();
        let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        (lines(self.log.1), lines(self.log.2))
    }
}

/// What people were told.
fn told(host: &Host, kind: &str) -> String {
    host.moat(&["events", "--kind", kind]).ok().out
}

/// From nothing to a second certificate, by both ways of proof and the one account.
fn gives(host: &Host, server: &Server) {
    server.used(host, &["acme-proof=http", "acme-contact=first@example.org"]);
    wait_for("a certificate by an answer", || server.shown(host).contains(server.signer));
    check(host, &server.at(true), &[], "hello [2 200 ]");
    check(host, &server.at(false), &[], &format!("[1.1 301 {}]", server.at(true)));
    let listed = host.moat(&["cert", "list"]).ok().out;
    assert!(listed.contains("acme") && !listed.contains("wild"), "a wildcard is not asked for: {listed}");
    assert_eq!(server.made(host), (1, 1));

    // The account is told whom to write to from now on.
    host.moat(&["ingress", "acme-contact=ops@example.org"]).ok();
    wait_for("the new contact", || told(host, "notice").contains("was told to write to ops@example.org"));

    // Anew by the other way, while clients without TLS are sent to HTTPS; the account is the same.
    let first = server.shown(host);
    host.moat(&["ingress", "acme-proof=tls"]).ok();
    host.moat(&["cert", "remove", "shop.example.org"]).ok();
    wait_for("a certificate by a certificate", || server.shown(host).contains(server.signer) && server.shown(host) != first);
    check(host, &server.at(true), &[], "hello [2 200 ]");
    let second = server.shown(host);
    host.moat(&["ingress", "acme-proof=http"]).ok();
    host.moat(&["cert", "remove", "shop.example.org"]).ok();
    wait_for("a third", || server.shown(host).contains(server.signer) && ![&first, &second].contains(&&server.shown(host)));
    assert_eq!(server.made(host), (1, 3));
}

#[test]
fn pebble_gives_certificates() {
    let Some(host) = host() else { return };
    let mut server = pebble(&host, 90 * 86400);
    let wrong = host.moat(&["ingress", "acme=pebble"]);
    assert!(wrong.code == 2 && wrong.err.contains("letsencrypt"), "{wrong:?}");
    gives(&host, &server);
    let clear = sh(&host, "grep -rl -e 'PRIVATE KEY' state run pebble-key.pem");
    assert_eq!(clear.out, "pebble-key.pem\n", "a key in clear");
    check(&host, "https://pages.localhost:8443/", &["-k"], "hello [2 200 ]");

    // What the server thinks of a contact is said.
    host.moat(&["ingress", "acme-contact=a@b@c"]).ok();
    wait_for("a refusal", || told(&host, "problem").contains("was not told to write to a@b@c"));
    host.moat(&["ingress", "acme-contact=off"]).ok();
    wait_for("no contact", || told(&host, "notice").contains("was told to write to nobody"));

    // A name that is not found here is not asked for in a loop, over restarts too.
    let file = host.write("shop/render.yaml", &CUSTOM.replace("shop.example.org,", "shop.example.org, 'nowhere.example.net',"));
    for child in &mut server.processes {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let problem = || {
        let rows = host.moat(&["domains", "-o", "json"]).json();
        rows.as_array().unwrap().iter().find(|row| row["name"] == "nowhere.example.net").unwrap()["problem"].clone()
    };
    wait_for("a failure", || problem().as_str().is_some_and(|why| why.contains("the server of certificates")));
    host.kill(host.daemon().unwrap(), "KILL");
    host.moat(&["cert", "list"]).ok();
    assert!(problem().is_string());
    let problems = told(&host, "problem");
    let said = "`nowhere.example.net` got no certificate";
    assert!(problems.matches(said).count() == 1 && problems.contains("tried again in 5 minutes"), "{problems}");
    check(&host, "https://shop.example.org:8443/", &[], "hello [2 200 ]");
}

#[test]
fn caddy_gives_certificates() {
    let Some(host) = host() else { return };
    let Some(server) = caddy(&host) else { return };
    gives(&host, &server);
}

#[test]
fn certificates_are_had_anew_ahead_of_time() {
    let Some(host) = host() else { return };
    // Two thirds of it are 24 s, and it is looked every few.
    let server = pebble(&host, 36);
    server.used(&host, &[]);
    wait_for("a certificate", || server.shown(&host).contains(server.signer));
    let first = server.shown(&host);
    sh(&host, "openssl s_client -connect 127.0.0.1:8443 -servername shop.example.org </dev/null 2>/dev/null | openssl x509 > first.pem")
        .ok();
    wait_for("another", || server.shown(&host) != first);
    sh(&host, "openssl x509 -in first.pem -noout -checkend 0").ok();
    check(&host, &server.at(true), &[], "hello [2 200 ]");
    assert_eq!(server.made(&host), (1, 2));
}

#[test]
fn names_that_lead_here_are_told_from_others() {
    let Some(host) = host() else { return };
    let resolver = host.write("resolv.conf", "nameserver 127.0.0.1\n");
    sh(&host, &format!("mount --bind {} \"$(realpath /etc/resolv.conf)\"", resolver.display())).ok();
    let mut names = names(&host, ":53", "192.0.2.77");
    let file = host.write("shop/render.yaml", CUSTOM);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let domains = || {
        let said = host.moat(&["domains"]);
        (said.code, said.out + &said.err)
    };
    let (code, text) = domains();
    assert!(code == 0 && text.contains("192.0.2.77") && !text.contains("hint"), "{code} {text}");

    // Behind a cloud's network, with bridges of its own.
    sh(
        &host,
        "ip addr del 192.0.2.77/24 dev lan0 && ip addr add 10.20.0.5/24 dev lan0 && ip route add default via 10.20.0.1 && \
         ip link add bridge0 type bridge && ip addr add 172.17.0.1/16 dev bridge0 && ip link set bridge0 up",
    )
    .ok();
    let (code, text) = domains();
    assert!(code == 1 && text.contains("private addresses (10.20.0.5)") && text.contains("public-address="), "{code} {text}");
    host.moat(&["ingress", "public-address=192.0.2.77"]).ok();
    let (code, text) = domains();
    assert!(code == 0 && !text.contains("hint"), "{code} {text}");
    host.moat(&["ingress", "public-address=192.0.2.78"]).ok();
    let (code, text) = domains();
    assert!(code == 1 && text.contains("192.0.2.78") && !text.contains("10.20.0.5"), "{code} {text}");
    names.kill().unwrap();
    names.wait().unwrap();
}

/// For a figure, by `cargo nextest run -p moat-cli --run-ignored only -E 'test(thousands_of_certificates)' --no-capture`.
#[test]
#[ignore = "it takes a while, and asserts no time"]
fn thousands_of_certificates() {
    let Some(host) = host() else { return };
    let count = 2000;
    let file = host.write("shop/render.yaml", CUSTOM);
    host.moat(&["up", "-d", "--listen-tls", "127.0.0.1:8443", file.to_str().unwrap()]).ok();
    sh(
        &host,
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && mkdir many && \
         for n in $(seq 1 2000); do openssl req -x509 -key key.pem -days 9 -subj /CN=x -addext subjectAltName=DNS:h$n.wild.example.org -out many/$n.pem 2>/dev/null || exit 1; done",
    )
    .ok();
    let key = host.path("key.pem");
    let began = Instant::now();
    for n in 1..=count {
        let cert = host.path(&format!("many/{n}.pem"));
        let add = Instant::now();
        host.moat(&["cert", "add", "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap(), "-o", "json"]).ok();
        if n % 250 == 0 {
            println!("{n} certificates: {:?} in all, the last {:?}", began.elapsed(), add.elapsed());
        }
    }
    let shown = |n: usize| {
        let name = format!("h{n}.wild.example.org");
        sh(&host, &format!("openssl s_client -connect 127.0.0.1:8443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName")).out
    };
    for n in [1, count / 2, count] {
        assert!(shown(n).contains(&format!("DNS:h{n}.wild.example.org")), "{}", shown(n));
    }
    let rss = |pid: u64| sh(&host, &format!("grep -E 'VmRSS|VmHWM' /proc/{pid}/status")).out;
    let plane = host.ps()["dataplane_pid"].as_u64().unwrap();
    println!("data plane: {}daemon: {}", rss(plane), rss(u64::from(host.daemon().unwrap())));
}
