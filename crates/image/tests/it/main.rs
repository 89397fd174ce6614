//! Images from a real registry (Debian's `docker-registry`), made here in code, against the kernel and `umoci`.
//!
//! Unpacking needs root; the registry, `skopeo` and `umoci` need to be installed. A test that can't run says why.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a failed test panics, a skipped one says so")]

mod broken;
mod corpus;
mod fake;
mod fixture;
mod fuzz;
mod kill;
mod layout;
mod load;
mod overlay;
mod pull;
mod registry;
mod room;
mod tls;
