//! Clients of HTTP/2 that ask for work and memory instead of answers: others are served, and memory stays bounded.

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PING, POST, PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block,
    frame, request, setting,
};
use crate::support::{Client, Ingress, instance};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// How much the whole process may grow by a flood, its own client included.
const MOST: usize = 48 << 20;
/// What of a flood nobody takes within this is not sent.
const ENOUGH: Duration = Duration::from_secs(2);

/// Frames for a stream.
type Frames = fn(u32) -> Vec<u8>;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// An ingress whose instance answers `GET /` and reads nothing of another request.
async fn ingress() -> Ingress {
    let address = instance(|_, mut connection: Client| async move {
        while let Some(head) = connection.try_head().await {
            if head.text.starts_with("GET /large ") {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
                while connection.stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
            } else if head.text.starts_with("GET ") {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            } else {
                std::future::pending::<()>().await;
            }
        }
    })
    .await;
    Ingress::shop(&[address]).await
}

/// Others are served, and memory has not grown by much.
async fn unharmed(what: &str, ingress: &Ingress, before: usize) {
    assert_eq!(ingress.get("shop.localhost", "/").await.status, 200, "{what}: others go on");
    let grown = resident().saturating_sub(before);
    assert!(grown < MOST, "{what}: {} MiB more", grown >> 20);
}

/// Sends `first` and then `more` so often, reads nothing, and looks at others and at memory.
async fn flood(what: &str, ingress: &Ingress, first: Vec<u8>, more: &[u8], times: usize) {
    let before = resident();
    let mut client = Raw::connect(ingress.address, &setting(4, 0x7fff_ffff)).await;
    client.send(&first).await;
    let some = more.repeat((64 << 10) / more.len() + 1);
    let rounds = times * more.len() / some.len() + 1;
    let _ = timeout(ENOUGH, async {
        for _ in 0..rounds {
            client.send(&some).await;
        }
    })
    .await;
    unharmed(what, ingress, before).await;
}

#[tokio::test]
async fn frames_that_ask_for_nothing() {
    let ingress = ingress().await;
    let open = request(1, 0, &POST, &[]);
    let head = frame(HEADERS, END_STREAM, 1, block(&GET));
    for (what, first, more, times) in [
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, setting(3, 100)), 1_000_000),
        ("PING", vec![], frame(PING, 0, 0, "12345678"), 1_000_000),
        ("CONTINUATION", head.clone(), frame(CONTINUATION, 0, 1, block(&[("x", &"y".repeat(9000))])), 20_000),
        ("CONTINUATION of nothing", head, frame(CONTINUATION, 0, 1, ""), 1_000_000),
        ("DATA of nothing", open.clone(), frame(DATA, 0, 1, ""), 1_000_000),
        ("WINDOW_UPDATE", open.clone(), frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1]), 500_000),
        ("PRIORITY", open.clone(), frame(PRIORITY, 0, 3, [0, 0, 0, 1, 9]), 500_000),
        ("unknown", open, frame(0xbe, 0, 1, [9; 100]), 200_000),
    ] {
        flood(what, &ingress, first, &more, times).await;
    }
}

#[tokio::test]
async fn streams_that_come_and_go() {
    let ingress = ingress().await;
    // Taken back at once (CVE-2023-44487), and made the server take them back (CVE-2025-8671).
    let rows: [(&str, Frames); 3] = [
        ("reset", |stream| frame(RST_STREAM, 0, stream, [0, 0, 0, 8])),
        ("window of nothing", |stream| frame(WINDOW_UPDATE, 0, stream, [0; 4])),
        ("window too large", |stream| frame(WINDOW_UPDATE, 0, stream, [0x7f, 0xff, 0xff, 0xff])),
    ];
    for (what, end) in rows {
        let before = resident();
        let mut client = Raw::connect(ingress.address, &[]).await;
        let mut closed = false;
        for n in 0..2_000 {
            let some: Vec<u8> =
                (0..20).flat_map(|m| [request((n * 20 + m) * 2 + 1, 0, &POST, &[]), end((n * 20 + m) * 2 + 1)].concat()).collect();
            client.send(&some).await;
            client.send(&frame(PING, 0, 0, "and then")).await;
            closed = loop {
                match client.next().await {
                    None => break true,
                    Some(frame) if frame.kind == PING => break false,
                    Some(_) => {}
                }
            };
            if closed {
                break;
            }
        }
        assert!(closed, "{what}: 40,000 times");
        unharmed(what, &ingress, before).await;
    }
}

#[tokio::test]
async fn a_small_head_that_becomes_a_large_one() {
    let ingress = ingress().await;
    let before = resident();
    let mut client = Raw::connect(ingress.address, &[]).await;
    // One entry of 4,000 bytes into the dynamic table, and then that entry 12,000 times (RFC 7541 §7.3).
    let mut head = block(&GET);
    let mut entry = block(&[("x", &"y".repeat(3_900))]);
    entry[0] = 0x40;
    head.extend(entry);
    head.extend([0xbe; 12_000]);
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, head)).await;
    let (_, word) = client.word().await;
    assert_ne!(word, "200", "it is 48 MB");
    assert_eq!(ingress.get("shop.localhost", "/").await.status, 200);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{} MiB more", grown >> 20);
}

/// Each stream has as large a window as there is, and nothing is read.
#[tokio::test]
async fn answers_that_nobody_reads() {
    let ingress = ingress().await;
    let before = resident();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::connect(ingress.address, &setting(4, 0x7fff_ffff)).await;
        client.send(&frame(WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0, 0])).await;
        let mut head = GET;
        head[3].1 = "/large";
        client.send(&(0..100).flat_map(|n| request(n * 2 + 1, END_STREAM, &head, &[])).collect::<Vec<u8>>()).await;
        clients.push(client);
    }
    // It has as much as it takes when the instance's connections carry no more.
    tokio::time::sleep(ENOUGH).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 60 << 20, "200 answers hold {} MiB", grown >> 20);
    assert_eq!(ingress.get("shop.localhost", "/").await.status, 200);
    drop(clients);
}
