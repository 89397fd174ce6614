//! Pure planning: resolve, address allocation, reach and explain, check (the linter), diff, order.
//!
//! `Blueprint`s → [`resolve`](resolve::resolve) → `DesiredState` → [`diff`](diff::diff) against `ObservedState` → [`Plan`].
//! All choices are made here; nothing here reads a clock, a file, a socket or a random source: randomness is passed in.

pub mod alloc;
pub mod check;
mod codes;
pub mod diff;
pub mod explain;
pub mod languages;
pub mod memory;
mod names;
pub mod plan;
pub mod policy;
pub mod push;
pub mod reach;
pub mod resolve;
pub mod zones;

pub use codes::{CODES, explain_code};
pub use plan::{Plan, Step};
