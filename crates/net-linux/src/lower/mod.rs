//! Pure lowering: what the filter decides by becomes one nftables table.
//!
//! Main entries: [`base`] (the closed filter), [`full`] (with a policy), [`text`], [`transaction`], [`check`].
//! Invariant: the number of rules a packet meets does not depend on the policy, only the sizes of sets and maps do.

mod base;
mod diff;
pub mod ir;
mod policy;
mod text;

pub use base::{CROWDED, DENIED_SETS, HTTP_DIAL, PRIVATE_V4, PRIVATE_V6, UPLINK, base};
pub use diff::{difference, transaction};
pub use ir::Ruleset;
pub use policy::{PolicyError, check, full};
pub use text::{replace, rule_text, text, version_chain};

use moat_model::{Egress, ZoneId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the table in the router namespace.
pub const TABLE: &str = "moat";
/// How many denied flows are remembered per family.
pub const DENIED_SIZE: u32 = 4096;
/// Seconds for which a source that had too many flows opens none.
pub const CROWDED_TIMEOUT: u32 = 60;
/// Seconds a denied flow is remembered.
pub const DENIED_TIMEOUT: u32 = 3600;

/// What the filter needs to know of this machine besides the policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The router's own IPv4 address on the uplink.
    pub uplink_v4: Option<Ipv4Addr>,
    /// The router's own IPv6 address on the uplink.
    pub uplink_v6: Option<Ipv6Addr>,
    /// The host's own addresses, which egress never reaches.
    pub host_addresses: BTreeSet<IpAddr>,
}

/// The bit of a packet mark that says "may open flows to the internet".
pub const EGRESS: u32 = 0x8000_0000;
/// Zones from this number on don't fit a packet mark.
pub const ZONE_LIMIT: u32 = EGRESS - 1;

/// The packet mark of a source: its zone's number plus one (0 is "opens nothing", and what came by the uplink), and
/// [`EGRESS`] when it may reach the internet at large.
pub const fn mark_of(zone: Option<ZoneId>, egress: &Egress) -> u32 {
    let zone = match zone {
        Some(zone) => zone_mark(zone),
        None => 0,
    };
    match egress {
        Egress::Internet => zone | EGRESS,
        Egress::None | Egress::Ranges(_) => zone,
    }
}

/// The zone's part of a packet mark.
pub const fn zone_mark(zone: ZoneId) -> u32 {
    zone.0.saturating_add(1) & !EGRESS
}
