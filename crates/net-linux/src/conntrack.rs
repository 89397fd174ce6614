//! Known flows of the router namespace: listing and cutting, by ctnetlink.
//!
//! Attribute numbers are those of `linux/netfilter/nfnetlink_conntrack.h`. Functions run in a thread of the router
//! namespace.

use crate::nfnetlink::{ACK, DUMP, ERROR, Head, NESTED, address, attribute, attributes, dump, message, messages, open};
use crate::sysctl::{self, Kept};
use netlink_sys::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;

/// The two ends of a known flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Who opened it.
    pub source: IpAddr,
    /// Who answers, after translation.
    pub responder: IpAddr,
    /// Protocol number.
    pub proto: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
}

impl Ends {
    /// Whether neither end is one of these.
    pub fn avoids(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        !addresses.contains(&self.source) && !addresses.contains(&self.responder)
    }
}

/// One known flow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    ends: Ends,
    family: u8,
    tuple: Vec<u8>,
    id: Vec<u8>,
}

struct Tuple {
    source: IpAddr,
    proto: u8,
    port: u16,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut proto, mut port) = (None, 0, 0);
    for (kind, payload) in attributes(bytes) {
        match kind {
            1 => {
                for (kind, payload) in attributes(payload) {
                    match kind {
                        1 | 3 => source = address(payload),
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
    Some(Tuple { source: source?, proto, port })
}

fn flow(body: &[u8]) -> Option<Flow> {
    let (family, rest) = (*body.first()?, body.get(4..)?);
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload);
    let original = find(TUPLE_ORIGINAL)?;
    let (there, back) = (tuple(original)?, tuple(find(TUPLE_REPLY)?)?);
    let id = find(ID).unwrap_or_default().to_vec();
    Some(Flow {
        ends: Ends { source: there.source, responder: back.source, proto: there.proto, port: there.port },
        family,
        tuple: original.to_vec(),
        id,
    })
}

/// Every known flow.
fn list(socket: &Socket) -> io::Result<Vec<Flow>> {
    let mut request = Vec::new();
    message(&mut request, Head { kind: GET, flags: DUMP, sequence: 0, family: 0, resource: 0 }, &[]);
    let mut found = Vec::new();
    dump(socket, &request, NEW, |body| found.extend(flow(body)))?;
    Ok(found)
}

/// The flows that a namespace has, of so many that it may have.
fn room(settings: &Kept) -> io::Result<(usize, usize)> {
    let number = |name| Ok::<_, io::Error>(settings.get(name)?.and_then(|text| text.parse().ok()));
    // Without a bound there is room.
    Ok((number("netfilter/nf_conntrack_count")?.unwrap_or(0), number("netfilter/nf_conntrack_max")?.unwrap_or(usize::MAX)))
}

/// Sources that each have more than an eighth of all the flows that may be, once half of these are there; with how many they have.
pub fn crowding(settings: &Kept) -> io::Result<BTreeMap<IpAddr, usize>> {
    let (count, most) = room(settings)?;
    if count <= most / 2 {
        return Ok(BTreeMap::new());
    }
    let mut sources = BTreeMap::<IpAddr, usize>::new();
    for flow in list(&open()?)? {
        *sources.entry(flow.ends.source).or_default() += 1;
    }
    sources.retain(|_, count| *count > most / 8);
    Ok(sources)
}

/// Forgets every flow that `keep` refuses; how many.
pub fn cut(keep: impl Fn(&Ends) -> bool) -> io::Result<usize> {
    // A dump walks the table of all namespaces.
    if sysctl::get("netfilter/nf_conntrack_count")?.as_deref() == Some("0") {
        return Ok(0);
    }
    let socket = open()?;
    let mut count = 0;
    for flow in list(&socket)?.iter().filter(|flow| !keep(&flow.ends)) {
        let mut body = attribute(TUPLE_ORIGINAL | NESTED, &flow.tuple);
        if !flow.id.is_empty() {
            body.extend(attribute(ID, &flow.id));
        }
        let mut request = Vec::new();
        message(&mut request, Head { kind: DELETE, flags: ACK, sequence: 1, family: flow.family, resource: 0 }, &body);
        socket.send(&request, 0)?;
        let (bytes, _) = socket.recv_from_full()?;
        for answer in messages(&bytes).filter(|message| message.kind == ERROR) {
            match answer.result() {
                Ok(()) => count += 1,
                // It ended by itself in the meantime.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    // Closing may wait for the kernel to free what the filter removed; nobody needs to wait with it.
    std::thread::spawn(move || drop(socket));
    Ok(count)
}
