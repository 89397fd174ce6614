//! Requests for a service that is between two instances, and what becomes of connections when another takes over.

use crate::support::{Client, Ingress, PATIENCE, Response, echo, instance, live};
use moat_ingress::{Route, RouteState, Routes, Settings};
use moat_model::Slug;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

const ASK: &str = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 4\r\n\r\nbody";

fn state(state: RouteState, upstreams: &[SocketAddr]) -> Routes {
    let route = Route::new(Slug::new("shop").unwrap(), upstreams.to_vec(), state);
    HashMap::from([("shop.localhost".to_owned(), route)]).into()
}

fn held() -> Routes {
    state(RouteState::Held { reason: "it is being replaced".to_owned() }, &[])
}

async fn asking(ingress: &Ingress) -> Client {
    let mut client = ingress.client().await;
    client.send(ASK).await;
    client
}

/// Two requests where one may wait: the one that may not, answered, and the one that waits.
async fn one_too_many(ingress: &Ingress) -> (Response, Client) {
    let (mut first, mut second) = (asking(ingress).await, asking(ingress).await);
    tokio::select! {
        answer = first.response() => (answer, second),
        answer = second.response() => (answer, first),
    }
}

#[tokio::test]
async fn held_requests_go_on_with_the_new_instance_and_too_many_do_not_wait() {
    let ingress = Ingress::start_with(held(), Settings { max_held: 1, hold_wait: PATIENCE, ..Settings::default() }).await;
    for round in 0..2 {
        ingress.routes.set(held());
        let (refused, mut waits) = one_too_many(&ingress).await;
        assert_eq!(refused.status, 503, "{round}");
        assert!(refused.body.contains("It is being replaced"), "{}", refused.body);
        // What says nothing new lets nobody go.
        ingress.routes.set(held());
        ingress.routes.set(live("shop.localhost", "shop", &[echo("new").await]));
        let answer = waits.response().await;
        assert!(answer.status == 200 && answer.body.starts_with("new\n") && answer.body.ends_with("body"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_request_wakes_what_sleeps_and_a_crawler_does_not() {
    let ingress = Ingress::start_with(state(RouteState::Asleep, &[]), Settings { hold_wait: PATIENCE, ..Settings::default() }).await;
    let mut wanted = ingress.routes.wanted();
    let mut crawler = ingress.client().await;
    crawler.send("GET /robots.txt HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    let answer = crawler.response().await;
    assert!(answer.status == 200 && answer.body.contains("Disallow: /"), "{}", answer.body);
    assert!(!wanted.has_changed().unwrap(), "a crawler wakes nothing");
    for round in 0..2 {
        let mut waits = asking(&ingress).await;
        timeout(PATIENCE, wanted.wait_for(|wanted| wanted.iter().any(|service| service.as_str() == "shop"))).await.unwrap().unwrap();
        ingress.routes.set(held());
        assert!(ingress.routes.wanted().borrow().is_empty(), "it was heard");
        ingress.routes.set(live("shop.localhost", "shop", &[echo("woken").await]));
        let answer = waits.response().await;
        assert!(answer.status == 200 && answer.body.starts_with("woken\n"), "{round}: {}", answer.body);
        ingress.routes.set(state(RouteState::Asleep, &[]));
    }
}

#[tokio::test]
async fn held_requests_end_with_the_hope_for_an_instance_and_with_their_time() {
    let ingress = Ingress::start_with(held(), Settings { max_held: 1, hold_wait: PATIENCE, ..Settings::default() }).await;
    let (_, mut waits) = one_too_many(&ingress).await;
    ingress.routes.set(state(RouteState::NoInstance { reason: "it failed".to_owned() }, &[]));
    let answer = waits.response().await;
    assert!(answer.status == 503 && answer.body.contains("It failed"), "{}", answer.body);

    let ingress = Ingress::start_with(held(), Settings { hold_wait: Duration::from_millis(1), ..Settings::default() }).await;
    assert_eq!(asking(&ingress).await.response().await.status, 503);
}

#[tokio::test]
async fn whoever_hands_over_answers_what_kept_connections_bring_and_keeps_tunnels() {
    let settings = Settings { linger: PATIENCE, keep_tunnels: true, drain_wait: PATIENCE, ..Settings::default() };
    let address = instance(|_, mut connection| async move {
        while let Some(head) = connection.try_head().await {
            if head.header("upgrade").is_some() {
                connection.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n").await;
                let bytes = connection.bytes(2).await;
                connection.stream.write_all(&bytes).await.unwrap();
                return;
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let mut ingress = Ingress::start_with(live("shop.localhost", "shop", &[address]), settings).await;
    let get = "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";
    let (mut kept, mut tunnel) = (ingress.client().await, ingress.client().await);
    kept.send(get).await;
    let first = kept.response().await;
    assert!(first.body == "ok" && first.head.header("connection").is_none());
    tunnel.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n").await;
    assert_eq!(tunnel.head().await.status(), 101);

    ingress.stop.take().unwrap().send(()).unwrap();
    // The port is free for the next one while the connections of before go on.
    let again = timeout(PATIENCE, async {
        loop {
            if let Ok(listener) = tokio::net::TcpListener::bind(ingress.address).await {
                return listener;
            }
            tokio::task::yield_now().await;
        }
    });
    drop(again.await.unwrap());
    kept.send(get).await;
    let last = kept.response().await;
    assert_eq!((last.body.as_str(), last.head.header("connection")), ("ok", Some("close")));
    assert_eq!(kept.rest().await, "");
    assert!(!ingress.task.is_finished(), "a tunnel is open");
    tunnel.send("hi").await;
    assert_eq!(tunnel.bytes(2).await, b"hi");
    assert_eq!(tunnel.rest().await, "");
    drop(tunnel);
    timeout(PATIENCE, ingress.task).await.unwrap().unwrap().unwrap();
}
