//! The routing decision: a request's head, how it came in, and the routes give a route, or the reason why not.

use crate::{Arrival, Route, RouteState, Routes, Site};
use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use moat_model::Slug;
use std::net::Ipv6Addr;
use std::sync::Arc;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'r> {
    /// Pass it to one of the route's instances; there is at least one.
    Proxy(&'r Route),
    /// Answer it with a file of the site.
    Serve(&'r Route, &'r Arc<Site>),
    /// Send the client to this URL (301).
    Move(&'r Route, String),
    /// Keep it until the routes change, and have the service woken if it sleeps; answer it with this when that takes too long.
    Hold(Refusal),
    /// Answer it here.
    Refuse(Refusal),
}

/// Why a request is answered here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The head is not one to pass on; the connection is closed after the answer.
    Bad(Fault),
    /// No public service has this host name. A private service's name is answered the same.
    UnknownHost {
        /// The name, checked and in lower case.
        host: String,
    },
    /// The name is another than the one whose certificate the client was shown, and has another certificate.
    Misdirected,
    /// The client's address is not one that may ask.
    Forbidden {
        /// The service.
        service: Slug,
    },
    /// The client asked too often.
    TooMany {
        /// The service.
        service: Slug,
        /// Seconds until it may ask again.
        wait: u64,
    },
    /// A public service without a ready instance.
    NoInstance {
        /// The service.
        service: Slug,
        /// Why.
        reason: String,
    },
    /// A suspended service.
    Suspended {
        /// The service.
        service: Slug,
    },
    /// A service in maintenance mode.
    Maintenance {
        /// The service.
        service: Slug,
        /// The page, HTML; a blank one is the ingress' own.
        page: Arc<str>,
        /// The status.
        status: StatusCode,
    },
}

/// What is wrong with a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// RFC 9112 §3.2.
    #[error("the request has no `Host` header")]
    MissingHost,
    /// RFC 9112 §3.2.
    #[error("the request has more than one `Host` header")]
    ManyHosts,
    /// RFC 9110 §7.2.
    #[error("the `Host` header is not a host name")]
    BadHost,
    /// An absolute target (`GET http://a/`) names one host and the `Host` header another.
    #[error("the request's target and its `Host` header name different hosts")]
    HostMismatch,
    /// Neither a path nor an `http` or `https` URL.
    #[error("the request's target is neither a path nor an http URL")]
    BadTarget,
    /// Tunnels to elsewhere are not made here; a WebSocket over HTTP/2 (RFC 8441) is none.
    #[error("CONNECT is not served here")]
    Connect,
    /// Of HTTP/2: RFC 9113 §8.2.1. Some instances end the connection over it, which is that of others too.
    #[error("a header's value begins or ends with white space")]
    Space,
    /// A body coding other than `chunked` alone (RFC 9112 §6.1).
    #[error("the only transfer coding served here is `chunked`")]
    TransferCoding,
}

impl Refusal {
    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Bad(Fault::Connect) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Bad(Fault::TransferCoding) => StatusCode::NOT_IMPLEMENTED,
            Self::Bad(Fault::MissingHost | Fault::ManyHosts | Fault::BadHost | Fault::HostMismatch | Fault::BadTarget | Fault::Space) => {
                StatusCode::BAD_REQUEST
            }
            Self::UnknownHost { .. } => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Maintenance { status, .. } => *status,
            Self::NoInstance { .. } | Self::Suspended { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Decides where a request goes, by its head and its connection alone.
///
/// The host is that of the one `Host` header, in any letter case, with or without port and trailing dot. When the
/// target names a host too, both must be the same. Of HTTP/2, `:authority` is taken for the header where there is none.
pub fn decide<'r>(routes: &'r Routes, head: &Parts, arrival: &Arrival) -> Decision<'r> {
    let (host, port) = match host_of(head) {
        Ok(host) => host,
        Err(fault) => return Decision::Refuse(Refusal::Bad(fault)),
    };
    if head.version == Version::HTTP_2 && head.headers.values().any(has_outer_space) {
        return Decision::Refuse(Refusal::Bad(Fault::Space));
    }
    let Some(route) = routes.find(&host) else {
        return Decision::Refuse(Refusal::UnknownHost { host });
    };
    let service = route.service.clone();
    if !route.admits(arrival.client) {
        return Decision::Refuse(Refusal::Forbidden { service });
    }
    let to_https = route.https.filter(|_| !arrival.secure);
    if let RouteState::Moved { host } = &route.state {
        return Decision::Move(route, url(head, arrival, host, port, to_https));
    }
    if to_https.is_some() {
        return Decision::Move(route, url(head, arrival, &host, port, to_https));
    }
    match &route.state {
        // Above.
        RouteState::Moved { host } => Decision::Refuse(Refusal::UnknownHost { host: host.clone() }),
        RouteState::Suspended => Decision::Refuse(Refusal::Suspended { service }),
        RouteState::Maintenance { page, status } => {
            Decision::Refuse(Refusal::Maintenance { service, page: Arc::clone(page), status: *status })
        }
        RouteState::NoInstance { reason } => Decision::Refuse(Refusal::NoInstance { service, reason: reason.clone() }),
        RouteState::Held { reason } => Decision::Hold(Refusal::NoInstance { service, reason: reason.clone() }),
        RouteState::Asleep => Decision::Hold(Refusal::NoInstance { service, reason: "it sleeps, and could not be woken yet".to_owned() }),
        RouteState::Live if route.upstreams.is_empty() => {
            Decision::Refuse(Refusal::NoInstance { service, reason: "none of its instances is ready".to_owned() })
        }
        RouteState::Live => Decision::Proxy(route),
        RouteState::Site(site) => Decision::Serve(route, site),
    }
}

