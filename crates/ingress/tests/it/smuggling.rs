//! One request or two? Whatever reaches an instance is one request, and real servers agree which (attack row 27).
//!
//! Requests that are read differently by different programs are sent to the ingress. Each byte that arrives at an instance is
//! given to nginx, Node, gunicorn and hyper, with a last request behind it: each must see exactly those two, and the same.

use crate::frames::{DATA, END_STREAM, GET, HEADERS, POST, Raw, block, frame, request};
use crate::peers::{Peers, seen, taken_for};
use crate::support::{Client, Ingress, instance, live};
use moat_ingress::Settings;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";
const LAST: &str = "GET /last HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n";

/// Every byte of every connection to an instance, and whether its request was whole.
type Captured = Arc<Mutex<Vec<Vec<u8>>>>;

/// An ingress whose instance answers one request on each connection, and keeps what it read.
async fn watched() -> (Ingress, Captured) {
    let captured = Captured::default();
    let log = Arc::clone(&captured);
    let address = instance(move |_, mut connection: Client| {
        let log = Arc::clone(&log);
        async move {
            let mut all = Vec::new();
            let mut answered = false;
            while connection.stream.read_buf(&mut all).await.is_ok_and(|count| count > 0) {
                if !answered && is_whole(&all) {
                    answered = true;
                    let _ = connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
                }
            }
            if answered {
                log.lock().unwrap().push(all);
            }
        }
    })
    .await;
    let settings = Settings { header_wait: Duration::from_secs(1), ..Settings::default() };
    (Ingress::start_with(live("shop.localhost", "shop", &[address]), settings).await, captured)
}

/// Whether the request that these bytes begin with has ended.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    if let Some((_, length)) = head.split_once("content-length: ") {
        return body.len() >= length.split("\r\n").next().unwrap().parse::<usize>().unwrap();
    }
    !head.contains("transfer-encoding: chunked") || body.starts_with(b"0\r\n") && body.ends_with(b"\r\n\r\n") || {
        let text = String::from_utf8_lossy(body).into_owned();
        text.contains("\r\n0\r\n") && text.ends_with("\r\n\r\n")
    }
}

/// Ways to say `Transfer-Encoding: chunked` that some overlook.
const CODINGS: [&str; 36] = [
    "Transfer-Encoding: chunked",
    "transfer-encoding:chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: chunked ",
    "Transfer-Encoding:  chunked\t",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    " Transfer-Encoding: chunked",
    "X: y\r\n Transfer-Encoding: chunked",
    "X: y\r\n\tTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding:\n chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: CHUNKED",
    "Transfer-Encoding: chunKed",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: \0chunked",
    "Transfer-Encoding: chunked\0",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: , chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding\u{ff}: chunked",
    "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
];

/// Ways to say how long a body is.
const LENGTHS: [&str; 22] = [
    "",
    "Content-Length: 5",
    "Content-Length: 0",
    "content-length:5",
    "Content-Length: 05",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 5 ",
    "Content-Length: 5,5",
    "Content-Length: 5, 6",
    "Content-Length: 0x5",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 0",
    "Content-Length: 0\r\nContent-Length: 5",
    "Content-Length : 5",
    "Content_Length: 5",
    "Content-Length: 18446744073709551621",
    "Content-Length: \u{b}5",
    "Content-Length: 5\nX: y",
    "Content-Length:\r\n 5",
    "Content-Length:",
    "Connection: content-length\r\nContent-Length: 5",
];

/// Chunks that some read differently; each is `5` bytes to those who do not look.
const CHUNKS: [&str; 24] = [
    "5\r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n0\r\n\r\n",
    "0000000000000005\r\nhello\r\n0\r\n\r\n",
    "00000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "5;x\r\nhello\r\n0\r\n\r\n",
    "5;x=\"a\r\nb\"\r\nhello\r\n0\r\n\r\n",
    "5;x\nhello\r\n0\r\n\r\n",
    "5;\rx\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello\r\n0\n\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: catalog\r\n\r\n",
    "5\r\nhello\r\n0\r\n\rX: y\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n-0\r\n\r\n",
    "5\r\nhello\r\n\r\n\r\n",
];

