//! What RFC 9113 says of frames that should not be, asked for by frames that no library would write.
//!
//! No conformance suite of HTTP/2 is in a package registry; the rows follow the RFC's sections.

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PADDED, PING, POST, PRIORITY, PUSH_PROMISE, RST_STREAM, Raw,
    SETTINGS, WINDOW_UPDATE, block, frame, get, request, setting,
};
use crate::support::{Client, Ingress, instance};

/// A request that is fine, behind what a row sends: its answer means that nothing was said of the row.
const LAST: u32 = 101;

/// An ingress whose instance reads each body to its end.
async fn ingress() -> Ingress {
    let address = instance(|_, mut connection: Client| async move {
        while let Some(head) = connection.try_head().await {
            connection.body(&head).await;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    Ingress::shop(&[address]).await
}

/// Each row: its section, the frames, and what may be said to them, with `|` between.
async fn check(rows: Vec<(&str, Vec<Vec<u8>>, &str)>) {
    let ingress = ingress().await;
    let mut wrong = Vec::new();
    for (section, frames, want) in rows {
        let mut client = Raw::connect(ingress.address, &[]).await;
        client.send(&frames.concat()).await;
        let answered = want.starts_with(|first: char| first.is_ascii_digit());
        if !answered {
            client.send(&get(LAST)).await;
        }
        let (stream, word) = client.word().await;
        let got = if stream == LAST && !answered { "nothing".to_owned() } else { word };
        let want_any = want.split(" | ").any(|want| want == got);
        // A whole connection may be given up for one stream (§5.4.2), and the crate `h2` names fewer codes than there are.
        let want_more = want.starts_with("goaway") || want.starts_with("reset");
        if !(want_any || want_more && got == "goaway PROTOCOL_ERROR") {
            wrong.push(format!("§{section}: {got}, not {want}"));
        }
        if got.starts_with("goaway") {
            while client.next().await.is_some() {}
        }
        // Others are served, and so is this connection when the failure was a stream's.
        let other = if got.starts_with("goaway") || got == "closed" { None } else { Some(client) };
        let mut other = match other {
            Some(client) => client,
            None => Raw::connect(ingress.address, &[]).await,
        };
        other.send(&get(LAST + 2)).await;
        loop {
            let (stream, word) = other.word().await;
            if stream == LAST + 2 || stream == 0 {
                assert_eq!(word, "200", "§{section}: the next request");
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn frames() {
    let head = block(&GET);
    let (first, second) = head.split_at(7);
    let open = |flags| request(1, flags, &POST, &[]);
    let protocol = "goaway PROTOCOL_ERROR";
    let size = "goaway FRAME_SIZE_ERROR";
    check(vec![
        ("4.1 an unknown kind", vec![frame(0xbe, 0xff, 7, "what?"), get(1)], "200"),
        ("4.1 unknown flags", vec![frame(PING, 0x16, 0, "12345678"), get(1)], "200"),
        ("4.1 the reserved bit", vec![frame(HEADERS, END_HEADERS | END_STREAM, 0x8000_0001, &head)], "200"),
        ("4.2 a large DATA", vec![open(0), frame(DATA, END_STREAM, 1, [0; 16_385])], size),
        ("4.2 a large HEADERS", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, [0; 16_385])], size),
        ("4.2 a large SETTINGS", vec![frame(SETTINGS, 0, 0, [0; 16_386])], size),
        ("4.2 a large unknown one", vec![frame(0xbe, 0, 0, [0; 16_385])], size),
        ("4.3 a bad field block", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, [0xff; 40])], "goaway COMPRESSION_ERROR"),
        ("4.3 half a field block", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &head[..head.len() - 3])], "goaway COMPRESSION_ERROR"),
        ("4.3 an unknown index", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, [0xfe])], "goaway COMPRESSION_ERROR"),
        ("4.3 too large a table", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, [0x3f, 0xe2, 0xff, 0x7f])], "goaway COMPRESSION_ERROR"),
        ("4.3 a block in parts", vec![frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, second)], "200"),
        ("4.3 another kind between its parts", vec![frame(HEADERS, END_STREAM, 1, first), frame(PING, 0, 0, "12345678")], protocol),
        ("4.3 an unknown kind between its parts", vec![frame(HEADERS, END_STREAM, 1, first), frame(0xbe, 0, 1, "")], protocol),
        ("4.3 another stream's block between its parts", vec![frame(HEADERS, END_STREAM, 1, first), get(3)], protocol),
        ("5.1 DATA on an idle stream", vec![frame(DATA, END_STREAM, 1, "x")], protocol),
        ("5.1 RST_STREAM on an idle stream", vec![frame(RST_STREAM, 0, 1, [0, 0, 0, 8])], protocol),
        ("5.1 WINDOW_UPDATE on an idle stream", vec![frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 9])], protocol),
        ("5.1 CONTINUATION on an idle stream", vec![frame(CONTINUATION, END_HEADERS, 1, &head)], protocol),
        (
            "5.1 DATA behind the end",
            vec![request(1, END_STREAM, &POST, &[]), frame(DATA, END_STREAM, 1, "x")],
            "reset STREAM_CLOSED | goaway STREAM_CLOSED",
        ),
        ("5.1 HEADERS behind the end", vec![get(1), get(1)], "reset STREAM_CLOSED | goaway STREAM_CLOSED"),
        (
            "5.1 DATA behind RST_STREAM",
            vec![open(0), frame(RST_STREAM, 0, 1, [0, 0, 0, 8]), frame(DATA, 0, 1, "x")],
            "reset STREAM_CLOSED | goaway STREAM_CLOSED | nothing",
        ),
        ("5.1 PRIORITY on an idle stream", vec![frame(PRIORITY, 0, 5, [0, 0, 0, 1, 7]), get(1)], "200"),
        ("5.1 WINDOW_UPDATE and RST_STREAM behind the end", vec![get(1), frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 9]), get(3)], "200"),
        ("5.1.1 an even stream", vec![get(2)], protocol),
        ("5.1.1 a lower stream", vec![get(5), get(3)], protocol),
        ("6.1 DATA without a stream", vec![frame(DATA, END_STREAM, 0, "x")], protocol),
        ("6.1 more padding than DATA", vec![open(0), frame(DATA, END_STREAM | PADDED, 1, [9, 1, 2])], protocol),
        ("6.2 HEADERS without a stream", vec![frame(HEADERS, END_HEADERS | END_STREAM, 0, &head)], protocol),
        ("6.2 more padding than HEADERS", vec![frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, [200, 0x82])], protocol),
        ("6.2 padding", vec![frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, [&[3], &head[..], &[0; 3]].concat())], "200"),
        ("6.3 PRIORITY without a stream", vec![frame(PRIORITY, 0, 0, [0, 0, 0, 1, 7])], protocol),
        ("6.3 a short PRIORITY", vec![open(0), frame(PRIORITY, 0, 1, [0, 0, 0, 1])], "reset FRAME_SIZE_ERROR | goaway FRAME_SIZE_ERROR"),
        ("6.4 RST_STREAM without a stream", vec![frame(RST_STREAM, 0, 0, [0, 0, 0, 8])], protocol),
        ("6.4 a short RST_STREAM", vec![open(0), frame(RST_STREAM, 0, 1, [0, 0, 8])], size),
        ("6.5 SETTINGS on a stream", vec![frame(SETTINGS, 0, 1, [])], protocol),
        ("6.5 an acknowledgement that says something", vec![frame(SETTINGS, ACK, 0, setting(3, 1))], size),
        ("6.5 half a setting", vec![frame(SETTINGS, 0, 0, [0, 3, 0])], size),
        ("6.5.2 ENABLE_PUSH", vec![frame(SETTINGS, 0, 0, setting(2, 2))], protocol),
        ("6.5.2 INITIAL_WINDOW_SIZE", vec![frame(SETTINGS, 0, 0, setting(4, 1 << 31))], "goaway FLOW_CONTROL_ERROR"),
        ("6.5.2 a small MAX_FRAME_SIZE", vec![frame(SETTINGS, 0, 0, setting(5, 16_383))], protocol),
        ("6.5.2 a large MAX_FRAME_SIZE", vec![frame(SETTINGS, 0, 0, setting(5, 1 << 24))], protocol),
        ("6.5.2 an unknown one", vec![frame(SETTINGS, 0, 0, setting(0xfeed, 1)), get(1)], "200"),
        ("6.5.3 an acknowledgement of nothing", vec![frame(SETTINGS, ACK, 0, []), get(1)], "200 | goaway PROTOCOL_ERROR"),
        ("6.6 PUSH_PROMISE", vec![open(0), frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2], &head[..]].concat())], protocol),
        ("6.7 PING on a stream", vec![frame(PING, 0, 1, "12345678")], protocol),
        ("6.7 a short PING", vec![frame(PING, 0, 0, "1234")], size),
        ("6.8 GOAWAY on a stream", vec![frame(GOAWAY, 0, 1, [0; 8])], protocol),
        ("6.9 a WINDOW_UPDATE of nothing", vec![frame(WINDOW_UPDATE, 0, 0, [0; 4])], protocol),
        ("6.9 the same of a stream", vec![open(0), frame(WINDOW_UPDATE, 0, 1, [0; 4])], "reset PROTOCOL_ERROR | goaway PROTOCOL_ERROR"),
        ("6.9 a short WINDOW_UPDATE", vec![frame(WINDOW_UPDATE, 0, 0, [0, 0, 1])], size),
        ("6.9.1 too large a window", vec![frame(WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff])], "goaway FLOW_CONTROL_ERROR"),
        (
            "6.9.1 the same of a stream",
            vec![open(0), frame(WINDOW_UPDATE, 0, 1, [0x7f, 0xff, 0xff, 0xff])],
            "reset FLOW_CONTROL_ERROR | goaway FLOW_CONTROL_ERROR",
        ),
        (
            "6.9.2 too large a window by a setting",
            vec![open(0), frame(WINDOW_UPDATE, 0, 1, [0, 1, 0, 0]), frame(SETTINGS, 0, 0, setting(4, 0x7fff_ffff))],
            "goaway FLOW_CONTROL_ERROR",
        ),
        ("6.10 CONTINUATION of a whole block", vec![open(0), frame(CONTINUATION, END_HEADERS, 1, "")], protocol),
        (
            "6.10 CONTINUATION without a stream",
            vec![frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 0, second)],
            protocol,
        ),
        ("6.10 CONTINUATION behind DATA", vec![open(0), frame(DATA, 0, 1, "x"), frame(CONTINUATION, END_HEADERS, 1, second)], protocol),
    ])
    .await;
}

