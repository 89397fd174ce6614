//! Text that must not be shown.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A string that never prints itself: `Debug` shows `***` and there is no `Display`.
///
/// Serialising is allowed (the state file and the instance's environment need it); logs and errors use `Debug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that must hand it on.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
