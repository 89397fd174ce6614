//! Tables of flows, one for each family, and what their records say (`struct key` and `struct flow` in `bpf/family.h`).
//!
//! A record is laid out by the width of its family's addresses, which its key's length tells.

use super::limits;
use crate::conntrack::Ends;
use aya::maps::{HashMap, MapData, MapError};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a key, and of what stands behind it in a record, beside the addresses.
const KEY_REST: usize = 12;
const FLOW_REST: usize = 4 + 28;
/// Bytes of records of IPv4 and IPv6.
pub const KEY4: usize = 2 * 4 + KEY_REST;
pub const FLOW4: usize = KEY4 + 2 * 4 + FLOW_REST;
pub const KEY6: usize = 2 * 16 + KEY_REST;
pub const FLOW6: usize = KEY6 + 2 * 16 + FLOW_REST;

pub const OPENER: u32 = 1;
pub const ANSWERED: u32 = 2;
const FINISHING: u32 = 4 | 16;
const UDP: u8 = 17;

pub type Table<const KEY: usize, const FLOW: usize> = HashMap<MapData, [u8; KEY], [u8; FLOW]>;

/// What becomes of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Keep,
    Forget,
    /// With that of the other direction.
    ForgetBoth,
}

/// Removes the entries that `fate` gives up; how many it gave up.
pub fn forget<const KEY: usize, const FLOW: usize>(
    table: &mut Table<KEY, FLOW>,
    fate: impl Fn(&Record<'_>) -> Fate,
) -> Result<usize, MapError> {
    let mut gone = Vec::new();
    let mut count = 0;
    for entry in table.iter() {
        // One that went meanwhile is passed over; a walk that stopped early must not look like a whole one.
        let (key, flow) = entry?;
        let fate = fate(&Record { key: &key, flow: &flow });
        if fate == Fate::Keep {
            continue;
        }
        count += 1;
        gone.push(key);
        if fate == Fate::ForgetBoth {
            gone.push(other_way(&key, &flow));
        }
    }
    for key in gone {
        match table.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// One entry: a direction of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub key: &'a [u8],
    pub flow: &'a [u8],
}

impl Record<'_> {
    const fn width(&self) -> usize {
        (self.key.len() - KEY_REST) / 2
    }

    fn proto(&self) -> u8 {
        u8::try_from(number(self.key, self.key.len() - 4)).unwrap_or(0)
    }

    /// A number of `struct track`.
    fn track(&self, which: usize) -> u32 {
        number(self.flow, self.key.len() + 2 * self.width() + 4 + 4 * which)
    }

    /// Seconds of the monotonic clock in which a packet came last.
    pub fn seen(&self) -> u32 {
        self.track(1)
    }

    fn state(&self) -> u32 {
        self.track(3)
    }

    /// Whether it is the direction that opened its flow.
    pub fn is_opener(&self) -> bool {
        self.state() & OPENER != 0
    }

    /// Who opened a flow, who answers, and to which port it was opened, from the entry of the opening direction.
    pub fn ends(&self) -> Ends {
        let (width, leaves) = (self.width(), &self.flow[self.key.len()..]);
        Ends {
            source: address(&self.key[..width]),
            responder: address(&leaves[width..2 * width]),
            proto: self.proto(),
            port: u16::from_be_bytes([self.key[2 * width + 2], self.key[2 * width + 3]]),
        }
    }

    /// Seconds that it may be without a packet.
    pub fn limit(&self) -> u32 {
        let state = self.state();
        if self.proto() == UDP {
            limits::UDP_LIMIT
        } else if state & ANSWERED == 0 {
            limits::TCP_OPENING_LIMIT
        } else if state & FINISHING != 0 {
            limits::TCP_CLOSING_LIMIT
        } else {
            limits::TCP_OPEN_LIMIT
        }
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn address(bytes: &[u8]) -> IpAddr {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(octets).into();
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    Ipv6Addr::from(octets).into()
}

/// The key of the other direction.
pub fn other_way<const KEY: usize>(key: &[u8; KEY], flow: &[u8]) -> [u8; KEY] {
    let width = (KEY - KEY_REST) / 2;
    let leaves = &flow[KEY..];
    let ports = 2 * width;
    let mut other = *key;
    other[..width].copy_from_slice(&leaves[width..ports]);
    other[width..ports].copy_from_slice(&leaves[..width]);
    other[ports..ports + 2].copy_from_slice(&leaves[ports + 2..ports + 4]);
    other[ports + 2..ports + 4].copy_from_slice(&leaves[ports..ports + 2]);
    // The link stands behind the ports in both.
    other[ports + 4..ports + 8].copy_from_slice(&leaves[ports + 4..ports + 8]);
    other
}
