//! What a client may ask for, and for how long it may wait.

use crate::http2::{Parts, connect, full, request};
use crate::support::{Client, Ingress, PATIENCE, echo, instance, live};
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Bytes;
use moat_ingress::{Policy, Settings};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{sleep, timeout};

async fn with(policy: Policy, instance: SocketAddr) -> Ingress {
    let mut routes = live("shop.localhost", "shop", &[instance]);
    routes.policy = policy;
    Ingress::start(routes).await
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let ingress = with(Policy { max_body: Some(10), ..Policy::default() }, echo("one").await).await;
    let post = "POST / HTTP/1.1\r\nHost: shop.localhost\r\n";
    // It says so: nobody is asked for it.
    let mut client = ingress.client().await;
    client.send(&format!("{post}Accept: application/json\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n")).await;
    let got = client.response().await;
    let value: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!((got.status, value["reason"].as_str()), (413, Some("body-too-long")), "{}", got.body);
    assert_eq!((client.rest().await.as_str(), ingress.dials()), ("", 0));
    // It does not.
    let mut client = ingress.client().await;
    client.send(&format!("{post}Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n5\r\n78901\r\n0\r\n\r\n")).await;
    assert_eq!(client.response().await.status, 413);
    assert_eq!(client.rest().await, "");
    let (parts, body) = tokio::sync::mpsc::unbounded_channel();
    for part in ["123456", "78901"] {
        parts.send(Bytes::from_static(part.as_bytes())).unwrap();
    }
    drop(parts);
    let body = StreamBody::new(Parts(body)).boxed();
    let response = connect(&ingress).await.send_request(request(Method::POST, "/").body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), 413);
    // What fits passes.
    let mut client = ingress.client().await;
    for body in ["Content-Length: 10\r\n\r\n1234567890", "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n4\r\n7890\r\n0\r\n\r\n"] {
        client.send(&format!("{post}{body}")).await;
        let got = client.response().await;
        assert!(got.status == 200 && got.body.ends_with("1234567890"), "{}", got.body);
        client = ingress.client().await;
    }
    let response = connect(&ingress).await.send_request(request(Method::POST, "/").body(full("1234567890")).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// Reads a body only after a second.
async fn late_reader() -> SocketAddr {
    instance(|_, mut connection: Client| async move {
        while let Some(head) = connection.try_head().await {
            sleep(Duration::from_secs(1)).await;
            connection.body(&head).await;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await
}

#[tokio::test]
async fn a_body_of_which_nothing_comes_is_given_up() {
    let policy = || Policy { client_idle: Some(Duration::from_millis(400)), ..Policy::default() };
    let ingress = with(policy(), echo("one").await).await;
    for head in ["Content-Length: 10\r\n\r\n12345", "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"] {
        let mut client = ingress.client().await;
        client.send(&format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\n{head}")).await;
        let got = client.response().await;
        assert_eq!((got.status, got.head.header("x-moat-reason")), (408, Some("body-paused")), "{}", got.body);
        assert_eq!(client.rest().await, "");
    }
    // One that comes slowly, for longer than that.
    let mut client = ingress.client().await;
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 10\r\n\r\n").await;
    for digit in 0..10 {
        sleep(Duration::from_millis(100)).await;
        client.send(&digit.to_string()).await;
    }
    assert_eq!(client.response().await.status, 200);
    // One that its instance is late to take.
    let ingress = with(policy(), late_reader().await).await;
    let mut client = ingress.client().await;
    let body = "x".repeat(20 << 20);
    client.send(&format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    assert_eq!(client.response().await.status, 200);
    // Over HTTP/2 it may be silent.
    let ingress = with(policy(), echo("one").await).await;
    let (parts, body) = tokio::sync::mpsc::unbounded_channel();
    parts.send(Bytes::from_static(b"one")).unwrap();
    let asked = request(Method::POST, "/").body(StreamBody::new(Parts(body)).boxed()).unwrap();
    let mut sender = connect(&ingress).await;
    let answer = tokio::spawn(async move { sender.send_request(asked).await.unwrap().status() });
    sleep(Duration::from_secs(1)).await;
    drop(parts);
    assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap(), 200);
}

#[tokio::test]
async fn the_wait_for_an_answer_begins_behind_the_body() {
    let settings = Settings { response_wait: Duration::from_millis(500), ..Settings::default() };
    let ingress = Ingress::start_with(live("shop.localhost", "shop", &[echo("one").await]), settings.clone()).await;
    let mut client = ingress.client().await;
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 10\r\n\r\n").await;
    for digit in 0..10 {
        sleep(Duration::from_millis(150)).await;
        client.send(&digit.to_string()).await;
    }
    let got = client.response().await;
    assert!(got.status == 200 && got.body.ends_with("0123456789"), "{}", got.body);
    // It ends, though: where the body was taken, and where it is not.
    let silent = instance(|_, mut connection: Client| async move {
        let head = connection.head().await;
        if head.text.starts_with("PUT ") {
            std::future::pending::<()>().await;
        }
        connection.rest().await;
    })
    .await;
    let ingress = Ingress::start_with(live("shop.localhost", "shop", &[silent]), settings).await;
    for (method, length) in [("POST", 10), ("PUT", 20 << 20)] {
        let client = ingress.client().await;
        let (read, mut write) = client.stream.into_split();
        let body = "x".repeat(length);
        let sent = tokio::spawn(async move {
            let head = format!("{method} / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {length}\r\n\r\n{body}");
            // The answer may come before all is taken.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, head.as_bytes()).await;
            write
        });
        let mut read = tokio::io::BufReader::new(read);
        let mut line = String::new();
        timeout(PATIENCE, tokio::io::AsyncBufReadExt::read_line(&mut read, &mut line)).await.unwrap().unwrap();
        assert!(line.starts_with("HTTP/1.1 504 "), "{method}: {line}");
        sent.abort();
    }
}

#[tokio::test]
async fn a_client_has_so_many_connections() {
    let policy = Policy { max_client_connections: Some(2), proxies: vec!["127.0.0.2/32".parse().unwrap()], ..Policy::default() };
    let ingress = with(policy, echo("one").await).await;
    let ask = "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = ingress.client().await;
        client.send(ask).await;
        assert_eq!(client.response().await.status, 200);
        held.push(client);
    }
    let mut third = ingress.client().await;
    assert_eq!(third.rest().await, "", "it is closed");
    held.pop();
    // It is noticed a moment later.
    let again = async {
        loop {
            let mut client = ingress.client().await;
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, ask.as_bytes()).await.is_ok() && client.try_head().await.is_some() {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    drop(held);
    // Those of a proxy are counted for whom it speaks.
    let by_proxy = async |header: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut client = Client::new(socket.connect(ingress.address).await.unwrap());
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, format!("{header}{ask}").as_bytes()).await;
        let served = client.try_head().await.is_some();
        (client, served)
    };
    let mut held = Vec::new();
    for (client, want) in [("192.0.2.1", true), ("192.0.2.1", true), ("192.0.2.1", false), ("192.0.2.2", true)] {
        let (connection, served) = by_proxy(&format!("PROXY TCP4 {client} 198.51.100.1 5000 80\r\n")).await;
        assert_eq!(served, want, "{client}");
        held.push(connection);
    }
    for _ in 0..4 {
        let (connection, served) = by_proxy("PROXY UNKNOWN\r\n").await;
        assert!(served, "a proxy's own");
        held.push(connection);
    }
}

#[tokio::test]
async fn a_websocket_is_one_of_its_clients_connections() {
    let address = instance(|_, mut connection: Client| async move {
        let head = connection.head().await;
        if head.header("upgrade").is_some() {
            connection.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
        } else {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
        connection.rest().await;
    })
    .await;
    let ingress = with(Policy { max_client_connections: Some(1), ..Policy::default() }, address).await;
    let mut tunnel = ingress.client().await;
    tunnel.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(tunnel.head().await.status(), 101);
    for _ in 0..5 {
        assert_eq!(ingress.client().await.rest().await, "", "it has one already");
    }
    drop(tunnel);
    let again = async {
        loop {
            let mut client = ingress.client().await;
            let ask = b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, ask).await.is_ok() && client.try_head().await.is_some() {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}
