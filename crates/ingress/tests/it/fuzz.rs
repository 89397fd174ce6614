//! Damaged requests and PROXY headers: whatever is sent, an instance gets one well-formed request for its own host or nothing,
//! and the ingress goes on.
//!
//! Requests of a corpus are damaged at random. `MOAT_FUZZ_CASES` says how many are tried; a failure prints the bytes, which belong
//! into the corpus then.

use crate::support::{Client, Ingress, instance, live};
use moat_ingress::{Policy, Settings};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What is damaged.
const CORPUS: [&[u8]; 10] = [
    b"GET /a?b=c HTTP/1.1\r\nHost: shop.localhost\r\nAccept: */*\r\n\r\n",
    b"GET http://shop.localhost:80/a HTTP/1.1\r\nHost: shop.localhost\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: shop.localhost\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop.localhost\r\nX-Forwarded-For: forged\r\nConnection: close, x\r\nX: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: catalog\r\n\r\n",
    b"GET /c HTTP/1.1\r\nHost: shop.localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: a\r\n\r\n\x81\x05hello",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
    // HTTP/2: settings and `GET /` of shop.localhost, by the static table.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x13\x01\x05\0\0\0\x01\x82\x86\x84\x01\x0eshop.localhost",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\0\0\x13\x01\x04\0\0\0\x01\x83\x86\x84\x01\x0eshop.localhost\0\0\x02\0\x01\0\0\0\x01hi",
];
const PROXIED: [&[u8]; 4] = [
    b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x13\x88\x01\xbb",
];
/// Bytes that mean something.
const WORDS: [&[u8]; 14] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"\t",
    b",",
    b"\r\n\r\n",
    b"Host: catalog\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0",
    b"\xff",
];

#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Word(prop::sample::Index, usize),
    Cut(prop::sample::Index, prop::sample::Index),
    Twice(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (index(), 0..WORDS.len()).prop_map(|(at, word)| Damage::Word(at, word)),
        (index(), index()).prop_map(|(from, to)| Damage::Cut(from, to)),
        (index(), index()).prop_map(|(from, to)| Damage::Twice(from, to)),
    ]
}

fn damaged(mut bytes: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for one in all {
        if bytes.is_empty() {
            break;
        }
        let range = |from: &prop::sample::Index, to: &prop::sample::Index| {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            from.min(to)..from.max(to).min(from.min(to) + 16)
        };
        match one {
            Damage::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Word(at, word) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, WORDS[*word].iter().copied());
            }
            Damage::Cut(from, to) => drop(bytes.drain(range(from, to))),
            Damage::Twice(from, to) => {
                let range = range(from, to);
                let some = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, some);
            }
        }
    }
    bytes
}

/// Why a request's head is none that an instance may get; nothing when all is well.
fn fault(head: &str) -> Option<&'static str> {
    let mut lines = head.strip_suffix("\r\n\r\n")?.split("\r\n");
    let words: Vec<&str> = lines.next()?.split(' ').collect();
    let [_, target, "HTTP/1.1"] = words[..] else { return Some("no request line") };
    if !target.starts_with('/') && target != "*" {
        return Some("no target");
    }
    let headers: Vec<(&str, &str)> = lines.map(|line| line.split_once(": ").unwrap_or(("", line))).collect();
    let count = |name: &str| headers.iter().filter(|(key, _)| *key == name).count();
    let value = |name: &str| headers.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value);
    if headers.iter().any(|(name, value)| name.is_empty() || name.contains([' ', '\t', ':']) || value.contains(['\r', '\n', '\0'])) {
        return Some("a header that is none");
    }
    if count("host") != 1 || !value("host").to_ascii_lowercase().starts_with("shop.localhost") {
        return Some("another host");
    }
    if count("x-forwarded-for") != 1 || value("x-forwarded-for").parse::<std::net::IpAddr>().is_err() {
        return Some("another client");
    }
    if count("content-length") + count("transfer-encoding") > 1 {
        return Some("two lengths");
    }
    (count("rndr-id") != 1).then_some("no id")
}

#[test]
fn damaged_requests() {
    let cases = std::env::var("MOAT_FUZZ_CASES").map_or(600, |cases| cases.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let faults = Arc::new(Mutex::new(Vec::new()));
    let (plain, behind) = runtime.block_on(async {
        let log = Arc::clone(&faults);
        let address = instance(move |_, mut connection: Client| {
            let log = Arc::clone(&log);
            async move {
                let mut bytes = Vec::new();
                while connection.stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                    if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                        let head = String::from_utf8_lossy(&bytes[..end + 4]).into_owned();
                        log.lock().unwrap().extend(fault(&head).map(|fault| format!("{fault}: {head:?}")));
                        let _ = connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
                        break;
                    }
                }
            }
        })
        .await;
        let settings = Settings { header_wait: Duration::from_millis(200), ..Settings::default() };
        let mut routes = live("shop.localhost", "shop", &[address]);
        let plain = Ingress::start_with(routes.clone(), settings.clone()).await;
        routes.policy = Policy { proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Policy::default() };
        (plain, Ingress::start_with(routes, settings).await)
    });
    let one = (any::<prop::sample::Index>(), prop::option::of(any::<prop::sample::Index>()), prop::collection::vec(damage(), 0..6));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let mut left = cases;
    while left > 0 {
        // Many at once: most wait for the end of a head that does not come.
        let some: Vec<_> = (0..left.min(200)).map(|_| one.new_tree(&mut runner).unwrap().current()).collect();
        left -= some.len();
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for (which, header, damage) in some {
                let request = CORPUS[which.index(CORPUS.len())].to_vec();
                let (address, bytes) = match header {
                    None => (plain.address, request),
                    Some(header) => (behind.address, [PROXIED[header.index(PROXIED.len())], &request].concat()),
                };
                let bytes = damaged(bytes, &damage);
                all.spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    let _ = stream.write_all(&bytes).await;
                    let _ = timeout(Duration::from_secs(2), stream.read_to_end(&mut Vec::new())).await;
                });
            }
            while let Some(done) = all.join_next().await {
                done.unwrap();
            }
            assert_eq!(plain.get("shop.localhost", "/").await.status, 200, "it goes on");
            assert!(!plain.task.is_finished() && !behind.task.is_finished());
        });
        assert_eq!(*faults.lock().unwrap(), Vec::<String>::new());
    }
}
