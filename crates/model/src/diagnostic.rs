//! What is said about a blueprint: a code, a place, a message and what to write instead.

use serde::Serialize;

/// A range of the source text. Lines and columns count from 1, columns count characters; offsets count bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Span {
    /// Byte offset of the first byte.
    pub start: usize,
    /// Byte offset after the last byte.
    pub end: usize,
    /// Line of the first character, from 1.
    pub line: u32,
    /// Column of the first character, from 1, in characters.
    pub column: u32,
}

/// A value together with the place it was written at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Joins a value and its place.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The blueprint is wrong; nothing runs.
    Error,
    /// The blueprint is right, but this Moat can't run that part: a notice for `check`, an error for `up`.
    Unsupported,
    /// Probably not what is meant.
    Warning,
    /// Worth knowing: a deprecated spelling, a field one machine can't honour.
    Notice,
}

/// One thing said about a blueprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable code such as `E0101`; each has a page under `docs/errors`.
    pub code: &'static str,
    /// Weight.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// JSON-pointer-like place without the leading slash, such as `services/0/plan`; empty for the whole file.
    pub pointer: String,
    /// A lower-case fragment, back-ticks round names.
    pub message: String,
    /// What to write instead, when known.
    pub help: Option<String>,
}
