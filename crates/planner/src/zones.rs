//! Numbers of policy zones.
//!
//! A zone with an even number holds services, the odd one after it holds the build and pre-deploy sandboxes beside
//! them: network `n`'s open zone is `2n`, the zone of isolated environment `k` in network `n` is `2(64 + 64k + n)`.
//! The numbers depend on nothing but that, so that they are the same at every run.

use moat_model::net::MAX_NETWORKS;
use moat_model::{NetworkId, ZoneId};

/// The zone of everything in a network that is not in an isolated environment.
pub const fn open_zone(network: NetworkId) -> ZoneId {
    ZoneId(2 * network.index() as u32)
}

/// The zone of an isolated environment's part in a network.
pub const fn isolated_zone(environment: u32, network: NetworkId) -> ZoneId {
    ZoneId(2 * (MAX_NETWORKS as u32 * (environment + 1) + network.index() as u32))
}

/// The zone of the build and pre-deploy sandboxes that go with a zone: they reach its datastores only.
pub const fn build_zone(zone: ZoneId) -> ZoneId {
    ZoneId(zone.0 | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_zones_share_a_number() {
        let mut seen = BTreeSet::new();
        for network in (0..MAX_NETWORKS).filter_map(NetworkId::new) {
            for zone in [open_zone(network), isolated_zone(0, network), isolated_zone(1, network), isolated_zone(77, network)] {
                assert!(seen.insert(zone));
                assert!(seen.insert(build_zone(zone)));
            }
        }
    }
}
