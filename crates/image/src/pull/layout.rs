//! Images brought into a folder as they are packed, for a program that builds on them: an OCI layout.
//!
//! ```text
//! FOLDER/oci-layout, index.json     written last; the index calls each image by the name it was asked for under
//! FOLDER/blobs/sha256/HEX           only ever whole and verified; what no image of the index needs is removed
//! FOLDER/blobs/sha256/HEX.part      a download on its way, continued by the next one
//! ```
//!
//! Source: OCI image layout specification 1.0.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::origin::{ATTEMPTS, Origin, pause};
use super::{PullOptions, resolve, too_much};
use crate::digest::{Digest, Hasher};
use crate::error::{Doing as _, ImageError};
use crate::manifest::Descriptor;
use crate::progress::{LayerStart, Progress};
use crate::reference::Reference;
use crate::registry::Fault;
use crate::room::{self, Room};

const BUFFER: usize = 256 << 10;

/// An image wanted in a layout.
#[derive(Clone, Debug)]
pub struct LayoutImage {
    /// What the layout calls it.
    pub name: String,
    /// Where it is.
    pub reference: Reference,
    /// How it is pulled.
    pub options: PullOptions,
}

/// Makes the layout of exactly these images. What the folder has of them is not downloaded again. The folder must be
/// written by nobody else; everyone who can reach it may read it.
pub fn pull_layout(folder: &Path, images: &[LayoutImage], progress: &mut dyn FnMut(Progress)) -> Result<(), ImageError> {
    let blobs = folder.join("blobs/sha256");
    for folder in [folder, &folder.join("blobs"), &blobs] {
        fs::create_dir_all(folder).doing("make", folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).doing("open up", folder)?;
    }
    let mut used = BTreeSet::new();
    let mut index = Vec::new();
    for image in images {
        let options = &image.options;
        let origin = Origin::new(&image.reference, options)?;
        let resolved = resolve(&origin, &image.reference, options)?;
        let manifest = resolved.manifest;
        let config = origin.config(&manifest.config)?;
        let what = image.reference.to_string();
        super::check_config(&config, manifest.layers.len(), &options.platform, &options.limits, &what)?;
        let digest = Digest::of(&resolved.bytes);
        used.extend([digest.hex(), manifest.config.digest.hex()]);
        used.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
        let starts = manifest.layers.iter().map(|layer| LayerStart {
            layer: layer.digest,
            size: layer.size,
            present: blobs.join(layer.digest.hex()).exists(),
        });
        let starts: Vec<LayerStart> = starts.collect();
        let needs = starts.iter().filter(|start| !start.present).fold(0, |sum: u64, start| sum.saturating_add(start.size));
        let (room, what) = (Room::new(folder, u64::MAX), format!("the image `{what}`"));
        if manifest.layers.iter().all(|layer| layer.size <= options.limits.layer_bytes) {
            room.check(&what, needs)?;
        }
        progress(Progress::Resolved { image: manifest.config.digest, layers: starts });
        for layer in &manifest.layers {
            if options.cancel.is_set() {
                return Err(ImageError::Cancelled);
            }
            download(&blobs, &origin, layer, options, &room, progress).map_err(|error| {
                if room::is_full(&error) {
                    // What stays by a failure here is continued or removed by the next one.
                    let _ = fs::remove_file(part_of(&blobs, layer));
                }
                room.words(&what, needs, error)
            })?;
        }
        put(&blobs.join(manifest.config.digest.hex()), &config)?;
        put(&blobs.join(digest.hex()), &resolved.bytes)?;
        index.push(serde_json::json!({
            "mediaType": resolved.media_type,
            "digest": digest,
            "size": resolved.bytes.len(),
            "annotations": { "org.opencontainers.image.ref.name": image.name },
        }));
    }
    put(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": index });
    put(&folder.join("index.json"), index.to_string().as_bytes())?;
    for entry in fs::read_dir(&blobs).doing("list", &blobs)? {
        let entry = entry.doing("list", &blobs)?;
        if entry.file_name().to_str().is_none_or(|name| !used.contains(name)) {
            fs::remove_file(entry.path()).doing("remove", &entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file that is whole or not there, readable by all.
fn put(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let aside = path.with_extension("new");
    fs::write(&aside, bytes).doing("write", &aside)?;
    publish(&aside, path)
}

fn publish(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::set_permissions(from, fs::Permissions::from_mode(0o644)).doing("open up", from)?;
    fs::rename(from, to).doing("publish", to)
}

/// Brings a layer's blob, verified, unless it is there.
fn download(
    blobs: &Path,
    origin: &Origin,
    layer: &Descriptor,
    options: &PullOptions,
    room: &Room,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let path = blobs.join(layer.digest.hex());
    if path.exists() {
        return Ok(());
    }
    if layer.size > options.limits.layer_bytes {
        return Err(too_much(&format!("the layer `{}`", layer.digest), layer.size, options.limits.layer_bytes));
    }
    let part = part_of(blobs, layer);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part).doing("open", &part)?;
    if file.metadata().doing("look at", &part)?.len() > layer.size {
        restart(&mut file, &part)?;
    }
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        if options.cancel.is_set() {
            return Err(ImageError::Cancelled);
        }
        let count = file.read(&mut buffer).doing("read", &part)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
    let (mut failures, mut wrong) = (0, false);
    loop {
        let before = hasher.bytes();
        let (index, client) = origin.client(failures);
        let result = attempt(&mut file, &part, layer, options, room, &mut hasher, client, progress);
        if hasher.bytes() > before {
            failures = 0;
        }
        let fault = match result {
            Ok(()) => {
                let actual = std::mem::take(&mut hasher).finish();
                if actual == layer.digest {
                    file.sync_all().doing("write", &part)?;
                    progress(Progress::Ready { layer: layer.digest });
                    return publish(&part, &path);
                }
                restart(&mut file, &part)?;
                let mismatch = ImageError::Mismatch { what: format!("the layer `{}`", layer.digest), expected: layer.digest, actual };
                // Once more, from the start: what was there before may have been damaged.
                if std::mem::replace(&mut wrong, true) {
                    return Err(mismatch);
                }
                Fault::Passing { reason: mismatch.to_string(), wait: Some(std::time::Duration::ZERO) }
            }
            Err(Trouble::Here(error)) => return Err(error),
            Err(Trouble::There(fault)) => fault,
        };
        failures += 1;
        let most = if matches!(fault, Fault::Passing { .. }) { ATTEMPTS.max(origin.places()) } else { origin.places() };
        if failures >= most {
            return Err(origin.error(index, fault));
        }
        progress(Progress::Retrying { layer: layer.digest, reason: fault.words() });
        pause(failures - 1, &fault, &options.cancel);
    }
}

/// On which side an attempt failed.
enum Trouble {
    Here(ImageError),
    There(Fault),
}

impl From<ImageError> for Trouble {
    fn from(error: ImageError) -> Self {
        Self::Here(error)
    }
}

/// The file of a layer's download.
fn part_of(blobs: &Path, layer: &Descriptor) -> PathBuf {
    blobs.join(layer.digest.hex()).with_extension("part")
}

/// Downloads what is missing until the connection ends.
#[expect(clippy::too_many_arguments, reason = "one step of `download`, with all of its state")]
fn attempt(
    file: &mut File,
    part: &Path,
    layer: &Descriptor,
    options: &PullOptions,
    room: &Room,
    hasher: &mut Hasher,
    client: &crate::registry::Client,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Trouble> {
    if hasher.bytes() == layer.size {
        return Ok(());
    }
    let (start, mut body) = client.blob(&layer.digest.to_string(), hasher.bytes()).map_err(Trouble::There)?;
    if start == 0 && hasher.bytes() > 0 {
        *hasher = Hasher::default();
        restart(file, part)?;
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        if options.cancel.is_set() {
            return Err(ImageError::Cancelled.into());
        }
        let broken = |error: io::Error| Trouble::There(Fault::Passing { reason: format!("the connection breaks: {error}"), wait: None });
        let count = body.read(&mut buffer).map_err(broken)?;
        let done = hasher.bytes() + count as u64;
        if done > layer.size {
            let reason = format!("it sends more than the {} bytes of the layer `{}`", layer.size, layer.digest);
            return Err(Trouble::There(Fault::Lasting(reason)));
        }
        if count == 0 {
            return if done < layer.size { Err(broken(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) };
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        room.take(count as u64).and_then(|()| file.write_all(bytes)).doing("write", part)?;
        hasher.update(bytes);
        progress(Progress::Downloading { layer: layer.digest, done, total: layer.size });
    }
}

fn restart(file: &mut File, part: &Path) -> Result<(), ImageError> {
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)).map(drop)).doing("empty", part)
}
