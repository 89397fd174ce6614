//! Names on the private network, answered by who asks.
//!
//! [`answer`] is pure: [`Zones`] (what each asker may see), the asker's source address and the query's bytes give an
//! [`Answer`]. [`check_upstream`] is pure too: it lets an answer from outside in, or says why not. [`serve`] owns the
//! sockets, the limits and the upstream conversation.
//!
//! Invariants: an address that is not an instance's gets no packet back; a single-label name and a reverse name of a
//! private range never leave the machine; an answer from outside never carries a private address inside.

mod answer;
mod lookup;
mod reply;
mod request;
mod resolv_conf;
mod reverse;
mod serve;
mod special;
mod upstream;
mod zones;

pub use answer::{Answer, answer};
pub use lookup::{LookupError, lookup};
pub use request::Transport;
pub use resolv_conf::{parse_resolv_conf, parse_resolv_conf_with};
pub use serve::serve;
pub use special::is_private;
pub use upstream::{ForwardQuery, Rejected, check_upstream};
pub use zones::{Asker, Forward, NameEntry, View, ViewId, Zones};

/// Time to live of every answer given here, seconds: short, so that a deploy is seen soon.
pub const TTL: u32 = 5;
/// The largest UDP message sent, bytes; what fits every path without fragments (DNS flag day 2020).
pub const MAX_UDP: u16 = 1232;
