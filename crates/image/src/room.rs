//! Room for what a pull or load brings: on the disk of its folder, and within what an image may take.
//!
//! What layers say of their sizes is looked at before anything is written, and what is really written is counted, by all layers
//! together, while it flows. A disk is never filled to its end: databases may be on it too.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Doing as _, ImageError};
use crate::manifest::Descriptor;
use crate::unpack::LayerProblem;

/// Bytes between two looks at the disk, of all layers together.
const LOOK_EACH: u64 = 4 << 20;
/// A twentieth of a disk stays free, and no more than this.
const LEFT_AT_MOST: u64 = 1 << 30;

/// What all layers of one pull or load take together.
pub(crate) struct Room {
    /// Where they are written.
    folder: PathBuf,
    /// Bytes written.
    written: AtomicU64,
    /// Bytes of what was unpacked, of layers that are whole or on their way.
    unpacked: AtomicU64,
    /// The most of these.
    most: u64,
}

/// Bytes of a disk.
struct Disk {
    free: u64,
    /// So many stay free.
    left: u64,
}

impl Room {
    /// Of a folder, for an image of at most so many unpacked bytes.
    pub(crate) fn new(folder: &Path, most: u64) -> Self {
        Self { folder: folder.to_owned(), written: AtomicU64::new(0), unpacked: AtomicU64::new(0), most }
    }

    fn disk(&self) -> io::Result<Disk> {
        let about = rustix::fs::statvfs(&self.folder)?;
        let (free, all) = (about.f_bavail.saturating_mul(about.f_frsize), about.f_blocks.saturating_mul(about.f_frsize));
        Ok(Disk { free, left: (all / 20).min(LEFT_AT_MOST) })
    }

    /// Refuses what can't have room: `needs` are bytes at least.
    pub(crate) fn check(&self, what: &str, needs: u64) -> Result<(), ImageError> {
        if needs == 0 {
            return Ok(());
        }
        let disk = self.disk().doing("look at the disk of", &self.folder)?;
        if disk.free >= needs.saturating_add(disk.left) { Ok(()) } else { Err(self.none(what, needs, &disk)) }
    }

    fn none(&self, what: &str, needs: u64, disk: &Disk) -> ImageError {
        ImageError::NoRoom { what: what.to_owned(), needs, free: disk.free, left: disk.left, path: self.folder.clone() }
    }

    /// Counts bytes that are about to be written. The error is of the kind that a full disk gives.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<()> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / LOOK_EACH == (before + bytes) / LOOK_EACH {
            return Ok(());
        }
        let disk = self.disk()?;
        if disk.free >= disk.left { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// What takes bytes of this room for a layer; they are given back with it unless it is kept.
    pub(crate) fn share(&self) -> Share<'_> {
        Share { room: self, bytes: 0 }
    }

    /// A reader whose bytes are written here.
    pub(crate) fn writing<'a>(&'a self, inner: impl Read + 'a) -> impl Read + 'a {
        Writing { room: self, inner }
    }

    /// The error of a pull or load in the words of this room where it failed for want of it.
    pub(crate) fn words(&self, what: &str, needs: u64, error: ImageError) -> ImageError {
        match self.disk() {
            Ok(disk) if is_full(&error) => self.none(what, needs, &disk),
            _ => error,
        }
    }
}

/// What one layer takes of a [`Room`].
pub(crate) struct Share<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Share<'_> {
    /// Takes unpacked bytes: the limit that they reach, if any, or an error of the disk.
    pub(crate) fn take(&mut self, bytes: u64) -> io::Result<Option<u64>> {
        self.bytes += bytes;
        let all = self.room.unpacked.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all > self.room.most {
            return Ok(Some(self.room.most));
        }
        self.room.take(bytes).map(|()| None)
    }

    /// The layer is whole: its bytes count on.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.room.unpacked.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Writing<'a, R> {
    room: &'a Room,
    inner: R,
}

impl<R: Read> Read for Writing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.room.take(count as u64)?;
        Ok(count)
    }
}

/// The least that layers take which are not here: unpacked at least what they are packed, and the greatest both at once for a moment.
pub(crate) fn least(layers: &[&Descriptor]) -> u64 {
    let sizes = || layers.iter().map(|layer| layer.size);
    sizes().fold(0, u64::saturating_add).saturating_add(sizes().max().unwrap_or_default())
}

/// Whether an operation failed for want of room on its disk.
pub(crate) fn is_full(error: &ImageError) -> bool {
    let full = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    match error {
        ImageError::Io { source, .. } => full(source),
        ImageError::Layer { source: LayerProblem::Read(error) | LayerProblem::Write { source: error, .. }, .. } => full(error),
        ImageError::Layer { .. }
        | ImageError::Reference(_)
        | ImageError::Digest(_)
        | ImageError::NotFound { .. }
        | ImageError::Denied { .. }
        | ImageError::Registry { .. }
        | ImageError::Credentials { .. }
        | ImageError::Unsupported { .. }
        | ImageError::Platform { .. }
        | ImageError::Mismatch { .. }
        | ImageError::Limit { .. }
        | ImageError::NoRoom { .. }
        | ImageError::Archive { .. }
        | ImageError::User { .. }
        | ImageError::Unknown(_)
        | ImageError::Cancelled => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_what_an_image_may_take_and_give_back_what_failed() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path(), 100);
        let mut one = room.share();
        assert_eq!(one.take(60).unwrap(), None);
        let mut other = room.share();
        assert_eq!(other.take(41).unwrap(), Some(100), "together they are too much");
        drop(other);
        let mut third = room.share();
        assert_eq!(third.take(40).unwrap(), None);
        one.keep();
        drop(third);
        assert_eq!(room.unpacked.load(Ordering::Relaxed), 60);
    }

    #[test]
    fn what_can_t_have_room_is_refused_with_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path(), u64::MAX);
        room.check("a", 0).unwrap();
        let error = room.check("the image `a`", u64::MAX / 2).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("there is no room for the image `a`: it needs at least ") && text.contains(" free"), "{text}");
        assert!(error.hint().unwrap().contains("moat image prune"));
    }
}
