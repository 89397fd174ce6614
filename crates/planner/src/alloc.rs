//! Ids and addresses.
//!
//! Invariant: an address is never handed out while it is in use, nor soon after it was: packets, connection tracking
//! and name caches of its former owner must be gone first. A cursor goes round the whole range, so that the next
//! address is the one that rested longest.

use crate::memory::Memory;
use moat_model::{AddressPair, InstanceId, NetworkId, ServiceId, ServiceKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Offsets of a range: 1 to this.
const RANGE: u16 = 65_534;
/// An offset that is given back closer than this ahead of the cursor sits out the cursor's next pass.
const REST: u16 = RANGE / 2;

/// Every instance address of a network is in use or resting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address is free in private network {network}: all {RANGE} are in use or were until a moment ago")]
pub struct RangeFull {
    /// The network's index.
    pub network: u8,
}

/// A range of offsets, handed out in a circle.
///
/// `resting` stays small: only what is given back while the cursor is about to come by needs to be written down; all
/// else has at least half a round to go before it is looked at again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ring {
    cursor: u16,
    used: BTreeSet<u16>,
    resting: BTreeSet<u16>,
}

impl Ring {
    /// The next free offset, 1–65534; `None` when a whole round finds none.
    pub(crate) fn take(&mut self) -> Option<u16> {
        for _ in 0..RANGE {
            self.cursor = self.cursor % RANGE + 1;
            if self.used.contains(&self.cursor) || self.resting.remove(&self.cursor) {
                continue;
            }
            self.used.insert(self.cursor);
            return Some(self.cursor);
        }
        None
    }

    /// Ends the use of an offset. Does nothing when it is not in use.
    pub(crate) fn give_back(&mut self, offset: u16) {
        if !self.used.remove(&offset) {
            return;
        }
        let ahead = if offset > self.cursor { offset - self.cursor } else { RANGE.saturating_sub(self.cursor - offset) };
        if ahead < REST {
            self.resting.insert(offset);
        }
    }

    /// Notes that an offset is in use.
    pub(crate) fn adopt(&mut self, offset: u16) {
        if (1..=RANGE).contains(&offset) {
            self.resting.remove(&offset);
            self.used.insert(offset);
        }
    }
}

/// A fresh id and a fresh address for an instance.
pub fn instance(
    memory: &mut Memory,
    network: NetworkId,
    service: &ServiceId,
    random: &mut dyn FnMut() -> [u8; 32],
) -> Result<(InstanceId, AddressPair), RangeFull> {
    let ula = memory.ula(random);
    let full = RangeFull { network: network.index() };
    let offset = memory.ranges.entry(network.index()).or_default().instances.take().ok_or(full)?;
    // A service id is a label; cut so that six more characters fit, the result is one as well and the error can't be.
    let id = InstanceId::new(format!("{service:.57}-{}", letters(random(), 5))).map_err(|_| full)?;
    Ok((id, network.instance(ula, offset)))
}

/// Ends the use of an instance's address; it rests before it is handed out again. Does nothing for an address that is
/// no instance's.
pub fn release(memory: &mut Memory, address: AddressPair) {
    if let Some((network, offset)) = instance_offset(address)
        && let Some(ranges) = memory.ranges.get_mut(&network)
    {
        ranges.instances.give_back(offset);
    }
}

/// Notes that an address is in use, whoever handed it out.
pub fn adopt(memory: &mut Memory, address: AddressPair) {
    if let Some((network, offset)) = instance_offset(address) {
        memory.ranges.entry(network).or_default().instances.adopt(offset);
    }
}

/// Ends the use of every instance address that is not among `live`: for the start of a daemon, when it knows what is
/// left of what an earlier one began.
pub fn retain(memory: &mut Memory, live: impl IntoIterator<Item = AddressPair>) {
    let mut keep: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for (network, offset) in live.into_iter().filter_map(instance_offset) {
        keep.entry(network).or_default().insert(offset);
    }
    let none = BTreeSet::new();
    for (network, ranges) in &mut memory.ranges {
        let keep = keep.get(network).unwrap_or(&none);
        for offset in ranges.instances.used.difference(keep).copied().collect::<Vec<_>>() {
            ranges.instances.give_back(offset);
        }
    }
}

fn instance_offset(address: AddressPair) -> Option<(u8, u16)> {
    let [ten, network, ..] = address.v4.octets();
    let network = network.checked_sub(64).and_then(NetworkId::new)?;
    (ten == 10 && address.offset() != 0).then_some((network.index(), address.offset()))
}