fn rows() -> Vec<String> {
    let post = |headers: &str, body: &str| {
        let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
        format!("POST /x?y HTTP/1.1\r\nHost: shop.localhost\r\n{headers}\r\n{body}")
    };
    let mut rows = Vec::new();
    for coding in CODINGS {
        for length in ["", "Content-Length: 5", "Content-Length: 50"] {
            let separator = if length.is_empty() { "" } else { "\r\n" };
            // The body ends at once, or after five bytes, or is 50 long.
            rows.push(post(&format!("{coding}{separator}{length}"), &format!("0\r\n\r\n{SMUGGLED}")));
            rows.push(post(&format!("{length}{separator}{coding}"), &format!("0\r\n\r\n{SMUGGLED}")));
        }
    }
    rows.extend(LENGTHS.map(|length| post(length, &format!("hello{SMUGGLED}"))));
    rows.extend(CHUNKS.map(|chunks| post("Transfer-Encoding: chunked\r\nTrailer: X", &format!("{chunks}{SMUGGLED}"))));
    let get = |line: &str, headers: &str| format!("{line}\r\nHost: shop.localhost\r\n{headers}\r\n{SMUGGLED}");
    for line in [
        "GET / HTTP/1.1",
        "GET http://shop.localhost/a HTTP/1.1",
        "GET http://catalog/a HTTP/1.1",
        "GET HTTP://SHOP.localhost:80/a HTTP/1.1",
        "GET shop.localhost/a HTTP/1.1",
        "GET //catalog/a HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a%0d%0aX:%20y HTTP/1.1",
        "GET /a?b#c HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /../../a/./b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.0",
        "GET / HTTP/0.9",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / http/1.1",
        "GET /",
        "get / HTTP/1.1",
        "FOO-BAR / HTTP/1.1",
        "G(T / HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "\nGET / HTTP/1.1",
        " GET / HTTP/1.1",
        "CONNECT catalog:80 HTTP/1.1",
        "TRACE / HTTP/1.1",
    ] {
        rows.push(get(line, ""));
    }
    for headers in [
        "Host: shop.localhost\r\n",
        "Host: catalog\r\n",
        " Host: catalog\r\n",
        "Host : catalog\r\n",
        "X\0: y\r\n",
        "X: a\0b\r\n",
        "X: a\rb\r\n",
        "X: a\nb\r\n",
        ": y\r\n",
        "X\r\n",
        "X y: z\r\n",
        "X: \u{e9}\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 50\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\nContent-Length: 0\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
        "Connection: host\r\n",
        "Connection: close\r\n",
        "X-Forwarded-For: a\r\nX-Forwarded-For: b\r\n",
    ] {
        rows.push(get("GET /h HTTP/1.1", headers));
    }
    rows.push(SMUGGLED.repeat(300));
    rows.push(format!("{}{SMUGGLED}", post("Content-Length: 5", "hello").repeat(50)));
    rows
}

