//! What passes through, and how.

use crate::support::{Ingress, PATIENCE, echo, instance, live};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use moat_ingress::{Route, RouteState};
use moat_model::Slug;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Barrier, Notify};
use tokio::time::timeout;

#[tokio::test]
async fn a_request_and_its_answer() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let mut client = ingress.client().await;
    client
        .send("GET /a%20b?q=1 HTTP/1.1\r\nHost: Shop.localhost:8080\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nForwarded: for=1\r\nX-Request-Id: mine\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nCookie: a=b\r\n\r\n")
        .await;
    let got = client.response().await;
    assert_eq!(got.status, 200);
    let (id, other) = (got.head.header("rndr-id").unwrap(), got.head.header("x-request-id").unwrap());
    assert_eq!((id.len(), id), (18, other));
    let mut lines: Vec<&str> = got.body.trim_end().lines().skip(1).collect();
    assert_eq!(lines.remove(0), "GET /a%20b?q=1 HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "cookie: a=b",
            "host: Shop.localhost:8080",
            &format!("rndr-id: {id}"),
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: Shop.localhost:8080",
            "x-forwarded-proto: http",
            &format!("x-request-id: {id}")
        ]
    );
    assert_eq!(client.rest().await, "", "the client asked to close");
}

#[tokio::test]
async fn connections_are_kept_after_answers_of_unknown_length() {
    for trailer in ["", "Trailer: x\r\n"] {
        let end = if trailer.is_empty() { "0\r\n\r\n" } else { "0\r\nx: 1\r\n\r\n" };
        let address = instance(move |_, mut connection| async move {
            while connection.try_head().await.is_some() {
                connection.send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{trailer}\r\n2\r\nok\r\n{end}")).await;
            }
        })
        .await;
        let ingress = Ingress::shop(&[address]).await;
        let mut client = ingress.client().await;
        for _ in 0..10 {
            client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
            assert_eq!(client.response().await.body, "ok");
        }
        assert!(ingress.dials() <= 2, "{}", ingress.dials());
    }
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let mut client = ingress.client().await;
    for _ in 0..5 {
        client.send("POST /x HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 2\r\n\r\nhi").await;
        let got = client.response().await;
        assert!(got.status == 200 && got.body.ends_with("\r\n\r\nhi"), "{}", got.body);
    }
    // Pipelined.
    client.send(&"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n".repeat(3)).await;
    for _ in 0..3 {
        assert_eq!(client.response().await.status, 200);
    }
    // The connection is kept a moment after the answer, so a second one may be opened; never one per request.
    assert!(ingress.dials() <= 3, "{} dials", ingress.dials());
}

