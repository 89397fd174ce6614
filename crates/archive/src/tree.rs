//! The entries of a tree, in both directions: owners, modes, times, links and extended attributes.

use crate::ArchiveError;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Component, Path, PathBuf};

/// How attributes are called in PAX headers, as GNU tar and others call them.
pub(crate) const XATTR: &str = "SCHILY.xattr.";
/// Bytes that are copied at once; as many zeros become a hole.
const BLOCK: usize = 64 << 10;

/// The extended attributes of a file or folder that are its own: neither the system's lists of users, whose numbers mean nothing
/// elsewhere, nor labels that the system gives.
pub(crate) fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !name.starts_with("user.") && !name.starts_with("trusted.") && name != "security.capability" {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

/// The attributes that an entry's PAX headers hold.
pub(crate) fn attributes_of(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// A folder that entries are made in.
pub(crate) struct Place {
    folder: PathBuf,
    first_id: u32,
    /// Folders that were made here: nothing is made in any other, so no link is ever followed.
    made: BTreeSet<PathBuf>,
}

/// What is to be made.
pub(crate) struct Item {
    pub(crate) kind: tar::EntryType,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    /// Of a link.
    pub(crate) target: Option<PathBuf>,
    pub(crate) attributes: Vec<(String, Vec<u8>)>,
}

impl Place {
    pub(crate) fn new(folder: PathBuf, first_id: u32) -> Self {
        Self { folder, first_id, made: BTreeSet::new() }
    }

    /// Makes an entry. `name` is below the folder; empty is the folder itself.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the format has more kinds than are ever written")]
    pub(crate) fn make(&mut self, name: &Path, item: &Item, content: &mut impl Read) -> Result<(), ArchiveError> {
        let path = self.free(name)?;
        let fail = ArchiveError::io(&path);
        match item.kind {
            tar::EntryType::Directory => {
                let made = fs::DirBuilder::new().mode(0o700).create(&path);
                made.map_err(fail)?;
                self.made.insert(name.to_owned());
            }
            tar::EntryType::Regular => write_file(&path, content)?,
            tar::EntryType::Symlink => {
                symlink(item.target.as_deref().unwrap_or(Path::new("")), &path).map_err(fail)?;
            }
            tar::EntryType::Link => {
                let target = item.target.as_deref().unwrap_or(Path::new(""));
                let other = self.inside(target)?;
                // Not the file that a link of that name leads to.
                if !fs::symlink_metadata(&other).is_ok_and(|about| about.is_file()) {
                    return Err(ArchiveError::Damaged(format!("`{}` is another name of no file", name.display())));
                }
                // Owner and mode are the other's.
                return fs::hard_link(other, &path).map_err(fail);
            }
            tar::EntryType::Fifo => node(&path, FileType::Fifo).map_err(fail)?,
            // What overlayfs takes for "removed": device 0:0, which is no device.
            tar::EntryType::Char => node(&path, FileType::CharacterDevice).map_err(fail)?,
            other => return Err(ArchiveError::Damaged(format!("`{}` is of the unknown kind {other:?}", name.display()))),
        }
        self.dress(&path, item).map_err(ArchiveError::io(&path))
    }

    /// Owner, mode, attributes and time, in the order in which one does not undo the other.
    fn dress(&self, path: &Path, item: &Item) -> io::Result<()> {
        let id = |id: u64| u32::try_from(id).ok().and_then(|id| self.first_id.checked_add(id)).ok_or(io::ErrorKind::InvalidData);
        lchown(path, Some(id(item.owner.0)?), Some(id(item.owner.1)?))?;
        let link = item.kind == tar::EntryType::Symlink;
        if !link {
            fs::set_permissions(path, fs::Permissions::from_mode(item.mode & 0o7777))?;
        }
        for (name, value) in &item.attributes {
            rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty())?;
        }
        let time = Timespec { tv_sec: i64::try_from(item.mtime).unwrap_or_default(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The path of a new entry, whose folder was made here.
    fn free(&self, name: &Path) -> Result<PathBuf, ArchiveError> {
        if name.as_os_str().is_empty() && self.made.is_empty() {
            return Ok(self.folder.clone());
        }
        self.inside(name)
    }

    /// The path of an entry below a folder that was made here.
    fn inside(&self, name: &Path) -> Result<PathBuf, ArchiveError> {
        let clean = name.components().all(|part| matches!(part, Component::Normal(_)));
        let parent = name.parent().filter(|parent| self.made.contains(*parent));
        if !clean || parent.is_none() {
            return Err(ArchiveError::Damaged(format!("`{}` is in no folder of its own part", name.display())));
        }
        Ok(self.folder.join(name))
    }
}

fn node(path: &Path, kind: FileType) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0)?)
}

fn write_file(path: &Path, content: &mut impl Read) -> Result<(), ArchiveError> {
    let fail = || ArchiveError::io(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail())?;
    let mut block = vec![0; BLOCK];
    let mut length = 0;
    loop {
        let read = fill(content, &mut block).map_err(|error| ArchiveError::stream(&error))?;
        if read == 0 {
            break;
        }
        length += read as u64;
        if block[..read].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(length)).map_err(fail())?;
        } else {
            file.write_all(&block[..read]).map_err(fail())?;
        }
    }
    file.set_len(length).map_err(fail())
}

/// Reads until the block is full or nothing is left.
fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Syncs the file system that a folder is on.
pub(crate) fn sync(folder: &Path) -> Result<(), ArchiveError> {
    let done = File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    done.map_err(ArchiveError::io(folder))
}

/// A path as it is in an archive.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// Bytes of a path, for digests.
pub(crate) fn bytes_of(path: &Path) -> &[u8] {
    let name: &OsStr = path.as_os_str();
    name.as_bytes()
}
