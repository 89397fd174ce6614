//! How a request came in: from whom, and by which name's certificate.

use std::net::IpAddr;
use std::sync::Arc;

/// What a connection says of every request on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The client's address: the connection's, or what a trusted proxy said (PROXY protocol).
    pub client: IpAddr,
    /// By TLS.
    pub secure: bool,
    /// The name that the client asked a certificate for (SNI, RFC 6066 §3), in lower case.
    pub name: Option<Arc<str>>,
}

impl Arrival {
    /// A connection without TLS.
    pub const fn plain(client: IpAddr) -> Self {
        Self { client, secure: false, name: None }
    }

    /// `https` or `http`.
    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}
