//! Removes what nobody needs: names, then images, then layers, blobs, and what dead processes left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::names::NameRecord;
use super::{ImageId, Store, entries, sync_folder};
use crate::digest::Digest;
use crate::error::{Doing as _, ImageError};

/// What [`Store::collect`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images.
    pub images: Vec<ImageId>,
    /// Unpacked layers.
    pub layers: usize,
    /// Bytes of the files of these layers, and of downloads.
    pub bytes: u64,
    /// Downloads that nobody continued.
    pub downloads: usize,
}

/// What else [`Store::collect_with`] leaves alone or takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectOptions {
    /// Images that came here, or were pulled or loaded again, within this time stay: somebody may be about to run them.
    pub spare: Duration,
    /// Every download that nobody continues now goes, not only those of a week ago.
    pub all_downloads: bool,
}

/// A download that stopped is continued by the next pull; after this time nobody is expected any more.
const DOWNLOAD_AGE: Duration = Duration::from_hours(7 * 24);

impl Store {
    /// Removes every image but those to keep, their names, and the layers that no other image has.
    ///
    /// What a running pull or load uses, of this or another process, stays. The store is locked only while things are moved away, not while
    /// they are deleted.
    pub fn collect(&self, keep: &BTreeSet<ImageId>) -> Result<Collected, ImageError> {
        self.collect_with(keep, &CollectOptions::default())
    }

    /// The same, told more exactly.
    pub fn collect_with(&self, keep: &BTreeSet<ImageId>, options: &CollectOptions) -> Result<Collected, ImageError> {
        let mut collected = Collected::default();
        // A lease of its own, so that what it moves away is nobody else's to delete.
        let lease = self.lease()?;
        let mut away: Vec<PathBuf> = Vec::new();
        {
            let _lock = self.lock()?;
            let (living, leased) = self.leased()?;
            let mut layers = leased.clone();
            let mut blobs = leased.clone();
            let names = self.names()?;
            let is_young = |path: &Path| age(path).is_some_and(|age| age < options.spare);
            let is_new = |name: &&NameRecord| is_young(&self.name_path(&name.reference));
            let mut young: BTreeSet<ImageId> = names.iter().filter(is_new).map(|name| name.image).collect();
            young.extend(self.image_ids()?.into_iter().filter(|id| is_young(&self.record_path(id))));
            let stays = |id: &ImageId| keep.contains(id) || young.contains(id) || leased.contains(&id.0);
            for name in names.iter().filter(|name| !stays(&name.image)) {
                remove(&self.name_path(&name.reference))?;
            }
            for id in self.image_ids()? {
                let Some(record) = self.record(&id)? else { continue };
                if stays(&id) {
                    blobs.insert(id.0);
                    layers.extend(record.layers);
                } else {
                    remove(&self.record_path(&id))?;
                    collected.images.push(id);
                }
            }
            sync_folder(&self.root.join("names"))?;
            sync_folder(&self.root.join("images"))?;
            let folders = self.root.join("folders");
            for hex in hexes(&folders)? {
                if !blobs.contains(&hex) {
                    away.push(move_away(&lease, &folders.join(hex.hex()))?);
                }
            }
            for digest in hexes(&self.root.join("blobs/sha256"))? {
                if !blobs.contains(&digest) {
                    remove(&self.blob_path(&digest))?;
                }
            }
            for diff_id in hexes(&self.root.join("layers"))? {
                if !layers.contains(&diff_id) {
                    collected.layers += 1;
                    collected.bytes += self.unpacked(&diff_id).map(|unpacked| unpacked.bytes).unwrap_or_default();
                    away.push(move_away(&lease, &self.layer_path(&diff_id))?);
                }
            }
            for entry in entries(&self.root.join("layers"))? {
                let lone = entry.strip_suffix(".json").and_then(|hex| Digest::from_hex(hex).ok());
                if lone.is_some_and(|diff_id| !layers.contains(&diff_id)) {
                    remove(&self.root.join("layers").join(entry))?;
                }
            }
            self.collect_downloads(&mut collected, if options.all_downloads { Duration::ZERO } else { DOWNLOAD_AGE })?;
            for entry in entries(&self.root.join("tmp"))? {
                if entry.split_once('.').is_none_or(|(id, _)| !living.contains(id)) {
                    away.push(self.root.join("tmp").join(entry));
                }
            }
        }
        for path in away {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.doing("remove", &path)?;
        }
        Ok(collected)
    }

    fn collect_downloads(&self, collected: &mut Collected, oldest: Duration) -> Result<(), ImageError> {
        let folder = self.root.join("downloads");
        for entry in entries(&folder)? {
            let path = folder.join(&entry);
            let Ok(file) = File::open(&path) else { continue };
            let data = file.metadata().doing("look at", &path)?;
            let old = oldest.is_zero() || age(&path).is_some_and(|age| age > oldest);
            if old && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove(&path)?;
                collected.downloads += 1;
                collected.bytes += data.len();
            }
        }
        Ok(())
    }
}

/// How long ago a file was written; none where that can't be told, or is in the future of a clock that was put back.
fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

fn move_away(lease: &super::Lease, path: &Path) -> Result<PathBuf, ImageError> {
    let to = lease.temporary();
    fs::rename(path, &to).doing("move away", path)?;
    Ok(to)
}

fn hexes(folder: &Path) -> Result<Vec<Digest>, ImageError> {
    Ok(entries(folder)?.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
}

pub(super) fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).doing("remove", path),
        _ => Ok(()),
    }
}
