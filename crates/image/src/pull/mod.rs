//! Pulls an image from a registry: resolve, check what is there, download and unpack several layers at a time, publish.

mod download;
mod layout;
mod options;
mod origin;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

pub use self::layout::{LayoutImage, pull_layout};
pub use self::options::{Cancel, Mirror, PullOptions};
use self::origin::Origin;
use crate::config::ParsedConfig;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, Manifest, choose};
use crate::platform::Platform;
use crate::progress::{LayerStart, Progress};
use crate::reference::Reference;
use crate::room::{self, Room};
use crate::store::{ImageId, Lease, Name, Store};

/// An index may point to an index, as some build tools write it; not deeper.
const INDEXES: usize = 2;

/// What all workers of a pull share.
struct Work<'a> {
    store: &'a Store,
    lease: &'a Lease,
    origin: &'a Origin,
    limits: &'a Limits,
    cancel: &'a Cancel,
    /// Another layer failed.
    stop: AtomicBool,
    /// What all layers take.
    room: &'a Room,
}

impl Work<'_> {
    fn check(&self) -> Result<(), ImageError> {
        if self.cancel.is_set() || self.stop.load(Ordering::Relaxed) { Err(ImageError::Cancelled) } else { Ok(()) }
    }
}

impl Store {
    /// Pulls an image and records the reference as its name.
    ///
    /// A tag is always asked of the registry. A reference that is pinned by digest, and already here for this platform, needs no network.
    /// Layers that the store has are not downloaded; an interrupted download goes on where it stopped.
    pub fn pull(&self, reference: &Reference, options: &PullOptions, progress: &mut dyn FnMut(Progress)) -> Result<ImageId, ImageError> {
        let lease = self.lease()?;
        if reference.digest().is_some()
            && let Some(found) = self.find_name(reference, Some(&options.platform))?
        {
            self.protect(&lease, &BTreeSet::from([found.image.digest()]))?;
            // Collected between the look and the lease, or damaged: pulled anew.
            if let Ok(image) = self.image(&found.image) {
                let name = Name { reference, digests: found.digests(), platform: &options.platform, pulled: true };
                self.add_name(&lease, &name, image.id)?;
                return Ok(image.id);
            }
        }
        let origin = Origin::new(reference, options)?;
        let Resolved { manifest, digests, .. } = resolve(&origin, reference, options)?;
        let limits = &options.limits;
        if manifest.config.size > limits.config_bytes {
            return Err(too_much("its config", manifest.config.size, limits.config_bytes));
        }
        let config = origin.config(&manifest.config)?;
        let diff_ids = check_config(&config, manifest.layers.len(), &options.platform, limits, &reference.to_string())?;
        let mut used: BTreeSet<Digest> = diff_ids.iter().copied().collect();
        used.insert(Digest::of(&config));
        self.protect(&lease, &used)?;
        let present: Vec<bool> = diff_ids.iter().map(|diff_id| self.has_layer(diff_id)).collect();
        let starts = manifest.layers.iter().zip(&present);
        progress(Progress::Resolved {
            image: Digest::of(&config),
            layers: starts.map(|(layer, present)| LayerStart { layer: layer.digest, size: layer.size, present: *present }).collect(),
        });
        // A pull that was killed just after it unpacked a layer left the download, which is then removed.
        let is_left = |layer: &Descriptor| self.download_path(&layer.digest).exists();
        let missing: BTreeMap<Digest, &Descriptor> = diff_ids
            .iter()
            .copied()
            .zip(&manifest.layers)
            .zip(&present)
            .filter(|((_, layer), present)| !**present || is_left(layer))
            .map(|(layer, _)| layer)
            .collect();
        // The greatest first, so that none is left alone at the end.
        let mut queue: Vec<(Digest, &Descriptor)> = missing.into_iter().collect();
        queue.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
        let wanted: Vec<&Descriptor> = queue.iter().map(|(_, layer)| *layer).collect();
        let absent: Vec<&Descriptor> = queue.iter().filter(|(diff_id, _)| !self.has_layer(diff_id)).map(|(_, layer)| *layer).collect();
        let (room, needs, what) = (Room::new(self.root(), limits.image_bytes), room::least(&absent), format!("the image `{reference}`"));
        // What is greater than allowed has words of its own.
        if wanted.iter().all(|layer| layer.size <= limits.layer_bytes) {
            room.check(&what, needs)?;
        }
        let cancel = &options.cancel;
        let work = Work { store: self, lease: &lease, origin: &origin, limits, cancel, stop: AtomicBool::new(false), room: &room };
        let fetched = fetch_all(&work, queue.into(), options.downloads.get(), progress);
        if cancel.is_set() {
            return Err(ImageError::Cancelled);
        }
        let name = Name { reference, digests, platform: &options.platform, pulled: true };
        fetched.and_then(|()| self.add_image(&lease, &config, &diff_ids, &[name])).map_err(|error| {
            if room::is_full(&error) {
                download::drop_partial(self, wanted.into_iter());
            }
            room.words(&what, needs, error)
        })
    }
}

