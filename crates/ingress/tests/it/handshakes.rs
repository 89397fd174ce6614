//! What is agreed in handshakes, asked by `openssl s_client`.

use crate::support::{Ingress, certificate, echo, live};
use moat_ingress::Certificates;
use std::collections::HashMap;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What `openssl s_client` says to a server that has certificates for `names`, when `input` is typed.
async fn asked(ingress: &Ingress, options: &str, input: &[u8]) -> String {
    let address = ingress.https.as_ref().unwrap().0.to_string();
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .args(options.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut typed = client.stdin.take().unwrap();
    let _ = typed.write_all(input).await;
    drop(typed);
    let said = client.wait_with_output().await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

async fn secure(names: &[&str]) -> Ingress {
    let (own, _) = certificate(names);
    let by_name = names.iter().map(|name| ((*name).to_owned(), own.clone())).collect();
    Ingress::start_secure(live("shop.test", "shop", &[echo("one").await]), Certificates { by_name, proofs: HashMap::new() }).await
}

#[tokio::test]
async fn versions_ciphers_names_and_protocols() {
    let ingress = secure(&["shop.test", "localhost"]).await;
    let old = "-servername shop.test -cipher ALL:@SECLEVEL=0";
    for (options, want) in [
        ("-servername shop.test", "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384"),
        ("-servername shop.test -tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", "Cipher is TLS_AES_128_GCM_SHA256"),
        ("-servername shop.test -tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", "Cipher is TLS_CHACHA20_POLY1305_SHA256"),
        ("-servername shop.test -tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", "alert handshake failure"),
        ("-servername shop.test -tls1_2", "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("-servername shop.test -tls1_2", "Secure Renegotiation IS supported"),
        ("-servername shop.test -tls1_2", "Extended master secret: yes"),
        ("-servername shop.test -tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", "Cipher is ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("-servername shop.test -tls1_2 -comp", "Compression: NONE"),
        // Versions and ciphers without forward secrecy or authenticated encryption.
        (&format!("{old} -tls1_1"), "alert handshake failure"),
        (&format!("{old} -tls1"), "alert handshake failure"),
        ("-servername shop.test -tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", "alert handshake failure"),
        ("-servername shop.test -tls1_2 -cipher AES128-GCM-SHA256", "alert handshake failure"),
        ("-servername shop.test -tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", "alert handshake failure"),
        ("-servername shop.test -tls1_2 -cipher aNULL:@SECLEVEL=0", "alert handshake failure"),
        ("-servername shop.test -tls1_2 -cipher eNULL:@SECLEVEL=0", "alert handshake failure"),
        // Groups.
        ("-servername shop.test -groups X25519", "Server Temp Key: X25519"),
        ("-servername shop.test -groups P-256", "Server Temp Key: ECDH, prime256v1"),
        ("-servername shop.test -groups P-521", "alert handshake failure"),
        ("-servername shop.test -groups ffdhe2048", "alert handshake failure"),
        // Names: none is `localhost`, and one without a certificate is refused.
        ("-noservername", "New, TLSv1.3"),
        ("-servername SHOP.test", "New, TLSv1.3"),
        ("-servername nowhere.test", "alert access denied"),
        ("-servername xn--nowhere.shop.test", "alert access denied"),
        // Protocols: what is preferred here, and none in common.
        ("-servername shop.test -alpn h2", "ALPN protocol: h2"),
        ("-servername shop.test -alpn http/1.1", "ALPN protocol: http/1.1"),
        ("-servername shop.test -alpn http/1.1,h2", "ALPN protocol: h2"),
        ("-servername shop.test -alpn http/1.0,spdy/3", "alert no application protocol"),
        ("-servername shop.test", "No ALPN negotiated"),
        ("-servername shop.test -alpn acme-tls/1", "alert access denied"),
        ("-servername shop.test -tls1_3 -status", "OCSP response: no response sent"),
    ] {
        let said = asked(&ingress, options, b"").await;
        assert!(said.contains(want), "{options}: {said}");
        assert!(want.contains("alert") || !said.contains("Cipher is (NONE)"), "{options}: {said}");
    }
    // Without one for `localhost` there is none for whoever asks for none.
    let ingress = secure(&["shop.test"]).await;
    assert!(asked(&ingress, "-noservername", b"").await.contains("alert access denied"));
}

#[tokio::test]
async fn nothing_is_agreed_again_or_taken_before_the_handshake() {
    let ingress = secure(&["shop.test"]).await;
    let said = asked(&ingress, "-servername shop.test -tls1_2 -legacy_server_connect", b"R\n").await;
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    // Requests that came before the handshake ended could be sent again by somebody else (RFC 8446 §8).
    let request = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let said = asked(&ingress, "-servername shop.test -tls1_3 -ign_eof", request).await;
    assert!(said.contains("HTTP/1.1 200 OK") && said.contains("Max Early Data: 0") && !said.contains("Max Early Data: 1"), "{said}");
    assert_eq!(ingress.get("shop.test", "/").await.status, 200);
}

#[tokio::test]
async fn what_is_no_handshake_ends_with_its_connection() {
    let ingress = secure(&["shop.test"]).await;
    let address = ingress.https.as_ref().unwrap().0;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x05hello",
        &[0; 64],
    ] {
        let mut client = crate::frames::Raw::silent(address).await;
        client.send(bytes).await;
        client.stream.shutdown().await.unwrap();
        let said = client.rest().await;
        assert!(said.is_empty() || said.first() == Some(&0x15), "an alert or nothing: {said:?}");
    }
    let said = asked(&ingress, "-servername shop.test", b"").await;
    assert!(said.contains("New, TLSv1.3"), "others go on: {said}");
}
