//! What the live network tells: denied flows, obstacles to egress, changes of the host's addresses.

use crate::lower::{DENIED_SETS, TABLE};
use crate::obstacles::{self, Obstacle};
use crate::{NetError, Network, nft};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
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

impl Network {
    /// Flows that were denied in the last hour, most recent kinds first lost when there are more than 4096 per family.
    pub async fn denied(&self) -> Result<Vec<DeniedFlow>, NetError> {
        self.run(|inner| {
            let mut found = Vec::new();
            for set in DENIED_SETS {
                let items = inner.inside(|| nft::list(&["-p", "list", "set", "inet", TABLE, set]))??;
                for item in items.unwrap_or_default() {
                    found.extend(item["set"]["elem"].as_array().into_iter().flatten().filter_map(denied_flow));
                }
            }
            found.sort();
            Ok(found)
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

fn denied_flow(item: &Value) -> Option<DeniedFlow> {
    let element = item.get("elem")?;
    let key = element["val"]["concat"].as_array()?;
    let address = |i: usize| key.get(i)?.as_str()?.parse().ok();
    Some(DeniedFlow {
        from: address(0)?,
        to: address(1)?,
        proto: key.get(2).and_then(protocol)?,
        port: key.get(3).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        packets: element["counter"]["packets"].as_u64().unwrap_or(0),
    })
}

/// A protocol as `nft` prints it: a number, or a name of `/etc/protocols`.
fn protocol(value: &Value) -> Option<u8> {
    let names = HashMap::from([
        ("tcp", 6),
        ("udp", 17),
        ("sctp", 132),
        ("icmp", 1),
        ("ipv6-icmp", 58),
        ("icmpv6", 58),
        ("udplite", 136),
        ("dccp", 33),
        ("esp", 50),
        ("ah", 51),
        ("comp", 108),
    ]);
    match value {
        Value::Number(number) => number.as_u64().and_then(|number| u8::try_from(number).ok()),
        Value::String(name) => name.parse().ok().or_else(|| names.get(name.as_str()).copied()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
