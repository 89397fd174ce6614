//! The public side: TLS by Moat's own authority and by certificates from files, custom domains, who may ask.

use crate::host::{Host, Said, host, service, wait_for};

const SERVICES: &str = r"
services:
  - type: web
    name: shop
    runtime: python
    buildCommand: mkdir www && echo hello > www/index.html
    startCommand: cd www && python3 -m http.server $PORT
    maxShutdownDelaySeconds: 1
    domains: [www.example.com, '*.shops.example.com']
  - type: web
    name: office
    runtime: static
    buildCommand: mkdir dist && echo for-the-office > dist/index.html
    staticPublishPath: dist
    domains: [office.example.com]
    renderSubdomainPolicy: disabled
    ipAllowList: [{source: 192.0.2.0/24, description: the office}]
";

/// What a script says that runs in the machine's own folder.
pub fn sh(host: &Host, script: &str) -> Said {
    host.sh(&format!("cd '{}' && {{ {script}; }}", host.path("").display()))
}

/// What curl gets from a public name: version, status and body, or its exit code.
fn get(host: &Host, url: &str, more: &[&str]) -> String {
    let mut command = host.command("curl");
    command.args(["-s", "--max-time", "20", "-w", " [%{http_version} %{http_code} %{redirect_url}]"]);
    command.args(["--connect-to", "::127.0.0.1:", "--cacert"]).arg(host.path("authority.pem")).args(more).arg(url);
    let said: Said = command.output().unwrap().into();
    if said.code == 0 { said.out.replace('\n', "") } else { format!("exit {}", said.code) }
}

#[track_caller]
pub fn check(host: &Host, url: &str, more: &[&str], want: &str) {
    let got = get(host, url, more);
    assert!(got.contains(want), "{url} {more:?}: {got}, not {want}");
}

