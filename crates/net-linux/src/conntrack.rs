//! Known flows of the router namespace: listing and cutting, by ctnetlink.
//!
//! Attribute numbers are those of `linux/netfilter/nfnetlink_conntrack.h`. Functions run in a thread of the router
//! namespace.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const FLAGS_REQUEST: u16 = 1;
const FLAGS_ACK: u16 = 4;
const FLAGS_DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const NESTED: u16 = 0x8000;

/// One known flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub source: IpAddr,
    /// Whom it was opened to, before translation.
    pub destination: IpAddr,
    /// Who answers, after translation.
    pub responder: IpAddr,
    /// Protocol number.
    pub proto: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
    family: u8,
    tuple: Vec<u8>,
    id: Vec<u8>,
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Length (4), type (2), flags (2), sequence (4), port (4), then family, version and resource (linux/netfilter/nfnetlink.h).
fn header(kind: u16, flags: u16, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(20 + body.len());
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((FLAGS_REQUEST | flags).to_ne_bytes());
    out.extend([0; 8]);
    out.extend([family, 0, 0, 0]);
    out.extend(body);
    out
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len();
    let mut out = Vec::with_capacity(length + 3);
    out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(payload);
    out.resize(length.next_multiple_of(4), 0);
    out
}

/// Splits bytes into (type, payload), tolerating a cut end.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, payload))
    })
}

/// Splits bytes into (type, body after the header) of netlink messages.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The code of an error message; 0 is success.
fn code(body: &[u8]) -> i32 {
    body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    proto: u8,
    port: u16,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination, mut proto, mut port) = (None, None, 0, 0);
    for (kind, payload) in attributes(bytes) {
        match kind {
            1 => {
                for (kind, payload) in attributes(payload) {
                    match kind {
                        1 | 3 => source = address(payload),
                        2 | 4 => destination = address(payload),
                        _ => {}
                    }
                }
            }
            2 => {
                for (kind, payload) in attributes(payload) {
                    match (kind, payload) {
                        (1, [number, ..]) => proto = *number,
                        (3, [hi, lo, ..]) => port = u16::from_be_bytes([*hi, *lo]),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple { source: source?, destination: destination?, proto, port })
}

fn flow(body: &[u8]) -> Option<Flow> {
    let (family, rest) = (*body.first()?, body.get(4..)?);
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload);
    let original = find(TUPLE_ORIGINAL)?;
    let (there, back) = (tuple(original)?, tuple(find(TUPLE_REPLY)?)?);
    let id = find(ID).unwrap_or_default().to_vec();
    Some(Flow {
        source: there.source,
        destination: there.destination,
        responder: back.source,
        proto: there.proto,
        port: there.port,
        family,
        tuple: original.to_vec(),
        id,
    })
}

/// Every known flow.
pub fn list() -> io::Result<Vec<Flow>> {
    let socket = open()?;
    socket.send(&header(GET, FLAGS_DUMP, 0, &[]), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                NEW => found.extend(flow(body)),
                DONE => return Ok(found),
                ERROR => match code(body) {
                    0 => return Ok(found),
                    error => return Err(io::Error::from_raw_os_error(-error)),
                },
                _ => {}
            }
        }
    }
}

/// Forgets every flow that `keep` refuses; how many.
pub fn cut(keep: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let doomed: Vec<Flow> = list()?.into_iter().filter(|flow| !keep(flow)).collect();
    let socket = open()?;
    let mut count = 0;
    for flow in &doomed {
        let mut body = attribute(TUPLE_ORIGINAL | NESTED, &flow.tuple);
        if !flow.id.is_empty() {
            body.extend(attribute(ID, &flow.id));
        }
        socket.send(&header(DELETE, FLAGS_ACK, flow.family, &body), 0)?;
        let (bytes, _) = socket.recv_from_full()?;
        for (_, body) in messages(&bytes).filter(|(kind, _)| *kind == ERROR) {
            match -code(body) {
                0 => count += 1,
                // It ended by itself in the meantime.
                libc::ENOENT => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
    Ok(count)
}