#[tokio::test]
async fn a_kept_connection_that_its_instance_closed_is_no_failure() {
    // Each connection answers twice and is then closed without a word.
    let address = instance(|_, mut connection| async move {
        for _ in 0..2 {
            let Some(_) = connection.try_head().await else { return };
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = ingress.client().await;
    for _ in 0..40 {
        client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn responses_stream() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let address = instance(move |_, mut connection| {
        let wait = Arc::clone(&wait);
        async move {
            connection.head().await;
            connection
                .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n6\r\nfirst\n\r\n")
                .await;
            wait.notified().await;
            connection.send("5\r\nlast\n\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = ingress.client().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    assert_eq!(client.head().await.header("content-type"), Some("text/event-stream"));
    assert_eq!(client.chunk().await, b"first\n");
    go.notify_one();
    assert_eq!(client.chunk().await, b"last\n");
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn requests_stream() {
    let address = instance(move |_, mut connection| async move {
        let head = connection.head().await;
        assert_eq!((head.header("transfer-encoding"), head.header("content-length")), (Some("chunked"), None));
        // The answer begins when the first piece is here, and follows the pieces.
        let first = connection.chunk().await;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        connection.send(&format!("{:x}\r\n{}\r\n", first.len(), String::from_utf8(first).unwrap())).await;
        assert_eq!(connection.chunk().await, b"two");
        assert_eq!(connection.chunk().await, b"");
        connection.send("3\r\nend\r\n0\r\n\r\n").await;
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = ingress.client().await;
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await, b"one");
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"end");
}

#[tokio::test]
async fn the_client_is_asked_for_its_body() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let mut client = ingress.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.text, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    let got = client.response().await;
    assert!(got.status == 200 && got.body.ends_with("body") && !got.body.contains("expect"), "{}", got.body);
}

#[tokio::test]
async fn a_large_upload_and_download() {
    const SIZE: usize = 32 << 20;
    let address = instance(|_, mut connection| async move {
        let head = connection.head().await;
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        let mut left = length;
        let mut sum = 0_u64;
        while left > 0 {
            let piece = connection.bytes(left.min(65_536)).await;
            sum += piece.iter().map(|byte| u64::from(*byte)).sum::<u64>();
            left -= piece.len();
        }
        connection.send(&format!("HTTP/1.1 200 OK\r\nX-Sum: {sum}\r\nContent-Length: {length}\r\n\r\n")).await;
        for _ in 0..length / 65_536 {
            connection.stream.write_all(&vec![7; 65_536]).await.unwrap();
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = ingress.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    for _ in 0..SIZE / 65_536 {
        client.stream.write_all(&vec![3; 65_536]).await.unwrap();
    }
    let head = client.head().await;
    assert_eq!(head.header("x-sum").unwrap().parse::<usize>().unwrap(), 3 * SIZE);
    let mut left = SIZE;
    while left > 0 {
        let piece = client.bytes(left.min(65_536)).await;
        assert!(piece.iter().all(|byte| *byte == 7));
        left -= piece.len();
    }
}

#[tokio::test]
async fn answers_without_a_body_and_answers_that_end_with_the_connection() {
    let address = instance(|_, mut connection| async move {
        while let Some(head) = connection.try_head().await {
            let answer = match head.text.split(' ').nth(1).unwrap() {
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
                "/hints" => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                _ => {
                    connection.send("HTTP/1.0 200 OK\r\nConnection: close\r\nKeep-Alive: x\r\n\r\nuntil the end").await;
                    return;
                }
            };
            connection.send(answer).await;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = ingress.client().await;
    for (request, status) in [("HEAD /head", 200), ("GET /204", 204), ("GET /304", 304)] {
        client.send(&format!("{request} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!(head.status(), status);
        assert_eq!(head.header("content-length"), (status == 200).then_some("1234"));
    }
    client.send("GET /hints HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    assert_eq!(client.response().await.body, "ok");
    client.send("GET /end HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    let got = client.response().await;
    assert_eq!((got.status, got.body.as_str(), got.head.header("keep-alive")), (200, "until the end", None));
    // An old client gets a body that ends with the connection.
    client.send("GET /end HTTP/1.0\r\nHost: shop.localhost\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.header("transfer-encoding"), None);
    assert_eq!(client.rest().await, "until the end");
}

#[tokio::test]
async fn requests_spread_over_real_servers() {
    // Each of 4 servers holds its requests until 40 are inside: only an even spread lets that happen.
    const SERVERS: usize = 4;
    const EACH: usize = 10;
    let mut addresses = Vec::new();
    let counts: Arc<[AtomicUsize; SERVERS]> = Arc::default();
    let all = Arc::new(Barrier::new(SERVERS * EACH));
    for server in 0..SERVERS {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (counts, all) = (Arc::clone(&counts), Arc::clone(&all));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (counts, all) = (Arc::clone(&counts), Arc::clone(&all));
                let service = service_fn(move |_| {
                    let (counts, all) = (Arc::clone(&counts), Arc::clone(&all));
                    async move {
                        counts[server].fetch_add(1, Ordering::SeqCst);
                        all.wait().await;
                        Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from("ok"))))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
    }
    let ingress = Arc::new(Ingress::shop(&addresses).await);
    let asked: Vec<_> = (0..SERVERS * EACH)
        .map(|_| {
            let ingress = Arc::clone(&ingress);
            tokio::spawn(async move { ingress.get("shop.localhost", "/").await.status })
        })
        .collect();
    for task in asked {
        assert_eq!(timeout(PATIENCE, task).await.unwrap().unwrap(), 200);
    }
    let counts: Vec<usize> = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert!(counts.iter().all(|count| (EACH - 4..=EACH + 4).contains(count)), "{counts:?}");
}

#[tokio::test]
async fn routes_change_under_a_kept_connection() {
    let (old, new) = (echo("old").await, echo("new").await);
    let ingress = Ingress::shop(&[old]).await;
    let mut client = ingress.client().await;
    for (upstream, want) in [(old, "old"), (new, "new")] {
        ingress.routes.set(live("shop.localhost", "shop", &[upstream]));
        client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
        assert!(client.response().await.body.starts_with(want));
    }
    ingress.routes.set(moat_ingress::Routes::default());
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    assert_eq!(client.response().await.status, 404);
}

#[tokio::test]
async fn ten_thousand_hosts() {
    let address = echo("many").await;
    let route = |n: usize| Route::new(Slug::new(format!("s{n}")).unwrap(), vec![address], RouteState::Live);
    let ingress = Ingress::start((0..10_000).map(|n| (format!("s{n}.localhost"), route(n))).collect::<HashMap<_, _>>().into()).await;
    for (host, status) in [("s0.localhost", 200), ("S9999.localhost:80", 200), ("s10000.localhost", 404)] {
        assert_eq!(ingress.get(host, "/").await.status, status, "{host}");
    }
}

#[tokio::test]
async fn stopping_lets_requests_end() {
    let go = Arc::new(Notify::new());
    let inside = Arc::new(Notify::new());
    let (wait, entered) = (Arc::clone(&go), Arc::clone(&inside));
    let address = instance(move |_, mut connection| {
        let (wait, entered) = (Arc::clone(&wait), Arc::clone(&entered));
        async move {
            connection.head().await;
            entered.notify_one();
            wait.notified().await;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        }
    })
    .await;
    let mut ingress = Ingress::shop(&[address]).await;
    let mut idle = ingress.client().await;
    let mut busy = ingress.client().await;
    busy.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    inside.notified().await;
    ingress.stop.take().unwrap().send(()).unwrap();
    assert_eq!(idle.stream.read(&mut [0]).await.unwrap_or(0), 0, "an idle connection ends at once");
    go.notify_one();
    assert_eq!(busy.response().await.body, "done");
    timeout(PATIENCE, ingress.task).await.unwrap().unwrap().unwrap();
    let again = tokio::net::TcpListener::bind(ingress.address).await;
    assert!(again.is_ok(), "the port is free again");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let address = instance(|_, mut connection| async move {
        while let Some(head) = connection.try_head().await {
            assert_eq!(connection.chunk().await, b"abc");
            let end = b"0\r\nx-sum: 7\r\n\r\n";
            assert_eq!(connection.bytes(end.len()).await, end);
            let te = head.header("te").unwrap_or("none");
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-done, x-real-ip\r\n";
            connection.send(&format!("{answer}X-Te: {te}\r\n\r\n2\r\nok\r\n0\r\nx-done: 1\r\nx-real-ip: 1\r\n\r\n")).await;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    for (said, te, end) in [("TE: trailers\r\n", "trailers", "0\r\nx-done: 1\r\n\r\n"), ("", "none", "0\r\n\r\n")] {
        let mut client = ingress.client().await;
        let head = format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n{said}Transfer-Encoding: chunked\r\n");
        client
            .send(&format!("{head}Trailer: x-sum, x-forwarded-for\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\nx-forwarded-for: ::1\r\n\r\n"))
            .await;
        let head = client.head().await;
        assert_eq!(head.header("x-te"), Some(te));
        let rest = client.rest().await;
        assert_eq!(rest, format!("2\r\nok\r\n{end}"));
    }
}