impl Routes {
    /// The route of a request's host, where it has one.
    pub(crate) fn route_of(&self, head: &Parts) -> Option<&Route> {
        host_of(head).ok().and_then(|(host, _)| self.find(&host))
    }
}

/// The same path at another host or by HTTPS.
fn url(head: &Parts, arrival: &Arrival, host: &str, port: Option<u16>, https: Option<u16>) -> String {
    let path = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let path = if path.starts_with('/') { path } else { "/" };
    let (scheme, port) = match https {
        Some(https) => ("https", Some(https).filter(|port| *port != 443)),
        None => (arrival.scheme(), port),
    };
    port.map_or_else(|| format!("{scheme}://{host}{path}"), |port| format!("{scheme}://{host}:{port}{path}"))
}

/// The host name that a request is for, in lower case, and the port that it names.
pub(crate) fn host_of(head: &Parts) -> Result<(String, Option<u16>), Fault> {
    if head.method == Method::CONNECT {
        return Err(Fault::Connect);
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) || codings.next().is_some() {
        return Err(Fault::TransferCoding);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().ok_or(Fault::MissingHost)?;
    if hosts.next().is_some() {
        return Err(Fault::ManyHosts);
    }
    let (host, port) = host.to_str().ok().and_then(split_host).ok_or(Fault::BadHost)?;
    let uri = &head.uri;
    if let Some(authority) = uri.authority() {
        let default = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(Fault::BadTarget),
        };
        let (target, target_port) = split_host(authority.as_str()).ok_or(Fault::BadTarget)?;
        if target != host || target_port.unwrap_or(default) != port.unwrap_or(default) {
            return Err(Fault::HostMismatch);
        }
    }
    // Over HTTP/2 each target has an authority, and may still be no path.
    let whole_server = head.method == Method::OPTIONS && uri.path() == "*";
    if !uri.path().starts_with('/') && !whole_server {
        return Err(Fault::BadTarget);
    }
    Ok((host, port))
}