/// Requests of HTTP/2 that would be two of HTTP/1.1 if they were written out as they are.
fn rows2() -> Vec<Vec<u8>> {
    let with = |head: [(&str, &str); 4], more: &[(&str, &str)], body: &str| {
        [request(1, 0, &head, more), frame(DATA, END_STREAM, 1, body)].concat()
    };
    let mut rows = Vec::new();
    for (name, value) in [
        ("x", "a\r\nTransfer-Encoding: chunked"),
        ("x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"),
        ("x", "a\nb"),
        ("x", "a\rb"),
        ("x", "a\0b"),
        ("x\r\ntransfer-encoding: chunked\r\ny", "z"),
        ("x: y\r\nz", "z"),
        ("x ", "y"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding ", "chunked"),
        ("transfer_encoding", "chunked"),
        ("content-length", "0"),
        ("content-length", "5"),
        ("content-length", "05"),
        ("content-length", "50"),
        ("content-length", "5,5"),
        ("content-length", "5 "),
        ("connection", "transfer-encoding"),
        ("te", "trailers"),
        ("te", "chunked"),
        ("host", "catalog"),
        ("host", "shop.localhost"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("trailer", "content-length"),
        ("x-mine", "\u{e9}"),
        ("cookie", "a=1"),
    ] {
        for head in [GET, POST] {
            rows.push(with(head, &[(name, value)], "hello"));
            rows.push(with(head, &[(name, value)], &format!("0\r\n\r\n{SMUGGLED}")));
        }
    }
    for at in 0..4 {
        for value in [
            "GET",
            "/a b",
            "/ HTTP/1.1\r\nHost: catalog\r\n\r\nGET /smuggled",
            "/\r\nx: y",
            "/a?b#c",
            "//catalog/x",
            "http://catalog/x",
            "shop.localhost:80",
            "shop.localhost\r\nx: y",
            "shop.localhost@catalog",
            "catalog",
            "*",
            "",
            "GET / HTTP/1.1\r\nHost: catalog\r\n\r\n",
            "https",
            "/\u{e9}",
            "/\\..\\x",
        ] {
            let mut head = POST;
            head[at].1 = value;
            rows.push(with(head, &[], "hello"));
        }
    }
    // Trailers that would be a head.
    let trailers =
        block(&[("content-length", "5"), ("transfer-encoding", "chunked"), ("host", "catalog"), ("x-forwarded-for", "192.0.2.1")]);
    rows.push(
        [request(1, 0, &POST, &[("trailer", "x-forwarded-for, host")]), frame(DATA, 0, 1, "hello"), frame(HEADERS, 5, 1, trailers)]
            .concat(),
    );
    rows
}

#[tokio::test]
async fn what_arrives_is_one_request_for_every_server() {
    let Some(peers) = Peers::start().await else { return };
    let (ingress, captured) = watched().await;
    // Each connection ends by itself, or waits for a body that never comes.
    let enough = Duration::from_secs(3);
    let mut all = tokio::task::JoinSet::new();
    let address = ingress.address;
    for row in rows() {
        all.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(row.as_bytes()).await;
            let _ = timeout(enough, stream.read_to_end(&mut Vec::new())).await;
        });
    }
    for row in rows2() {
        all.spawn(async move {
            let mut client = Raw::connect(address, &[]).await;
            client.send(&row).await;
            let _ = timeout(enough, client.rest()).await;
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let mut captured = std::mem::take(&mut *captured.lock().unwrap());
    let without_id = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.split("\r\n").filter(|line| !line.contains("-id: ")).collect::<Vec<_>>().join("\r\n")
    };
    captured.sort_by_key(|bytes| without_id(bytes));
    captured.dedup_by_key(|bytes| without_id(bytes));
    assert!(captured.len() > 50, "only {} kinds of requests arrived", captured.len());
    let (mut wrong, mut plain) = (Vec::new(), 0);
    for bytes in &captured {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let lower = text.to_ascii_lowercase();
        assert!(!lower.contains("host: catalog"), "another host: {text:?}");
        assert!(!lower.contains("x-forwarded-for: 192.0.2.1"), "a forged address: {text:?}");
        if lower.contains("upgrade: websocket") {
            // What comes behind it is no request.
            continue;
        }
        let sent = [bytes, LAST.as_bytes()].concat();
        let mut views = Vec::new();
        for (name, path) in &peers.all {
            views.push((name, taken_for(path, &sent).await));
        }
        let line: Vec<&str> = text.split(' ').take(2).collect();
        let last = seen("GET", "/last", b"");
        let is_one = |view: &[String]| matches!(view, [first, second] if first.starts_with(&format!("[{} {} ", line[0], line[1])) && *second == last);
        let is_refused = |view: &[String]| matches!(view, [first, ..] if first.starts_with('4') || first.starts_with('5'));
        let accepted: Vec<_> = views.iter().filter(|(_, view)| !is_refused(view)).collect();
        let same = accepted.iter().all(|(_, view)| is_one(view) && *view == accepted[0].1);
        if !same || accepted.is_empty() {
            wrong.push(format!("{text:?}: {views:?}"));
        }
        plain += usize::from(accepted.len() == peers.all.len());
    }
    assert!(plain > 30, "only {plain} requests were fine for every server");
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), captured.len(), wrong.join("\n"));
}
