//! From a recipe to an OCI image layout on disk.

use super::cache::Cache;
use super::layer::{Layer, MERGED};
use super::oci::{self, Blob};
use super::{Compression, Folder, Recipe, User, debian, wheel};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Counts up when what is made of a recipe changes though the recipe does not: a list or a step of this module.
const FORMAT: u32 = 2;

/// What every image stands on.
const BASE: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "busybox",
    "coreutils",
    "dash",
    "debianutils",
    "findutils",
    "gosu",
    "grep",
    "hostname",
    "libc-bin",
    "mawk",
    "netbase",
    "procps",
    "sed",
    "tzdata",
];

/// Folders of the base layer and their modes, whatever packages say of them.
const BASE_FOLDERS: &[(&str, u32)] = &[
    ("/run", 0o755),
    ("/run/lock", 0o1777),
    ("/tmp", 0o1777),
    ("/root", 0o700),
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/dev", 0o755),
    ("/usr/lib64", 0o755),
];

/// Symbolic links of the base layer.
const BASE_LINKS: &[(&str, &str)] = &[
    ("/var/run", "/run"),
    ("/var/lock", "/run/lock"),
    ("/usr/bin/awk", "mawk"),
    ("/usr/bin/which", "which.debianutils"),
    ("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
];

/// The image of a recipe as an OCI image layout, which holds one manifest.
///
/// Made once and then taken from the cache. Two images share the blob of the base layer. The folder is read-only for callers: it is shared.
///
/// # Errors
/// Packages that this machine's sources don't have, no network at the first run, missing `apt-get`, `dpkg-deb` or `zstd`.
pub fn layout(recipe: &Recipe) -> io::Result<PathBuf> {
    let cache = Cache::lock()?;
    let architecture = debian::architecture()?;
    let key = hash(&(FORMAT, BASE, &architecture, recipe))?;
    cache.once(&format!("{}-{key}", recipe.name), |folder| {
        let base = base(&cache, &architecture)?;
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let mut layers = vec![base.layer.clone()];
        let name = layers[0].digest.trim_start_matches("sha256:").to_owned();
        fs::hard_link(base.folder.join(&name), blobs.join(&name))?;
        if let Some(archive) = own_layer(&cache, &base, recipe, folder)? {
            layers.push(oci::compress(&archive, &blobs, recipe.compression)?);
            fs::remove_file(archive)?;
        }
        oci::write_image(folder, recipe, &architecture, &layers)
    })
}

/// A layout as the archive that `docker save` writes, under this reference (`library/redis:7`).
///
/// # Errors
/// What `skopeo` says.
pub fn docker_archive(layout: &Path, reference: &str, to: &Path) -> io::Result<()> {
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "--insecure-policy", "--quiet"]).arg(format!("oci:{}", layout.display()));
    debian::run(skopeo.arg(format!("docker-archive:{}:{reference}", to.display()))).map(drop)
}

/// The base layer in the cache, and what it brought.
struct Base {
    folder: PathBuf,
    layer: Blob,
    packages: BTreeSet<String>,
    passwd: String,
    group: String,
}

