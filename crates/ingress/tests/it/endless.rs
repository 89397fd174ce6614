//! Clients that never end, and what must not be ended.

use crate::frames::{END_STREAM, GET, Raw, get, request as frames};
use crate::http2::{connect, full, request};
use crate::support::{Client, Ingress, PATIENCE, instance, live};
use http::Method;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use moat_ingress::{Policy, Settings};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Answers `/` at once, `/slow` in two parts with a pause of a second, `/endless` without end (and tells when that ends),
/// `/large` with some megabytes, and switches for the rest.
async fn instance_of_all(ends: mpsc::UnboundedSender<()>) -> std::net::SocketAddr {
    instance(move |_, mut connection: Client| {
        let ends = ends.clone();
        async move {
            while let Some(head) = connection.try_head().await {
                match head.text.split(' ').nth(1).unwrap() {
                    "/" => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await,
                    "/slow" => {
                        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfir").await;
                        sleep(Duration::from_secs(1)).await;
                        connection.send("st!").await;
                    }
                    "/large" => {
                        connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
                        connection.stream.write_all(&vec![b'x'; LARGE]).await.unwrap();
                    }
                    "/endless" => {
                        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                        let part = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
                        while connection.stream.write_all(part.as_bytes()).await.is_ok() {}
                        let _ = ends.send(());
                        return;
                    }
                    _ => {
                        connection.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
                        let bytes = connection.bytes(4).await;
                        connection.stream.write_all(&bytes).await.unwrap();
                    }
                }
            }
        }
    })
    .await
}

const LARGE: usize = 3_000_000;

/// With such times, and what tells of answers that ended early.
async fn ingress(header_wait: Duration, client_idle: Option<Duration>) -> (Ingress, mpsc::UnboundedReceiver<()>) {
    let (ends, ended) = mpsc::unbounded_channel();
    let mut routes = live("shop.localhost", "shop", &[instance_of_all(ends).await]);
    routes.policy = Policy { client_idle, ..Policy::default() };
    (Ingress::start_with(routes, Settings { header_wait, ..Settings::default() }).await, ended)
}

/// One request over HTTP/2 of a client that answers nothing, not even a PING.
async fn asked(ingress: &Ingress, path: &str) -> Raw {
    let mut client = Raw::connect(ingress.address, &[]).await;
    let mut head = GET;
    head[3].1 = path;
    client.send(&frames(1, END_STREAM, &head, &[])).await;
    client
}

#[tokio::test]
async fn a_client_of_http2_that_answers_nothing_is_closed() {
    let (ingress, _) = ingress(Duration::from_millis(200), None).await;
    let mut client = asked(&ingress, "/").await;
    assert_eq!(client.word().await, (1, "200".to_owned()));
    assert_eq!(client.word().await.1, "goaway NO_ERROR");
    client.rest().await;
    // Not before its answer is whole.
    let mut client = asked(&ingress, "/slow").await;
    let got = client.rest().await;
    let data = |part: &[u8]| got.windows(part.len()).any(|window| window == part);
    assert!(data(b"fir") && data(b"st!"), "{} bytes", got.len());
}

#[tokio::test]
async fn a_silent_websocket_over_http2_goes_on() {
    let (ingress, _) = ingress(Duration::from_millis(200), Some(Duration::from_millis(200))).await;
    let mut sender = connect(&ingress).await;
    sender.send_request(request(Method::GET, "/").body(full("")).unwrap()).await.unwrap();
    let mut opening = request(Method::CONNECT, "/chat").body(full("")).unwrap();
    opening.extensions_mut().insert(Protocol::from_static("websocket"));
    let response = sender.send_request(opening).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    sleep(Duration::from_millis(1500)).await;
    tunnel.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    timeout(PATIENCE, tunnel.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, b"ping");
}

/// A client with so much room for what comes, bytes.
async fn small(ingress: &Ingress, path: &str, room: u32) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(room).unwrap();
    let mut client = Client::new(socket.connect(ingress.address).await.unwrap());
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")).await;
    client
}

#[tokio::test]
async fn who_reads_slowly_gets_the_last_byte_too() {
    let (ingress, _) = ingress(Duration::from_millis(300), Some(Duration::from_secs(20))).await;
    let mut client = small(&ingress, "/large", 16 << 10).await;
    let head = client.head().await;
    assert_eq!(head.header("content-length"), Some(LARGE.to_string().as_str()));
    let mut left = LARGE;
    while left > 0 {
        let some = left.min(10_000);
        client.bytes(some).await;
        left -= some;
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends() {
    /// Several segments of this machine's own connections.
    const ROOM: u32 = 256 << 10;
    let idle = Duration::from_secs(1);
    let (ingress, mut ended) = ingress(PATIENCE, Some(idle)).await;
    let reads_nothing = small(&ingress, "/endless", ROOM).await;
    timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
    drop(reads_nothing);
    // One that reads a little now and then goes on.
    let mut client = small(&ingress, "/endless", ROOM).await;
    for _ in 0..40 {
        client.bytes(40_000).await;
        sleep(idle / 10).await;
    }
    assert!(ended.try_recv().is_err());
    drop(client);
    timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_over_http2_that_nobody_takes_ends_and_no_other() {
    let (ingress, mut ended) = ingress(PATIENCE, Some(Duration::from_millis(300))).await;
    // Its window is never opened.
    let mut client = asked(&ingress, "/endless").await;
    assert_eq!(client.word().await, (1, "200".to_owned()));
    assert_eq!(client.word().await, (1, "reset CANCEL".to_owned()));
    timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
    client.send(&get(3)).await;
    assert_eq!(client.word().await, (3, "200".to_owned()));
    // What its instance is silent in goes on.
    let mut sender = connect(&ingress).await;
    let response = sender.send_request(request(Method::GET, "/slow").body(full("")).unwrap()).await.unwrap();
    let got = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(got, "first!");
}
