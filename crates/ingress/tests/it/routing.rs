//! The routing decision beside a naive one.

use http::Request;
use http::StatusCode;
use moat_ingress::{Arrival, Decision, Policy, Refusal, Route, RouteState, Routes, decide};
use moat_model::Slug;
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::IpAddr;

/// A request as people would say it.
#[derive(Debug, Clone)]
struct Asked {
    labels: Vec<&'static str>,
    shout: bool,
    dot: bool,
    port: Option<u16>,
    path: &'static str,
    client: IpAddr,
    secure: bool,
}

fn name() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "www"]), 1..4).prop_map(|labels| [labels, vec!["test"]].concat())
}

fn state() -> impl Strategy<Value = RouteState> {
    prop_oneof![
        Just(RouteState::Live),
        name().prop_map(|labels| RouteState::Moved { host: labels.join(".") }),
        Just(RouteState::NoInstance { reason: "r".to_owned() }),
        Just(RouteState::Held { reason: "r".to_owned() }),
        Just(RouteState::Asleep),
        Just(RouteState::Suspended),
        Just(RouteState::Maintenance { page: "".into(), status: StatusCode::BAD_GATEWAY }),
    ]
}

fn routes() -> impl Strategy<Value = Vec<(String, Route)>> {
    let allow = prop::option::of(prop::collection::vec(prop::sample::select(vec!["192.0.2.0/24", "2001:db8::/32"]), 0..3));
    let https = prop::option::of(prop::sample::select(vec![443, 8443]));
    let one = (name(), any::<bool>(), state(), any::<bool>(), allow, https);
    let one = one.prop_map(|(labels, wild, state, ready, allow, https)| {
        let name = if wild { format!("*.{}", labels.join(".")) } else { labels.join(".") };
        let upstreams = if ready { vec!["10.64.0.2:10000".parse().unwrap()] } else { Vec::new() };
        let mut route = Route::new(Slug::new("s").unwrap(), upstreams, state);
        route.allow = allow.map(|nets| nets.into_iter().map(|net| net.parse().unwrap()).collect());
        route.https = https;
        (name, route)
    });
    prop::collection::vec(one, 0..12).prop_map(|mut all| {
        for (n, (_, route)) in all.iter_mut().enumerate() {
            route.service = Slug::new(format!("s{n}")).unwrap();
        }
        all
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let client = prop::sample::select(vec!["192.0.2.7", "::ffff:192.0.2.7", "198.51.100.1", "2001:db8::1", "2001:db9::1"]);
    let port = prop::option::of(prop::sample::select(vec![80, 443, 8080]));
    let path = prop::sample::select(vec!["/", "/a/b?c=%2e", "//evil.test/", "/*"]);
    (name(), any::<bool>(), any::<bool>(), port, path, client, any::<bool>()).prop_map(
        |(labels, shout, dot, port, path, client, secure)| Asked {
            labels,
            shout,
            dot,
            port,
            path,
            client: client.parse().unwrap(),
            secure,
        },
    )
}

/// What is to become of it, in words; one rule after the other.
fn naive(routes: &[(String, Route)], asked: &Asked) -> String {
    let name = asked.labels.join(".");
    let rest = asked.labels[1..].join(".");
    // Of two routes with one name the later holds.
    let of = |wanted: &str| routes.iter().rev().find(|(name, _)| name == wanted).map(|(_, route)| route);
    let Some(route) = of(&name).or_else(|| of(&format!("*.{rest}"))) else { return format!("nobody is {name}") };
    let service = &route.service;
    let four = matches!(asked.client.to_string().as_str(), "192.0.2.7" | "::ffff:192.0.2.7");
    let six = asked.client.to_string() == "2001:db8::1";
    if let Some(nets) = &route.allow {
        let let_in = nets.iter().any(|net| if net.to_string() == "192.0.2.0/24" { four } else { six });
        if !let_in {
            return format!("{service} is not for it");
        }
    }
    let host = if let RouteState::Moved { host } = &route.state { host } else { &name };
    let port = |port: Option<u16>| port.map(|port| format!(":{port}")).unwrap_or_default();
    if let (Some(https), false) = (route.https, asked.secure) {
        return format!("to https://{host}{}{}", port(Some(https).filter(|port| *port != 443)), asked.path);
    }
    if matches!(route.state, RouteState::Moved { .. }) {
        return format!("to {}://{host}{}{}", if asked.secure { "https" } else { "http" }, port(asked.port), asked.path);
    }
    match &route.state {
        RouteState::Live if !route.upstreams.is_empty() => format!("by {service}"),
        RouteState::Held { .. } | RouteState::Asleep => format!("waits for {service}"),
        RouteState::Suspended => format!("{service} is suspended"),
        RouteState::Maintenance { .. } => format!("{service} is worked on"),
        RouteState::Live | RouteState::NoInstance { .. } => format!("{service} is not ready"),
        RouteState::Moved { .. } | RouteState::Site(_) => unreachable!(),
    }
}

fn told(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Proxy(route) => format!("by {}", route.service),
        Decision::Serve(..) => "a site".to_owned(),
        Decision::Move(_, to) => format!("to {to}"),
        Decision::Hold(Refusal::NoInstance { service, .. }) => format!("waits for {service}"),
        Decision::Refuse(Refusal::UnknownHost { host }) => format!("nobody is {host}"),
        Decision::Refuse(Refusal::Forbidden { service }) => format!("{service} is not for it"),
        Decision::Refuse(Refusal::NoInstance { service, .. }) => format!("{service} is not ready"),
        Decision::Refuse(Refusal::Suspended { service }) => format!("{service} is suspended"),
        Decision::Refuse(Refusal::Maintenance { service, .. }) => format!("{service} is worked on"),
        Decision::Hold(other) | Decision::Refuse(other) => format!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_decision_is_what_the_rules_say(routes in routes(), asked in asked()) {
        let table = Routes { hosts: routes.iter().cloned().collect::<HashMap<_, _>>(), proofs: HashMap::new(), policy: Policy::default() };
        let mut host = asked.labels.join(".");
        if asked.shout {
            host = host.to_ascii_uppercase();
        }
        if asked.dot {
            host.push('.');
        }
        if let Some(port) = asked.port {
            host = format!("{host}:{port}");
        }
        let head = Request::get(asked.path).header("host", host).body(()).unwrap().into_parts().0;
        let arrival = Arrival { secure: asked.secure, ..Arrival::plain(asked.client) };
        prop_assert_eq!(told(&decide(&table, &head, &arrival)), naive(&routes, &asked));
    }
}
