//! A small synchronous route netlink client.
//!
//! A [`RouteSocket`] belongs to the network namespace of the thread that opened it. Requests are sent in batches and
//! answered one by one, so a link with its addresses, routes and neighbours costs one write.
#![expect(clippy::wildcard_enum_match_arm, reason = "of the kernel's many kinds only these matter here")]

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// Create, and it is an error when it is there.
pub const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Create or replace.
pub const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// A netlink socket for links, addresses, routes and neighbours.
pub struct RouteSocket {
    socket: Socket,
    sequence: u32,
}

impl RouteSocket {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn serialise(&mut self, message: RouteNetlinkMessage, flags: u16, out: &mut Vec<u8>) -> u32 {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = out.len();
        out.resize(start + message.buffer_len(), 0);
        message.serialize(&mut out[start..]);
        self.sequence
    }

    /// Sends all messages at once and returns the answer to each, in order.
    pub fn batch(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<Vec<io::Result<()>>> {
        let mut buffer = Vec::new();
        let first = self.sequence + 1;
        let count = messages.len();
        for (message, flags) in messages {
            self.serialise(message, flags | NLM_F_ACK, &mut buffer);
        }
        let mut answers: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        self.socket.send(&buffer, 0)?;
        while answers.iter().any(Option::is_none) {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages_of(&bytes) {
                let message = message?;
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if let (NetlinkPayload::Error(error), Some(slot)) = (message.payload, answers.get_mut(index)) {
                    *slot = Some(match error.code {
                        None => Ok(()),
                        Some(_) => Err(error.to_io()),
                    });
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends one message and waits for its answer.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.batch(vec![(message, flags)])?.into_iter().collect()
    }

    /// Sends a query for one object.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.query(message, NLM_F_ACK)?.into_iter().next())
    }

    /// Sends a query for all objects of a kind.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.query(message, NLM_F_DUMP)
    }

    fn query(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut buffer = Vec::new();
        let sequence = self.serialise(message, flags, &mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages_of(&bytes) {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(found),
                    _ => {}
                }
            }
        }
    }
}

fn messages_of(bytes: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.len() < 16 {
            return None;
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
