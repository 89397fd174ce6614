//! The network half of the Linux engine: the router namespace, its links, its filter and its uplink.
//!
//! Main types: [`Network`] (does), [`lower`] (pure: policy to ruleset), [`trace`] (pure: a packet over a ruleset),
//! [`decide`] (pure: a packet against the policy itself), [`ns`] and [`ports`] (inside a namespace).
//! Invariants: nothing of the policy depends on a setting or the firewall of the host; the filter is there before
//! anything can pass, and gone after everything else; every operation may be killed at any moment and run again.
//! Needs `nft` (package nftables, 1.0.6 or newer) and a kernel of 5.10 or newer.

mod conntrack;
pub mod decide;
mod elements;
mod error;
mod host;
mod leaving;
pub mod link;
pub mod listing;
pub mod lower;
mod mount;
pub mod netlink;
mod network;
mod nfnetlink;
pub mod nft;
pub mod ns;
mod observe;
mod obstacles;
pub mod outside;
mod outward;
mod packet;
pub mod ports;
mod record;
mod router;
pub mod routes;
mod rules;
mod shortcut;
pub mod sysctl;
pub mod trace;
mod uplink;
mod ways;

pub use error::NetError;
pub use network::{Config, Network, Repairs};
pub use observe::{AddressWatch, Crowd, DeniedFlow};
pub use obstacles::{Obstacle, egress_obstacles};
pub use packet::{FlowKind, Origin, Outcome, Packet};
pub use shortcut::{Counts, ShortcutError, check as check_shortcut};
pub use uplink::Uplink;

/// FNV-1a, for names that only have to differ.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    std::hash::Hasher::write(&mut hasher, bytes);
    std::hash::Hasher::finish(&hasher)
}

/// FNV-1a of 64 bits.
pub(crate) struct FnvHasher(u64);

impl Default for FnvHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for FnvHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
