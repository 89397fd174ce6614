//! Looks into an image without mounting it: what overlayfs would show at a path, with links resolved as if the image were the whole machine.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, ImageError};
use crate::store::Image;

/// As many as the kernel follows.
const LINKS: usize = 40;

/// What a name in a merged folder is.
enum Node {
    Missing,
    /// The same folder in several layers, the topmost first.
    Folder(Vec<PathBuf>),
    Link(PathBuf),
    File(PathBuf),
}

impl Image {
    /// The first `limit` bytes of a regular file of the image, none where there is no such file. Links lead nowhere but into the image.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(path) = resolve(&self.layers, path)? else { return Ok(None) };
        // The image could have a FIFO there, at which an ordinary open would wait.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
        let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(&path).doing("open", &path)?;
        if !file.metadata().doing("look at", &path)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).doing("read", &path)?;
        Ok(Some(bytes))
    }
}

/// Where in the layers the file of a path is.
fn resolve(layers: &[PathBuf], path: &str) -> Result<Option<PathBuf>, ImageError> {
    let mut folders = vec![layers.to_vec()];
    let mut left: Vec<OsString> = components(Path::new(path));
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            // The root's parent is the root.
            if folders.len() > 1 {
                folders.pop();
            }
            continue;
        }
        let here = folders.last().map(Vec::as_slice).unwrap_or_default();
        match look_up(here, &name)? {
            Node::Missing => return Ok(None),
            Node::Folder(merged) => folders.push(merged),
            Node::File(path) => return Ok(left.is_empty().then_some(path)),
            Node::Link(target) => {
                links += 1;
                if links > LINKS {
                    return Ok(None);
                }
                if target.is_absolute() {
                    folders.truncate(1);
                }
                left.extend(components(&target));
            }
        }
    }
    Ok(None)
}

/// The names of a path, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.as_os_str().as_encoded_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let mut names: Vec<OsString> = names.map(|name| OsStr::from_bytes(name).to_owned()).collect();
    names.reverse();
    names
}

fn look_up(folders: &[PathBuf], name: &OsStr) -> Result<Node, ImageError> {
    let mut merged = Vec::new();
    for folder in folders {
        let path = folder.join(name);
        let data = match fs::symlink_metadata(&path) {
            Ok(data) => data,
            Err(error) if matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::NAMETOOLONG.raw_os_error()) => break,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).doing("look at", &path),
        };
        if data.is_dir() {
            let opaque = is_opaque(&path);
            merged.push(path);
            if opaque {
                break;
            }
            continue;
        }
        let whiteout = data.file_type().is_char_device() && data.rdev() == 0;
        if whiteout || !merged.is_empty() {
            break;
        }
        if data.is_symlink() {
            return fs::read_link(&path).doing("read", &path).map(Node::Link);
        }
        return Ok(Node::File(path));
    }
    Ok(if merged.is_empty() { Node::Missing } else { Node::Folder(merged) })
}

/// Whether a folder hides those of the layers below, by either of overlayfs' signs.
pub(crate) fn is_opaque(folder: &Path) -> bool {
    let mut value = [0; 2];
    let mut says = |name: &str| matches!(rustix::fs::lgetxattr(folder, name, &mut value[..]), Ok(1) if value[0] == b'y');
    says("trusted.overlay.opaque") || says("user.overlay.opaque")
}
