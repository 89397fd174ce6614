//! The content-addressed store that all services share.
//!
//! ```text
//! ROOT/                   0700: layers hold programs with setuid bits
//!   lock                  held for moments: leases, publishing, collecting
//!   blobs/sha256/HEX      configs and manifests
//!   layers/HEX/           an unpacked layer by its diff id; only ever appears whole
//!   layers/HEX.json       what unpacking it came to
//!   folders/HEX/          attributes of folders that no single layer knows, of an image
//!   images/HEX.json       an image: appears after all its layers
//!   names/HEX.json        a reference and its image
//!   downloads/HEX         a layer's blob on its way; continued by the next pull, gone once unpacked
//!   leases/ID             what a running pull uses; locked by it, so a dead one is known
//!   tmp/ID.N              files and folders in the making
//! ```
//!
//! Invariant: a name points to an image whose layers are all there. Everything is made in `tmp`, synced, and renamed, in the order layers, image,
//! name; and removed in the opposite order.

mod collect;
mod folders;
mod lease;
mod names;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use self::collect::{CollectOptions, Collected};
pub(crate) use self::lease::Lease;
use crate::config::{ImageConfig, ParsedConfig};
use crate::digest::{Digest, DigestError};
use crate::error::{Doing as _, ImageError};
use crate::limits::Limits;
use crate::reference::Reference;
use crate::room::Room;
use crate::unpack::{LayerProblem, LeftOut, Owners, Unpacked, unpack};

/// An image, by the digest of its config: the same however it came here and however its layers were packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub(crate) Digest);

impl ImageId {
    /// The digest of the image's config.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Folders for overlayfs' `lowerdir`, the topmost first; none for an image without layers. To be mounted read-only or under an upper folder; shared, never to be written.
    pub layers: Vec<PathBuf>,
    /// Bytes of the files of all layers; what layers share with other images counts here too.
    pub bytes: u64,
    /// What was left out of its layers.
    pub left_out: LeftOut,
}

/// A line of [`Store::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The image.
    pub id: ImageId,
    /// What it is called, in order; none for an image that was loaded without a name.
    pub names: Vec<Reference>,
    /// One of these came with an archive: no registry may have it.
    pub loaded: bool,
    /// When it was given one of these last.
    pub named: Option<SystemTime>,
    /// Its layers by diff id, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of the files of all layers.
    pub bytes: u64,
}

/// A store. Cheap to clone; several processes may use one at the same time.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    owners: Owners,
}

/// `images/HEX.json`
#[derive(Serialize, Deserialize)]
struct ImageRecord {
    /// Diff ids, lowest first.
    layers: Vec<Digest>,
    /// `folders/HEX` lies on top.
    folders: bool,
}

const FOLDERS: [&str; 8] = ["blobs/sha256", "layers", "folders", "images", "names", "downloads", "leases", "tmp"];

