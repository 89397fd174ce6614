//! What a pull or load tells while it runs.

use crate::digest::Digest;

/// A step forward of a pull or load. Each layer is named by the digest of its blob; a layer of a `docker save` archive by its diff id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The reference was resolved; these layers belong to the image, lowest first.
    Resolved {
        /// The config's digest, which names the image.
        image: Digest,
        /// All layers.
        layers: Vec<LayerStart>,
    },
    /// Bytes of a layer arrived; `done` starts above 0 where an earlier pull was interrupted.
    Downloading {
        /// Which layer.
        layer: Digest,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer's download was interrupted and is continued.
    Retrying {
        /// Which layer.
        layer: Digest,
        /// What happened.
        reason: String,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// Which layer.
        layer: Digest,
        /// Compressed bytes consumed so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is verified, unpacked and in the store.
    Ready {
        /// Which layer.
        layer: Digest,
    },
}

/// A layer at the start of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerStart {
    /// The digest of its blob.
    pub layer: Digest,
    /// Bytes to download.
    pub size: u64,
    /// Already unpacked in the store: nothing to do.
    pub present: bool,
}
