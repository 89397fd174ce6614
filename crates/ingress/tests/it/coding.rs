//! Answers that are compressed on their way, and clients that ask too often.

use crate::support::{Client, Ingress, instance, live};
use moat_ingress::{Limiter, Routes};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};

fn compressing(upstream: SocketAddr) -> Routes {
    let mut routes = live("shop.localhost", "shop", &[upstream]);
    routes.policy.compress = true;
    routes
}

async fn ask(client: &mut Client, method: &str, accept: &str) {
    client.send(&format!("{method} / HTTP/1.1\r\nHost: shop.localhost\r\nAccept-Encoding: {accept}\r\n\r\n")).await;
}

#[tokio::test]
async fn what_a_service_did_not_compress_is_compressed() {
    let text = "a line of text\n".repeat(1000);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"1\"\r\nContent-Length: {}\r\n\r\n", text.len());
    let whole = text.clone();
    let upstream = instance(move |_, mut connection| {
        let (answer, whole) = (answer.clone(), whole.clone());
        async move {
            while let Some(head) = connection.try_head().await {
                assert!(head.header("accept-encoding").is_some(), "the service may still choose");
                connection.send(&if head.text.starts_with("HEAD") { answer.clone() } else { format!("{answer}{whole}") }).await;
            }
        }
    })
    .await;
    let ingress = Ingress::start(compressing(upstream)).await;
    let mut client = ingress.client().await;
    // Several on one connection: each is framed as it should be.
    for accept in ["gzip", "br;q=0.1, gzip;q=0.9"] {
        ask(&mut client, "GET", accept).await;
        let head = client.head().await;
        let of = |name: &str| head.header(name);
        assert_eq!(
            (of("content-encoding"), of("content-length"), of("etag"), of("vary")),
            (Some("gzip"), None, Some("W/\"1\""), Some("accept-encoding"))
        );
        let packed = client.body(&head).await;
        assert!(packed.len() < 1000, "{}", packed.len());
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*packed).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text);
    }
    ask(&mut client, "GET", "identity").await;
    let plain = client.response().await;
    assert!(plain.body == text && plain.head.header("vary") == Some("accept-encoding") && plain.head.header("etag") == Some("\"1\""));
    ask(&mut client, "HEAD", "gzip").await;
    let head = client.head().await;
    assert_eq!((head.header("content-length"), head.header("content-encoding")), (Some(text.len().to_string().as_str()), None));
}

#[tokio::test]
async fn what_has_come_is_sent_while_the_service_pauses() {
    let (go, going) = mpsc::unbounded_channel::<&str>();
    let going = Arc::new(Mutex::new(going));
    let upstream = instance(move |_, mut connection| {
        let going = Arc::clone(&going);
        async move {
            connection.head().await;
            connection.send("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            while let Some(line) = going.lock().await.recv().await {
                connection.send(&format!("{:x}\r\n{line}\r\n", line.len())).await;
            }
            connection.send("0\r\n\r\n").await;
        }
    })
    .await;
    let ingress = Ingress::start(compressing(upstream)).await;
    let mut client = ingress.client().await;
    ask(&mut client, "GET", "gzip").await;
    assert_eq!(client.head().await.header("content-encoding"), Some("gzip"));
    let mut unpacked = flate2::write::GzDecoder::new(Vec::new());
    for line in ["{\"first\":1}\n", "{\"second\":2}\n"] {
        go.send(line).unwrap();
        while !unpacked.get_ref().ends_with(line.as_bytes()) {
            unpacked.write_all(&client.chunk().await).unwrap();
            unpacked.flush().unwrap();
        }
    }
    drop(go);
    loop {
        let chunk = client.chunk().await;
        if chunk.is_empty() {
            break;
        }
        unpacked.write_all(&chunk).unwrap();
    }
    assert_eq!(unpacked.finish().unwrap(), b"{\"first\":1}\n{\"second\":2}\n");
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_to_wait() {
    let mut routes = live("shop.localhost", "shop", &[crate::support::echo("one").await]);
    routes.hosts.get_mut("shop.localhost").unwrap().limit = Some(Arc::new(Limiter::new("3/m".parse().unwrap())));
    let ingress = Ingress::start(routes).await;
    for _ in 0..3 {
        assert_eq!(ingress.get("shop.localhost", "/").await.status, 200);
    }
    let refused = ingress.get("shop.localhost", "/").await;
    let wait: u64 = refused.head.header("retry-after").unwrap().parse().unwrap();
    assert!(refused.status == 429 && (1..=21).contains(&wait) && refused.body.contains("too often"), "{wait} {}", refused.body);
    assert_eq!(ingress.get("nobody", "/").await.status, 404, "only what is for the service counts");
}
