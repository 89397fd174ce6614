//! Everything that the data plane serves by, as one value that can be sent.

use ipnet::IpNet;
use moat_dns::Zones;
use moat_ingress::{Access, Rate, TraceTarget};
use moat_model::state::{Generation, SiteHeader, SiteRoute};
use moat_model::{InstanceId, ProxyHeader, Secret, Slug};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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
    /// Public host names, lower-case, without port; `*.` and the rest of one stands for all with one label more.
    pub hosts: BTreeMap<String, Host>,
    /// Databases that clients from outside come to, by lower-case host name.
    pub databases: BTreeMap<String, DatabaseHost>,
    /// Instances by address, as their requests are counted and logged.
    pub instances: BTreeMap<IpAddr, InstanceId>,
    /// What holds for every host.
    pub public: Public,
    /// Answers to servers of certificates that look whether a name is served here, by token.
    pub proofs: BTreeMap<String, String>,
    /// Who may ask which names.
    pub zones: Zones,
    /// The machine's resolvers, for names of the world outside.
    pub resolvers: Vec<SocketAddr>,
}

/// What holds for every public host name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Public {
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Vec<IpNet>,
    /// Proxies whose `X-Forwarded-*` headers say who the client is.
    pub trusted: Vec<IpNet>,
    /// Seconds for which a browser that was here by HTTPS comes back by nothing else.
    pub hsts: Option<u64>,
    /// Answers are compressed where their service did not.
    pub compress: bool,
    /// The longest body of a request, bytes; none is any length.
    pub max_body: Option<u64>,
    /// Seconds for which a client may send nothing more of a body, and take nothing of its answer; none is for ever.
    pub client_idle: Option<u64>,
    /// Connections of one client at once; none is any number.
    pub client_connections: Option<u32>,
    /// How many requests each client may send to each service.
    pub limit: Option<Rate>,
    /// The same of services that have a limit of their own, or none.
    pub limits: BTreeMap<Slug, Option<Rate>>,
    /// Where traces of requests go.
    #[serde(default)]
    pub traces: Option<TraceTarget>,
}

/// The certificates of public host names, with their keys. They are sent apart from [`Config`], which changes much more often.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateSet {
    /// Those that clients are shown.
    pub shown: Vec<NamedCertificate>,
    /// Those that prove to a server of certificates that a name is served here (RFC 8737).
    pub proofs: Vec<NamedCertificate>,
}

/// A certificate and the names that it is shown for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCertificate {
    /// Lower-case host names; `*.` and the rest of one stands for all with one label more.
    pub names: Vec<String>,
    /// PEM: the certificate, then those that signed it.
    pub chain: String,
    /// PEM: its private key.
    pub key: Secret,
}

/// Who comes to a database from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseHost {
    /// The database.
    pub service: Slug,
    /// How clients are let in.
    pub access: Access,
    /// Its ready instance.
    pub upstreams: Vec<SocketAddr>,
    /// Clients that may come; no other may.
    pub allow: Vec<IpNet>,
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The web service or static site.
    pub service: Slug,
    /// HTTP addresses of its ready instances.
    pub upstreams: Vec<SocketAddr>,
    /// Those whose connections begin with a PROXY header.
    pub announced: Vec<(SocketAddr, ProxyHeader)>,
    /// What is done with requests.
    pub state: HostState,
    /// Clients that may ask; none is everybody.
    pub allow: Option<Vec<IpNet>>,
    /// The port of HTTPS that clients without TLS are sent to.
    pub https: Option<u16>,
}

/// What is done with requests for a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// They are passed to `upstreams`.
    Live,
    /// They are answered with files.
    Site(SiteFiles),
    /// They are sent to another name of the same service.
    Moved {
        /// The other name.
        host: String,
    },
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
    /// They have the service woken, and wait.
    Asleep,
    /// They are refused: the service is suspended.
    Suspended,
    /// They are answered with a page, while the service goes on running.
    Maintenance {
        /// The page, HTML; a blank one is the ingress' own.
        page: String,
        /// The answer's status.
        #[serde(default = "unavailable")]
        status: u16,
    },
}

const fn unavailable() -> u16 {
    503
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
    use moat_ingress::Login;
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
            HostState::Moved { host: "example.com".to_owned() },
            HostState::Held { reason: "r".to_owned() },
            HostState::NoInstance { reason: "r".to_owned() },
            HostState::Asleep,
            HostState::Suspended,
            HostState::Maintenance { page: "<p>soon</p>".to_owned(), status: unavailable() },
        ];
        let host = |state| Host {
            service: Slug::new("shop").unwrap(),
            upstreams: vec!["10.64.0.2:10000".parse().unwrap()],
            announced: vec![("10.64.0.2:10000".parse().unwrap(), ProxyHeader::V2)],
            state,
            allow: Some(vec!["192.0.2.0/24".parse().unwrap()]),
            https: Some(8443),
        };
        let config = Config {
            stamp: Stamp { generation: Generation(3), revision: 4 },
            hosts: states.into_iter().enumerate().map(|(n, state)| (format!("h{n}.localhost"), host(state))).collect(),
            databases: [("db", Access::Postgres), ("kv", Access::KeyValue(Login::new("red-1", "secret")))]
                .map(|(name, access)| {
                    let host = DatabaseHost {
                        service: Slug::new(name).unwrap(),
                        access,
                        upstreams: vec!["10.64.0.3:5432".parse().unwrap()],
                        allow: vec!["192.0.2.0/24".parse().unwrap()],
                    };
                    (format!("{name}.localhost"), host)
                })
                .into(),
            instances: BTreeMap::from([(pair.v4.into(), InstanceId::new("shop-1").unwrap())]),
            public: Public {
                proxies: vec!["192.0.2.1/32".parse().unwrap()],
                trusted: vec!["198.51.100.0/24".parse().unwrap()],
                hsts: Some(1),
                compress: true,
                max_body: Some(1 << 40),
                client_idle: Some(60),
                client_connections: Some(100),
                limit: Some("9/m".parse().unwrap()),
                limits: BTreeMap::from([(Slug::new("shop").unwrap(), Some("1/s".parse().unwrap())), (Slug::new("free").unwrap(), None)]),
                traces: Some(TraceTarget { url: "http://127.0.0.1:4318/v1/traces".to_owned(), share: 1000 }),
            },
            proofs: BTreeMap::from([("token".to_owned(), "token.thumb".to_owned())]),
            zones,
            resolvers: vec!["[::1]:53".parse().unwrap()],
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(!text.contains("secret"), "a password is not sent");
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn stamps_are_ordered_by_generation_first() {
        let stamp = |generation, revision| Stamp { generation: Generation(generation), revision };
        assert!(stamp(1, 9) < stamp(2, 0) && stamp(2, 0) < stamp(2, 1));
    }
}
