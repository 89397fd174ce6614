//! Services that sleep because nobody asked for them: a request has them woken, but for what only crawlers ask for.

use crate::{Route, RouteState, Routes, pages};
use http::request::Parts;
use http::{Method, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use moat_model::Slug;

/// What crawlers ask for before all else (RFC 9309 §2.3).
const ROBOTS: &str = "/robots.txt";

fn asleep<'r>(routes: &'r Routes, head: &Parts) -> Option<&'r Route> {
    routes.route_of(head).filter(|route| route.state == RouteState::Asleep)
}

/// The service that a request would have woken.
pub(crate) fn sleeper<'r>(routes: &'r Routes, head: &Parts) -> Option<&'r Slug> {
    asleep(routes, head).map(|route| &route.service)
}

/// The answer to a crawler that asks whether it may, which wakes nothing: not now.
pub(crate) fn robots<'r>(routes: &'r Routes, head: &Parts) -> Option<(&'r Route, Response<Full<Bytes>>)> {
    let route = asleep(routes, head)?;
    let asks = head.uri.path() == ROBOTS && [Method::GET, Method::HEAD].contains(&head.method);
    asks.then(|| (route, pages::no_robots()))
}
