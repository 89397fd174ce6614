//! Blueprint text → [`Blueprint`] and every [`Diagnostic`], with spans; the JSON schema of the same definitions.
//!
//! Invariant: reading never stops at the first error, never panics, and is bounded in time and memory.

pub mod spec;

pub use moat_model::{Diagnostic, Severity};
pub use spec::Blueprint;

/// What reading a blueprint gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    /// All that could be understood; parts that are wrong are left out.
    pub blueprint: Blueprint,
    /// Everything there is to say, sorted by place.
    pub diagnostics: Vec<Diagnostic>,
}
