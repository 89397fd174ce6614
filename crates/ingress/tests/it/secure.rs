//! TLS, by clients that nobody here wrote: curl and OpenSSL.

use crate::support::{Ingress, certificate, echo, live};
use http::HeaderValue;
use moat_ingress::{Certificates, Policy, Route, RouteState, Routes};
use moat_model::Slug;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::process::Command;

const HOSTS: [&str; 3] = ["shop.test", "www.shop.test", "other.test"];

/// An ingress whose first two hosts share a certificate, and the folder with both, as PEM.
async fn secure() -> (Ingress, tempfile::TempDir) {
    let backend = echo("one").await;
    let mut routes = Routes::default();
    for host in HOSTS {
        routes.hosts.extend(live(host, "shop", &[backend]).hosts);
    }
    routes.policy = Policy { hsts: Some(HeaderValue::from_static("max-age=5")), ..Policy::default() };
    let ((shared, first), (own, second)) = (certificate(&HOSTS[..2]), certificate(&HOSTS[2..]));
    let by_name = HashMap::from([(HOSTS[0].to_owned(), shared.clone()), (HOSTS[1].to_owned(), shared), (HOSTS[2].to_owned(), own)]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.pem"), first + &second).unwrap();
    (Ingress::start_secure(routes, Certificates { by_name, proofs: HashMap::new() }).await, folder)
}

fn https(ingress: &Ingress) -> SocketAddr {
    ingress.https.as_ref().unwrap().0
}

/// What curl prints: headers and body, then status and version of HTTP.
async fn curl(ingress: &Ingress, folder: &tempfile::TempDir, host: &str, more: &[&str]) -> String {
    let address = https(ingress);
    let port = address.port();
    let output = Command::new("curl")
        .args(["-s", "-i", "--max-time", "20", "--connect-to", &format!("::127.0.0.1:{port}"), "-w", "\n%{http_code} %{http_version}"])
        .arg("--cacert")
        .arg(folder.path().join("all.pem"))
        .args(more)
        .arg(format!("https://{host}:{port}/x"))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), output.status.code().map_or_else(String::new, |code| format!(" exit {code}")))
}

#[tokio::test]
async fn each_name_has_its_certificate_and_each_version_works() {
    let (ingress, folder) = secure().await;
    for (more, want) in [
        (&["--http1.1"][..], "200 1.1 exit 0"),
        (&["--http2"], "200 2 exit 0"),
        (&["--http2", "--tls-max", "1.2"], "200 2 exit 0"),
        (&["--http1.1", "--tlsv1.3"], "200 1.1 exit 0"),
        (&["--no-alpn"], "200 1.1 exit 0"),
        // A version that is too old.
        (&["--tls-max", "1.1"], "000 0 exit 35"),
    ] {
        for host in HOSTS {
            let said = curl(&ingress, &folder, host, more).await;
            assert!(said.ends_with(want), "{host} {more:?}: {said}");
            if want.starts_with("200") {
                assert!(said.contains("x-forwarded-proto: https") && said.contains("strict-transport-security: max-age=5"), "{said}");
                assert!(said.contains(&format!("host: {host}:{}", https(&ingress).port())), "{said}");
            }
        }
    }
    // Without TLS there is no promise.
    let plain = ingress.get("shop.test", "/").await;
    assert!(plain.head.header("strict-transport-security").is_none() && plain.body.contains("x-forwarded-proto: http\r\n"));
}

#[tokio::test]
async fn a_name_and_a_host_that_disagree() {
    let (ingress, folder) = secure().await;
    // The name asked for in TLS, the one in the request, and what comes of it.
    for (name, host, want) in [
        ("shop.test", "shop.test", "200"),
        ("shop.test", "SHOP.test.", "200"),
        ("shop.test", "www.shop.test", "200"),
        ("shop.test", "other.test", "421"),
        ("other.test", "shop.test", "421"),
        // Whether there is such a service stays unknown.
        ("shop.test", "catalog", "421"),
        ("shop.test", "nowhere.test", "421"),
        ("shop.test", "a b", "400"),
        ("catalog", "shop.test", "000"),
        ("nowhere.test", "shop.test", "000"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let said = curl(&ingress, &folder, name, &[version, "-k", "-H", &format!("Host: {host}")]).await;
            let status = said.lines().last().unwrap().split(' ').next().unwrap();
            // In HTTP/2 such a name breaks the protocol: the stream is refused.
            let want = if (host, version) == ("a b", "--http2") { "000" } else { want };
            assert_eq!(status, want, "{name} {host} {version}: {said}");
        }
    }
}

