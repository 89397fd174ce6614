//! What a trusted proxy says of a request: for whom it asks, at which host, and whether by TLS.
//!
//! Invariant: nothing is believed but what the proxy itself wrote, which stands last, and what stands before an address that is
//! trusted as well.

use crate::Arrival;
use crate::heads::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// How a request came in at the first of trusted proxies, where it comes from one that says so. The head is one for the host that
/// was asked for there.
pub(crate) fn by_proxy(trusted: &[IpNet], head: &mut Parts, arrival: &Arrival) -> Option<Arrival> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    if trusted.is_empty() || !is_trusted(arrival.client.to_canonical()) {
        return None;
    }
    let client = client(&head.headers, is_trusted);
    let secure = last(&head.headers, &FORWARDED_PROTO).and_then(is_secure);
    let host = last(&head.headers, &FORWARDED_HOST).and_then(|host| HeaderValue::try_from(host).ok());
    if client.is_none() && secure.is_none() && host.is_none() {
        return None;
    }
    if let Some(host) = host.filter(|_| head.method != Method::CONNECT) {
        head.headers.insert(header::HOST, host);
        if head.uri.authority().is_some() {
            head.uri = head.uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
        }
    }
    let (client, port) = client.map_or((arrival.client, arrival.port), |client| (client, 0));
    // The name that the proxy asked a certificate for is that of its own connection.
    Some(Arrival { client, port, secure: secure.unwrap_or(arrival.secure), name: None, to: arrival.to })
}

/// The nearest client that is no trusted proxy, else the farthest proxy that is known.
fn client(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut found = None;
    for value in headers.get_all(FORWARDED_FOR).iter().rev() {
        for entry in value.to_str().unwrap_or_default().rsplit(',') {
            let Some(address) = address(entry.trim()) else { return found };
            found = Some(address);
            if !is_trusted(address) {
                return found;
            }
        }
    }
    found
}

/// An address, some proxies' with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

fn is_secure(scheme: &str) -> Option<bool> {
    match scheme.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some(true),
        "http" | "ws" => Some(false),
        _ => None,
    }
}

