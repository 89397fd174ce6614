//! Changes of elements, straight to the kernel.
//!
//! One transaction of a few elements costs the kernel a millisecond or two; a run of `nft` adds its start, its reading of
//! the text and, when something is removed, a wait for the kernel to free it. So changes of plain elements go this way, and
//! everything else (service chains, ranges, whole tables) as text. Attribute numbers are those of `linux/netfilter/nf_tables.h`.

use crate::lower::ir::{Atom, Key, Kind, Set, Value};
use crate::lower::{Ruleset, TABLE};
use crate::nfnetlink::{ACK, CREATE, ERROR, Head, NESTED, attribute, close, message, messages, open, text};

use std::io;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 0x0c;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 0x0e;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_INET: u8 = 1;
const GOTO: i32 = -4;
/// Bytes of elements per message: the length of an attribute is a 16-bit number.
const CHUNK: usize = 60_000;
/// What a socket takes by itself, about.
const SEND_BUFFER: usize = 100_000;

/// A transaction of plain elements.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// The transaction between two rulesets, or `None` when it is not one of a few plain elements.
    pub fn between(old: &Ruleset, new: &Ruleset) -> Option<Self> {
        if old.chains != new.chains || old.counters != new.counters || old.sets.len() != new.sets.len() {
            return None;
        }
        let mut batch = Self::default();
        message(&mut batch.bytes, Head { kind: BATCH_BEGIN, flags: 0, sequence: 0, family: 0, resource: SUBSYSTEM }, &[]);
        for (kind, from, to) in [(DELETE_ELEMENTS, old, new), (NEW_ELEMENTS, new, old)] {
            for ((name, set), (other_name, other)) in from.sets.iter().zip(&to.sets) {
                if name != other_name || set.key != other.key {
                    return None;
                }
                let mut list = Vec::new();
                for (key, value) in set.elements.iter().filter(|(key, value)| other.elements.get(*key) != Some(*value)) {
                    if set.interval {
                        return None;
                    }
                    list.extend(attribute(1 | NESTED, &element(set, key, value.as_ref())));
                    if list.len() > CHUNK {
                        batch.add(kind, name, &std::mem::take(&mut list));
                    }
                }
                if !list.is_empty() {
                    batch.add(kind, name, &list);
                }
            }
        }
        message(&mut batch.bytes, Head { kind: BATCH_END, flags: 0, sequence: batch.count + 1, family: 0, resource: SUBSYSTEM }, &[]);
        Some(batch)
    }

    fn add(&mut self, kind: u16, name: &str, list: &[u8]) {
        let body = [attribute(1, &text(TABLE)), attribute(2, &text(name)), attribute(3 | NESTED, list)].concat();
        self.count += 1;
        let create = if kind == NEW_ELEMENTS { CREATE } else { 0 };
        message(&mut self.bytes, Head { kind, flags: ACK | create, sequence: self.count, family: FAMILY_INET, resource: 0 }, &body);
    }

    /// Runs it in the namespace of the calling thread, all or nothing.
    pub fn run(self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let socket = open()?;
        // A transaction is one message to the socket.
        if self.bytes.len() > SEND_BUFFER {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBufForce, &(2 * self.bytes.len()))?;
        }
        socket.send(&self.bytes, 0)?;
        let mut answered = 0;
        let mut result = Ok(());
        while answered < self.count {
            let (bytes, _) = socket.recv_from_full()?;
            for answer in messages(&bytes).filter(|message| message.kind == ERROR) {
                if answer.sequence == 0 || answer.sequence > self.count {
                    // The transaction as a whole was refused.
                    answer.result()?;
                    continue;
                }
                answered += 1;
                result = result.and(answer.result());
            }
        }
        close(socket);
        result
    }
}

/// Key, and data for a map.
fn element(set: &Set, key: &Key, value: Option<&Value>) -> Vec<u8> {
    let mut out = attribute(1 | NESTED, &attribute(1, &key_bytes(&set.key, key)));
    if let Some(value) = value {
        out.extend(attribute(2 | NESTED, &data(value)));
    }
    out
}

/// Parts one after the other, each padded to four bytes when there are several.
fn key_bytes(kinds: &[Kind], key: &Key) -> Vec<u8> {
    let mut out = Vec::new();
    for atom in key {
        match atom {
            Atom::Link(link) => out.extend(padded_name(link.as_str())),
            Atom::Named(link) => out.extend(padded_name(link)),
            Atom::Net(net) => out.extend(address_bytes(net.addr())),
            Atom::Proto(proto) => out.push(*proto),
            Atom::Port(port) => out.extend(port.to_be_bytes()),
            Atom::Mark(mark) => out.extend(mark.to_ne_bytes()),
        }
        if kinds.len() > 1 {
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    out
}

fn padded_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    out
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn data(value: &Value) -> Vec<u8> {
    match value {
        Value::Mark(mark) => attribute(1, &mark.to_ne_bytes()),
        Value::Address(address) => attribute(1, &address_bytes(*address)),
        Value::Goto(chain) => {
            let verdict = [attribute(1, &GOTO.to_be_bytes()), attribute(2, &text(chain))].concat();
            attribute(2 | NESTED, &verdict)
        }
    }
}
