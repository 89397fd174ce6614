//! Pure translation of an instance to what the sandbox is made of: mounts, an OCI configuration, a system call filter.
//!
//! Invariant: no I/O; everything that depends on the machine comes in as [`sandbox::Machine`] or as a path.

pub mod builder;
pub(crate) mod datastore;
mod etc;
pub mod image;
pub mod keyvalue;
mod native;
pub mod oci;
pub mod postgres;
pub mod sandbox;
pub mod seccomp;
