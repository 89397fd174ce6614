//! HTTP/2 from clients and to instances.

use crate::frames::{DATA, END_STREAM, GET, HEADERS, RST_STREAM, Raw, get, request as raw_request};
use crate::support::{Ingress, PATIENCE, certificate, echo, instance, live};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use moat_ingress::{Certificates, Policy, Settings};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

pub type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// A connection with prior knowledge.
pub async fn connect(ingress: &Ingress) -> SendRequest<Body> {
    let stream = TcpStream::connect(ingress.address).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).version(Version::HTTP_2).uri(format!("http://shop.localhost:8080{path}"))
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// An instance that speaks HTTP/2 by prior knowledge: it answers with what it got, and trailers.
async fn grpc_instance(connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(|request: Request<Incoming>| async move {
                let te = request.headers().get("te").map_or("none", |te| te.to_str().unwrap());
                let head = format!(
                    "{} te={te} {} {}\n",
                    request.uri(),
                    request.headers().len(),
                    request.headers()["x-forwarded-proto"].to_str().unwrap()
                );
                let collected = request.into_body().collect().await.unwrap();
                let trailer = collected.trailers().and_then(|all| all.get("x-sum")).map_or("none", |sum| sum.to_str().unwrap()).to_owned();
                let answer = format!("{head}{}\n{trailer}", String::from_utf8_lossy(&collected.to_bytes()));
                let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
                let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(answer))), Ok(Frame::trailers(trailers))];
                let mut stream = frames.into_iter();
                let body = StreamBody::new(Frames(Box::new(move || stream.next())));
                Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
            });
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

pub type Next = Result<Frame<Bytes>, Infallible>;

/// Frames one after the other.
struct Frames(Box<dyn FnMut() -> Option<Next> + Send + Sync>);

impl futures_core::Stream for Frames {
    type Item = Next;
    fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Next>> {
        std::task::Poll::Ready((self.0)())
    }
}