#[tokio::test]
async fn sessions_are_resumed() {
    let (ingress, folder) = secure().await;
    for version in ["-tls1_2", "-tls1_3"] {
        let session = folder.path().join(format!("session{version}"));
        let once = |option: &'static str| {
            let mut client = Command::new("openssl");
            client.args(["s_client", "-servername", "shop.test", "-ign_eof", version, "-connect", &https(&ingress).to_string()]);
            client.arg(option).arg(&session).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            async move {
                use tokio::io::AsyncWriteExt as _;
                let mut child = client.spawn().unwrap();
                let mut input = child.stdin.take().unwrap();
                input.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n").await.unwrap();
                let output = child.wait_with_output().await.unwrap();
                drop(input);
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
        };
        let first = once("-sess_out").await;
        assert!(first.contains("New, TLSv1") && first.contains("HTTP/1.1 200 OK"), "{first}");
        let second = once("-sess_in").await;
        assert!(second.contains("Reused, TLSv1") && second.contains("HTTP/1.1 200 OK"), "{version}: {second}");
    }
}

#[tokio::test]
async fn certificates_are_replaced_while_connections_go_on() {
    let (ingress, folder) = secure().await;
    assert!(curl(&ingress, &folder, "shop.test", &[]).await.ends_with("200 2 exit 0"));
    let (new, pem) = certificate(&["shop.test"]);
    let by_name = HashMap::from([("shop.test".to_owned(), new)]);
    ingress.https.as_ref().unwrap().1.set(Certificates { by_name, proofs: HashMap::new() });
    assert!(curl(&ingress, &folder, "shop.test", &[]).await.ends_with("000 0 exit 60"), "the new one is not trusted yet");
    std::fs::write(folder.path().join("all.pem"), pem).unwrap();
    assert!(curl(&ingress, &folder, "shop.test", &[]).await.ends_with("200 2 exit 0"));
    assert!(curl(&ingress, &folder, "other.test", &["-k"]).await.ends_with("000 0 exit 35"), "there is none any more");
}

#[tokio::test]
async fn clients_are_sent_to_https_but_proofs_are_given() {
    let (ingress, _folder) = secure().await;
    let mut routes = (*ingress.routes.load()).clone();
    let route = Route { https: Some(443), ..routes.hosts["shop.test"].clone() };
    routes.hosts.insert("shop.test".to_owned(), route);
    routes.proofs.insert("token".to_owned(), "token.thumb".to_owned());
    let moved = Route::new(Slug::new("shop").unwrap(), Vec::new(), RouteState::Moved { host: "shop.test".to_owned() });
    routes.hosts.insert("old.test".to_owned(), moved);
    ingress.routes.set(routes);
    let got = ingress.get("shop.test:8080", "/a?b=c").await;
    assert_eq!((got.status, got.head.header("location")), (301, Some("https://shop.test/a?b=c")));
    let got = ingress.get("old.test:8080", "/a?b=c").await;
    assert_eq!((got.status, got.head.header("location")), (301, Some("http://shop.test:8080/a?b=c")));
    for host in ["shop.test", "old.test", "not.yet.known"] {
        let got = ingress.get(host, "/.well-known/acme-challenge/token").await;
        assert_eq!((got.status, got.body.as_str()), (200, "token.thumb"), "{host}");
    }
    let got = ingress.get("shop.test", "/.well-known/acme-challenge/other").await;
    assert_eq!(got.status, 301, "any other token is any other path");
}
