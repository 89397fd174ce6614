//! Many calls of gRPC to one instance, and uploads over one connection: none waits for another.

use crate::http2::{Body, connect, full, request};
use crate::support::{Client, Ingress, PATIENCE, instance};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// As much as is taken.
struct Endless;

impl futures_core::Stream for Endless {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])))))
    }
}

/// Allows so many calls on each connection, and counts connections. `/together` is answered when so many ask at once, `/endless`
/// without end.
async fn grpc(allowed: Option<u32>, together: usize, connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let all = Arc::new(Barrier::new(together));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let all = Arc::clone(&all);
            let service = service_fn(move |request: Request<Incoming>| {
                let all = Arc::clone(&all);
                async move {
                    let body: Body = match request.uri().path() {
                        "/together" => {
                            all.wait().await;
                            full("together")
                        }
                        "/endless" => StreamBody::new(Endless).boxed(),
                        _ => Full::new(Bytes::from_static(b"alone")).boxed(),
                    };
                    Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
                }
            });
            let mut server = http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(allowed);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

fn call(path: &str) -> Request<Body> {
    request(Method::POST, path).header("content-type", "application/grpc").header("te", "trailers").body(full("")).unwrap()
}

#[tokio::test]
async fn more_calls_than_a_connection_takes_get_another_one() {
    for (allowed, calls, least) in [(Some(1), 5, 5), (Some(3), 20, 7), (None, 250, 3)] {
        let connections = Arc::new(AtomicUsize::new(0));
        let ingress = Ingress::shop(&[grpc(allowed, calls, Arc::clone(&connections)).await]).await;
        let mut all = JoinSet::new();
        for n in 0..calls {
            // One connection of a client carries a hundred at most.
            let mut sender = connect(&ingress).await;
            if n % 2 == 0 {
                // Some come one after the other.
                let response = timeout(PATIENCE, sender.send_request(call("/"))).await.expect("it waits for others").unwrap();
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "alone");
            }
            all.spawn(async move { sender.send_request(call("/together")).await.unwrap().into_body().collect().await.unwrap().to_bytes() });
        }
        while let Some(got) = timeout(PATIENCE, all.join_next()).await.unwrap_or_else(|_| panic!("{allowed:?}: calls wait for others")) {
            assert_eq!(got.unwrap(), "together");
        }
        let made = connections.load(Ordering::SeqCst);
        assert!(made >= least && made <= calls, "{allowed:?}: {made} connections for {calls} calls");
    }
}

#[tokio::test]
async fn calls_that_nobody_reads_do_not_stall_others() {
    let connections = Arc::new(AtomicUsize::new(0));
    let ingress = Ingress::shop(&[grpc(None, 1, Arc::clone(&connections)).await]).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut sender = connect(&ingress).await;
        held.push((sender.send_request(call("/endless")).await.unwrap(), sender));
    }
    // So much of them has come that none takes more.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let mut sender = connect(&ingress).await;
    for _ in 0..10 {
        let answer = async { sender.send_request(call("/")).await.unwrap().into_body().collect().await.unwrap().to_bytes() };
        assert_eq!(timeout(PATIENCE, answer).await.expect("it waits for the others"), "alone");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    drop(held);
}

#[tokio::test]
async fn uploads_that_are_not_taken_do_not_stall_others() {
    let address = instance(|_, mut connection: Client| async move {
        let head = connection.head().await;
        if head.text.starts_with("PUT ") {
            std::future::pending::<()>().await;
        }
        connection.body(&head).await;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let ingress = Ingress::shop(&[address]).await;
    let mut sender = connect(&ingress).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut sender = sender.clone();
        let asked = request(Method::PUT, "/").body(StreamBody::new(Endless).boxed()).unwrap();
        held.push(tokio::spawn(async move { sender.send_request(asked).await }));
    }
    // So much of them has been sent that nobody takes more.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let asked = request(Method::POST, "/").body(full(vec![b'y'; 3 << 20])).unwrap();
    let answer = timeout(PATIENCE, sender.send_request(asked)).await.expect("it waits for the others").unwrap();
    assert_eq!(answer.status(), 200);
    held.iter().for_each(JoinHandle::abort);
}
