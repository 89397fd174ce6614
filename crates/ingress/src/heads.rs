//! Rewriting heads: what an instance and a client get to read.

use crate::Arrival;
use crate::proxy::Caller;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, Uri, Version};
use hyper::ext::Protocol;

/// The request's id, in the platform's own header and in the common one.
pub(crate) const ID_HEADERS: [HeaderName; 2] = [HeaderName::from_static("rndr-id"), HeaderName::from_static("x-request-id")];

pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers that speak of this connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Names by which programs learn who the client is; only what is written here may say that.
const CLIENT_CLAIMS: [&str; 19] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    // What CGI makes `HTTP_PROXY` of, which many HTTP clients take for their own proxy (CVE-2016-5385).
    "proxy",
    "rndr-id",
    "true-client-ip",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-id",
];
/// What such names begin with.
const CLAIMS_BEGIN: [&str; 2] = ["x-forwarded-", "x-envoy-"];

/// A fresh request id: 64 random bits, `xxxxxxxx-xxxx-xxxx`.
pub(crate) fn request_id(random: u64) -> HeaderValue {
    let digits =
        random.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| b"0123456789abcdef"[usize::from(digit)]);
    let mut text = [b'-'; 18];
    for (place, digit) in (0..8).chain(9..13).chain(14..18).zip(digits) {
        text[place] = digit;
    }
    let mut id = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"));
    // None comes twice: HPACK's table is for what does.
    id.set_sensitive(true);
    id
}

