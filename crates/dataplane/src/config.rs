//! Everything that the data plane serves by, as one value that can be sent.

use moat_dns::Zones;
use moat_model::Slug;
use moat_model::state::{Generation, SiteHeader, SiteRoute};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Orders configurations: by the desired state that they come from, and by their number within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// The desired state's.
    pub generation: Generation,
    /// Counts what was published since, over restarts of the daemon.
    pub revision: u64,
}

/// One configuration, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    /// Which one.
    pub stamp: Stamp,
    /// Public host names, lower-case, without port.
    pub hosts: BTreeMap<String, Host>,
    /// Who may ask which names.
    pub zones: Zones,
    /// The machine's resolvers, for names of the world outside.
    pub resolvers: Vec<SocketAddr>,
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The web service or static site.
    pub service: Slug,
    /// HTTP addresses of its ready instances.
    pub upstreams: Vec<SocketAddr>,
    /// What is done with requests.
    pub state: HostState,
}

/// What is done with requests for a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// They are passed to `upstreams`.
    Live,
    /// They are answered with files.
    Site(SiteFiles),
    /// They wait: an instance is about to be ready.
    Held {
        /// Why, for the page of one that waited in vain.
        reason: String,
    },
    /// They are refused: no instance is ready.
    NoInstance {
        /// Why, for the page.
        reason: String,
    },
    /// They are refused: the service is suspended.
    Suspended,
    /// They are answered with a page, while the service goes on running.
    Maintenance {
        /// The page, HTML; a blank one is the ingress' own.
        page: String,
    },
}

/// A release of a static site and the rules that it is served by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFiles {
    /// The release's published folder, relative to the folder that the process was started for.
    pub folder: PathBuf,
    /// Response headers, in order.
    pub headers: Vec<SiteHeader>,
    /// Redirects and rewrites, in order.
    pub routes: Vec<SiteRoute>,
    /// What follows a service's slug in its host name, for routes to other services.
    pub domain: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_dns::{Asker, Forward, NameEntry, View, ViewId};
    use moat_model::AddressPair;
    use moat_model::state::SiteAction;
    use std::collections::HashMap;

    #[test]
    fn what_is_sent_is_what_is_read() {
        let pair = AddressPair { v4: "10.64.0.2".parse().unwrap(), v6: "fd00::2".parse().unwrap() };
        let name = NameEntry { service: pair, ready: vec![pair], hosts: BTreeMap::from([("shop-1".to_owned(), pair)]) };
        let zones = Zones {
            askers: HashMap::from([
                (pair.v4.into(), Asker { view: ViewId(7), forward: Forward::All }),
                (pair.v6.into(), Asker { view: ViewId(7), forward: Forward::None }),
            ]),
            views: HashMap::from([(ViewId(7), View::new(BTreeMap::from([(Slug::new("shop").unwrap(), name)])))]),
        };
        let site = SiteFiles {
            folder: "pages-1/site".into(),
            headers: vec![SiteHeader { path: "/*".to_owned(), name: "x-a".to_owned(), value: "b".to_owned() }],
            routes: vec![SiteRoute {
                source: "/api/*".to_owned(),
                action: SiteAction::Pass { service: Slug::new("api").unwrap(), path: "/*".to_owned() },
            }],
            domain: "localhost".to_owned(),
        };
        let states = [
            HostState::Live,
            HostState::Site(site),
            HostState::Held { reason: "r".to_owned() },
            HostState::NoInstance { reason: "r".to_owned() },
            HostState::Suspended,
            HostState::Maintenance { page: "<p>soon</p>".to_owned() },
        ];
        let host = |state| Host { service: Slug::new("shop").unwrap(), upstreams: vec!["10.64.0.2:10000".parse().unwrap()], state };
        let config = Config {
            stamp: Stamp { generation: Generation(3), revision: 4 },
            hosts: states.into_iter().enumerate().map(|(n, state)| (format!("h{n}.localhost"), host(state))).collect(),
            zones,
            resolvers: vec!["[::1]:53".parse().unwrap()],
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn stamps_are_ordered_by_generation_first() {
        let stamp = |generation, revision| Stamp { generation: Generation(generation), revision };
        assert!(stamp(1, 9) < stamp(2, 0) && stamp(2, 0) < stamp(2, 1));
    }
}
