//! Layers and images made in code.

use std::io::Write as _;
use std::path::Path;

use moat_image::{Digest, Limits, PullOptions, Store};
use serde_json::{Value, json};

/// One entry of a layer.
#[derive(Clone, Debug)]
pub struct Item {
    pub path: Vec<u8>,
    pub kind: tar::EntryType,
    pub mode: u32,
    pub owner: (u64, u64),
    pub link: Vec<u8>,
    pub content: Vec<u8>,
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
}

fn item(path: &str, kind: tar::EntryType, mode: u32) -> Item {
    Item { path: path.into(), kind, mode, owner: (0, 0), link: Vec::new(), content: Vec::new(), xattrs: Vec::new() }
}

pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Item {
    Item { content: content.into(), ..item(path, tar::EntryType::Regular, 0o644) }
}

pub fn folder(path: &str, mode: u32) -> Item {
    item(path, tar::EntryType::Directory, mode)
}

pub fn link(path: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(path, tar::EntryType::Symlink, 0o777) }
}

pub fn hard_link(path: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(path, tar::EntryType::Link, 0o644) }
}

pub fn special(path: &str, kind: tar::EntryType) -> Item {
    item(path, kind, 0o666)
}

impl Item {
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    pub fn xattr(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name, value.into()));
        self
    }
}

pub const MTIME: u64 = 1_500_000_000;

/// A tar archive of these entries, with paths exactly as given.
pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let mut records = Vec::new();
        let record = |key: &str, value: &[u8], records: &mut Vec<u8>| {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if length.to_string().len() != rest.to_string().len() {
                length = rest + length.to_string().len();
            }
            records.extend_from_slice(format!("{length} {key}=").as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        };
        if item.path.len() > 99 {
            record("path", &item.path, &mut records);
        }
        if item.link.len() > 99 {
            record("linkpath", &item.link, &mut records);
        }
        for (name, value) in &item.xattrs {
            record(&format!("SCHILY.xattr.{name}"), value, &mut records);
        }
        if !records.is_empty() {
            out.extend(header(b"pax", b"", tar::EntryType::XHeader, 0o644, (0, 0), records.len() as u64));
            padded(&mut out, &records);
        }
        out.extend(header(&item.path, &item.link, item.kind, item.mode, item.owner, item.content.len() as u64));
        padded(&mut out, &item.content);
    }
    out.extend([0; 1024]);
    out
}

pub fn header(path: &[u8], link: &[u8], kind: tar::EntryType, mode: u32, owner: (u64, u64), size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    let raw = header.as_old_mut();
    let short = |text: &[u8], field: &mut [u8; 100]| {
        let most = text.len().min(99);
        field[..most].copy_from_slice(&text[..most]);
    };
    short(path, &mut raw.name);
    short(link, &mut raw.linkname);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mtime(MTIME);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

fn padded(out: &mut Vec<u8>, content: &[u8]) {
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    Gzip,
    Zstd,
    Plain,
}

/// A layer, packed.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: &'static str,
}

impl Layer {
    pub fn new(items: &[Item], packed: Packed) -> Self {
        Self::of_tar(&tar(items), packed)
    }

    pub fn of_tar(tar: &[u8], packed: Packed) -> Self {
        let (blob, media_type) = match packed {
            Packed::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                (encoder.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            Packed::Zstd => (zstd::encode_all(tar, 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd"),
            Packed::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        };
        Self { blob, diff_id: Digest::of(tar), media_type }
    }
}

/// An image: its blobs and its manifest.
#[derive(Clone)]
pub struct Made {
    pub layers: Vec<Layer>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Made {
    pub fn new(layers: Vec<Layer>, inner: &Value) -> Self {
        Self::of(layers, inner, std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64").as_str())
    }

    pub fn of(layers: Vec<Layer>, inner: &Value, arch: &str) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({"architecture": arch, "os": "linux", "config": inner, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let describe =
            |media_type: &str, blob: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| describe(layer.media_type, &layer.blob)).collect::<Vec<_>>(),
        });
        Self { layers, config, manifest: manifest.to_string().into_bytes() }
    }

    /// The same image in Docker's media types (image manifest version 2, schema 2).
    pub fn dockers(&self) -> Vec<u8> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest).unwrap();
        manifest["mediaType"] = DOCKER_MANIFEST.into();
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
        }
        manifest.to_string().into_bytes()
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }
}

/// Bytes that no compression makes smaller, the same each time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn store(folder: &Path) -> Store {
    Store::open(&folder.join("store")).unwrap()
}

/// Options that read nothing of this machine's user.
pub fn options() -> PullOptions {
    PullOptions { docker_config: moat_image::DockerConfig::None, limits: Limits::default(), ..PullOptions::default() }
}

/// Whether unpacking can be tested.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} unpacks layers, which needs root");
    }
    root
}

/// Writes an OCI layout of one image, with a name if one is given.
pub fn layout(folder: &Path, image: &Made, name: Option<&str>) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config, &image.manifest]) {
        std::fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
    }
    let annotations = name.map_or(json!({}), |name| json!({"org.opencontainers.image.ref.name": name}));
    let entry =
        json!({"mediaType": MANIFEST, "digest": Digest::of(&image.manifest), "size": image.manifest.len(), "annotations": annotations});
    std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// Loads an image of one plain layer into a store of its own.
pub fn load_layer(
    folder: &Path,
    tar: &[u8],
    packed: Packed,
    limits: Limits,
) -> Result<(Store, moat_image::ImageId), moat_image::ImageError> {
    let made = Made::new(vec![Layer::of_tar(tar, packed)], &json!({}));
    let source = folder.join("layout");
    layout(&source, &made, None);
    let store = store(folder);
    let options = moat_image::LoadOptions { limits, ..moat_image::LoadOptions::default() };
    let loaded = store.load(&source, &options, &mut |_| {})?;
    Ok((store, loaded[0].1))
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