fn base(cache: &Cache, architecture: &str) -> io::Result<Base> {
    let key = hash(&(FORMAT, BASE, architecture))?;
    let folder = cache.once(&format!("base-{key}"), |folder| {
        let packages = debian::closure(cache, BASE)?;
        let debs = debian::download(cache, &packages)?;
        let archive = folder.join("layer.tar");
        let folders = BASE_FOLDERS.iter().map(|(path, _)| *path);
        let instead: Vec<&str> = folders.chain(BASE_LINKS.iter().map(|(path, _)| *path)).collect();
        let mut layer = Layer::new(BufWriter::new(File::create(&archive)?), &[], &instead);
        for name in MERGED {
            layer.link(name, &format!("usr/{name}"))?;
        }
        for deb in &debs {
            layer.package(deb)?;
        }
        for &(path, mode) in BASE_FOLDERS {
            layer.folder(&Folder { path, mode, owner: "root" })?;
        }
        for (path, target) in BASE_LINKS {
            layer.link(path, target)?;
        }
        let masters = masters(&debs)?;
        for (path, text) in
            [("passwd", masters.0.as_str()), ("group", &masters.1), ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")]
        {
            layer.text(&format!("/etc/{path}"), 0o644, "root", text)?;
            fs::write(folder.join(path), text)?;
        }
        layer.finish()?.flush()?;
        let blob = oci::compress(&archive, folder, Compression::Gzip)?;
        fs::remove_file(archive)?;
        fs::write(folder.join("layer.json"), serde_json::to_string(&blob)?)?;
        let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        fs::write(folder.join("packages.json"), serde_json::to_string(&names)?)
    })?;
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let (layer, packages) = (serde_json::from_str(&read("layer.json")?)?, serde_json::from_str(&read("packages.json")?)?);
    let (passwd, group) = (read("passwd")?, read("group")?);
    Ok(Base { folder, layer, packages, passwd, group })
}

/// Debian's base users and groups, which the package `base-passwd` holds.
fn masters(debs: &[PathBuf]) -> io::Result<(String, String)> {
    let is_it = |deb: &&PathBuf| deb.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-passwd_"));
    let deb = debs.iter().find(is_it).ok_or_else(|| io::Error::other("no package `base-passwd`"))?;
    let folder = tempfile::tempdir()?;
    debian::run(std::process::Command::new("dpkg-deb").arg("--extract").arg(deb).arg(folder.path()))?;
    let read = |name: &str| fs::read_to_string(folder.path().join("usr/share/base-passwd").join(name));
    // The master files have `*` for a password; so do containers' (no log-in), and nothing else is to be changed.
    Ok((read("passwd.master")?, read("group.master")?))
}

/// The archive of what a recipe adds to the base; none when it adds nothing.
fn own_layer(cache: &Cache, base: &Base, recipe: &Recipe, folder: &Path) -> io::Result<Option<PathBuf>> {
    let Recipe { packages, users, folders, files, programs, links, .. } = recipe;
    if packages.is_empty() && users.is_empty() && folders.is_empty() && files.is_empty() && programs.is_empty() && links.is_empty() {
        return Ok(None);
    }
    let packages = debian::closure(cache, packages)?;
    let new: Vec<_> = packages.into_iter().filter(|package| !base.packages.contains(&package.name)).collect();
    let debs = debian::download(cache, &new)?;
    let archive = folder.join("layer.tar");
    let folders_of_it = folders.iter().map(|folder| folder.path);
    let instead: Vec<&str> = folders_of_it.chain(files.iter().map(|file| file.path)).chain(links.iter().map(|link| link.0)).collect();
    let mut layer = Layer::new(BufWriter::new(File::create(&archive)?), users, &instead);
    for deb in &debs {
        layer.package(deb)?;
    }
    for folder in *folders {
        layer.folder(folder)?;
    }
    for file in *files {
        layer.file(file)?;
    }
    for program in *programs {
        layer.bytes(program.path, 0o755, "root", &wheel::read(program)?)?;
    }
    for (path, target) in *links {
        layer.link(path, target)?;
    }
    if !users.is_empty() {
        layer.text(
            "/etc/passwd",
            0o644,
            "root",
            &with(&base.passwd, users, |u| format!("{0}:x:{1}:{1}::{2}:/bin/sh\n", u.name, u.id, u.home)),
        )?;
        layer.text("/etc/group", 0o644, "root", &with(&base.group, users, |u| format!("{}:x:{}:\n", u.name, u.id)))?;
    }
    layer.finish()?.flush()?;
    Ok(Some(archive))
}

fn with(base: &str, users: &[User], line: impl Fn(&User) -> String) -> String {
    users.iter().fold(base.to_owned(), |text, user| text + &line(user))
}

/// The first half of a SHA-256 over a value.
pub(crate) fn hash(value: &impl serde::Serialize) -> io::Result<String> {
    let digest = oci::hex(&Sha256::digest(serde_json::to_vec(value)?));
    Ok(digest[..32].to_owned())
}
