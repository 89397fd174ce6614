//! What the outside sees of the router: the names and addresses of its one uplink.

use crate::{NetError, Network};
use moat_model::AddressPair;
use std::net::Ipv6Addr;

/// The router namespace's way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The link's name in the host's namespace.
    pub host_link: String,
    /// The link's name in the router namespace.
    pub router_link: &'static str,
    /// The host's addresses on the link; IPv6 is unspecified (`::`) where the host has none.
    pub host_address: AddressPair,
    /// The router's addresses on the link, likewise.
    pub router_address: AddressPair,
    /// Whether IPv6 leaves the router at all.
    pub ipv6: bool,
}

impl Network {
    /// The uplink as it was made; `None` before the router namespace is.
    pub fn uplink(&self) -> Result<Option<Uplink>, NetError> {
        let Some(record) = self.inner.records.host()? else { return Ok(None) };
        Ok(Some(Uplink {
            host_link: self.inner.names.link.clone(),
            router_link: crate::lower::UPLINK,
            host_address: AddressPair { v4: record.uplink_v4, v6: record.uplink_v6.unwrap_or(Ipv6Addr::UNSPECIFIED) },
            router_address: AddressPair { v4: record.router_v4(), v6: record.router_v6().unwrap_or(Ipv6Addr::UNSPECIFIED) },
            ipv6: record.uplink_v6.is_some(),
        }))
    }
}