/// A manifest, as it came.
struct Resolved {
    manifest: Manifest,
    bytes: Vec<u8>,
    media_type: String,
    /// Of all documents on the way to it.
    digests: Vec<Digest>,
}

/// Finds the manifest for the platform.
fn resolve(origin: &Origin, reference: &Reference, options: &PullOptions) -> Result<Resolved, ImageError> {
    let unsupported = |reason: String| ImageError::Unsupported { what: reference.to_string(), reason };
    let mut digests = Vec::new();
    let mut selector = reference.selector();
    let mut expected = reference.digest();
    for _ in 0..=INDEXES {
        let received = origin.manifest(&selector, expected.as_ref(), options.limits.manifest_bytes)?;
        digests.push(Digest::of(&received.bytes));
        match Document::parse(&received.bytes, &received.media_type).map_err(unsupported)? {
            Document::Manifest(manifest) => {
                return Ok(Resolved { manifest, bytes: received.bytes, media_type: received.media_type, digests });
            }
            Document::Index(entries) => {
                let entry = choose(&entries, &options.platform).map_err(|offered| ImageError::Platform {
                    what: reference.to_string(),
                    wanted: options.platform.clone(),
                    offered,
                })?;
                selector = entry.digest.to_string();
                expected = Some(entry.digest);
            }
        }
    }
    Err(unsupported("its index points to an index that points to an index".into()))
}

/// Checks a config against the layers it comes with and the platform wanted. Returns the diff ids.
pub(crate) fn check_config(
    config: &[u8],
    layers: usize,
    platform: &Platform,
    limits: &Limits,
    what: &str,
) -> Result<Vec<Digest>, ImageError> {
    let unsupported = |reason: String| ImageError::Unsupported { what: what.to_owned(), reason };
    let parsed = ParsedConfig::parse(config).map_err(unsupported)?;
    if platform.fitness(&parsed.config.platform).is_none() {
        return Err(ImageError::Platform { what: what.to_owned(), wanted: platform.clone(), offered: vec![parsed.config.platform] });
    }
    if parsed.diff_ids.len() != layers {
        return Err(unsupported(format!("its config names {} layers, its manifest {}", parsed.diff_ids.len(), layers)));
    }
    if layers > limits.layers {
        return Err(too_much(what, layers as u64, limits.layers as u64));
    }
    Ok(parsed.diff_ids)
}

pub(crate) fn too_much(what: &str, actual: u64, limit: u64) -> ImageError {
    ImageError::Limit { what: what.to_owned(), actual: actual.to_string(), limit: limit.to_string() }
}

/// Downloads and unpacks all layers of a queue on some threads, and tells their progress on this one.
fn fetch_all(
    work: &Work<'_>,
    queue: VecDeque<(Digest, &Descriptor)>,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let threads = threads.min(queue.len());
    let queue = Mutex::new(queue);
    let failure: Mutex<Option<ImageError>> = Mutex::new(None);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let tell = tell.clone();
            let (queue, failure) = (&queue, &failure);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((diff_id, layer)) = next else { return };
                    let result = work.check().and_then(|()| download::fetch(work, layer, &diff_id, &tell));
                    if let Err(error) = result {
                        // The first failure is the reason, those after it are mostly its echo.
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        work.stop.store(true, Ordering::Relaxed);
                        return;
                    }
                    // Nobody listens any more only when the pull is over.
                    let _ = tell.send(Progress::Ready { layer: layer.digest });
                }
            });
        }
        drop(tell);
        while let Ok(step) = told.recv() {
            progress(step);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
