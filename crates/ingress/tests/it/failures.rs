//! What a client reads when nobody answers.

use crate::support::{Client, Ingress, PATIENCE, Response, closed, echo, instance, live};
use moat_ingress::{LogFiles, LogFormat, Records, Route, RouteState, Settings};
use moat_model::Slug;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

async fn get_json(ingress: &Ingress, host: &str) -> (u16, serde_json::Value) {
    let mut client = ingress.client().await;
    client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n")).await;
    let got = client.response().await;
    assert_eq!(got.head.header("content-type"), Some("application/json"));
    let value: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(value["id"], got.head.header("rndr-id").unwrap());
    assert_eq!(value["status"], got.status);
    (got.status, value)
}

fn check_page(page: &Response, status: u16, reason: &str, text: &str) {
    assert_eq!((page.status, page.head.header("x-moat-reason")), (status, Some(reason)), "{}", page.body);
    assert_eq!(page.head.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.head.header("cache-control"), Some("no-store"));
    assert!(page.body.contains(text), "{}", page.body);
    assert!(page.body.contains(page.head.header("rndr-id").unwrap()), "the request's id");
}

#[tokio::test]
async fn unknown_hosts_and_private_services_are_not_found() {
    let ingress = Ingress::shop(&[echo("one").await]).await;
    for host in ["catalog", "catalog.localhost", "catalog:9200", "10.64.0.1", "localhost", "xshop.localhost"] {
        let got = ingress.get(host, "/").await;
        check_page(&got, 404, "unknown-host", "No public web service has this host name.");
    }
    let (status, value) = get_json(&ingress, "catalog").await;
    assert_eq!((status, value["reason"].as_str(), value.get("service")), (404, Some("unknown-host"), None));
    assert_eq!(ingress.dials(), 0);
}

#[tokio::test]
async fn a_refused_connection_is_explained() {
    let address = closed().await;
    let ingress = Ingress::shop(&[address]).await;
    let got = ingress.get("shop.localhost", "/").await;
    let port = address.port();
    check_page(&got, 502, "bad-gateway", &format!("Its instance refused the connection on port {port}: no program listens there."));
    assert!(got.body.contains("<h1>shop did not answer</h1>") && got.body.contains("0.0.0.0"), "{}", got.body);
    let (status, value) = get_json(&ingress, "shop.localhost").await;
    assert_eq!((status, value["service"].as_str()), (502, Some("shop")));
}

#[tokio::test]
async fn the_next_instance_is_tried_when_nothing_was_sent() {
    let ingress = Ingress::shop(&[closed().await, closed().await, echo("alive").await, closed().await]).await;
    for _ in 0..20 {
        let mut client = ingress.client().await;
        client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 4\r\n\r\nbody").await;
        let got = client.response().await;
        assert!(got.status == 200 && got.body.starts_with("alive") && got.body.ends_with("body"), "{}", got.body);
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_sent_again() {
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    // Reads the request, says nothing, closes.
    let address = instance(move |_, mut connection: Client| {
        let count = Arc::clone(&count);
        async move {
            let head = connection.head().await;
            connection.body(&head).await;
            *count.lock().unwrap() += 1;
        }
    })
    .await;
    let ingress = Ingress::shop(&[address, address]).await;
    let mut client = ingress.client().await;
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 4\r\n\r\nbody").await;
    check_page(&client.response().await, 502, "bad-gateway", "Its instance closed the connection before it responded.");
    assert_eq!(*seen.lock().unwrap(), 1);
}

#[tokio::test]
async fn what_is_not_http_is_explained() {
    for answer in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 banana\r\n\r\n", "\u{15}\u{3}\u{1}"] {
        let address = instance(move |_, mut connection| async move {
            connection.head().await;
            connection.send(answer).await;
            connection.rest().await;
        })
        .await;
        let got = Ingress::shop(&[address]).await.get("shop.localhost", "/").await;
        check_page(&got, 502, "bad-gateway", "Its instance responded with something that is not HTTP.");
    }
}

#[tokio::test]
async fn a_silent_instance_is_given_up() {
    let address = instance(|_, mut connection| async move {
        connection.rest().await;
    })
    .await;
    let settings = Settings { response_wait: Duration::from_millis(50), ..Settings::default() };
    let ingress = Ingress::start_with(live("shop.localhost", "shop", &[address]), settings).await;
    check_page(&ingress.get("shop.localhost", "/").await, 504, "bad-gateway", "Its instance did not respond in time.");
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_whole() {
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let address = instance(move |_, mut connection| async move {
            connection.head().await;
            connection.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nab\r\n")).await;
        })
        .await;
        let ingress = Ingress::shop(&[address]).await;
        let mut client = ingress.client().await;
        client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 200);
        let rest = client.rest().await;
        assert!(rest.len() < 10 && !rest.ends_with("0\r\n\r\n"), "{rest:?}");
    }
}

