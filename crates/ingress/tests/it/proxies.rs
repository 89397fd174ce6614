//! Proxies before the ingress that say who the client is, by headers; nginx is one.

use crate::peers::nginx;
use crate::support::{Ingress, PATIENCE, Response, closed, echo, live};
use http::HeaderValue;
use moat_ingress::{Limiter, Policy, Routes};
use std::process::Stdio;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Duration, sleep, timeout};

/// Routes of one service at two hosts, one of which is sent to HTTPS; connections from 127.0.0.2 are a proxy's.
async fn routes() -> Routes {
    let backend = echo("one").await;
    let mut routes = live("shop.test", "shop", &[backend]);
    let mut safe = routes.hosts["shop.test"].clone();
    safe.https = Some(443);
    routes.hosts.insert("safe.test".to_owned(), safe);
    let trusted = vec!["127.0.0.2".parse::<std::net::IpAddr>().unwrap().into()];
    routes.policy = Policy { trusted, hsts: Some(HeaderValue::from_static("max-age=5")), ..Policy::default() };
    routes
}

/// One request from this address.
async fn ask(ingress: &Ingress, from: &str, host: &str, headers: &str) -> Response {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut client = crate::support::Client::new(socket.connect(ingress.address).await.unwrap());
    client.send(&format!("GET /a HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")).await;
    client.response().await
}

const SAID: &str = "X-Forwarded-For: 203.0.113.9, 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: safe.test\r\n";

#[tokio::test]
async fn a_trusted_proxy_says_who_asks_and_nobody_else_does() {
    let ingress = Ingress::start(routes().await).await;
    let got = ask(&ingress, "127.0.0.2", "shop.test", SAID).await;
    for line in
        ["x-forwarded-for: 198.51.100.7\r\n", "x-forwarded-proto: https\r\n", "x-forwarded-host: safe.test\r\n", "host: safe.test\r\n"]
    {
        assert!(got.status == 200 && got.body.contains(line), "`{line}` is missing: {} {}", got.status, got.body);
    }
    assert_eq!(got.head.header("strict-transport-security"), Some("max-age=5"), "it came by TLS");
    let forged = ask(&ingress, "127.0.0.1", "shop.test", SAID).await;
    for line in ["x-forwarded-for: 127.0.0.1\r\n", "x-forwarded-proto: http\r\n", "host: shop.test\r\n"] {
        assert!(forged.status == 200 && forged.body.contains(line), "`{line}` is missing: {} {}", forged.status, forged.body);
    }
    assert!(!forged.body.contains("198.51.100.7") && forged.head.header("strict-transport-security").is_none());
    // The way to HTTPS goes by what the proxy's client did.
    for (from, scheme, want) in [("127.0.0.2", "https", 200), ("127.0.0.2", "http", 301), ("127.0.0.1", "https", 301)] {
        let got = ask(&ingress, from, "safe.test", &format!("X-Forwarded-Proto: {scheme}\r\n")).await;
        assert_eq!(got.status, want, "{from} {scheme}");
    }
    // A host that nobody serves is unknown, whoever says it.
    let unknown = ask(&ingress, "127.0.0.2", "shop.test", "X-Forwarded-Host: catalog\r\n").await;
    assert_eq!(unknown.status, 404);
    let bad = ask(&ingress, "127.0.0.2", "shop.test", "X-Forwarded-Host: a b\r\n").await;
    assert_eq!(bad.status, 400);
}

#[tokio::test]
async fn lists_and_limits_are_of_the_client_behind_a_trusted_proxy() {
    let mut routes = routes().await;
    let shop = routes.hosts.get_mut("shop.test").unwrap();
    shop.allow = Some(["198.51.100.0/24".parse().unwrap(), "127.0.0.1/32".parse().unwrap()].into());
    shop.limit = Some(Arc::new(Limiter::new("1/m".parse().unwrap())));
    let ingress = Ingress::start(routes).await;
    for (from, client, want) in [
        ("127.0.0.2", "198.51.100.7", 200),
        ("127.0.0.2", "198.51.100.7", 429),
        ("127.0.0.2", "198.51.100.8", 200),
        ("127.0.0.2", "203.0.113.9", 403),
        ("127.0.0.2", "198.51.100.9, 203.0.113.9", 403),
        ("127.0.0.3", "198.51.100.9", 403),
        ("127.0.0.1", "198.51.100.9", 200),
        ("127.0.0.1", "198.51.100.10", 429),
    ] {
        let got = ask(&ingress, from, "shop.test", &format!("X-Forwarded-For: {client}\r\n")).await;
        assert_eq!(got.status, want, "{client} by {from}");
    }
}

#[tokio::test]
async fn behind_nginx_a_client_is_known_by_its_own_address() {
    let Some(program) = nginx() else { return };
    let ingress = Ingress::start(routes().await).await;
    let folder = tempfile::tempdir().unwrap();
    let at = closed().await;
    let config = format!(
        "daemon off; master_process off; user root; pid {0}/nginx.pid; error_log stderr crit; events {{}}
         http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
           server {{ listen {at}; location / {{ proxy_pass http://{1}; proxy_bind 127.0.0.2; proxy_http_version 1.1;
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
             proxy_set_header X-Forwarded-Host $host; }} }} }}",
        folder.path().display(),
        ingress.address
    );
    std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(folder.path().join("nginx.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = command.kill_on_drop(true).spawn().unwrap();
    let up = async {
        while TcpStream::connect(at).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, up).await.expect("nginx does not start");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut client = crate::support::Client::new(socket.connect(at).await.unwrap());
    client.send("GET /a HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n").await;
    let got = client.response().await;
    for line in ["x-forwarded-for: 127.0.0.9\r\n", "x-forwarded-proto: http\r\n", "host: shop.test\r\n"] {
        assert!(got.status == 200 && got.body.contains(line), "`{line}` is missing: {} {}", got.status, got.body);
    }
}
