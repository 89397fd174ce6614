//! Attributes of folders that a layer makes without saying anything about them.
//!
//! A layer with `a/b/file` but no entry for `a/b` means the folder that is there already. Unpacked on its own it has a plain `a/b`, which
//! overlayfs would show, since the topmost folder's owner and mode win: `/tmp` could lose its sticky bit. So an image can have one more layer on
//! top, of nothing but those folders, with the attributes of the topmost layer that names them.
//!
//! Where the layers below have a *link* at that place (`lib → usr/lib`), the folder hides the link, as with Docker's overlay2 driver; the link is not
//! followed, since what it leads to is another image's business when the layer is shared.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::{ImageId, Lease, Store};
use crate::digest::Digest;
use crate::error::{Doing as _, ImageError};
use crate::view::is_opaque;

struct Layer {
    path: PathBuf,
    implicit: BTreeSet<String>,
    opaque: bool,
}

impl Store {
    /// Makes the folder layer of an image, if it needs one.
    pub(super) fn make_folders(&self, lease: &Lease, id: ImageId, diff_ids: &[Digest]) -> Result<bool, ImageError> {
        let mut layers = Vec::new();
        for diff_id in diff_ids.iter().rev() {
            let unpacked = self.unpacked(diff_id)?;
            let implicit = unpacked.implicit.into_iter().collect();
            layers.push(Layer { path: self.layer_path(diff_id), implicit, opaque: unpacked.opaque });
            if unpacked.opaque {
                break;
            }
        }
        let mut wrong: BTreeSet<&str> = BTreeSet::new();
        for path in layers.iter().flat_map(|layer| &layer.implicit) {
            if differs(&layers, path) {
                wrong.insert(path);
            }
        }
        if wrong.is_empty() {
            return Ok(false);
        }
        // On top, each folder on the way counts too.
        let mut all: BTreeSet<&str> = BTreeSet::from([""]);
        for path in wrong {
            all.extend(path.match_indices('/').filter_map(|(at, _)| path.get(..at)));
            all.insert(path);
        }
        let making = lease.temporary();
        fs::create_dir(&making).doing("make", &making)?;
        for path in &all {
            let to = making.join(path);
            if !path.is_empty() {
                fs::create_dir(&to).doing("make", &to)?;
            }
            if let Some(from) = source(&layers, path) {
                copy_attributes(&from.join(path), &to)?;
            }
        }
        // Once more for the times, from the deepest up: making folders in a folder changes its time.
        for path in all.iter().rev() {
            if let Some(from) = source(&layers, path) {
                copy_time(&from.join(path), &making.join(path))?;
            }
        }
        let path = self.root.join("folders").join(id.0.hex());
        match fs::rename(&making, &path) {
            Ok(()) => super::sync_folder(&self.root.join("folders"))?,
            Err(_) if path.is_dir() => fs::remove_dir_all(&making).doing("remove", &making)?,
            Err(source) => return Err(ImageError::Io { doing: "publish", path, source }),
        }
        Ok(true)
    }
}

/// Folders that the layers merge at this path, the topmost first: until one hides what is below.
fn merged<'a>(layers: &'a [Layer], path: &str) -> Vec<&'a Layer> {
    let mut found = Vec::new();
    for layer in layers {
        let mut at = layer.path.clone();
        let mut hides = layer.opaque;
        let mut here = true;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at.push(part);
            match fs::symlink_metadata(&at) {
                Ok(data) if data.is_dir() => hides |= is_opaque(&at),
                Ok(_) => (here, hides) = (false, true),
                Err(_) => here = false,
            }
            if !here {
                break;
            }
        }
        if here {
            found.push(layer);
        }
        if hides {
            break;
        }
    }
    found
}

/// The layer whose attributes a folder has.
fn source<'a>(layers: &'a [Layer], path: &str) -> Option<&'a Path> {
    let merged = merged(layers, path);
    let named = merged.iter().find(|layer| !layer.implicit.contains(path));
    named.or(merged.first()).map(|layer| layer.path.as_path())
}

/// Whether overlayfs would show other attributes than the layers mean.
fn differs(layers: &[Layer], path: &str) -> bool {
    let shown = merged(layers, path).first().map(|layer| layer.path.join(path));
    let meant = source(layers, path).map(|layer| layer.join(path));
    let (Some(shown), Some(meant)) = (shown, meant) else { return false };
    let (Ok(a), Ok(b)) = (fs::symlink_metadata(&shown), fs::symlink_metadata(&meant)) else { return false };
    (a.mode(), a.uid(), a.gid()) != (b.mode(), b.uid(), b.gid())
}

fn copy_attributes(from: &Path, to: &Path) -> Result<(), ImageError> {
    let data = fs::symlink_metadata(from).doing("look at", from)?;
    std::os::unix::fs::lchown(to, Some(data.uid()), Some(data.gid())).doing("set the owner of", to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(data.mode() & 0o7777)).doing("set the mode of", to)
}

fn copy_time(from: &Path, to: &Path) -> Result<(), ImageError> {
    let data = fs::symlink_metadata(from).doing("look at", from)?;
    let time = Timespec { tv_sec: data.mtime(), tv_nsec: data.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).doing("set the time of", to)
}
