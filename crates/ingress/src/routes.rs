//! Which host name leads to which instances: plain data that is swapped in as a whole.

use crate::Site;
use moat_model::Slug;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Every public host name. A look-up costs the same for ten and for ten thousand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// Lower-case host name, without port and without a trailing dot.
    pub hosts: HashMap<String, Route>,
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The web service or static site, for pages and logs.
    pub service: Slug,
    /// HTTP addresses of its ready instances; none for a static site.
    pub upstreams: Vec<SocketAddr>,
    /// What is done with requests.
    pub state: RouteState,
}

/// What a route does with requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteState {
    /// Yes, to `upstreams`.
    Live,
    /// No: the files of this release answer.
    Site(Arc<Site>),
    /// No instance is ready: 503.
    NoInstance {
        /// Why, for the page: `the first deploy is still building`.
        reason: String,
    },
    /// The owner suspended the service: 503.
    Suspended,
    /// The owner lets a page answer instead of the service, which goes on running: 503.
    Maintenance {
        /// The page, HTML; a blank one is the ingress' own.
        page: Arc<str>,
    },
}