impl Store {
    /// Opens the store in this folder, and makes it where it is missing. The folder is closed to all users but its owner.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(root).doing("make", root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).doing("close to others", root)?;
        let root = root.canonicalize().doing("find", root)?;
        for folder in FOLDERS {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).doing("make", &folder)?;
        }
        Ok(Self { root, owners: Owners::default() })
    }

    /// The same store, whose layers are unpacked for these owners from now on. A store is used with one and the same for its whole life.
    #[must_use]
    pub fn owned(self, owners: Owners) -> Self {
        Self { owners, ..self }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image that a reference was last pulled or loaded as; asks no registry.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<ImageId>, ImageError> {
        Ok(self.find_name(reference, None)?.map(|record| record.image))
    }

    /// An image with everything to run it.
    pub fn image(&self, id: &ImageId) -> Result<Image, ImageError> {
        let record = self.record(id)?.ok_or(ImageError::Unknown(id.0))?;
        let path = self.blob_path(&id.0);
        let parsed = ParsedConfig::parse(&fs::read(&path).doing("read", &path)?)
            .map_err(|reason| ImageError::Unsupported { what: id.to_string(), reason })?;
        let mut image = Image { id: *id, config: parsed.config, layers: Vec::new(), bytes: 0, left_out: LeftOut::default() };
        if record.folders {
            image.layers.push(self.root.join("folders").join(id.0.hex()));
        }
        let mut hidden = false;
        for layer in record.layers.iter().rev() {
            let unpacked = self.unpacked(layer)?;
            image.bytes += unpacked.bytes;
            image.left_out.add(&unpacked.left_out);
            let path = self.layer_path(layer);
            // overlayfs refuses a folder that is there twice, and one below an equal one shows nothing.
            if !hidden && !image.layers.contains(&path) {
                image.layers.push(path);
            }
            hidden |= unpacked.opaque;
        }
        Ok(image)
    }

    /// All images, in the order of their ids.
    pub fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let names = self.names()?;
        let mut list = Vec::new();
        for id in self.image_ids()? {
            // An image that is collected at this moment is simply no longer listed.
            let Some(record) = self.record(&id)? else { continue };
            let mut bytes = 0;
            for layer in &record.layers {
                bytes += self.unpacked(layer).map(|unpacked| unpacked.bytes).unwrap_or_default();
            }
            let mine = || names.iter().filter(|name| name.image == id);
            let mut called: Vec<_> = mine().map(|name| name.reference.clone()).collect();
            called.sort();
            let written = |name: &names::NameRecord| fs::metadata(self.name_path(&name.reference)).ok()?.modified().ok();
            let (loaded, latest) = (mine().any(|name| !name.pulled), mine().filter_map(written).max());
            list.push(Listed { id, names: called, loaded, named: latest, layers: record.layers, bytes });
        }
        list.sort_by_key(|listed| listed.id);
        Ok(list)
    }

    fn image_ids(&self) -> Result<Vec<ImageId>, ImageError> {
        let hexes = entries(&self.root.join("images"))?;
        Ok(hexes.iter().filter_map(|name| Digest::from_hex(name.strip_suffix(".json")?).ok().map(ImageId)).collect())
    }

    fn record(&self, id: &ImageId) -> Result<Option<ImageRecord>, ImageError> {
        read_json(&self.record_path(id))
    }

    fn record_path(&self, id: &ImageId) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.0.hex()))
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn unpacked(&self, diff_id: &Digest) -> Result<Unpacked, ImageError> {
        let path = self.root.join("layers").join(format!("{}.json", diff_id.hex()));
        read_json(&path)?.ok_or_else(|| ImageError::Io { doing: "read", path, source: std::io::ErrorKind::NotFound.into() })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn download_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("downloads").join(digest.hex())
    }

    /// Unpacks a layer and publishes it under its diff id. Another pull that was faster wins.
    pub(crate) fn add_layer(
        &self,
        lease: &Lease,
        diff_id: &Digest,
        layer: impl std::io::Read,
        limits: &Limits,
        room: &Room,
        advance: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        let making = lease.temporary();
        let result = unpack_layer(&making, diff_id, layer, limits, self.owners, room, advance);
        let unpacked = result.inspect_err(|_| {
            let _ = fs::remove_dir_all(&making);
        })?;
        write_json(lease, &self.root.join("layers").join(format!("{}.json", diff_id.hex())), &unpacked)?;
        let path = self.layer_path(diff_id);
        match fs::rename(&making, &path) {
            Ok(()) => sync_folder(&self.root.join("layers"))?,
            Err(_) if path.is_dir() => fs::remove_dir_all(&making).doing("remove", &making)?,
            Err(source) => return Err(ImageError::Io { doing: "publish", path, source }),
        }
        Ok(())
    }

    /// Publishes an image whose layers are all there, and its names.
    pub(crate) fn add_image(&self, lease: &Lease, config: &[u8], diff_ids: &[Digest], names: &[Name<'_>]) -> Result<ImageId, ImageError> {
        let id = ImageId(Digest::of(config));
        write(lease, &self.blob_path(&id.0), config)?;
        let folders = self.make_folders(lease, id, diff_ids)?;
        let record = ImageRecord { layers: diff_ids.to_vec(), folders };
        write_json(lease, &self.record_path(&id), &record)?;
        for name in names {
            self.write_name(lease, name, id)?;
        }
        Ok(id)
    }

    /// Takes the store's lock, which is held for moments only.
    fn lock(&self) -> Result<File, ImageError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).doing("open", &path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).doing("lock", &path)?;
        Ok(file)
    }
}

fn unpack_layer(
    making: &Path,
    diff_id: &Digest,
    layer: impl std::io::Read,
    limits: &Limits,
    owners: Owners,
    room: &Room,
    advance: &mut dyn FnMut(u64),
) -> Result<Unpacked, ImageError> {
    fs::create_dir(making).doing("make", making)?;
    fs::set_permissions(making, fs::Permissions::from_mode(0o755)).doing("open up", making)?;
    let folder = rustix::fs::open(making, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing("open", making)?;
    let of_layer = |source: LayerProblem| ImageError::Layer { layer: *diff_id, source };
    let unpacked = unpack(layer, folder.try_clone().doing("open", making)?, diff_id, limits, owners, room, advance).map_err(of_layer)?;
    rustix::fs::syncfs(&folder).doing("sync", making)?;
    Ok(unpacked)
}

/// Writes a file so that it is whole or not there.
fn write(lease: &Lease, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let making = lease.temporary();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&making).doing("make", &making)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).doing("write", &making)?;
    fs::rename(&making, path).doing("publish", path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn write_json(lease: &Lease, path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::other).doing("write", path)?;
    write(lease, path, &bytes)
}

/// A name to be given to an image.
pub(crate) struct Name<'a> {
    pub(crate) reference: &'a Reference,
    /// The index and manifest it was found by.
    pub(crate) digests: Vec<Digest>,
    pub(crate) platform: &'a crate::platform::Platform,
    /// A registry gave it, and can give it again; else it came in an archive.
    pub(crate) pulled: bool,
}

/// Names in a folder, of which those that are not UTF-8 can't be the store's.
fn entries(folder: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).doing("list", folder)? {
        names.extend(entry.doing("list", folder)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// The value in a file, none where the file is missing.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, ImageError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::other).doing("read", path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing("read", path),
    }
}

fn sync_folder(folder: &Path) -> Result<(), ImageError> {
    File::open(folder).and_then(|folder| folder.sync_all()).doing("sync", folder)
}