/// Whether white space is round a value; HTTP/1.1 has it between header and value, and never in one.
fn has_outer_space(value: &HeaderValue) -> bool {
    matches!(value.as_bytes(), [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
}

/// Host in lower case without its trailing dot, and port. `None` for what is no `uri-host [":" port]` of letters,
/// digits, `-`, `_`, `.` or an IPv6 literal.
fn split_host(text: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        if !rest.is_empty() && !rest.starts_with(':') {
            return None;
        }
        return Some((format!("[{address}]"), port(rest.strip_prefix(':').unwrap_or_default()).ok()?));
    }
    let (host, digits) = text.split_once(':').unwrap_or((text, ""));
    let port = port(digits).ok()?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (host.len() <= 253 && host.split('.').all(is_label)).then(|| (host.to_ascii_lowercase(), port))
}

/// A port behind its colon; none may be there (RFC 3986 §3.2.3).
fn port(digits: &str) -> Result<Option<u16>, Fault> {
    if digits.is_empty() {
        return Ok(None);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::BadHost);
    }
    digits.parse().map(Some).map_err(|_| Fault::BadHost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use std::collections::HashMap;

    fn routes() -> Routes {
        let route = |service: &str, upstreams: &[&str], state| {
            Route::new(Slug::new(service).unwrap(), upstreams.iter().map(|upstream| upstream.parse().unwrap()).collect(), state)
        };
        let hosts = [
            ("shop.localhost", route("shop", &["10.64.0.1:10000"], RouteState::Live)),
            ("empty.localhost", route("empty", &[], RouteState::Live)),
            ("new.localhost", route("new", &[], RouteState::NoInstance { reason: "it is building".to_owned() })),
            ("between.localhost", route("between", &[], RouteState::Held { reason: "it is replaced".to_owned() })),
            ("off.localhost", route("off", &["10.64.0.2:10000"], RouteState::Suspended)),
        ];
        hosts.into_iter().map(|(host, route)| (host.to_owned(), route)).collect::<HashMap<_, _>>().into()
    }

    fn shown(decision: &Decision<'_>) -> String {
        match decision {
            Decision::Proxy(route) => route.service.to_string(),
            Decision::Serve(route, _) => format!("site {}", route.service),
            Decision::Move(_, to) => format!("to {to}"),
            Decision::Hold(refusal) => format!("held {refusal:?}"),
            Decision::Refuse(refusal) => format!("{} {refusal:?}", refusal.status().as_u16()),
        }
    }

    /// Method and target, `Host` headers, and what comes of it: the service, or a status and a word of the reason.
    fn check(target: &str, hosts: &[&str], want: &str) {
        let (method, uri) = target.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let routes = routes();
        let decision = decide(&routes, &request.body(()).unwrap().into_parts().0, &Arrival::plain([192, 0, 2, 1].into()));
        let got = shown(&decision);
        assert!(if want.contains(' ') { got.starts_with(want) } else { got == want }, "{target} {hosts:?}: {got}, not {want}");
    }

    #[test]
    fn rows() {
        for (target, hosts, want) in [
            ("GET /", &["shop.localhost"][..], "shop"),
            ("GET /", &["shop.localhost:8080"], "shop"),
            ("GET /", &["between.localhost"], "held NoInstance"),
            ("GET /", &["shop.localhost:"], "shop"),
            ("GET /", &["SHOP.LocalHost.:8080"], "shop"),
            ("GET /", &["shop.localhost."], "shop"),
            ("OPTIONS *", &["shop.localhost"], "shop"),
            ("GET http://shop.localhost/x", &["shop.localhost"], "shop"),
            ("GET http://shop.localhost:80/x", &["shop.localhost"], "shop"),
            ("GET http://SHOP.localhost:8080/x", &["shop.localhost:8080"], "shop"),
            ("GET https://shop.localhost/x", &["shop.localhost:443"], "shop"),
            ("GET http://shop.localhost/x", &["other.localhost"], "400 Bad(HostMismatch)"),
            ("GET http://other.localhost/x", &["shop.localhost"], "400 Bad(HostMismatch)"),
            ("GET http://shop.localhost:81/x", &["shop.localhost:82"], "400 Bad(HostMismatch)"),
            ("GET http://shop.localhost/x", &[], "400 Bad(MissingHost)"),
            ("GET http://me@shop.localhost/x", &["shop.localhost"], "400 Bad(BadTarget)"),
            ("GET ftp://shop.localhost/x", &["shop.localhost"], "400 Bad(BadTarget)"),
            ("GET shop.localhost", &["shop.localhost"], "400 Bad(BadTarget)"),
            ("GET *", &["shop.localhost"], "400 Bad(BadTarget)"),
            ("CONNECT shop.localhost:80", &["shop.localhost"], "405 Bad(Connect)"),
            ("GET /", &[], "400 Bad(MissingHost)"),
            ("GET /", &["shop.localhost", "shop.localhost"], "400 Bad(ManyHosts)"),
            ("GET /", &["shop.localhost", "other"], "400 Bad(ManyHosts)"),
            ("GET /", &[""], "400 Bad(BadHost)"),
            ("GET /", &["."], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost.."], "400 Bad(BadHost)"),
            ("GET /", &["shop..localhost"], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost, other"], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost/x"], "400 Bad(BadHost)"),
            ("GET /", &["me@shop.localhost"], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost:80:80"], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost:99999"], "400 Bad(BadHost)"),
            ("GET /", &["shop.localhost:+80"], "400 Bad(BadHost)"),
            ("GET /", &["<script>"], "400 Bad(BadHost)"),
            ("GET /", &["catalog"], "404 UnknownHost { host: \"catalog\" }"),
            ("GET /", &["shop"], "404 UnknownHost"),
            ("GET /", &["127.0.0.1:8080"], "404 UnknownHost"),
            ("GET /", &["[::1]:8080"], "404 UnknownHost { host: \"[::1]\" }"),
            ("GET /", &["[::1]8080"], "400 Bad(BadHost)"),
            ("GET /", &["[::g]"], "400 Bad(BadHost)"),
            ("GET /", &["x.shop.localhost"], "404 UnknownHost"),
            ("GET /", &["empty.localhost"], "503 NoInstance"),
            ("GET /", &["new.localhost"], "503 NoInstance { service: Slug(\"new\"), reason: \"it is building\" }"),
            ("GET /", &["off.localhost"], "503 Suspended"),
        ] {
            check(target, hosts, want);
        }
    }

    #[test]
    fn transfer_codings() {
        for (codings, want) in [
            (&["chunked"][..], true),
            (&["Chunked"], true),
            (&["gzip, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["identity"], false),
        ] {
            let mut request = Request::builder().method("POST").uri("/").header(HOST, "shop.localhost");
            for coding in codings {
                request = request.header(TRANSFER_ENCODING, *coding);
            }
            let routes = routes();
            let got = decide(&routes, &request.body(()).unwrap().into_parts().0, &Arrival::plain([192, 0, 2, 1].into()));
            assert_eq!(matches!(got, Decision::Proxy(_)), want, "{codings:?}: {got:?}");
        }
    }

    #[test]
    fn who_may_ask_and_where_clients_are_sent() {
        let mut routes = routes();
        let shop = routes.hosts["shop.localhost"].clone();
        let with = |route: &Route, change: &dyn Fn(&mut Route)| {
            let mut route = route.clone();
            change(&mut route);
            route
        };
        let office: Arc<[ipnet::IpNet]> = ["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into();
        let moved = || RouteState::Moved { host: "example.com".to_owned() };
        for (name, route) in [
            ("inside.test", with(&shop, &|route| route.allow = Some(Arc::clone(&office)))),
            ("nobody.test", with(&shop, &|route| route.allow = Some(Arc::new([])))),
            ("closed.test", with(&routes.hosts["off.localhost"], &|route| route.allow = Some(Arc::clone(&office)))),
            ("safe.test", with(&shop, &|route| route.https = Some(443))),
            ("safe-8443.test", with(&shop, &|route| route.https = Some(8443))),
            ("www.example.com", with(&shop, &|route| route.state = moved())),
            ("www.safe.com", with(&shop, &|route| (route.state, route.https) = (moved(), Some(443)))),
            ("*.many.test", shop.clone()),
            ("off.many.test", routes.hosts["off.localhost"].clone()),
        ] {
            routes.hosts.insert(name.to_owned(), route);
        }
        for (target, host, client, secure, want) in [
            ("/", "inside.test", "192.0.2.9", false, "shop"),
            ("/", "inside.test", "::ffff:192.0.2.9", false, "shop"),
            ("/", "inside.test", "2001:db8::1", false, "shop"),
            ("/", "inside.test", "198.51.100.1", false, "403 Forbidden { service: Slug(\"shop\") }"),
            ("/", "inside.test", "::1", true, "403 Forbidden { service: Slug(\"shop\") }"),
            ("/", "nobody.test", "127.0.0.1", false, "403 Forbidden { service: Slug(\"shop\") }"),
            ("/", "closed.test", "198.51.100.1", false, "403 Forbidden { service: Slug(\"off\") }"),
            ("/a?b=c", "safe.test:8080", "::1", false, "to https://safe.test/a?b=c"),
            ("/a?b=c", "SAFE.test.", "::1", false, "to https://safe.test/a?b=c"),
            ("/a?b=c", "safe.test:8443", "::1", true, "shop"),
            ("//evil.test/", "safe-8443.test", "::1", false, "to https://safe-8443.test:8443//evil.test/"),
            ("/a?b", "www.example.com", "::1", false, "to http://example.com/a?b"),
            ("/a?b", "www.example.com:8080", "::1", false, "to http://example.com:8080/a?b"),
            ("/a?b", "www.example.com:8443", "::1", true, "to https://example.com:8443/a?b"),
            ("/", "www.safe.com:8080", "::1", false, "to https://example.com/"),
            ("/", "a.many.test", "::1", false, "shop"),
            ("/", "off.many.test", "::1", false, "503 Suspended { service: Slug(\"off\") }"),
            ("/", "a.b.many.test", "::1", false, "404 UnknownHost { host: \"a.b.many.test\" }"),
            ("/", "many.test", "::1", false, "404 UnknownHost { host: \"many.test\" }"),
            ("/", "*.many.test", "::1", false, "400 Bad(BadHost)"),
        ] {
            let head = Request::get(target).header(HOST, host).body(()).unwrap().into_parts().0;
            let arrival = Arrival { secure, ..Arrival::plain(client.parse().unwrap()) };
            assert_eq!(shown(&decide(&routes, &head, &arrival)), want, "{host}{target} from {client}");
        }
    }
}
