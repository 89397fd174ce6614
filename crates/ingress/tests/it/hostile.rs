//! Requests that try to be two, to go elsewhere, or to be somebody else's.

use crate::support::{Client, Ingress, instance};
use std::sync::{Arc, Mutex};

/// An ingress, and the request lines and bodies that its instance has seen.
async fn watched() -> (Ingress, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let address = instance(move |_, mut connection: Client| {
        let log = Arc::clone(&log);
        async move {
            while let Some(head) = connection.try_head().await {
                let body = connection.body(&head).await;
                let line = format!("{} [{}]", head.text.lines().next().unwrap(), String::from_utf8_lossy(&body));
                log.lock().unwrap().push(line);
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (Ingress::shop(&[address]).await, seen)
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";

#[tokio::test]
async fn smuggling() {
    // What is sent, the status it gets, and what the instance may see. Every connection must be closed afterwards.
    let post = |headers: &str, body: &str| format!("POST /x HTTP/1.1\r\nHost: shop.localhost\r\n{headers}\r\n\r\n{body}");
    let rows: Vec<(String, u16, &[&str])> = vec![
        // CL.TE: the length says 6, the chunks end after 5; the rest must not become a request.
        (post("Content-Length: 6\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{SMUGGLED}")), 200, &["POST /x HTTP/1.1 []"]),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 6", &format!("0\r\n\r\n{SMUGGLED}")), 200, &["POST /x HTTP/1.1 []"]),
        (post("Transfer-Encoding: chunked", &format!("2\r\nhi\r\n0\r\n\r\n{SMUGGLED}")), 200, &["POST /x HTTP/1.1 [hi]"]),
        // TE.TE: a coding that one side may overlook.
        (post("Transfer-Encoding: xchunked\r\nContent-Length: 0", SMUGGLED), 400, &[]),
        (post("Transfer-Encoding: chunked, identity", SMUGGLED), 400, &[]),
        (post("Transfer-Encoding: identity, chunked", "0\r\n\r\n"), 501, &[]),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", SMUGGLED), 400, &[]),
        (post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), 501, &[]),
        (post("Transfer-Encoding : chunked", "0\r\n\r\n"), 400, &[]),
        (post("Transfer-Encoding\t: chunked", "0\r\n\r\n"), 400, &[]),
        (post("X: y\r\n Transfer-Encoding: chunked", "0\r\n\r\n"), 400, &[]),
        (post("X: \0\r\nContent-Length: 0", SMUGGLED), 400, &[]),
        // CL.CL and lengths that are none.
        (post("Content-Length: 2\r\nContent-Length: 50", &format!("hi{SMUGGLED}")), 400, &[]),
        (post("Content-Length: +2", "hi"), 400, &[]),
        (post("Content-Length: -1", "hi"), 400, &[]),
        (post("Content-Length: 2, 3", "hi"), 400, &[]),
        (post("Content-Length: 0x2", "hi"), 400, &[]),
        (post("Content-Length: 99999999999999999999", "hi"), 400, &[]),
        (post("Content-Length:", "hi"), 400, &[]),
        // An old version with a new coding.
        ("POST /x HTTP/1.0\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400, &[]),
        ("GET /x\r\n\r\n".to_owned(), 400, &[]),
        ("GET /x HTTP/1.1 HTTP/1.1\r\nHost: shop.localhost\r\n\r\n".to_owned(), 400, &[]),
        ("G\u{7f}T /x HTTP/1.1\r\nHost: shop.localhost\r\n\r\n".to_owned(), 400, &[]),
    ];
    for (request, status, want) in rows {
        let (ingress, seen) = watched().await;
        let mut client = ingress.client().await;
        client.send(&request).await;
        let all = client.rest().await;
        let got = all.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        assert_eq!(got, status, "{request:?}: {all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), usize::from(status > 0), "one answer: {request:?}: {all}");
        assert_eq!(*seen.lock().unwrap(), want, "{request:?}");
    }
}

#[tokio::test]
async fn broken_chunks_never_reach_the_instance_as_a_whole_request() {
    for chunks in
        ["zz\r\nhi\r\n0\r\n\r\n", "ffffffffffffffffff\r\nhi", "2\r\nhiXX0\r\n\r\n", "-2\r\nhi\r\n0\r\n\r\n", "2;\n\r\nhi\r\n0\r\n\r\n"]
    {
        let seen = Arc::new(Mutex::new(false));
        let whole = Arc::clone(&seen);
        let address = instance(move |_, mut connection: Client| {
            let whole = Arc::clone(&whole);
            async move {
                let all = connection.rest().await;
                *whole.lock().unwrap() |= all.ends_with("0\r\n\r\n");
            }
        })
        .await;
        let ingress = Ingress::shop(&[address]).await;
        let mut client = ingress.client().await;
        client.send(&format!("POST /x HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
        let all = client.rest().await;
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 400 "), "{chunks:?}: {all}");
        assert!(!*seen.lock().unwrap(), "{chunks:?}");
    }
}

#[tokio::test]
async fn equal_lengths_are_one() {
    let (ingress, seen) = watched().await;
    let mut client = ingress.client().await;
    client.send("POST /x HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(*seen.lock().unwrap(), ["POST /x HTTP/1.1 [hi]"]);
}

#[tokio::test]
async fn other_targets_and_hosts() {
    let (ingress, seen) = watched().await;
    for (request, status) in [
        ("GET http://shop.localhost/abs HTTP/1.1\r\nHost: shop.localhost\r\n\r\n", 200),
        ("GET http://shop.localhost/abs HTTP/1.1\r\nHost: catalog\r\n\r\n", 400),
        ("GET http://catalog/abs HTTP/1.1\r\nHost: shop.localhost\r\n\r\n", 400),
        ("GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 404),
        ("CONNECT catalog:9200 HTTP/1.1\r\nHost: catalog:9200\r\n\r\n", 405),
        ("CONNECT shop.localhost:80 HTTP/1.1\r\nHost: shop.localhost\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop.localhost\r\nHost: catalog\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop.localhost\r\nhost: shop.localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: catalog\r\nX-Forwarded-Host: shop.localhost\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: <script>alert(1)</script>\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop.localhost\u{e9}\r\n\r\n", 400),
    ] {
        let mut client = ingress.client().await;
        client.send(request).await;
        let got = client.response().await;
        assert_eq!(got.status, status, "{request:?}: {}", got.body);
        assert!(!got.body.contains("<script>"));
        if status == 400 || status == 405 {
            assert_eq!(client.rest().await, "", "closed: {request:?}");
        }
    }
    assert_eq!(*seen.lock().unwrap(), ["GET /abs HTTP/1.1 []"]);
}

#[tokio::test]
async fn a_head_without_end() {
    let (ingress, seen) = watched().await;
    for request in [
        format!("GET /{} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n", "a".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\nX: {}\r\n\r\n", "a".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\n{}\r\n", "X: y\r\n".repeat(200)),
    ] {
        let mut client = ingress.client().await;
        // The answer may come, and the connection end, before all is sent.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, request.as_bytes()).await;
        let all = client.rest().await;
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 431") || all.starts_with("HTTP/1.1 414"), "{all}");
    }
    // Just below the limit it passes.
    let got = ingress.get("shop.localhost", &format!("/{}", "a".repeat(60_000))).await;
    assert_eq!(got.status, 200);
    let mut seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    seen.clear();
}

#[tokio::test]
async fn an_instance_can_not_confuse_the_framing() {
    // Headers and body of the instance's answer; the body that the client reads, or none for a 502.
    for (answer, want) in [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", Some("whole")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", Some("whole")),
        ("Connection: content-length\r\nContent-Length: 5\r\n\r\nwhole", Some("whole")),
        ("Content-Length: 2\r\nContent-Length: 5\r\n\r\nwhole", None),
        ("Content-Length: banana\r\n\r\nwhole", None),
        ("X: y\r\n Content-Length: 5\r\n\r\nwhole", None),
        ("X\0: y\r\nContent-Length: 5\r\n\r\nwhole", None),
    ] {
        let address = instance(move |_, mut connection: Client| async move {
            connection.head().await;
            connection.send(&format!("HTTP/1.1 200 OK\r\n{answer}")).await;
            connection.rest().await;
        })
        .await;
        let got = Ingress::shop(&[address]).await.get("shop.localhost", "/").await;
        match want {
            Some(body) => assert_eq!((got.status, got.body.as_str()), (200, body), "{answer:?}"),
            None => assert_eq!(got.status, 502, "{answer:?}: {}", got.body),
        }
    }
}