#[test]
fn tls_domains_and_who_may_ask() {
    let Some(host) = host() else { return };
    let file = host.write("shop/render.yaml", SERVICES);
    let up = ["up", "-d", file.to_str().unwrap()];
    host.moat(&up).ok();
    check(&host, "http://shop.localhost:8080/", &[], "hello [1.1 200 ]");
    assert_eq!(get(&host, "https://shop.localhost:8443/", &["-k"]), "exit 7", "nobody listens unless asked to");

    // From now on, without anybody being cut off; certificates of the machine's own authority.
    host.moat(&[&up[..], &["--listen-tls", "127.0.0.1:8443"]].concat()).ok();
    let authority = host.moat(&["trust", "--print"]).ok().out;
    host.write("authority.pem", &authority);
    check(&host, "https://shop.localhost:8443/", &["--http2"], "hello [2 200 ]");
    check(&host, "https://shop.localhost:8443/", &["--http1.1", "--tls-max", "1.2"], "hello [1.1 200 ]");
    // Who comes without TLS is sent there, at the port where it is; but names without a certificate are served as before.
    check(&host, "http://shop.localhost:8080/x?y", &[], "[1.1 301 https://shop.localhost:8443/x?y]");
    check(&host, "http://www.example.com:8080/", &["--http2-prior-knowledge"], "hello [2 200 ]");
    assert_eq!(get(&host, "https://www.example.com:8443/", &[]), "exit 35", "it vouches for names below `localhost` only");
    let shown = sh(&host, "openssl x509 -in authority.pem -noout -text").ok().out;
    assert!(shown.contains("CA:TRUE, pathlen:0") && shown.contains("DNS:localhost"), "{shown}");

    // Domains: the listed one of a pair is the one to use, a wildcard is for one label, and the sub-domain may be off.
    check(&host, "http://www.example.com:8080/", &[], "hello [1.1 200 ]");
    check(&host, "http://example.com:8080/a?b", &[], "[1.1 301 http://www.example.com:8080/a?b]");
    check(&host, "http://one.shops.example.com:8080/", &[], "hello [1.1 200 ]");
    check(&host, "http://one.two.shops.example.com:8080/", &[], "[1.1 404 ]");
    check(&host, "http://office.localhost:8080/", &[], "[1.1 404 ]");
    let domains = host.moat(&["domains"]);
    assert_eq!(domains.code, 1, "nobody's DNS says anything of them here: {}", domains.out);
    for words in ["www.example.com", "leads to www.example.com", "*.shops.example.com", "office.example.com", "192.0.2.77"] {
        assert!(domains.out.contains(words), "`{words}` is missing:\n{}", domains.out);
    }

    // Who may ask: by the connection's address, or by what a trusted proxy says.
    check(&host, "http://office.example.com:8080/", &[], "[1.1 403 ]");
    check(&host, "http://office.example.com:8080/", &["--interface", "192.0.2.77"], "for-the-office [1.1 200 ]");
    host.moat(&["ingress", "proxy-protocol=127.0.0.0/8"]).ok();
    let ask = |line: &str| {
        let request = format!("{line}\\r\\nGET / HTTP/1.1\\r\\nHost: office.example.com\\r\\nConnection: close\\r\\n\\r\\n");
        sh(&host, &format!("exec 3<>/dev/tcp/127.0.0.1/8080; printf '{request}' >&3; timeout 20 cat <&3")).out
    };
    let let_in = ask("PROXY TCP4 192.0.2.9 127.0.0.1 5000 80");
    assert!(let_in.starts_with("HTTP/1.1 200") && let_in.ends_with("for-the-office\n"), "{let_in}");
    assert!(ask("PROXY TCP4 198.51.100.1 127.0.0.1 5000 80").starts_with("HTTP/1.1 403"));
    host.moat(&["ingress", "proxy-protocol=off"]).ok();

    // A certificate from files, for every name it has; HTTPS only, from now on.
    sh(
        &host,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN=x \
         -addext subjectAltName=DNS:www.example.com,DNS:example.com,DNS:*.shops.example.com -keyout key.pem -out own.pem && cat own.pem >> authority.pem",
    )
    .ok();
    let (own, key) = (host.path("own.pem"), host.path("key.pem"));
    let files = ["--cert", own.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let refused = host.moat(&[&["cert", "add", "office.example.com"], &files[..]].concat());
    assert!(refused.code == 2 && refused.err.contains("not for `office.example.com`"), "{refused:?}");
    let listed = host.moat(&[&["cert", "add"], &files[..]].concat()).ok().out;
    assert!(listed.contains("www.example.com, example.com, *.shops.example.com") && listed.contains("local"), "{listed}");
    check(&host, "https://www.example.com:8443/", &[], "hello [2 200 ]");
    check(&host, "https://one.shops.example.com:8443/", &[], "hello [2 200 ]");
    check(&host, "https://example.com:8443/x", &[], "[2 301 https://www.example.com:8443/x]");
    host.moat(&["ingress", "https-redirect=off"]).ok();
    check(&host, "http://shop.localhost:8080/", &[], "hello [1.1 200 ]");
    check(&host, "http://www.example.com:8080/", &[], "hello [1.1 200 ]");
    let settings = host.moat(&["ingress", "https-redirect=on", "hsts=300"]).ok().out;
    let rows: Vec<Vec<&str>> = settings.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["https-redirect", "on"]) && rows.contains(&vec!["hsts", "300"]), "{settings}");
    check(&host, "http://shop.localhost:8080/x", &[], "[1.1 301 https://shop.localhost:8443/x]");
    check(&host, "http://example.com:8080/x", &[], "[1.1 301 https://www.example.com:8443/x]");
    check(&host, "http://office.example.com:8080/", &[], "[1.1 403 ]");
    check(&host, "https://www.example.com:8443/", &["-i"], "strict-transport-security: max-age=300");
    let ps = host.ps();
    assert_eq!(service(&ps, "shop")["url"], "https://shop.localhost:8443");
    assert_eq!(service(&ps, "office")["url"], "http://office.example.com:8080", "it has no sub-domain and no certificate");

    // No key lies on the disk as it is, and what serves goes on without the daemon and with the next.
    let clear = sh(&host, "grep -rl -e 'PRIVATE KEY' state run key.pem");
    assert_eq!(clear.out, "key.pem\n", "a key in clear");
    host.kill(host.daemon().unwrap(), "KILL");
    check(&host, "https://www.example.com:8443/", &[], "hello [2 200 ]");
    host.moat(&["cert", "list"]).ok();
    check(&host, "https://shop.localhost:8443/", &[], "hello [2 200 ]");
    let process = || host.ps()["dataplane_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let before = process().unwrap();
    host.kill(before, "KILL");
    wait_for("another data plane", || process().is_some_and(|pid| pid != before));
    check(&host, "https://www.example.com:8443/", &[], "hello [2 200 ]");
    host.moat(&["cert", "remove", "www.example.com"]).ok();
    assert_eq!(get(&host, "https://www.example.com:8443/", &[]), "exit 35");

    // Services are told which it is; HTTPS ends when that is said, and nobody is sent there any more.
    let told = || host.moat(&["env", "get", "shop", "RENDER_EXTERNAL_URL"]).ok().out;
    assert_eq!(told(), "https://shop.localhost:8443\n");
    host.moat(&[&up[..], &["--listen-tls", "127.0.0.1:8444"]].concat()).ok();
    check(&host, "https://shop.localhost:8444/", &[], "hello [2 200 ]");
    wait_for("its old address to be free", || get(&host, "https://shop.localhost:8443/", &["-k"]) == "exit 7");
    host.moat(&[&up[..], &["--listen-tls", "off"]].concat()).ok();
    check(&host, "http://shop.localhost:8080/", &[], "hello [1.1 200 ]");
    wait_for("nobody to listen", || get(&host, "https://shop.localhost:8444/", &["-k"]) == "exit 7");
    assert_eq!(told(), "http://shop.localhost:8080\n");
    assert_eq!(service(&host.ps(), "shop")["url"], "http://shop.localhost:8080");
}
