//! Pure planning: resolve, address allocation, reach and explain, check (the linter), diff, order.
//!
//! `Blueprint`s → [`resolve`](resolve::resolve) → `DesiredState` → [`diff`](diff::diff) against `ObservedState` → [`Plan`].
//! All choices are made here; nothing here reads a clock, a file, a socket or a random source.

pub mod plan;

pub use plan::{Plan, Step};
