//! PROXY headers for services, read by a server that nobody here wrote.

use crate::host::{Host, Said, host, wait_for};
use std::process::Stdio;

fn files(host: &Host, more: &str, listen: &str) -> String {
    let server = "location = /up { return 200 up; } \
                  location / { return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port $connection_requests\\n\"; }";
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path /tmp/{name};")).concat();
    host.write(
        "app/nginx.conf",
        &format!(
            "daemon off; pid /tmp/nginx.pid; error_log stderr; worker_processes 1; events {{}}\n\
             http {{ access_log off; {temporary} server {{ listen {listen}; {server} }} }}\n"
        ),
    );
    let blueprint = format!(
        "services:\n  - type: web\n    name: front\n    runtime: python\n    numInstances: 2\n    buildCommand: \"true\"\n    \
         startCommand: exec /usr/sbin/nginx -e stderr -p /tmp -c $PWD/nginx.conf\n    healthCheckPath: /up\n    maxShutdownDelaySeconds: 1\n{more}"
    );
    host.write("app/render.yaml", &blueprint).display().to_string()
}

fn curl(host: &Host, more: &str) -> String {
    host.sh(&format!("curl -s --max-time 20 -H 'Host: front.localhost' {more}")).out
}

#[test]
fn a_server_is_told_who_asks_for_each_version_and_over_a_change() {
    let Some(host) = host() else { return };
    assert_eq!(host.sh("test -x /usr/sbin/nginx").code, 0, "`nginx` is missing: `cargo xtask test` installs it");
    for version in ["v2", "v1"] {
        let file = files(&host, &format!("    x-moat: {{proxyProtocol: {version}}}\n"), "10000 proxy_protocol");
        let said = host.moat(&["check", &file]).ok();
        assert!(said.out.contains("N0311") || said.err.contains("N0311"), "{said:?}");
        host.moat(&["up", "-d", &file]).ok();
        // Two requests of one client share its connection, and none to an instance.
        let said = curl(&host, "--local-port 40000-40999 http://127.0.0.1:8080/ http://127.0.0.1:8080/");
        let words: Vec<&str> = said.split_whitespace().collect();
        let [address, port, to, first, _, same_port, _, second] = words[..] else { panic!("{version}: {said}") };
        assert_eq!((address, to, first, second, port), ("127.0.0.1", "8080", "1", "1", same_port), "{version}: {said}");
        assert!(port.starts_with("40"), "{version}: {said}");
        // Whom a trusted proxy spoke for, over HTTP/2 too.
        host.moat(&["ingress", "proxy-protocol=127.0.0.0/8"]).ok();
        let own = "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'PROXY TCP6 2001:db8::9 2001:db8::1 5000 443\\r\\nGET / HTTP/1.1\\r\\nHost: front.localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; timeout 20 cat <&3";
        let spoken = host.sh(own).out;
        host.moat(&["ingress", "proxy-protocol=off"]).ok();
        assert!(spoken.ends_with("2001:db8::9 5000 443 1\n"), "{version}: {spoken}");
        assert!(curl(&host, "--http2-prior-knowledge http://127.0.0.1:8080/").starts_with("127.0.0.1 "), "{version}");
    }
    // Each instance is spoken to as its own definition says while one after the other is replaced.
    let over = host.path("over");
    let ask = "curl -s --max-time 20 -o /dev/null -w '%{http_code}\\n' -H 'Host: front.localhost' http://127.0.0.1:8080/";
    let script = format!("until test -e '{}'; do {ask}; done", over.display());
    let client = host.command("bash").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let file = files(&host, "", "10000");
    host.moat(&["up", "-d", &file]).ok();
    wait_for("its new server", || curl(&host, "http://127.0.0.1:8080/").starts_with("   "));
    host.write("over", "");
    let codes = Said::from(client.wait_with_output().unwrap()).out;
    assert!(codes.lines().count() > 10 && codes.lines().all(|code| code == "200"), "{codes}");
}
