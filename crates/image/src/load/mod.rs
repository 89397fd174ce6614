//! Loads images from files: `docker save` archives and OCI image layouts, the latter as a folder or a tar, either packed or not.
//!
//! Source: OCI image specification 1.1 (*image layout*), Docker *image specification v1.2* (`manifest.json`).

mod source;

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use self::source::Source;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, choose};
use crate::platform::Platform;
use crate::progress::{LayerStart, Progress};
use crate::pull::{Cancel, check_config};
use crate::reference::Reference;
use crate::room::Room;
use crate::store::{ImageId, Lease, Name, Store};

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// For which platform; this machine's by default.
    pub platform: Platform,
    /// What an image may ask of this machine.
    pub limits: Limits,
    /// Ends the load from another thread.
    pub cancel: Cancel,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { platform: Platform::host(), limits: Limits::default(), cancel: Cancel::default() }
    }
}

/// A line of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// `index.json`
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// An image that was found, not yet loaded.
struct Found {
    config: Vec<u8>,
    /// Where in the source its layers are, lowest first.
    layers: Vec<String>,
    names: Vec<Reference>,
    digests: Vec<Digest>,
}

/// What a load is made of.
struct Loading<'a> {
    store: &'a Store,
    lease: &'a Lease,
    source: Source,
    path: &'a Path,
    options: &'a LoadOptions,
}

impl Store {
    /// Loads all images of a `docker save` archive or an OCI layout, and records the names they have there.
    ///
    /// An image with several names is given once for each. Of an image for several platforms that of the options is taken.
    pub fn load(
        &self,
        path: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(Option<Reference>, ImageId)>, ImageError> {
        let lease = self.lease()?;
        let room = Room::new(self.root(), options.limits.image_bytes);
        let what = format!("`{}`", path.display());
        let packed = std::fs::metadata(path).map_or(0, |data| data.len());
        let source = Source::open(path, &lease.temporary(), options, &room)
            .map_err(|error| if_cancelled(options, room.words(&what, packed, error)))?;
        let loading = Loading { store: self, lease: &lease, source, path, options };
        let found = loading.find()?;
        let mut loaded = Vec::new();
        for image in found {
            let id = loading.load(&image, progress).map_err(|error| if_cancelled(options, error))?;
            if image.names.is_empty() {
                loaded.push((None, id));
            }
            loaded.extend(image.names.into_iter().map(|name| (Some(name), id)));
        }
        Ok(loaded)
    }
}

/// What ends for the flag ends so, whatever its reader made of that.
fn if_cancelled(options: &LoadOptions, error: ImageError) -> ImageError {
    if options.cancel.is_set() { ImageError::Cancelled } else { error }
}

impl Loading<'_> {
    fn archive(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Archive { path: self.path.to_owned(), reason: reason.into() }
    }

