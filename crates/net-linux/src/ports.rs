//! Which sockets listen in a network namespace, and who is connected to them, by sock_diag(7): no scanning, and it knows the
//! protocol.
#![expect(clippy::wildcard_enum_match_arm, reason = "of the kernel's many kinds only these matter here")]

use crate::ns::in_ns;
use moat_model::state::Listener;
use moat_model::{Endpoint, Proto};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// The sockets that listen in a namespace: TCP in LISTEN, UDP that is bound and not connected; both families, one entry
/// per protocol and port, in order.
///
/// `loopback_only` holds when every socket of that port is bound to a loopback address. An unconnected UDP socket that a
/// client sends from looks like a listener: nothing in the kernel tells them apart.
pub fn listeners(ns: &impl AsFd) -> io::Result<Vec<Listener>> {
    let found = in_ns(ns, || {
        let mut socket = open()?;
        let mut found: BTreeMap<Endpoint, bool> = BTreeMap::new();
        for (proto, number, states) in [(Proto::Tcp, IPPROTO_TCP, StateFlags::LISTEN), (Proto::Udp, IPPROTO_UDP, StateFlags::CLOSE)] {
            for family in [AF_INET, AF_INET6] {
                for header in query(&mut socket, family, number, states.clone())? {
                    let endpoint = Endpoint { proto, port: header.socket_id.source_port };
                    let loopback = is_loopback(header.socket_id.source_address);
                    // A UDP socket that is not bound has no port.
                    if endpoint.port != 0 {
                        found.entry(endpoint).and_modify(|only| *only &= loopback).or_insert(loopback);
                    }
                }
            }
        }
        io::Result::Ok(found)
    })??;
    Ok(found.into_iter().map(|(endpoint, loopback_only)| Listener { endpoint, loopback_only }).collect())
}

/// How many TCP connections of others a namespace's listening sockets have taken and not finished: open ones, and those whose
/// last bytes are still on their way. Connections over loopback and those that it opened itself don't count.
pub fn accepted(ns: &impl AsFd) -> io::Result<usize> {
    let unfinished = StateFlags::ESTABLISHED
        | StateFlags::SYN_RECV
        | StateFlags::FIN_WAIT1
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING;
    in_ns(ns, || {
        let mut socket = open()?;
        let mut ports = BTreeSet::new();
        let mut open = Vec::new();
        for family in [AF_INET, AF_INET6] {
            ports.extend(query(&mut socket, family, IPPROTO_TCP, StateFlags::LISTEN)?.iter().map(|header| header.socket_id.source_port));
            open.extend(query(&mut socket, family, IPPROTO_TCP, unfinished.clone())?);
        }
        let taken =
            |header: &&InetResponseHeader| ports.contains(&header.socket_id.source_port) && !is_loopback(header.socket_id.source_address);
        Ok(open.iter().filter(taken).count())
    })?
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn query(socket: &mut Socket, family: u8, protocol: u8, states: StateFlags) -> io::Result<Vec<InetResponseHeader>> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).max(16).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => found.push(response.header),
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => match error.code {
                    // IPv6 is not there at all.
                    Some(code) if code.get() == -libc::ENOENT => return Ok(found),
                    Some(_) => return Err(error.to_io()),
                    None => return Ok(found),
                },
                _ => {}
            }
        }
    }
}
