//! Blueprint text → [`Blueprint`] and every [`Diagnostic`], with spans; the JSON schema of the same definitions.
//!
//! Invariant: reading never stops at the first error, never panics, and is bounded in time and memory.

pub mod spec;

pub use spec::Blueprint;
