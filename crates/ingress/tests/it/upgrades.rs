//! WebSocket and other upgrades, and who may not upgrade.

use crate::support::{Client, Ingress, echo, instance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: shop.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Switches, greets in the same segment, then sends back what it gets.
async fn socket(_: usize, mut connection: Client) {
    let head = connection.head().await;
    assert_eq!((head.header("connection"), head.header("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(head.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    connection
        .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello")
        .await;
    let (mut read, mut write) = connection.stream.split();
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.write_all(b"bye").await.unwrap();
}

#[tokio::test]
async fn a_web_socket_passes_both_ways() {
    let ingress = Ingress::shop(&[instance(socket).await]).await;
    let mut client = ingress.client().await;
    client.send(HANDSHAKE).await;
    let head = client.head().await;
    assert_eq!(head.status(), 101);
    assert_eq!((head.header("connection"), head.header("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(head.header("rndr-id").is_some());
    assert_eq!(client.bytes(5).await, b"hello", "the instance may speak first");
    for size in [1, 125, 70_000, 1_000_000] {
        let sent: Vec<u8> = (0..size).map(|n: usize| n.to_le_bytes()[0]).collect();
        let (mut read, mut write) = client.stream.split();
        let mut got = vec![0; size];
        let (there, back) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        there.unwrap();
        back.unwrap();
        assert!(got == sent, "{size}");
    }
    // One side ends, the other may still speak.
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "bye");
}

#[tokio::test]
async fn a_tunnel_ends_with_serving() {
    let mut ingress = Ingress::shop(&[instance(socket).await]).await;
    let mut client = ingress.client().await;
    client.send(HANDSHAKE).await;
    client.head().await;
    assert_eq!(client.bytes(5).await, b"hello");
    ingress.stop.take().unwrap().send(()).unwrap();
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn an_instance_may_decline() {
    let ingress = Ingress::shop(&[echo("plain").await]).await;
    let mut client = ingress.client().await;
    for _ in 0..2 {
        client.send(HANDSHAKE).await;
        let got = client.response().await;
        assert!(got.status == 200 && got.body.contains("upgrade: websocket"), "{}", got.body);
    }
}

#[tokio::test]
async fn h2c_and_bodies_do_not_upgrade() {
    let ingress = Ingress::shop(&[echo("plain").await]).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut client = ingress.client().await;
        client.send(request).await;
        let got = client.response().await;
        let body = got.body.to_ascii_lowercase();
        assert!(got.status == 200 && !body.contains("upgrade") && !body.contains("http2-settings"), "{body}");
    }
}

#[tokio::test]
async fn an_instance_must_not_switch_unasked() {
    let address = instance(|_, mut connection| async move {
        connection.head().await;
        connection.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        connection.rest().await;
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let got = ingress.get("shop.localhost", "/").await;
    assert!(got.status == 502 && got.body.contains("shop did not answer"), "{} {}", got.status, got.body);
}