#[tokio::test]
async fn requests() {
    let reset = "reset PROTOCOL_ERROR";
    let refused = "reset PROTOCOL_ERROR | 400";
    let with = |name: &'static str, value: &'static str| vec![request(1, END_STREAM, &GET, &[(name, value)])];
    let body = |length: &'static str, body: &'static str| {
        vec![request(1, 0, &POST, &[("content-length", length)]), frame(DATA, END_STREAM, 1, body)]
    };
    let without = |at: usize| {
        let mut head = GET.to_vec();
        head.remove(at);
        vec![request(1, END_STREAM, &head, &[])]
    };
    let path = |path: &'static str| vec![request(1, END_STREAM, &[GET[0], GET[1], GET[2], (":path", path)], &[])];
    let authority = |name: &'static str| vec![request(1, END_STREAM, &[GET[0], GET[1], (":authority", name), GET[3]], &[])];
    let connect = (":method", "CONNECT");
    let mut rows = vec![
        ("8.1 a second HEADERS in the middle", vec![request(1, 0, &POST, &[]), request(1, 0, &[("x", "y")], &[])], reset),
        ("8.1 trailers", vec![request(1, 0, &POST, &[]), frame(DATA, 0, 1, "hi"), request(1, END_STREAM, &[("x-sum", "1")], &[])], "200"),
        (
            "8.1 a pseudo-header in trailers",
            vec![request(1, 0, &POST, &[]), request(1, END_STREAM, &[(":path", "/x")], &[])],
            "reset PROTOCOL_ERROR | 200",
        ),
        ("8.1.1 a shorter body", body("5", "hi"), reset),
        ("8.1.1 a longer body", body("1", "hi"), reset),
        ("8.1.1 no body", vec![request(1, END_STREAM, &POST, &[("content-length", "5")])], reset),
        (
            "8.1.1 two lengths",
            vec![request(1, 0, &POST, &[("content-length", "2"), ("content-length", "3")]), frame(DATA, END_STREAM, 1, "hi")],
            refused,
        ),
        ("8.1.1 no length", body("+2", "hi"), refused),
        ("8.2.1 an upper-case name", with("X-Y", "z"), reset),
        ("8.2.1 a space in a name", with("x y", "z"), reset),
        ("8.2.1 a colon in a name", with("x:y", "z"), reset),
        ("8.2.1 an empty name", with("", "z"), reset),
        ("8.2.1 a line end in a name", with("x\r\ny", "z"), reset),
        ("8.2.1 a NUL in a value", with("x", "a\0b"), reset),
        ("8.2.1 a line end in a value", with("x", "a\r\nsmuggled: yes"), reset),
        ("8.2.1 a line feed in a value", with("x", "a\nsmuggled: yes"), reset),
        ("8.2.1 a carriage return in a value", with("x", "a\rsmuggled: yes"), reset),
        ("8.2.2 te: trailers", with("te", "trailers"), "200"),
        ("8.3 an unknown pseudo-header", with(":x", "y"), reset),
        ("8.3 a response's pseudo-header", with(":status", "200"), reset),
        ("8.3 a pseudo-header behind a header", vec![request(1, END_STREAM, &[("x", "y")], &GET)], reset),
        ("8.3.1 no method", without(0), reset),
        ("8.3.1 no scheme", without(1), reset),
        ("8.3.1 no authority", without(2), refused),
        ("8.3.1 no path", without(3), reset),
        ("8.3.1 an empty path", path(""), refused),
        ("8.3.1 a path that is none", path("x"), refused),
        ("8.3.1 a path with another host", path("http://catalog/"), refused),
        ("8.3.1 a path with a request in it", path("/ HTTP/1.1\r\nHost: catalog\r\n\r\nGET /"), refused),
        ("8.3.1 a path with a space", path("/a b"), refused),
        ("8.3.1 somebody at an authority", authority("me@shop.localhost"), refused),
        ("8.3.1 an authority that is none", authority("shop.localhost/x"), refused),
        ("8.3.1 an authority with a line in it", authority("shop.localhost\r\nx: y"), refused),
        ("8.3.1 another host", with("host", "catalog"), refused),
        ("8.5 CONNECT with a path", vec![request(1, END_STREAM, &[connect, GET[1], GET[2], GET[3]], &[])], refused),
        ("8.5 CONNECT without an authority", vec![request(1, END_STREAM, &[connect], &[])], "reset PROTOCOL_ERROR | another status"),
        (
            "8441 a protocol of another method",
            vec![request(1, END_STREAM, &[GET[0], (":protocol", "websocket"), GET[1], GET[2], GET[3]], &[])],
            refused,
        ),
    ];
    for pseudo in GET {
        rows.push(("8.3 a pseudo-header twice", vec![request(1, END_STREAM, &GET, &[pseudo])], reset));
    }
    for (name, value) in [
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "gzip"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
    ] {
        rows.push(("8.2.2 a header of a connection", with(name, value), refused));
    }
    for value in [" y", "y ", "\ty"] {
        rows.push(("8.2.1 a space round a value", with("x", value), refused));
    }
    check(rows).await;
}

