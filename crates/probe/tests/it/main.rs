//! Real attempts on a machine that each test makes for itself: a host namespace, a router, instances with servers.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed test panics, a skipped one says so")]

mod attacks_forged;
mod attacks_host;
mod attacks_matrix;
mod rootless;
mod sabotage;
mod verify;
mod world;