#[tokio::test]
async fn requests_share_a_connection() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let sender = connect(&ingress).await;
    let mut all = tokio::task::JoinSet::new();
    for n in 0..50 {
        let mut sender = sender.clone();
        all.spawn(async move {
            let response =
                sender.send_request(request(Method::POST, &format!("/{n}")).body(full(format!("body {n}"))).unwrap()).await.unwrap();
            assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
            let text = text(response).await;
            assert!(text.starts_with(&format!("one\nPOST /{n} HTTP/1.1\r\n")) && text.ends_with(&format!("\r\n\r\nbody {n}")), "{text}");
            assert!(text.contains("host: shop.localhost:8080\r\n") && text.contains("x-forwarded-proto: http\r\n"), "{text}");
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn heads_that_say_two_things() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let mut sender = connect(&ingress).await;
    for (uri, host, want) in [
        ("http://shop.localhost:8080/", None, 200),
        ("http://shop.localhost:8080/", Some("shop.localhost:8080"), 200),
        ("http://shop.localhost:8080/", Some("other.localhost:8080"), 400),
        ("http://shop.localhost:8080/", Some("catalog"), 400),
        ("http://catalog/", None, 404),
        ("http://me@shop.localhost/", None, 400),
        ("ftp://shop.localhost/", None, 400),
    ] {
        let mut asked = Request::get(uri).version(Version::HTTP_2);
        if let Some(host) = host {
            asked = asked.header("host", host);
        }
        let status = sender.send_request(asked.body(full("")).unwrap()).await.map(|response| response.status().as_u16());
        assert_eq!(status.unwrap(), want, "{uri} {host:?}");
    }
    let tunnel = Request::connect("shop.localhost:80").version(Version::HTTP_2).body(full("")).unwrap();
    assert_eq!(sender.send_request(tunnel).await.unwrap().status(), 405);
}

#[tokio::test]
async fn grpc_goes_by_http2_with_its_trailers() {
    let connections = Arc::new(AtomicUsize::new(0));
    let ingress = Ingress::shop(&[grpc_instance(Arc::clone(&connections)).await]).await;
    let mut sender = connect(&ingress).await;
    for n in 0..10 {
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(format!("call {n}")))), Ok(Frame::trailers(trailers))];
        let mut frames = frames.into_iter();
        let body = StreamBody::new(Frames(Box::new(move || frames.next()))).boxed();
        let call = request(Method::POST, "/shop.Orders/Add").header("content-type", "application/grpc").header("te", "trailers").body(body);
        let response = sender.send_request(call.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
        assert!(
            text.starts_with("http://shop.localhost:8080/shop.Orders/Add te=trailers ") && text.ends_with(&format!("call {n}\n7")),
            "{text}"
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "one connection carries all");
    // An instance that went away is found gone, not waited for.
    let ingress = Ingress::shop(&[crate::support::closed().await]).await;
    let mut gone = connect(&ingress).await;
    let call = request(Method::POST, "/x").header("content-type", "application/grpc").body(full("")).unwrap();
    assert_eq!(gone.send_request(call).await.unwrap().status(), 502);
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_for_its_instance() {
    let address = instance(|_, mut connection| async move {
        let head = connection.head().await;
        let key = head.header("sec-websocket-key").unwrap();
        assert!(head.text.starts_with("GET /chat HTTP/1.1\r\n") && key.len() == 24, "{}", head.text);
        assert_eq!((head.header("upgrade"), head.header("connection")), (Some("websocket"), Some("upgrade")));
        assert_eq!(head.header("sec-websocket-version"), Some("13"));
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n")
            .await;
        let bytes = connection.bytes(4).await;
        connection.stream.write_all(&bytes).await.unwrap();
        connection.stream.write_all(b" and more").await.unwrap();
        assert_eq!(connection.rest().await, "");
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let stream = TcpStream::connect(ingress.address).await.unwrap();
    let (mut sender, connection) = handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // What the server allows is known with its first frame.
    sender.send_request(request(Method::GET, "/nowhere").header("host", "none").body(full("")).unwrap()).await.unwrap();
    let mut asked = request(Method::CONNECT, "/chat").header("sec-websocket-version", "13").body(full("")).unwrap();
    asked.extensions_mut().insert(Protocol::from_static("websocket"));
    let response = sender.send_request(asked).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("sec-websocket-protocol").unwrap(), "chat");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    tunnel.write_all(b"ping").await.unwrap();
    let mut read = [0; 13];
    tunnel.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping and more");
    tunnel.shutdown().await.unwrap();
    // One whose instance does not switch is told so.
    let ingress = Ingress::shop(&[echo("one").await]).await;
    let mut sender = connect(&ingress).await;
    sender.send_request(request(Method::GET, "/").body(full("")).unwrap()).await.unwrap();
    let mut asked = request(Method::CONNECT, "/chat").body(full("")).unwrap();
    asked.extensions_mut().insert(Protocol::from_static("websocket"));
    assert_eq!(sender.send_request(asked).await.unwrap().status(), 502);
}

#[tokio::test]
async fn streams_are_not_held_back() {
    let (ask, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    let address = instance(move |_, mut connection| {
        let ask = ask.clone();
        async move {
            let head = connection.head().await;
            assert_eq!(head.header("transfer-encoding"), Some("chunked"));
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            // Each part is answered before the next is sent.
            for _ in 0..3 {
                let part = connection.chunk().await;
                connection.send(&format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8(part).unwrap())).await;
                ask.send(()).await.unwrap();
            }
            assert!(connection.chunk().await.is_empty());
            connection.send("0\r\n\r\n").await;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut sender = connect(&ingress).await;
    let (parts, body) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let body = StreamBody::new(Parts(body)).boxed();
    let response = tokio::spawn(async move { sender.send_request(request(Method::POST, "/").body(body).unwrap()).await.unwrap() });
    parts.send(Bytes::from_static(b"one")).unwrap();
    let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    for (n, part) in ["one", "two", "three"].into_iter().enumerate() {
        if n > 0 {
            parts.send(Bytes::from_static(part.as_bytes())).unwrap();
        }
        let frame = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
        asked.recv().await.unwrap();
    }
    drop(parts);
    assert!(timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes().is_empty());
}

/// A body of what is sent here.
pub struct Parts(pub tokio::sync::mpsc::UnboundedReceiver<Bytes>);

impl futures_core::Stream for Parts {
    type Item = Next;
    fn poll_next(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Next>> {
        self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

#[tokio::test]
async fn a_client_that_takes_its_requests_back_is_closed() {
    // It never answers.
    let address = instance(|_, mut connection| async move {
        connection.rest().await;
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let sender = connect(&ingress).await;
    let closed = async {
        while !sender.is_closed() {
            let mut some = tokio::task::JoinSet::new();
            for _ in 0..20 {
                let mut sender = sender.clone();
                some.spawn(async move { drop(sender.send_request(request(Method::GET, "/").body(full("")).unwrap()).await) });
            }
            // They are on their way, and are dropped with their set.
            tokio::task::yield_now().await;
            let _ = timeout(Duration::from_millis(20), some.join_next()).await;
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    assert_eq!(ingress.get("none.localhost", "/").await.status, 404, "others go on");
}

#[tokio::test]
async fn silent_and_slow_clients_are_closed() {
    let settings = Settings { header_wait: Duration::from_millis(300), ..Settings::default() };
    let ingress = Ingress::start_with(live("shop.localhost", "shop", &[echo("one").await]), settings).await;
    for bytes in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"GET / HTTP/1.1\r\nHost: s",
    ] {
        let mut client = ingress.client().await;
        client.stream.write_all(bytes).await.unwrap();
        client.rest().await;
    }
    // One that asked and then says nothing more.
    let mut sender = connect(&ingress).await;
    assert_eq!(sender.send_request(request(Method::GET, "/").body(full("")).unwrap()).await.unwrap().status(), 200);
    timeout(PATIENCE, async {
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_proxy_says_for_whom_it_speaks() {
    let mut routes = live("shop.localhost", "shop", &[echo("one").await]);
    routes.policy = Policy { proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Policy::default() };
    let ingress = Ingress::start(routes).await;
    let ask = "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n";
    for (header, want) in [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 5000 80\r\n", "x-forwarded-for: 192.0.2.7"),
        ("PROXY TCP6 2001:db8::7 2001:db8::1 5000 80\r\n", "x-forwarded-for: 2001:db8::7"),
        ("PROXY UNKNOWN\r\n", "x-forwarded-for: 127.0.0.1"),
    ] {
        let mut client = ingress.client().await;
        client.send(&format!("{header}{ask}")).await;
        let got = client.rest().await;
        assert!(got.contains(want), "{header}: {got}");
    }
    for header in ["", "PROXY TCP4 nonsense\r\n"] {
        let mut client = ingress.client().await;
        client.send(&format!("{header}{ask}")).await;
        assert_eq!(client.rest().await, "", "{header}");
    }
    let mut stranger = (*ingress.routes.load()).clone();
    stranger.policy.proxies = vec!["192.0.2.0/24".parse().unwrap()];
    ingress.routes.set(stranger);
    let mut client = ingress.client().await;
    client.send(&format!("PROXY TCP4 192.0.2.7 198.51.100.1 5000 80\r\n{ask}")).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 400 "), "who is no proxy has no say");
}

#[tokio::test]
async fn load_over_http2_by_another_implementation() {
    let (own, _) = certificate(&["shop.localhost"]);
    let backend = echo("one").await;
    let mut routes = live("shop.localhost", "shop", &[backend]);
    // h2load asks for the address that it connects to.
    routes.hosts.extend(live("127.0.0.1", "shop", &[backend]).hosts);
    let by_name = HashMap::from([("localhost".to_owned(), own)]);
    let ingress = Ingress::start_secure(routes, Certificates { by_name, proofs: HashMap::new() }).await;
    let (plain, secure) = (ingress.address, ingress.https.as_ref().unwrap().0);
    for url in [format!("http://{plain}/"), format!("https://{secure}/")] {
        let said = Command::new("h2load").args(["-n", "1000", "-c", "10", "-m", "10", &url]).stdin(Stdio::null()).output().await.unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains("1000 succeeded, 0 failed, 0 errored, 0 timeout") && said.contains("status codes: 1000 2xx"),
            "{url}: {said}"
        );
    }
    let said = Command::new("nghttp").args(["-nv", &format!("http://{plain}/")]).stdin(Stdio::null()).output().await.unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(":status: 200") && said.contains("ENABLE_CONNECT_PROTOCOL") || said.contains("UNKNOWN(0x08):1"), "{said}");
}

/// What an instance said before it broke off reaches the client, while another request of its connection waits.
#[tokio::test]
async fn what_came_before_a_break_is_sent() {
    let (entered, mut waits) = tokio::sync::mpsc::channel(1);
    let address = instance(move |_, mut connection| {
        let entered = entered.clone();
        async move {
            if connection.head().await.text.starts_with("GET /waits ") {
                entered.send(()).await.unwrap();
                connection.rest().await;
            } else {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcd").await;
            }
        }
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut client = Raw::connect(ingress.address, &[]).await;
    let mut head = GET;
    head[3].1 = "/waits";
    client.send(&raw_request(1, END_STREAM, &head, &[])).await;
    waits.recv().await.unwrap();
    client.send(&get(3)).await;
    let mut kinds = Vec::new();
    while let Some(frame) = client.next().await {
        if frame.stream == 3 {
            kinds.push(frame.kind);
            if frame.kind == RST_STREAM {
                break;
            }
        }
    }
    assert_eq!(kinds, [HEADERS, DATA, RST_STREAM]);
}
