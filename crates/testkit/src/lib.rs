//! Fixtures for tests. Nothing here is part of the product.
//!
//! [`FakeEngine`] is an engine in memory: it keeps what a real one makes of plans, fails where a test says so, and refuses what no engine
//! could do. [`now`] runs its futures without a runtime. [`images`] makes real container images and runs a registry for them.
//! [`vm`] is a whole machine.

mod engine;
pub mod images;
mod now;
pub mod vm;

pub use engine::{FakeEngine, Fault};
pub use now::now;
