//! The proof by attempt: real connections and datagrams from inside every instance, from the ingress' side, from the host
//! and from a pretended LAN neighbour, held against the reachability matrix.
//!
//! Main functions: [`verify`] (everything, for `moat verify`) and [`sweep`] (all 65,535 ports of one pair).
//! A probe decides by what arrived where: sniffers stand in the targets' namespaces, because a finished handshake proves
//! nothing on a network whose uplink answers for everyone. Invariant: what can't be proved is said to be unproven, and
//! nothing unproven passes.

mod attempt;
mod drift;
mod names;
mod neighbour;
mod observe;
mod packet;
mod report;
mod scene;
mod send;
mod sniff;
mod sweep;
mod sys;
mod verify;

pub use packet::Craft;
pub use report::{Control, Drift, Observed, PairSummary, ProbeKind, Report, Row, Via};
pub use scene::{Scene, Target, UplinkFacts};
pub use sweep::{Pair, Sweep, SweepError, Watch, send_crafted, sweep};
pub use verify::verify;
