//! Images from a real registry (Debian's `docker-registry`), made here in code, against the kernel and `umoci`.
//!
//! Unpacking needs root; the registry, `skopeo` and `umoci` need to be installed. A test that can't run says why.

mod fixture;
mod pull;
mod registry;