#[tokio::test]
async fn connections() {
    let ingress = ingress().await;
    // §3.4: what is no preface is no HTTP/2.
    let mut client = Raw::silent(ingress.address).await;
    client.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    assert!(client.rest().await.starts_with(b"HTTP/1.1 400"));
    // §6.5.3, §6.7: each is acknowledged, a PING with its own bytes.
    let mut client = Raw::connect(ingress.address, &[]).await;
    client.send(&[frame(PING, ACK, 0, b"unasked."), frame(PING, 0, 0, "01234567")].concat()).await;
    let (mut settings, mut acknowledged, mut ping) = (false, false, None);
    while ping.is_none() || !acknowledged {
        let frame = client.next().await.unwrap();
        settings |= frame.kind == SETTINGS && frame.flags & ACK == 0;
        acknowledged |= frame.kind == SETTINGS && frame.flags & ACK != 0;
        ping = ping.or((frame.kind == PING).then_some((frame.flags, frame.payload)));
    }
    assert!(settings, "it said its own");
    assert_eq!(ping, Some((ACK, b"01234567".to_vec())));
    // §6.9.2: no window, then some of it, then all.
    let mut client = Raw::connect(ingress.address, &setting(4, 0)).await;
    client.send(&get(1)).await;
    assert_eq!(client.word().await, (1, "200".to_owned()));
    client.send(&frame(PING, 0, 0, "01234567")).await;
    loop {
        let frame = client.next().await.unwrap();
        assert_ne!(frame.kind, DATA, "there is no window");
        if frame.kind == PING {
            break;
        }
    }
    client.send(&frame(SETTINGS, 0, 0, setting(4, 1))).await;
    let mut body = Vec::new();
    loop {
        let got = client.next().await.unwrap();
        if got.kind == DATA {
            assert!(got.payload.len() <= 1, "more than the window");
            body.extend(got.payload);
            if got.flags & END_STREAM != 0 {
                break;
            }
            client.send(&frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1])).await;
        }
    }
    assert_eq!(body, b"ok");
    // §5.1.2: more streams than were said.
    let mut client = Raw::connect(ingress.address, &[]).await;
    let many: Vec<u8> = (0..200).flat_map(|n| request(n * 2 + 1, 0, &POST, &[])).collect();
    client.send(&many).await;
    let word = client.word().await.1;
    assert!(["reset REFUSED_STREAM", "reset PROTOCOL_ERROR", "goaway PROTOCOL_ERROR"].contains(&word.as_str()), "{word}");
    assert_eq!(ingress.get("shop.localhost", "/").await.status, 200);
}