#[tokio::test]
async fn services_that_are_not_ready() {
    let route = |service: &str, state| Route::new(Slug::new(service).unwrap(), Vec::new(), state);
    let ingress = Ingress::start(
        HashMap::from([
            ("new.localhost".to_owned(), route("new", RouteState::NoInstance { reason: "the build of `new` <runs>".to_owned() })),
            ("none.localhost".to_owned(), route("none", RouteState::Live)),
            ("off.localhost".to_owned(), route("off", RouteState::Suspended)),
            (
                "works.localhost".to_owned(),
                route("works", RouteState::Maintenance { page: "".into(), status: http::StatusCode::SERVICE_UNAVAILABLE }),
            ),
            (
                "own.localhost".to_owned(),
                route(
                    "own",
                    RouteState::Maintenance { page: "<p>back at <b>nine</b>".into(), status: http::StatusCode::SERVICE_UNAVAILABLE },
                ),
            ),
        ])
        .into(),
    )
    .await;
    for (host, reason, text) in [
        ("new.localhost", "no-instance", "The build of new &lt;runs&gt;."),
        ("none.localhost", "no-instance", "None of its instances is ready."),
        ("off.localhost", "suspended", "off is suspended"),
        ("works.localhost", "maintenance", "works is being worked on"),
    ] {
        let got = ingress.get(host, "/").await;
        check_page(&got, 503, reason, text);
        assert_eq!(got.head.header("retry-after"), Some("5"));
    }
    let (_, value) = get_json(&ingress, "new.localhost").await;
    assert_eq!(value["message"], "The build of new <runs>.");
    let own = ingress.get("own.localhost", "/").await;
    assert_eq!((own.status, own.body.as_str()), (503, "<p>back at <b>nine</b>"));
    let (_, value) = get_json(&ingress, "own.localhost").await;
    assert_eq!(value["reason"], "maintenance");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_cut() {
    let settings = Settings { header_wait: Duration::from_millis(100), ..Settings::default() };
    let ingress = Ingress::start_with(live("shop.localhost", "shop", &[echo("one").await]), settings).await;
    for start in ["", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: shop.localhost\r\nX-A: "] {
        let mut client = ingress.client().await;
        client.send(start).await;
        let dripping = async {
            // Bytes that keep coming don't help.
            while tokio::io::AsyncWriteExt::write_all(&mut client.stream, b"X").await.is_ok() {
                let mut gone = [0];
                if timeout(Duration::from_millis(10), client.stream.read(&mut gone)).await.is_ok_and(|read| read.unwrap_or(0) == 0) {
                    break;
                }
            }
        };
        timeout(PATIENCE, dripping).await.unwrap();
    }
    assert_eq!(ingress.dials(), 0);
}

#[tokio::test]
async fn every_request_is_counted_and_logged() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| std::fs::File::options().read(true).append(true).create(true).open(folder.path().join(name)).unwrap();
    let records = Records::default();
    let files = LogFiles { current: open("log"), older: open("log.1"), most: 1 << 20 };
    records.log.set(Some((LogFormat::Json, files))).unwrap();
    let one = echo("one").await;
    let mut routes = live("shop.localhost", "shop", &[one]);
    let shop = Slug::new("shop").unwrap();
    routes.hosts.get_mut("shop.localhost").unwrap().meter = records.meters.of(&shop, [(one, "shop-1".into())]);
    let ingress = Ingress::start_recorded(routes, records.clone()).await;
    let ok = ingress.get("shop.localhost:80", "/a?secret=1").await;
    ingress.get("nobody", "/b").await;
    let mut client = ingress.client().await;
    client.send("POST /c HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 5\r\n\r\nhello").await;
    let posted = client.response().await;
    let dead = closed().await;
    let mut routes = live("shop.localhost", "shop", &[dead]);
    routes.hosts.get_mut("shop.localhost").unwrap().meter = records.meters.of(&shop, [(dead, "shop-2".into())]);
    ingress.routes.set(routes);
    let failed = ingress.get("shop.localhost", "/d").await;

    // The last of a request is noted just after its answer has left.
    let all = || {
        let text = std::fs::read_to_string(folder.path().join("log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    while all().len() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let log = all();
    let lines: Vec<String> = log
        .iter()
        .map(|line| ["method", "host", "path", "status", "service", "instance"].map(|key| line[key].to_string().replace('"', "")).join(" "))
        .collect();
    assert_eq!(
        lines,
        [
            "GET shop.localhost:80 /a 200 shop shop-1",
            "GET nobody /b 404 null null",
            "POST shop.localhost /c 200 shop shop-1",
            "GET shop.localhost /d 502 shop shop-2"
        ]
    );
    assert_eq!(log[0]["request"], ok.head.header("rndr-id").unwrap());
    assert_eq!(log[2]["bytes"], posted.body.len());
    assert!(log[3]["failure"].as_str().unwrap().contains("refused") && log[0]["client"] == "127.0.0.1", "{log:?}");

    let counted = |instance: Option<&str>| {
        records.meters.read().into_iter().find(|series| series.service.is_some() && series.instance.as_deref() == instance).unwrap().counted
    };
    let (first, second) = (counted(Some("shop-1")), counted(Some("shop-2")));
    assert_eq!((first.answers[&200], first.received, first.open, second.answers[&502]), (2, 5, 0, 1));
    assert_eq!(first.sent, u64::try_from(ok.body.len() + posted.body.len()).unwrap());
    assert_eq!(second.sent, u64::try_from(failed.body.len()).unwrap());
    assert_eq!((first.times.iter().sum::<u64>(), counted(None).total()), (2, 0));
    assert_eq!(records.meters.read().iter().find(|series| series.service.is_none()).unwrap().counted.answers[&404], 1);
    drop(client);
    while records.meters.connections().0 > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
