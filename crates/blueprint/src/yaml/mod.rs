//! YAML 1.2 text → a small tree of spanned nodes.
//!
//! Invariant: the tree has at most [`MAX_NODES`] nodes, is at most [`MAX_DEPTH`] deep, holds no alias, and every
//! span lies inside the text.

mod load;
mod node;
mod places;
mod syntax;

pub(crate) use load::load;
pub(crate) use node::{Entry, Kind, Node, Plain};
pub(crate) use places::Places;

/// Longest text that is read, in bytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting of lists and mappings.
pub(crate) const MAX_DEPTH: usize = 64;
/// Most nodes of a tree, aliases expanded.
pub(crate) const MAX_NODES: usize = 500_000;
