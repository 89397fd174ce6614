//! Backup archives: trees of files, compressed, sealed by a key, and verified when they are read.
//!
//! ```text
//! "moat-backup 1\n"
//! u32 length, Head as JSON, 32 bytes SHA-256 of it      readable without the key
//! u32 length, a word sealed for this head               whether a key is the right one
//! u32 length, a chunk sealed for its number …           tar, compressed by zstd
//!   contents.json                                       what is in it, for whoever made it
//!   PART/…                                              trees of files, one part after the other
//!   digests.json                                        entries, bytes and SHA-256 of each part
//! ```
//!
//! * [`Writer`] – writes one, to a file that gets its name once it is whole and on disk.
//! * [`read_head`], [`read`] – the head without a key; everything with it.
//!
//! Lengths are big-endian. Invariants: what is read is what was written, to the last byte, or an error; no entry is made outside
//! the folder of its part.

mod error;
mod read;
mod seal;
mod tree;
mod write;

pub use error::ArchiveError;
pub use read::{Destination, Visitor, check_key, read, read_head};
pub use write::{Owners, Writer, Written};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// How an archive begins.
pub(crate) const MAGIC: &[u8] = b"moat-backup 1\n";
/// The first entry.
pub(crate) const CONTENTS: &str = "contents.json";
/// The last entry.
pub(crate) const DIGESTS: &str = "digests.json";
/// A head is no longer than this.
pub(crate) const LONGEST_HEAD: u32 = 1 << 20;

/// What can be read of an archive without its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Tells archives apart: what is sealed for one does not open in another.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The Moat that made it.
    pub moat: String,
    /// The machine that it was made on.
    pub machine: String,
    /// Whether it holds everything that its machine ran.
    pub whole: bool,
    /// The services whose data is in it, by their labels.
    pub services: Vec<String>,
    /// The key itself, in base64, where whoever made it wanted it in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Head {
    /// Puts the key into the archive.
    pub fn include_key(&mut self, bytes: &[u8; 32]) {
        self.key = Some(STANDARD.encode(bytes));
    }

    /// The key that is in the archive, if one is.
    pub fn included_key(&self) -> Option<[u8; 32]> {
        STANDARD.decode(self.key.as_ref()?).ok()?.try_into().ok()
    }
}

/// What was written of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartDigest {
    pub(crate) part: String,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

#[cfg(test)]
mod tests;
