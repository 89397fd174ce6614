//! How a request came in: from whom, and by which name's certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// What a connection says of every request on it, or a trusted proxy of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The client's address: the connection's, or what a trusted proxy said (PROXY protocol, `X-Forwarded-For`).
    pub client: IpAddr,
    /// The client's port; 0 where it is not known.
    pub port: u16,
    /// Where it connected to.
    pub to: SocketAddr,
    /// By TLS, to here or to a trusted proxy.
    pub secure: bool,
    /// The name that the client asked a certificate for (SNI, RFC 6066 §3), in lower case.
    pub name: Option<Arc<str>>,
}

impl Arrival {
    /// A connection without TLS, from an unknown port to an unknown address.
    pub const fn plain(client: IpAddr) -> Self {
        Self { client, port: 0, to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), secure: false, name: None }
    }

    /// `https` or `http`.
    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}