/// A client's address, as instances read it.
pub(crate) fn address_of(arrival: &Arrival) -> HeaderValue {
    HeaderValue::try_from(arrival.client.to_canonical().to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Takes a request of HTTP/2 for what the same request of HTTP/1.1 would be: `:authority` becomes the `Host` header where there is
/// none, and a WebSocket (RFC 8441) becomes an upgrade. Whether that is what was done is the answer.
pub(crate) fn take_http2(head: &mut Parts, key: impl FnOnce() -> Option<HeaderValue>) -> bool {
    if head.version != Version::HTTP_2 {
        return false;
    }
    if !head.headers.contains_key(header::HOST)
        && let Some(host) = head.uri.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
    {
        head.headers.insert(header::HOST, host);
    }
    let websocket = head.method == Method::CONNECT && head.extensions.get::<Protocol>().is_some_and(|asked| asked.as_str() == "websocket");
    let Some(key) = websocket.then(key).flatten() else { return false };
    head.method = Method::GET;
    head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    head.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    true
}

/// Whether a request is gRPC's, which instances speak over HTTP/2.
pub(crate) fn is_grpc(head: &HeaderMap) -> bool {
    let kind = head.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// The protocol that a request asks to switch to. `None` for none; for `h2c`, whose streams would pass by every check
/// made here; and for a request that is not a bare HTTP/1.1 GET.
pub(crate) fn wanted_upgrade<B: hyper::body::Body>(request: &Request<B>) -> Option<HeaderValue> {
    let asked = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && connection_tokens(request.headers()).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut upgrades = request.headers().get_all(header::UPGRADE).iter();
    let upgrade = upgrades.next().filter(|_| asked && upgrades.next().is_none())?;
    let token = upgrade.to_str().ok()?;
    let plain = !token.is_empty() && !token.contains(',') && !token.trim().eq_ignore_ascii_case("h2c");
    plain.then(|| upgrade.clone())
}

/// Makes a request fit for an instance: origin-form target, one `Host`, no headers of the client's connection, no
/// claims of the client about itself, and what is known here instead.
pub(crate) fn to_instance<B>(request: &mut Request<B>, caller: &Caller<'_>, upgrade: Option<&HeaderValue>) {
    if request.uri().authority().is_some() {
        // That of a target without path may be empty.
        let target = request.uri().path_and_query().filter(|target| target.as_str() != "/").cloned();
        *request.uri_mut() = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    *request.version_mut() = Version::HTTP_11;
    let host = request.headers().get(header::HOST).cloned();
    let headers = request.headers_mut();
    let trailers = upgrade.is_none() && takes_trailers(headers);
    strip(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // The body is asked for here (100-continue), so the instance must not wait for that too.
    headers.remove(header::EXPECT);
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    headers.insert(FORWARDED_FOR, caller.address.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(caller.arrival.scheme()));
    join_cookies(headers);
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(header::HOST, host);
    }
    switch(headers, upgrade);
    identify(headers, caller.id);
}

/// Whether a client takes trailers (RFC 9110 §10.1.4), which are passed on to it.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let said = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// HTTP/2 clients may send one field for each cookie; HTTP/1.1 knows one for all (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (cookies.next(), cookies.next()) else { return };
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Makes a request that is fit for an instance one over HTTP/2: the target names the host, and trailers are welcome.
pub(crate) fn to_http2<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(header::HOST);
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
}

/// Makes a request one to another host of the ingress, on the same port.
pub(crate) fn hand_on(head: &mut Parts, host: &str, target: Uri) {
    let port = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.rsplit_once(':'));
    let port = port.map(|(_, port)| port).filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let host = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if let Ok(host) = HeaderValue::try_from(host) {
        head.headers.insert(header::HOST, host);
    }
    head.uri = target;
}

/// Makes an instance's response fit for the client.
pub(crate) fn to_client<B>(response: &mut Response<B>, id: &HeaderValue, upgrade: Option<&HeaderValue>) {
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    strip(headers);
    switch(headers, upgrade);
    identify(headers, id);
}

/// Takes from trailers what only a head may say: they are merged into it by some programs (RFC 9110 §6.5.1).
pub(crate) fn trailers(trailers: &mut HeaderMap) {
    let refused: Vec<HeaderName> = trailers.keys().filter(|name| is_claim(name) || is_for_heads(name)).cloned().collect();
    for name in refused {
        trailers.remove(name);
    }
}

/// Whether a header is about framing, routing, authentication or what a body is.
fn is_for_heads(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
        || [
            header::AUTHORIZATION,
            header::CONTENT_ENCODING,
            header::CONTENT_LENGTH,
            header::CONTENT_RANGE,
            header::CONTENT_TYPE,
            header::COOKIE,
            header::EXPECT,
            header::HOST,
            header::SET_COOKIE,
            header::TRAILER,
        ]
        .contains(name)
}

/// Writes the request id.
pub(crate) fn identify(headers: &mut HeaderMap, id: &HeaderValue) {
    for name in ID_HEADERS {
        headers.insert(name, id.clone());
    }
}

fn switch(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
}

/// Whether a header claims who the client is, or what only a proxy in front may say. CGI-like servers read `_` as `-`, so both spellings count.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    let folded;
    let name = if name.contains('_') {
        folded = name.replace('_', "-");
        folded.as_str()
    } else {
        name
    };
    CLAIMS_BEGIN.iter().any(|begin| name.starts_with(begin)) || CLIENT_CLAIMS.contains(&name)
}

/// Removes hop-by-hop headers and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers).filter_map(|token| HeaderName::try_from(token).ok()).collect();
    for name in named {
        // Framing and routing are no options of a connection; naming them there must not take them away.
        if name != header::HOST && name != header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    // Of two statements about a body's length the coding is the true one (RFC 9112 §6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Empty, Full};
    use hyper::body::Bytes;

    fn rewritten(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
        let mut request = Request::get("http://shop.localhost:8080/a/../b?c=%2e").header("host", "shop.localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Empty::new()).unwrap();
        let arrival = Arrival::plain("::ffff:192.0.2.7".parse().unwrap());
        let (id, address) = (HeaderValue::from_static("id-1"), address_of(&arrival));
        to_instance(&mut request, &Caller { arrival: &arrival, address: &address, id: &id, bridged: false, place: None }, None);
        request
    }

    #[test]
    fn an_instance_reads_what_is_known_here() {
        let request = rewritten(&[]);
        assert_eq!(request.uri(), "/a/../b?c=%2e", "the target is passed as it is");
        let got: Vec<_> = request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        let mut sorted = got.clone();
        sorted.sort();
        assert_eq!(
            sorted,
            [
                "host: shop.localhost:8080",
                "rndr-id: id-1",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: shop.localhost:8080",
                "x-forwarded-proto: http",
                "x-request-id: id-1"
            ]
        );
    }

    #[test]
    fn claims_and_hop_by_hop_headers_are_dropped() {
        let plain = rewritten(&[]);
        for (name, value) in [
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Prefix", "/x"),
            ("X_Forwarded_For", "127.0.0.1"),
            ("X-Forwarded_For", "127.0.0.1"),
            ("Forwarded", "for=127.0.0.1"),
            ("X-Real-IP", "127.0.0.1"),
            ("X_Real_Ip", "127.0.0.1"),
            ("True-Client-IP", "127.0.0.1"),
            ("CF-Connecting-IP", "127.0.0.1"),
            ("Client-IP", "127.0.0.1"),
            ("Client_IP", "127.0.0.1"),
            ("Fastly-Client-IP", "127.0.0.1"),
            ("X-Original-Forwarded-For", "127.0.0.1"),
            ("X-Envoy-External-Address", "127.0.0.1"),
            ("X-Envoy-Original-Path", "/admin"),
            ("X_Envoy_Internal", "true"),
            ("Proxy", "http://evil"),
            ("Rndr-Id", "mine"),
            ("X-Request-Id", "mine"),
            ("Connection", "close"),
            ("Connection", "host, content-length, x-forwarded-for"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic x"),
            ("TE", "gzip;q=0.5"),
            ("Upgrade", "websocket"),
            ("Expect", "100-continue"),
        ] {
            assert_eq!(rewritten(&[(name, value)]).headers(), plain.headers(), "{name}: {value}");
        }
        for said in ["trailers", "Trailers", "gzip, trailers"] {
            let passed = rewritten(&[("TE", said), ("Connection", "TE, keep-alive")]);
            let of = |name| passed.headers().get(name).unwrap().to_str().unwrap();
            assert_eq!((of("te"), of("connection"), passed.headers().len()), ("trailers", "te", plain.headers().len() + 2), "{said}");
        }
        assert_eq!(rewritten(&[("Connection", "X-Mine"), ("X-Mine", "1")]).headers(), plain.headers());
        assert_eq!(rewritten(&[("X-Mine", "1")]).headers().len(), plain.headers().len() + 1);
    }

    #[test]
    fn trailers_say_nothing_that_a_head_says() {
        let kept = [("x-sum", "1"), ("grpc-status", "0"), ("server-timing", "a")];
        let dropped = ["x-forwarded-for", "x_real_ip", "rndr-id", "connection", "transfer-encoding", "host", "content-length", "cookie"];
        let all = kept.into_iter().chain(dropped.map(|name| (name, "x")));
        let mut map: HeaderMap = all.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
        trailers(&mut map);
        let mut left: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("grpc-status", "0"), ("server-timing", "a"), ("x-sum", "1")]);
    }

    #[test]
    fn ids_are_what_is_random() {
        for (random, want) in [(0x0123_4567_89ab_cdef, "01234567-89ab-cdef"), (0, "00000000-0000-0000"), (u64::MAX, "ffffffff-ffff-ffff")] {
            assert_eq!(request_id(random).to_str().unwrap(), want);
        }
    }

    #[test]
    fn upgrades() {
        for (headers, want) in [
            (&[("connection", "Upgrade"), ("upgrade", "websocket")][..], Some("websocket")),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")], Some("WebSocket")),
            (&[("connection", "upgrade"), ("upgrade", "raw/1")], Some("raw/1")),
            (&[("connection", "close"), ("upgrade", "websocket")], None),
            (&[("upgrade", "websocket")], None),
            (&[("connection", "upgrade")], None),
            (&[("connection", "upgrade"), ("upgrade", "h2c")], None),
            (&[("connection", "upgrade"), ("upgrade", "websocket, H2C")], None),
            (&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], None),
        ] {
            let mut request = Request::get("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let got = wanted_upgrade(&request.body(Empty::<Bytes>::new()).unwrap());
            assert_eq!(got.as_ref().map(|value| value.to_str().unwrap()), want, "{headers:?}");
        }
        let post = Request::post("/").header("connection", "upgrade").header("upgrade", "websocket").body(Full::new(Bytes::from("x")));
        assert_eq!(wanted_upgrade(&post.unwrap()), None);
    }

    #[test]
    fn http2_becomes_what_http_1_would_be() {
        let head = |request: Request<()>| {
            let mut head = request.into_parts().0;
            head.version = Version::HTTP_2;
            head
        };
        let key = || Some(HeaderValue::from_static("a2V5"));
        let mut plain = head(Request::get("https://shop.test:8443/a").body(()).unwrap());
        assert!(!take_http2(&mut plain, key));
        assert_eq!(plain.headers[header::HOST], "shop.test:8443");
        let mut both = head(Request::get("https://shop.test/a").header("host", "other.test").body(()).unwrap());
        assert!(!take_http2(&mut both, key));
        assert_eq!(both.headers[header::HOST], "other.test", "the decision compares both");
        let asked = |protocol: &'static str| {
            let mut request = Request::connect("https://shop.test/chat").body(()).unwrap();
            request.extensions_mut().insert(Protocol::from_static(protocol));
            head(request)
        };
        let mut websocket = asked("websocket");
        assert!(take_http2(&mut websocket, key));
        assert_eq!((websocket.method, websocket.headers[header::UPGRADE].to_str().unwrap()), (Method::GET, "websocket"));
        let mut other = asked("connect-udp");
        assert!(!take_http2(&mut other, key));
        assert_eq!(other.method, Method::CONNECT, "refused as any tunnel");
    }

    #[test]
    fn grpc_is_told_by_its_kind() {
        for (kind, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), want, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn over_http2_the_target_names_the_host() {
        let mut request = Request::post("/pkg.Service/Do?x").header("host", "shop.test:8443").body(()).unwrap();
        to_http2(&mut request);
        assert_eq!(request.uri(), "http://shop.test:8443/pkg.Service/Do?x");
        assert!(!request.headers().contains_key(header::HOST) && request.headers()[header::TE] == "trailers");
    }

    #[test]
    fn cookies_are_one_header() {
        let request = rewritten(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
        let cookies: Vec<_> = request.headers().get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=4"]);
    }
}
