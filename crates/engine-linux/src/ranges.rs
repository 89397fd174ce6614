//! Which ids of the host a service's users are: a range of its own for each service, kept in `STATE/ranges.json`.
//!
//! Invariant: two services never share an id of the host, and a service keeps its range for as long as the state folder lives. Without
//! root there is one range, which all services share.

use crate::lower::sandbox::IDS;
use crate::monitor::files;
use moat_engine::EngineError;
use moat_model::ServiceId;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The first id of the first range.
pub const FIRST: u32 = 1_000_000;
/// How many ranges there are.
const COUNT: u32 = 30_000;

/// Which id of its range an id of the host is; one outside of all ranges stands for itself, wrapped into a range.
pub const fn offset(id: u32) -> u32 {
    if id >= FIRST { (id - FIRST) % IDS } else { id % IDS }
}

/// An id that no service's users have and no distribution gives: for the one process that reads what the internet sends. It is
/// after all ranges, or without root the last of the one range, which programs can't use (16 bits of it are `(uid_t) -1`).
pub fn outward() -> u32 {
    if crate::rootless::inside() { FIRST + IDS - 1 } else { FIRST + COUNT * IDS }
}

/// The ranges handed out.
pub struct Ranges {
    lock: Mutex<()>,
    /// There is but one.
    shared: bool,
}

impl Ranges {
    /// Nothing is read until it is asked for.
    pub fn new() -> Self {
        Self { lock: Mutex::new(()), shared: crate::rootless::inside() }
    }

    /// Hands out the very ranges that another state folder of this installation did, in its `ranges.json`. Fails where one of
    /// them is another service's here, or a service has another one.
    pub fn take_over(&self, state: &Path, theirs: &[u8]) -> Result<(), EngineError> {
        if self.shared {
            return Ok(());
        }
        let _one_at_a_time = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let path = state.join("ranges.json");
        let doing = "take over user ids";
        let fail = |error: std::io::Error| EngineError::new(doing, format!("`{}`: {error}", path.display())).caused_by(error);
        let theirs: BTreeMap<ServiceId, u32> =
            serde_json::from_slice(theirs).map_err(|error| EngineError::new(doing, error.to_string()))?;
        let mut ranges: BTreeMap<ServiceId, u32> = files::read_json(&path).map_err(fail)?.unwrap_or_default();
        for (service, index) in theirs {
            if ranges.iter().any(|(other, taken)| (*other == service) != (*taken == index)) {
                return Err(EngineError::new(doing, format!("those of `{service}` are in use on this machine"))
                    .hint("restore on a machine that has run nothing else, or with another MOAT_STATE_DIR"));
            }
            ranges.insert(service, index);
        }
        files::write_json(&path, &ranges).map_err(fail)
    }

    /// The first id of a service's range; a new service gets a free one.
    pub fn first(&self, state: &Path, service: &ServiceId) -> Result<u32, EngineError> {
        if self.shared {
            return Ok(FIRST);
        }
        let _one_at_a_time = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let path = state.join("ranges.json");
        let fail = |error: std::io::Error| EngineError::new("choose user ids", format!("`{}`: {error}", path.display())).caused_by(error);
        let mut ranges: BTreeMap<ServiceId, u32> = files::read_json(&path).map_err(fail)?.unwrap_or_default();
        if let Some(&index) = ranges.get(service) {
            return Ok(FIRST + index * IDS);
        }
        let next = ranges.values().max().map_or(0, |last| last + 1);
        let index = if next < COUNT { Some(next) } else { (0..COUNT).find(|index| !ranges.values().any(|taken| taken == index)) };
        let index = index.ok_or_else(|| EngineError::new("choose user ids", "every range is taken"))?;
        ranges.insert(service.clone(), index);
        files::write_json(&path, &ranges).map_err(fail)?;
        Ok(FIRST + index * IDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_range_and_shares_it_with_nobody() {
        let state = tempfile::tempdir().unwrap();
        let (a, b) = (ServiceId::new("srv-a").unwrap(), ServiceId::new("srv-b").unwrap());
        let ranges = Ranges::new();
        let first = ranges.first(state.path(), &a).unwrap();
        assert_eq!(ranges.first(state.path(), &b).unwrap(), first + IDS);
        assert_eq!(Ranges::new().first(state.path(), &a).unwrap(), first);

        // Another state folder of the same installation has the same; one that has handed them out otherwise refuses.
        let theirs = std::fs::read(state.path().join("ranges.json")).unwrap();
        let (new, used) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        ranges.take_over(new.path(), &theirs).unwrap();
        assert_eq!(ranges.first(new.path(), &b).unwrap(), first + IDS);
        ranges.take_over(state.path(), &theirs).unwrap();
        ranges.first(used.path(), &b).unwrap();
        assert!(ranges.take_over(used.path(), &theirs).is_err());
    }
}
