//! From a compressed layer to a folder that overlayfs can take as a lower folder.
//!
//! A layer is untrusted: everything it says is checked ([`tar`] reads strictly, [`tree`] writes only beneath the layer's own folder), and all
//! that flows is counted against [`Limits`]. The unpacked content is hashed on its way and compared with the diff id of the image's config.

mod decompress;
pub(crate) mod tar;
mod tree;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};

pub(crate) use self::decompress::{is_compressed, open as decompressed};
use self::tar::{Kind, TarError, TarReader};
use self::tree::Tree;
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::room::{Room, Share};

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerProblem {
    /// Its bytes can't be read or decompressed.
    #[error("it can't be read")]
    Read(#[source] io::Error),
    /// It is not a sound tar archive.
    #[error("its archive is malformed: {0}")]
    Malformed(String),
    /// An entry tries something that Moat does not let it do.
    #[error("its entry `{path}` is refused: {reason}")]
    Entry {
        /// As written in the archive.
        path: String,
        /// Why.
        reason: String,
    },
    /// It is greater than allowed.
    #[error("it has more than {0}")]
    Limit(String),
    /// Its content is not what the image's config says.
    #[error("its content has the diff id `{actual}`, not the one of the image's config")]
    DiffId {
        /// What was unpacked.
        actual: Digest,
    },
    /// The machine can't store it.
    #[error("`{path}` can't be written")]
    Write {
        /// Within the layer.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What unpacking a layer came to; kept beside its folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unpacked {
    /// Bytes of files.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Hides everything of the layers below.
    pub(crate) opaque: bool,
    /// Folders that were made because something lies in them, without an entry of their own. Their attributes are those of a layer below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) implicit: Vec<String>,
    #[serde(default)]
    pub(crate) left_out: LeftOut,
}

/// What was left out of a layer, or changed, since it has no place in a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// Device nodes: a sandbox has its own, and no right to make others.
    pub devices: u64,
    /// Things beneath `/dev`, `/proc` and `/sys`, which a sandbox covers with its own (a link there could misdirect the runtime).
    pub kernel_places: u64,
    /// Extended attributes other than `user.*` and `security.capability`: `trusted.*` would steer overlayfs, ACLs and labels name ids and
    /// policies of another machine.
    pub xattrs: u64,
    /// Entries of owners over 65535, which no sandbox has; they belong to 65534 (`nobody`) instead.
    pub owners: u64,
}

impl LeftOut {
    /// Adds what another layer left out.
    pub(crate) fn add(&mut self, other: &Self) {
        self.devices += other.devices;
        self.kernel_places += other.kernel_places;
        self.xattrs += other.xattrs;
        self.owners += other.owners;
    }
}

/// Said by a reader whose limit is reached, within an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("more than {0}")]
struct LimitReached(String);

/// Which ids of this machine own what ids of an image own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owners {
    /// The same: whoever shows a layer shows it with other ids.
    #[default]
    AsInside,
    /// Those from this one on, and overlayfs' signs are attributes that users may write (`userxattr`): for a user namespace, in which no
    /// layer can be shown with other ids.
    From(u32),
}

impl Owners {
    fn first(self) -> u32 {
        match self {
            Self::AsInside => 0,
            Self::From(first) => first,
        }
    }
}

/// Counts what is read of the compressed layer.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Hashes and bounds what comes out of decompression.
struct Guarded<'a, R> {
    inner: R,
    hasher: Hasher,
    compressed: Arc<AtomicU64>,
    limits: &'a Limits,
    share: Share<'a>,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        let (unpacked, packed) = (self.hasher.bytes(), self.compressed.load(Ordering::Relaxed).max(1));
        if unpacked > self.limits.layer_bytes {
            return Err(io::Error::other(LimitReached(format!("{} unpacked bytes", self.limits.layer_bytes))));
        }
        if unpacked > self.limits.ratio_from_bytes && unpacked / packed > self.limits.ratio {
            return Err(io::Error::other(LimitReached(format!("{} unpacked bytes for each packed one", self.limits.ratio))));
        }
        if let Some(limit) = self.share.take(count as u64)? {
            return Err(io::Error::other(LimitReached(format!("what is left of the {limit} unpacked bytes of an image"))));
        }
        Ok(count)
    }
}

/// Unpacks a layer beneath `folder`, which is empty, and returns what came of it.
///
/// `advance` is told the compressed bytes consumed so far, some times a second at most.
pub(crate) fn unpack(
    layer: impl Read,
    folder: OwnedFd,
    diff_id: &Digest,
    limits: &Limits,
    owners: Owners,
    room: &Room,
    advance: &mut dyn FnMut(u64),
) -> Result<Unpacked, LayerProblem> {
    let compressed = Arc::new(AtomicU64::new(0));
    let plain = decompressed(Counted { inner: layer, count: Arc::clone(&compressed) }).map_err(read_problem)?;
    let guarded = Guarded { inner: plain, hasher: Hasher::default(), compressed: Arc::clone(&compressed), limits, share: room.share() };
    let mut archive = TarReader::new(guarded, limits.extended_header_bytes);
    let mut tree = Tree::new(folder, limits, owners);
    let mut told = 0;
    while let Some(entry) = archive.next().map_err(tar_problem)? {
        if entry.kind == Kind::File && entry.size > limits.layer_bytes {
            return Err(LayerProblem::Limit(format!("{} unpacked bytes", limits.layer_bytes)));
        }
        tree.add(&entry, &mut |buffer| {
            let count = archive.read_content(buffer)?;
            let now = compressed.load(Ordering::Relaxed);
            if now >= told + TELL_EACH {
                told = now;
                advance(now);
            }
            Ok(count)
        })?;
    }
    let Guarded { hasher, share, .. } = archive.drain().map_err(read_problem)?;
    let actual = hasher.finish();
    if actual != *diff_id {
        return Err(LayerProblem::DiffId { actual });
    }
    let mut unpacked = tree.finish()?;
    share.keep();
    unpacked.implicit.sort();
    Ok(unpacked)
}

const TELL_EACH: u64 = 1 << 20;

fn read_problem(error: io::Error) -> LayerProblem {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<LimitReached>()) {
        Some(LimitReached(limit)) => LayerProblem::Limit(limit.clone()),
        None => LayerProblem::Read(error),
    }
}

fn tar_problem(error: TarError) -> LayerProblem {
    match error {
        TarError::Io(error) => read_problem(error),
        TarError::Malformed(reason) => LayerProblem::Malformed(reason),
    }
}
