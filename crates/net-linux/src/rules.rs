//! What the kernel says of a namespace's rules, asked without `nft`: their generation and what packets left in sets.
//!
//! A run of `nft` costs milliseconds and is for changes and whole listings; these are questions asked every second.
//! Attribute numbers are those of `linux/netfilter/nf_tables.h`. Functions run in a thread of the namespace.

use crate::lower::TABLE;
use crate::nfnetlink::{DUMP, ERROR, Head, attribute, attributes, close, dump, message, messages, open, text};
use netlink_sys::Socket;
use std::io;
use std::sync::{Mutex, PoisonError};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 0x0c;
const GET_ELEMENTS: u16 = SUBSYSTEM | 0x0d;
const NEW_GENERATION: u16 = SUBSYSTEM | 0x0f;
const GET_GENERATION: u16 = SUBSYSTEM | 0x10;
const FAMILY_INET: u8 = 1;

/// The number of the last transaction of this namespace: each one, of whatever program and table, counts one up. What
/// packets and timeouts do to sets does not count.
pub fn generation() -> io::Result<u32> {
    generation_by(&open()?)
}

fn generation_by(socket: &Socket) -> io::Result<u32> {
    let mut request = Vec::new();
    message(&mut request, Head { kind: GET_GENERATION, flags: 0, sequence: 1, family: 0, resource: 0 }, &[]);
    socket.send(&request, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    for answer in messages(&bytes) {
        match answer.kind {
            NEW_GENERATION => {
                let body = answer.body.get(4..).unwrap_or_default();
                let number = attributes(body).find(|(kind, _)| *kind == 1).and_then(|(_, number)| number.try_into().ok());
                return number.map(u32::from_be_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
            ERROR => answer.result()?,
            _ => {}
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The generation in which a namespace's rules were last known to be right.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Option<u32>>);

impl Watch {
    fn seen(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody changed anything since the rules were known to be right.
    pub fn knows(&self, now: u32) -> bool {
        *self.seen() == Some(now)
    }

    /// The rules of this generation are right.
    pub fn settle(&self, now: u32) {
        *self.seen() = Some(now);
    }

    /// Nothing is known.
    pub fn forget(&self) {
        *self.seen() = None;
    }

    /// Runs one transaction of ours, in the namespace of the calling thread: right rules stay right when nobody else's
    /// came before it or with it.
    pub fn during<T, E>(&self, transaction: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let socket = open().ok();
        let generation = || generation_by(socket.as_ref()?).ok();
        let before = generation();
        let result = transaction();
        let after = generation();
        let mut seen = self.seen();
        *seen = match (before, after) {
            (Some(before), Some(after)) if *seen == Some(before) && (after == before || after == before.wrapping_add(1)) => Some(after),
            (Some(_) | None, Some(_) | None) => None,
        };
        if let Some(socket) = socket {
            close(socket);
        }
        result
    }
}

/// An element that a packet put into a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The parts of the key, one after the other, each padded to four bytes.
    pub key: Vec<u8>,
    /// Packets counted with it.
    pub packets: u64,
}

/// The elements of a set of Moat's table; none when there is no such set.
pub fn learned(set: &str) -> io::Result<Vec<Learned>> {
    let socket = open()?;
    let body = [attribute(1, &text(TABLE)), attribute(2, &text(set))].concat();
    let mut request = Vec::new();
    message(&mut request, Head { kind: GET_ELEMENTS, flags: DUMP, sequence: 1, family: FAMILY_INET, resource: 0 }, &body);
    let mut found = Vec::new();
    match dump(&socket, &request, NEW_ELEMENTS, |body| found.extend(list(body.get(4..).unwrap_or_default()))) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        done => done.map(|()| found),
    }
}

/// The payload of the first attribute of a type.
fn part(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload)
}

fn list(body: &[u8]) -> Vec<Learned> {
    let list = part(body, 3).unwrap_or_default();
    attributes(list).filter_map(|(_, element)| learned_element(element)).collect()
}

fn learned_element(element: &[u8]) -> Option<Learned> {
    let key = part(part(element, 1)?, 1)?.to_vec();
    let counter = part(element, 7).filter(|expression| part(expression, 1) == Some(b"counter\0"));
    let packets = counter.and_then(|expression| part(part(expression, 2)?, 2)).and_then(|number| number.try_into().ok());
    Some(Learned { key, packets: packets.map_or(0, u64::from_be_bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::NESTED;

    #[test]
    fn an_element_with_and_without_a_counter() {
        let key = attribute(1 | NESTED, &attribute(1, &[10, 64, 0, 1]));
        let numbers = [attribute(1, &7_u64.to_be_bytes()), attribute(2, &3_u64.to_be_bytes())].concat();
        let counter = attribute(7 | NESTED, &[attribute(1, b"counter\0"), attribute(2 | NESTED, &numbers)].concat());
        let both = [attribute(1 | NESTED, &[key.clone(), counter].concat()), attribute(1 | NESTED, &key)].concat();
        let found = list(&attribute(3 | NESTED, &both));
        assert_eq!(found, [3, 0].map(|packets| Learned { key: vec![10, 64, 0, 1], packets }));
    }

    #[test]
    fn cut_messages_have_no_elements() {
        let whole = attribute(3 | NESTED, &attribute(1 | NESTED, &attribute(1 | NESTED, &attribute(1, &[1, 2, 3, 4]))));
        for end in 0..whole.len() {
            assert!(list(&whole[..end]).is_empty(), "{end}");
        }
        assert_eq!(list(&whole).len(), 1);
    }
}