/// What stands last in a header that may be a list, and be there more than once.
fn last<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let text = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    text.rsplit(',').next().map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const PROXY: &str = "192.0.2.1";

    /// What is known of a request from this address, with these headers: client, scheme and host.
    fn known(from: &str, headers: &[(&str, &str)]) -> String {
        let trusted: Vec<IpNet> = ["192.0.2.0/24", "2001:db8::/64"].map(|net| net.parse().unwrap()).into();
        let mut request = Request::get("/").header("host", "inner.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        let arrival = Arrival { port: 5000, name: Some("inner.test".into()), ..Arrival::plain(from.parse().unwrap()) };
        let Some(told) = by_proxy(&trusted, &mut head, &arrival) else { return "nothing".to_owned() };
        assert_eq!(told.name, None);
        let port = if told.client == arrival.client { 5000 } else { 0 };
        assert_eq!(told.port, port);
        format!("{} {} {}", told.client, told.scheme(), head.headers[header::HOST].to_str().unwrap())
    }

    #[test]
    fn who_asks_is_the_nearest_that_is_not_trusted() {
        for (from, said, want) in [
            (PROXY, &["198.51.100.7"][..], "198.51.100.7 http inner.test"),
            // What a client claims stands before what the proxy adds.
            (PROXY, &["127.0.0.1, 198.51.100.7"], "198.51.100.7 http inner.test"),
            (PROXY, &["127.0.0.1", "198.51.100.7"], "198.51.100.7 http inner.test"),
            (PROXY, &["10.0.0.1,198.51.100.7 ,192.0.2.9"], "198.51.100.7 http inner.test"),
            (PROXY, &["198.51.100.7", "192.0.2.9, 192.0.2.8"], "198.51.100.7 http inner.test"),
            (PROXY, &["192.0.2.9, 192.0.2.8"], "192.0.2.9 http inner.test"),
            (PROXY, &["198.51.100.7:5123"], "198.51.100.7 http inner.test"),
            (PROXY, &["2001:db8:1::7"], "2001:db8:1::7 http inner.test"),
            (PROXY, &["[2001:db8:1::7]"], "2001:db8:1::7 http inner.test"),
            (PROXY, &["[2001:db8:1::7]:443"], "2001:db8:1::7 http inner.test"),
            (PROXY, &["::ffff:198.51.100.7"], "198.51.100.7 http inner.test"),
            ("2001:db8::1", &["198.51.100.7"], "198.51.100.7 http inner.test"),
            ("::ffff:192.0.2.1", &["198.51.100.7"], "198.51.100.7 http inner.test"),
            // What can't be read hides all before it.
            (PROXY, &["198.51.100.7, unknown"], "nothing"),
            (PROXY, &["198.51.100.7, unknown, 192.0.2.9"], "192.0.2.9 http inner.test"),
            (PROXY, &["198.51.100.7,"], "nothing"),
            (PROXY, &["198.51.100.7", "é"], "nothing"),
            (PROXY, &[], "nothing"),
            // Nobody else is asked.
            ("198.51.100.1", &["203.0.113.9"], "nothing"),
            ("198.51.100.1", &["203.0.113.9, 192.0.2.1"], "nothing"),
            ("2001:db8:0:1::1", &["203.0.113.9"], "nothing"),
        ] {
            let headers: Vec<_> = said.iter().map(|said| ("x-forwarded-for", *said)).collect();
            assert_eq!(known(from, &headers), want, "{from}: {said:?}");
        }
    }

    #[test]
    fn scheme_and_host_are_what_the_proxy_itself_says() {
        let whom = ("x-forwarded-for", "198.51.100.7");
        for (headers, want) in [
            (&[whom, ("x-forwarded-proto", "https")][..], "198.51.100.7 https inner.test"),
            (&[whom, ("x-forwarded-proto", "HTTPS")], "198.51.100.7 https inner.test"),
            (&[whom, ("x-forwarded-proto", "wss")], "198.51.100.7 https inner.test"),
            (&[whom, ("x-forwarded-proto", "https, http")], "198.51.100.7 http inner.test"),
            (&[whom, ("x-forwarded-proto", "http"), ("x-forwarded-proto", "https")], "198.51.100.7 https inner.test"),
            (&[whom, ("x-forwarded-proto", "gopher")], "198.51.100.7 http inner.test"),
            (&[whom, ("x-forwarded-host", "shop.test")], "198.51.100.7 http shop.test"),
            (&[whom, ("x-forwarded-host", "evil.test, shop.test:8443")], "198.51.100.7 http shop.test:8443"),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-host", "shop.test")], "192.0.2.1 https shop.test"),
            (&[whom, ("x_forwarded_proto", "https"), ("forwarded", "proto=https")], "198.51.100.7 http inner.test"),
        ] {
            assert_eq!(known(PROXY, headers), want, "{headers:?}");
        }
        assert_eq!(known("198.51.100.1", &[whom, ("x-forwarded-proto", "https"), ("x-forwarded-host", "shop.test")]), "nothing");
    }

    #[test]
    fn a_target_with_a_host_is_left_with_its_path() {
        for (method, target, want) in [
            (Method::GET, "https://inner.test/a?b=c", "/a?b=c"),
            (Method::GET, "http://inner.test", "/"),
            (Method::GET, "/a", "/a"),
            (Method::CONNECT, "inner.test:80", "inner.test:80"),
        ] {
            let request = Request::builder().method(method).uri(target).header("x-forwarded-host", "shop.test");
            let mut head = request.body(()).unwrap().into_parts().0;
            let trusted = [IpNet::from(PROXY.parse::<IpAddr>().unwrap())];
            by_proxy(&trusted, &mut head, &Arrival::plain(PROXY.parse().unwrap())).unwrap();
            assert_eq!(head.uri, want);
        }
    }
}
