//! The frame of nfnetlink messages, shared by the filter's elements and connection tracking.
//!
//! Layouts are those of `linux/netlink.h` and `linux/netfilter/nfnetlink.h`. Sockets belong to the namespace of the
//! thread that opens them.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::IpAddr;

/// A request for an answer to each message.
pub const ACK: u16 = 4;
/// A request for everything of a kind.
pub const DUMP: u16 = 0x300;
/// Create what is not there.
pub const CREATE: u16 = 0x400;
/// The attribute holds attributes.
pub const NESTED: u16 = 0x8000;
/// Message type of an answer: a code, then the header of what it answers.
pub const ERROR: u16 = 2;
/// Message type of the end of a dump.
pub const DONE: u16 = 3;

const REQUEST: u16 = 1;

/// Opens a socket in the namespace of the calling thread.
pub fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Closes a socket after a transaction, beside the caller: closing waits until the kernel has freed what was removed, some twenty
/// milliseconds.
pub fn close(socket: Socket) {
    std::thread::spawn(move || drop(socket));
}

/// What a message begins with.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// Subsystem (high byte) and message of it.
    pub kind: u16,
    /// [`ACK`], [`DUMP`], [`CREATE`].
    pub flags: u16,
    /// Comes back in the answer.
    pub sequence: u32,
    /// Address family.
    pub family: u8,
    /// Depends on the message.
    pub resource: u16,
}

/// Appends a message.
pub fn message(out: &mut Vec<u8>, head: Head, body: &[u8]) {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(head.kind.to_ne_bytes());
    out.extend((REQUEST | head.flags).to_ne_bytes());
    out.extend(head.sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([head.family, 0]);
    out.extend(head.resource.to_be_bytes());
    out.extend(body);
}

/// An attribute, padded.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len();
    let mut out = Vec::with_capacity(length + 3);
    out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(payload);
    out.resize(length.next_multiple_of(4), 0);
    out
}

/// Splits bytes into (type, payload) of attributes, tolerating a cut end.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, payload))
    })
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Message type.
    pub kind: u16,
    /// That of the request it answers.
    pub sequence: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl Received<'_> {
    /// The result in an answer of type [`ERROR`].
    pub fn result(&self) -> io::Result<()> {
        let code = self.body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
    }
}

/// Splits bytes into messages.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let length = word(0)? as usize;
        let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
        let received = Received { kind, sequence: word(8)?, body: bytes.get(16..length)? };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// Sends a [`DUMP`] request, and hands over the body of every message of a `kind` that answers it.
pub fn dump(socket: &Socket, request: &[u8], kind: u16, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for received in messages(&bytes) {
            match received.kind {
                ERROR | DONE => return received.result(),
                of if of == kind => take(received.body),
                _ => {}
            }
        }
    }
}

/// An address by its bytes, as many as its family has.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A text with its end mark.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let body = [attribute(1, b"abc"), attribute(2 | NESTED, &attribute(3, &[7]))].concat();
        message(&mut bytes, Head { kind: 0x0a0c, flags: ACK, sequence: 9, family: 1, resource: 10 }, &body);
        message(&mut bytes, Head { kind: ERROR, flags: 0, sequence: 10, family: 0, resource: 0 }, &[]);
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!((found.len(), found[0].kind, found[0].sequence, found[1].sequence), (2, 0x0a0c, 9, 10));
        assert_eq!(found[0].body[..4], [1, 0, 0, 10]);
        let parts: Vec<_> = attributes(&found[0].body[4..]).collect();
        assert_eq!(parts[0], (1, &b"abc"[..]));
        assert_eq!(attributes(parts[1].1).collect::<Vec<_>>(), [(3, &[7][..])]);
    }

    #[test]
    fn cut_bytes_end_the_walk() {
        let whole = attribute(1, &[1, 2, 3, 4, 5]);
        for end in 0..9 {
            assert_eq!(attributes(&whole[..end]).count(), 0, "{end}");
        }
        let mut bytes = Vec::new();
        message(&mut bytes, Head { kind: 3, flags: 0, sequence: 1, family: 0, resource: 0 }, &[0; 8]);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "{end}");
        }
    }
}
