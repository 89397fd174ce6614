//! What is sent a second time, and what is not.

use crate::support::{Client, Ingress, instance};
use rustix::net::sockopt::set_socket_linger;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Connections that are kept to an instance.
const KEPT: usize = 8;

/// Answers `/kept` when so many ask for it at once; every other request ends its connection, after these bytes, and is counted.
async fn fragile(arrived: Arc<AtomicUsize>, resets: bool, says: &'static str) -> SocketAddr {
    let all = Arc::new(Barrier::new(KEPT));
    instance(move |_, mut connection: Client| {
        let (arrived, all) = (Arc::clone(&arrived), Arc::clone(&all));
        async move {
            while let Some(head) = connection.try_head().await {
                connection.body(&head).await;
                if head.text.contains(" /kept ") {
                    all.wait().await;
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    continue;
                }
                arrived.fetch_add(1, Ordering::SeqCst);
                connection.stream.write_all(says.as_bytes()).await.unwrap();
                if resets {
                    set_socket_linger(&connection.stream, Some(Duration::ZERO)).unwrap();
                }
                return;
            }
        }
    })
    .await
}

async fn keep_connections(ingress: &Ingress) {
    let mut all = JoinSet::new();
    for _ in 0..KEPT {
        let mut client = ingress.client().await;
        all.spawn(async move {
            client.send("GET /kept HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
            client.response().await.status
        });
    }
    while let Some(status) = all.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(ingress.dials(), KEPT);
}

/// A request ends its program over a kept connection, while a second instance is there: how often it arrives at the first, and that
/// it never arrives at the second.
async fn check(head: &str, resets: bool, says: &'static str, want: usize) {
    let (arrived, elsewhere) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let first = fragile(Arc::clone(&arrived), resets, says).await;
    let second = fragile(Arc::clone(&elsewhere), resets, says).await;
    let ingress = Ingress::shop(&[first]).await;
    keep_connections(&ingress).await;
    let mut routes = (*ingress.routes.load()).clone();
    let route = routes.hosts.get_mut("shop.localhost").unwrap();
    route.upstreams.push(second);
    ingress.routes.set(routes);
    // Which of the two it is sent to is chance.
    let mut total = 0;
    while arrived.load(Ordering::SeqCst) == 0 {
        let before = elsewhere.load(Ordering::SeqCst);
        let mut client = ingress.client().await;
        client.send(&format!("{head} HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n")).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{head}: {answer}");
        total = elsewhere.load(Ordering::SeqCst) - before;
    }
    assert_eq!((arrived.load(Ordering::SeqCst), total), (want, 0), "{head}, resets: {resets}, says {says:?}");
}

#[tokio::test]
async fn a_request_that_ends_its_program_is_sent_once_more_at_most() {
    for (head, resets, says, want) in [
        ("GET /crash", false, "", 2),
        ("GET /crash", true, "", 2),
        ("HEAD /crash", false, "", 2),
        ("OPTIONS /crash", false, "", 2),
        // Something of an answer has come.
        ("GET /crash", false, "HTTP/1.1 2", 1),
        ("POST /crash", false, "", 1),
        ("POST /crash", true, "", 1),
        ("DELETE /crash", false, "", 1),
        ("PUT /crash", true, "", 1),
    ] {
        check(head, resets, says, want).await;
    }
}

#[tokio::test]
async fn a_new_connection_carries_each_request_once() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let ingress = Ingress::shop(&[fragile(Arc::clone(&arrived), false, "").await, fragile(Arc::clone(&arrived), false, "").await]).await;
    for n in 1..=10 {
        assert_eq!(ingress.get("shop.localhost", "/crash").await.status, 502);
        assert_eq!(arrived.load(Ordering::SeqCst), n);
    }
}
