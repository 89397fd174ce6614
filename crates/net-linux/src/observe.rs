//! What the live network tells: denied flows, obstacles to egress, changes of the host's addresses.

use crate::conntrack;
use crate::lower::{CROWDED, DENIED_SETS, TABLE};
use crate::nfnetlink::address;
use crate::obstacles::{self, Obstacle};
use crate::rules::{self, Learned};
use crate::{NetError, Network, nft};
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use serde::Serialize;
use std::io;
use std::net::IpAddr;

/// A flow that the filter dropped in the last hour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DeniedFlow {
    /// Who tried.
    pub from: IpAddr,
    /// What it tried to reach: an instance's own address even if a service address was asked for.
    pub to: IpAddr,
    /// Protocol number.
    pub proto: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
    /// Packets dropped since it was first seen.
    pub packets: u64,
}

/// An instance that had too many flows open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Its address.
    pub source: IpAddr,
    /// How many it had opened.
    pub flows: usize,
}

impl Network {
    /// Flows that were denied in the last hour, most recent kinds first lost when there are more than 4096 per family.
    pub async fn denied(&self) -> Result<Vec<DeniedFlow>, NetError> {
        self.run(|inner| {
            let ask = || DENIED_SETS.iter().map(|set| rules::learned(set)).collect::<io::Result<Vec<_>>>();
            let found = inner.inside(ask)?.map_err(NetError::io("list denied flows"))?;
            let mut found: Vec<_> = found.iter().flatten().filter_map(denied_flow).collect();
            found.sort();
            Ok(found)
        })
        .await
    }

    /// Ends the flows of instances that have so many open that others will find no room in the kernel's table, which all share, and has
    /// those instances open none for a minute. To be called every second or so: it looks at a number where there is room.
    pub async fn relieve(&self) -> Result<Vec<Crowd>, NetError> {
        self.run(|inner| {
            let mut found = inner.inside(|| conntrack::crowding(&inner.router_settings))?.map_err(NetError::io("count open flows"))?;
            // What the ingress and the DNS server have open is theirs.
            found.retain(|source, _| ![IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)].contains(source));
            if found.is_empty() {
                return Ok(Vec::new());
            }
            let elements =
                found.keys().map(|source| format!("add element inet {TABLE} {} {{ {source} }}\n", CROWDED[usize::from(source.is_ipv6())]));
            let text: String = elements.collect();
            inner.inside(|| nft::apply(&text, "close a source that has too many flows"))??;
            inner.cut(&inner.router()?, |flow| !found.contains_key(&flow.source))?;
            Ok(found.into_iter().map(|(source, flows)| Crowd { source, flows }).collect())
        })
        .await
    }

    /// What in the host's own firewall keeps services from reaching the internet, each with what to run. Moat's own rules
    /// can't override a drop of another table.
    pub async fn egress_obstacles(&self) -> Result<Vec<Obstacle>, NetError> {
        self.run(|inner| inner.outside(|| obstacles::list(&inner.names.link))).await
    }

    /// Packets that came with a source that is not their link's, since the filter was loaded.
    pub async fn spoofed(&self) -> Result<u64, NetError> {
        self.run(|inner| {
            let items = inner.inside(|| nft::list(&["list", "counter", "inet", TABLE, "spoofed"]))??.unwrap_or_default();
            Ok(items.iter().find_map(|item| item["counter"]["packets"].as_u64()).unwrap_or(0))
        })
        .await
    }

    /// Watches the addresses of the host; call [`Network::refresh_host_addresses`] after each change. Must be called in
    /// a tokio runtime.
    pub fn watch_host_addresses(&self) -> Result<AddressWatch, NetError> {
        let runtime = tokio::runtime::Handle::current();
        let opened = crate::ns::in_ns(&self.inner.host, || {
            let _context = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
            io::Result::Ok(socket)
        });
        let socket = opened.and_then(|socket| socket).map_err(NetError::io("watch the host's addresses"))?;
        Ok(AddressWatch { socket })
    }
}

/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR of rtnetlink(7).
const GROUPS: u32 = 0x10 | 0x100;

/// Tells when an address of the host came or went.
pub struct AddressWatch {
    socket: TokioSocket,
}

impl AddressWatch {
    /// Waits for the next change. Several addresses that change at once may be told one by one.
    pub async fn changed(&mut self) -> io::Result<()> {
        match self.socket.recv_from_full().await {
            // Lost messages are changes too.
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The key is source, destination, protocol and, for protocols that have one, destination port.
fn denied_flow(element: &Learned) -> Option<DeniedFlow> {
    let (ends, rest) = match element.key.len() {
        12 | 16 => element.key.split_at(8),
        36 | 40 => element.key.split_at(32),
        _ => return None,
    };
    let (from, to) = ends.split_at(ends.len() / 2);
    let port = rest.get(4..6).and_then(|port| port.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(DeniedFlow { from: address(from)?, to: address(to)?, proto: *rest.first()?, port, packets: element.packets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_flow_is_read_from_its_key() {
        let v4 = [&[10, 64, 0, 1, 10, 64, 0, 2, 6, 0, 0, 0][..], &[0x18, 0xeb, 0, 0]].concat();
        let v6 = [&[0xfd; 16][..], &[0xfe; 16], &[58, 0, 0, 0]].concat();
        for (key, expected) in [
            (v4.clone(), Some(("10.64.0.1", "10.64.0.2", 6, 6379))),
            (v4[..12].to_vec(), Some(("10.64.0.1", "10.64.0.2", 6, 0))),
            (v6, Some(("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd", "fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe", 58, 0))),
            (v4[..11].to_vec(), None),
            (Vec::new(), None),
        ] {
            let expected = expected.map(|(from, to, proto, port)| DeniedFlow {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                proto,
                port,
                packets: 4,
            });
            assert_eq!(denied_flow(&Learned { key, packets: 4 }), expected);
        }
    }
}
