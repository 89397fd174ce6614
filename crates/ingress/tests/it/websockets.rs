//! Autobahn's cases of WebSocket (RFC 6455, RFC 7692) through the ingress, to a server of the Python package `websockets`.
//!
//! Autobahn's own program needs Python 2; `kosoku` runs the same case files. It speaks HTTP/1.1, so its connections to HTTP/2
//! (RFC 8441) are turned into such here.

use crate::peers::{python_tool, script};
use crate::support::{Client, Ingress, PATIENCE};
use http::{Method, Request, Version};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Cases that the server fails when it is asked directly: it says 1002 where the suite wants 1000.
const OF_THE_SERVER: [&str; 1] = ["7.1.5"];
/// All short ones, a message of 16 MB as a whole and in parts, many in a row, and some compressed.
const CASES: [&str; 16] =
    ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "9.1.6", "9.2.6", "9.4.4", "9.6.1", "9.7.1", "12.1.3", "12.5.8", "13.2.2"];
/// The same, but for what is about texts alone.
const FEWER: [&str; 12] = ["1.*", "2.*", "4.*", "5.*", "7.1.*", "7.3.*", "10.*", "9.1.6", "9.2.6", "9.7.1", "12.1.3", "12.5.3"];

/// A real server, which ends with what is returned.
async fn echo() -> Option<(Child, SocketAddr)> {
    let mut server = Command::new(python_tool("python")?)
        .arg(script("echo.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(server.stdout.take().unwrap());
    timeout(PATIENCE, said.read_line(&mut line)).await.unwrap().unwrap_or(0);
    let address = format!("127.0.0.1:{}", line.trim()).parse().unwrap();
    Some((server, address))
}

/// Runs cases; how many, and which failed.
async fn run(address: SocketAddr, cases: &[&str]) -> (usize, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = Command::new(python_tool("kosoku").unwrap());
    suite.args(["--parallelism", "4", "--outdir"]).arg(folder.path());
    for case in cases {
        suite.args(["--include", case]);
    }
    let said = suite.arg(address.to_string()).stdin(Stdio::null()).output().await.unwrap();
    let text = std::fs::read_to_string(folder.path().join("index.json")).unwrap_or_else(|_| panic!("{said:?}"));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let servers: Vec<_> = report.as_object().unwrap().values().collect();
    let [of] = servers[..] else { panic!("one server has a report: {report}") };
    let of = of.as_object().unwrap();
    let fine = |case: &serde_json::Value| {
        ["OK", "NON-STRICT", "INFORMATIONAL"].contains(&case["behavior"].as_str().unwrap())
            && ["OK", "INFORMATIONAL"].contains(&case["behaviorClose"].as_str().unwrap())
    };
    let failed = of.iter().filter(|(_, case)| !fine(case)).map(|(name, _)| name.clone()).collect();
    (of.len(), failed)
}

/// An ingress that `kosoku` finds by the address that it asks for.
async fn ingress(server: SocketAddr) -> Ingress {
    Ingress::start(crate::support::live("127.0.0.1", "chat", &[server])).await
}

#[tokio::test]
async fn autobahn_over_http_1() {
    let Some((_server, server)) = echo().await else { return };
    let ingress = ingress(server).await;
    let (count, failed) = run(ingress.address, &CASES).await;
    assert!(count > 240, "only {count} cases ran");
    assert_eq!(failed, OF_THE_SERVER);
}

#[tokio::test]
async fn autobahn_over_http2() {
    let Some((_server, server)) = echo().await else { return };
    let ingress = ingress(server).await;
    let stream = TcpStream::connect(ingress.address).await.unwrap();
    let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // What the server allows is known with its first frame.
    let first = Request::get("http://none.localhost/").version(Version::HTTP_2).body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(first).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(bridge(Client::new(stream), sender.clone()));
        }
    });
    let (count, failed) = run(address, &FEWER).await;
    assert!(count > 70, "only {count} cases ran");
    assert_eq!(failed, OF_THE_SERVER);
}

/// A WebSocket of HTTP/1.1 as one of HTTP/2, all on one connection.
async fn bridge(mut client: Client, mut sender: SendRequest<Empty<Bytes>>) {
    let head = client.head().await;
    let mut request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri("http://127.0.0.1/");
    for name in ["sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"] {
        if let Some(value) = head.header(name) {
            request = request.header(name, value);
        }
    }
    let mut request = request.body(Empty::new()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let extensions = response.headers().get("sec-websocket-extensions").map(|value| value.to_str().unwrap().to_owned());
    let server = response.headers().get("server").map(|value| value.to_str().unwrap().to_owned());
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let accept = accept(head.header("sec-websocket-key").unwrap());
    let mut answer =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n");
    for (name, value) in [("Sec-WebSocket-Extensions", extensions), ("Server", server)] {
        if let Some(value) = value {
            write!(answer, "{name}: {value}\r\n").unwrap();
        }
    }
    client.send(&format!("{answer}\r\n")).await;
    let _ = copy_bidirectional(&mut client.stream, &mut tunnel).await;
}

/// What proves that a WebSocket's key was read (RFC 6455 §4.2.2).
fn accept(key: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

/// FIPS 180-4 §6.1.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = [message, &[0x80]].concat();
    padded.resize(padded.len().next_multiple_of(64) + if padded.len() % 64 > 56 { 64 } else { 0 } - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut hash: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for chunk in padded.chunks_exact(64) {
        let mut words: Vec<u32> = chunk.chunks_exact(4).map(|four| u32::from_be_bytes(four.try_into().unwrap())).collect();
        for at in 16..80 {
            words.push((words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1));
        }
        let [mut first, mut b, mut c, mut d, mut last] = hash;
        for (at, word) in words.into_iter().enumerate() {
            let (mixed, constant) = match at / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc_u32),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = first.rotate_left(5).wrapping_add(mixed).wrapping_add(last).wrapping_add(constant).wrapping_add(word);
            (last, d, c, b, first) = (d, c, b.rotate_left(30), first, next);
        }
        for (sum, part) in hash.iter_mut().zip([first, b, c, d, last]) {
            *sum = sum.wrapping_add(part);
        }
    }
    hash.map(u32::to_be_bytes).concat().try_into().unwrap()
}

#[test]
fn the_example_of_the_rfc() {
    assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}