    /// Both kinds of archive can be in one file, as newer Docker writes it; `manifest.json` knows the whole names.
    fn find(&self) -> Result<Vec<Found>, ImageError> {
        let limit = self.options.limits.manifest_bytes;
        if let Some(bytes) = self.source.read("manifest.json", limit)? {
            let saved: Vec<Saved> =
                serde_json::from_slice(&bytes).map_err(|error| self.archive(format!("its `manifest.json` can't be read: {error}")))?;
            return saved.into_iter().map(|saved| self.saved(saved)).collect();
        }
        let Some(bytes) = self.source.read("index.json", limit)? else {
            return Err(self.archive("it has neither the `manifest.json` of `docker save` nor the `index.json` of an OCI layout"));
        };
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|error| self.archive(format!("its `index.json` can't be read: {error}")))?;
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|platform| self.options.platform.fitness(platform).is_some());
        let fitting: Vec<&Descriptor> = index.manifests.iter().filter(fits).collect();
        if fitting.is_empty() {
            let offered = index.manifests.iter().filter_map(|entry| entry.platform.clone()).collect();
            return Err(ImageError::Platform { what: self.path.display().to_string(), wanted: self.options.platform.clone(), offered });
        }
        fitting.into_iter().map(|entry| self.described(entry)).collect()
    }

    fn saved(&self, saved: Saved) -> Result<Found, ImageError> {
        let missing = || self.archive(format!("it has no `{}`", saved.config));
        let config = self.source.read(&saved.config, self.options.limits.config_bytes)?.ok_or_else(missing)?;
        let names = saved.repo_tags.unwrap_or_default();
        let names = names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        Ok(Found { config, layers: saved.layers.unwrap_or_default(), names, digests: Vec::new() })
    }

    fn described(&self, entry: &Descriptor) -> Result<Found, ImageError> {
        let limits = &self.options.limits;
        let mut digests = Vec::new();
        let mut entry = entry.clone();
        let name = name(&entry);
        for _ in 0..3 {
            let bytes = self.blob(&entry, limits.manifest_bytes)?;
            digests.push(entry.digest);
            match Document::parse(&bytes, &entry.media_type).map_err(|reason| self.archive(reason))? {
                Document::Manifest(manifest) => {
                    let config = self.blob(&manifest.config, limits.config_bytes)?;
                    let layers = manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
                    return Ok(Found { config, layers, names: name.into_iter().collect(), digests });
                }
                Document::Index(entries) => {
                    let chosen = choose(&entries, &self.options.platform).map_err(|offered| ImageError::Platform {
                        what: self.path.display().to_string(),
                        wanted: self.options.platform.clone(),
                        offered,
                    })?;
                    entry = chosen.clone();
                }
            }
        }
        Err(self.archive("its index points to an index that points to an index"))
    }

    /// A small blob of a layout, verified.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ImageError> {
        let path = blob_path(&descriptor.digest);
        let bytes = self.source.read(&path, limit)?.ok_or_else(|| self.archive(format!("it has no `{path}`")))?;
        let actual = Digest::of(&bytes);
        if actual != descriptor.digest {
            return Err(ImageError::Mismatch { what: format!("`{path}`"), expected: descriptor.digest, actual });
        }
        Ok(bytes)
    }

    fn load(&self, image: &Found, progress: &mut dyn FnMut(Progress)) -> Result<ImageId, ImageError> {
        let options = self.options;
        let what = image.names.first().map_or_else(|| self.path.display().to_string(), ToString::to_string);
        let diff_ids = check_config(&image.config, image.layers.len(), &options.platform, &options.limits, &what)?;
        let id = Digest::of(&image.config);
        let used: BTreeSet<Digest> = diff_ids.iter().copied().chain([id]).collect();
        self.store.protect(self.lease, &used)?;
        let mut sources = Vec::new();
        for (diff_id, path) in diff_ids.iter().zip(&image.layers) {
            let layer = self.source.open_file(path)?.ok_or_else(|| self.archive(format!("it has no `{path}`")))?;
            sources.push((diff_id, layer));
        }
        let starts = sources.iter().map(|(diff_id, layer)| LayerStart {
            layer: **diff_id,
            size: layer.size(),
            present: self.store.has_layer(diff_id),
        });
        let starts: Vec<LayerStart> = starts.collect();
        let needs = starts.iter().filter(|start| !start.present).fold(0, |sum: u64, start| sum.saturating_add(start.size));
        let (room, what) = (Room::new(self.store.root(), options.limits.image_bytes), format!("the image `{what}`"));
        if starts.iter().all(|start| start.size <= options.limits.layer_bytes) {
            room.check(&what, needs)?;
        }
        progress(Progress::Resolved { image: id, layers: starts });
        for (diff_id, layer) in sources {
            if self.store.has_layer(diff_id) {
                continue;
            }
            if options.cancel.is_set() {
                return Err(ImageError::Cancelled);
            }
            let total = layer.size();
            // Content is told from what it says it is by the diff id, so the packed blob needs no second digest.
            let advance = &mut |done| progress(Progress::Unpacking { layer: *diff_id, done, total });
            self.store
                .add_layer(self.lease, diff_id, layer.cancelled_by(&options.cancel), &options.limits, &room, advance)
                .map_err(|error| room.words(&what, needs, error))?;
            progress(Progress::Ready { layer: *diff_id });
        }
        let names: Vec<Name<'_>> = image
            .names
            .iter()
            .map(|reference| Name { reference, digests: image.digests.clone(), platform: &options.platform, pulled: false })
            .collect();
        self.store.add_image(self.lease, &image.config, &diff_ids, &names)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What a layout calls an image. Its own annotation is often no more than a tag, which says nothing without a repository.
fn name(entry: &Descriptor) -> Option<Reference> {
    let annotation = |key: &str| entry.annotations.as_ref()?.get(key);
    let whole = annotation("io.containerd.image.name");
    let own = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    whole.or(own)?.parse().ok()
}