/// A fresh service id: `srv-`, `crn-`, `red-` or `dpg-` by kind, and 20 characters.
pub(crate) fn service_id(kind: Option<ServiceKind>, random: &mut dyn FnMut() -> [u8; 32]) -> Option<ServiceId> {
    ServiceId::new(format!("{}{}", id_prefix(kind), letters(random(), 20))).ok()
}

/// What the id of a service of this kind starts with; `None` is a type that does not run.
pub(crate) const fn id_prefix(kind: Option<ServiceKind>) -> &'static str {
    match kind {
        Some(ServiceKind::Cron) => "crn-",
        Some(ServiceKind::KeyValue) => "red-",
        Some(ServiceKind::Postgres) => "dpg-",
        Some(ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::Static) | None => "srv-",
    }
}

/// `count` (at most 24) characters of a–z and 0–9 made of random bytes.
pub fn letters(bytes: [u8; 32], count: usize) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut number = bytes.iter().take(16).fold(0_u128, |n, b| n << 8 | u128::from(*b));
    let mut out = String::with_capacity(count);
    for _ in 0..count {
        let digit = usize::try_from(number % 36).unwrap_or_default();
        out.push(char::from(LETTERS[digit]));
        number /= 36;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_are_letters() {
        assert_eq!(letters([0; 32], 5), "aaaaa");
        assert_eq!(letters([255; 32], 20).len(), 20);
        assert_ne!(letters([1; 32], 20), letters([2; 32], 20));
    }

    #[test]
    fn what_was_in_use_while_the_cursor_came_by_sits_out_a_round() {
        let mut ring = Ring::default();
        let first = ring.take().unwrap();
        // The cursor goes once round and stands just before the first, which is in use all the time.
        for _ in 1..RANGE {
            let offset = ring.take().unwrap();
            ring.give_back(offset);
        }
        assert_eq!(first, 1);
        assert_eq!(ring.cursor, RANGE);
        ring.give_back(first);
        assert_eq!(ring.take(), Some(2), "1 was in use a moment ago");
    }

    #[test]
    fn a_full_range_says_so_and_nothing_is_handed_out_twice() {
        let mut ring = Ring::default();
        let mut seen = BTreeSet::new();
        while let Some(offset) = ring.take() {
            assert!(seen.insert(offset));
        }
        assert_eq!(seen.len(), usize::from(RANGE));
        assert_eq!((seen.first().copied(), seen.last().copied()), (Some(1), Some(RANGE)));
    }

    #[test]
    fn retain_gives_back_what_nobody_uses() {
        let mut memory = Memory::default();
        let network = memory.network("oregon").unwrap();
        let service = ServiceId::new("srv-aaaaaaaaaaaaaaaaaaaa").unwrap();
        let mut draw = || [3; 32];
        let (_, a) = instance(&mut memory, network, &service, &mut draw).unwrap();
        let (_, b) = instance(&mut memory, network, &service, &mut draw).unwrap();
        retain(&mut memory, [b]);
        assert_eq!(memory.ranges[&0].instances.used, BTreeSet::from([b.offset()]));
        release(&mut memory, b);
        release(&mut memory, a);
        assert!(memory.ranges[&0].instances.used.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Whatever is taken and given back, in whatever order: nothing in use and nothing given back lately is handed out.
        #[test]
        fn nothing_in_use_or_resting_is_handed_out(start in 0_u16..RANGE, events in proptest::collection::vec((0_u8..4, any::<proptest::sample::Index>()), 1..400)) {
            let mut ring = Ring { cursor: start, ..Ring::default() };
            let mut used: Vec<u16> = Vec::new();
            let mut given_back: BTreeMap<u16, usize> = BTreeMap::new();
            let mut taken = 0_usize;
            // Some old ones, right ahead of the cursor.
            for ahead in 1..50_u16 {
                let offset = u16::try_from((u32::from(start) + u32::from(ahead) - 1) % u32::from(RANGE) + 1).unwrap();
                ring.adopt(offset);
                used.push(offset);
            }
            for (what, index) in events {
                if what > 0 || used.is_empty() {
                    let offset = ring.take().unwrap();
                    taken += 1;
                    prop_assert!(!used.contains(&offset));
                    if let Some(at) = given_back.get(&offset) {
                        prop_assert!(taken - at > usize::from(REST) - 100, "{offset} was given back {} takes ago", taken - at);
                    }
                    used.push(offset);
                } else {
                    let offset = used.swap_remove(index.index(used.len()));
                    ring.give_back(offset);
                    given_back.insert(offset, taken);
                }
            }
        }
    }
}
