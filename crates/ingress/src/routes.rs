//! Which host name leads to which instances: plain data that is swapped in as a whole.

use moat_model::Slug;
use std::collections::HashMap;
use std::net::SocketAddr;

/// Every public host name. A look-up costs the same for ten and for ten thousand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// Lower-case host name, without port and without a trailing dot.
    pub hosts: HashMap<String, Route>,
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The web service, for pages and logs.
    pub service: Slug,
    /// HTTP addresses of its ready instances.
    pub upstreams: Vec<SocketAddr>,
    /// Whether requests are passed on.
    pub state: RouteState,
}

/// Whether a route passes requests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteState {
    /// Yes, to `upstreams`.
    Live,
    /// No instance is ready: 503.
    NoInstance {
        /// Why, for the page: `the first deploy is still building`.
        reason: String,
    },
    /// The owner suspended the service: 503.
    Suspended,
}
