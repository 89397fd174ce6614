//! An ingress, instances that do what a test says, and a client that writes raw bytes.

use moat_ingress::{Certificate, Certificates, Dial, Listeners, Records, Route, RouteState, RouteTable, Routes, Settings, Tls, serve_with};
use moat_model::Slug;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Long enough for a busy machine; nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Dials directly and counts.
#[derive(Default)]
pub struct Direct {
    dials: AtomicUsize,
}

impl Dial for Direct {
    fn dial(&self, to: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send {
        self.dials.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to)
    }
}

pub struct Ingress {
    pub address: SocketAddr,
    pub routes: Arc<RouteTable>,
    pub stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<io::Result<()>>,
    /// HTTPS, where it is served, and its certificates.
    pub https: Option<(SocketAddr, Arc<Tls>)>,
    dial: Arc<Direct>,
}

impl Ingress {
    pub async fn start(routes: Routes) -> Self {
        Self::start_with(routes, Settings::default()).await
    }

    pub async fn start_with(routes: Routes, settings: Settings) -> Self {
        Self::listen(routes, settings, None, Records::default()).await
    }

    /// One that serves HTTPS too, by these certificates.
    pub async fn start_secure(routes: Routes, certificates: Certificates) -> Self {
        let tls = Tls::new().unwrap();
        tls.set(certificates);
        Self::listen(routes, Settings::default(), Some(Arc::new(tls)), Records::default()).await
    }

    /// One whose requests are noted here.
    pub async fn start_recorded(routes: Routes, records: Records) -> Self {
        Self::listen(routes, Settings::default(), None, records).await
    }

    async fn listen(routes: Routes, settings: Settings, tls: Option<Arc<Tls>>, records: Records) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = http.local_addr().unwrap();
        let (mut https, mut listeners) = (None, Listeners::from(http));
        if let Some(tls) = tls {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            https = Some((listener.local_addr().unwrap(), Arc::clone(&tls)));
            listeners.https = Some((listener, tls));
        }
        let routes = Arc::new(RouteTable::new(routes));
        let dial = Arc::new(Direct::default());
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve_with(listeners, Arc::clone(&routes), Arc::clone(&dial), stopped, settings, records));
        Self { address, routes, stop: Some(stop), task, https, dial }
    }

    /// An ingress with one host, `shop.localhost`.
    pub async fn shop(upstreams: &[SocketAddr]) -> Self {
        Self::start(live("shop.localhost", "shop", upstreams)).await
    }

    pub fn dials(&self) -> usize {
        self.dial.dials.load(Ordering::SeqCst)
    }

    pub async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), read: Vec::new() }
    }

    /// One request on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Response {
        let mut client = self.client().await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        client.response().await
    }
}

/// A certificate for these names that nobody signed, and itself as PEM.
pub fn certificate(names: &[&str]) -> (Certificate, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (Certificate::from_pem(&made.cert.pem(), &made.signing_key.serialize_pem()).unwrap(), made.cert.pem())
}

pub fn live(host: &str, service: &str, upstreams: &[SocketAddr]) -> Routes {
    let route = Route::new(Slug::new(service).unwrap(), upstreams.to_vec(), RouteState::Live);
    HashMap::from([(host.to_owned(), route)]).into()
}

/// An instance: every connection is handled by `handler`, which gets its number and the connection.
pub async fn instance<F, Fut>(handler: F) -> SocketAddr
where
    F: Fn(usize, Client) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(handler(number, Client { stream, read: Vec::new() }));
        }
    });
    address
}

/// An instance that answers every request with `name`, and the head it got.
pub async fn echo(name: &'static str) -> SocketAddr {
    instance(move |_, mut connection| async move {
        while let Some(head) = connection.try_head().await {
            let body = connection.body(&head).await;
            let answer = format!("{name}\n{}{}", head.text, String::from_utf8_lossy(&body));
            connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())).await;
        }
    })
    .await
}

/// An address that nobody listens on.
pub async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// One end of a connection, read head by head and body by body.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

pub struct Head {
    /// The head as it came, with its empty line.
    pub text: String,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn status(&self) -> u16 {
        self.text.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

pub struct Response {
    pub head: Head,
    pub status: u16,
    pub body: String,
}

impl Client {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn more(&mut self) -> usize {
        // A reset is an end too.
        timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.unwrap().unwrap_or(0)
    }

    pub async fn try_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return Some(Head { text: String::from_utf8(head).unwrap() });
            }
            if self.more().await == 0 {
                assert!(self.read.is_empty(), "half a head: {:?}", String::from_utf8_lossy(&self.read));
                return None;
            }
        }
    }

    pub async fn head(&mut self) -> Head {
        self.try_head().await.unwrap()
    }

    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert_ne!(self.more().await, 0, "the connection ended early");
        }
        self.read.drain(..count).collect()
    }

    pub async fn chunk(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.bytes(1).await);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        let mut data = self.bytes(size + 2).await;
        data.truncate(size);
        data
    }

    /// The body that a head announces.
    pub async fn body(&mut self, head: &Head) -> Vec<u8> {
        if let Some(length) = head.header("content-length") {
            return self.bytes(length.parse().unwrap()).await;
        }
        let mut body = Vec::new();
        if head.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
        }
        body
    }

    pub async fn response(&mut self) -> Response {
        let head = self.head().await;
        let body = String::from_utf8(self.body(&head).await).unwrap();
        Response { status: head.status(), head, body }
    }

    /// Waits for the end; what came before it.
    pub async fn rest(&mut self) -> String {
        while self.more().await > 0 {}
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}
