//! Writes the entries of one layer beneath one folder, and nowhere else.
//!
//! Every path is resolved by `openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`: an entry can't leave the folder, and can't be written
//! through a link, not even one that this layer made. What a layer hides of those below becomes overlayfs' own signs: a character device 0:0
//! for a whiteout, `trusted.overlay.opaque` for an opaque folder (kernel documentation, *overlayfs*).
//!
//! setuid and setgid bits are kept: programs such as `ping` or `sudo` are part of an image, a sandbox has no-new-privileges and ids of its
//! own, and the store's folder is closed to everyone but root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tar::{Entry, Kind};
use super::{LayerProblem, Owners, Unpacked};
use crate::limits::Limits;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// The same where the overlay is mounted with `userxattr`.
const OPAQUE_BY_USERS: &str = "user.overlay.opaque";
/// The greatest id that a sandbox has.
const LAST_ID: u64 = 65535;
const NOBODY: u32 = 65534;

/// A layer being written.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    limits: &'a Limits,
    owners: Owners,
    /// The folder of the last entry, since the next one is mostly in it too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Set at the end: writing into a folder changes its time.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    implicit: BTreeSet<Vec<u8>>,
    done: Unpacked,
    buffer: Vec<u8>,
}

type Content<'a> = &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>;

/// What a name in a folder is already.
enum There {
    Nothing,
    Whiteout,
    Folder,
    Other,
}

/// One entry's place.
struct Place<'a> {
    /// Whole path without `.` and doubled `/`.
    path: Vec<u8>,
    parent: Vec<u8>,
    name: &'a [u8],
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: OwnedFd, limits: &'a Limits, owners: Owners) -> Self {
        let implicit = BTreeSet::from([Vec::new()]);
        Self { root, limits, owners, last: None, times: BTreeMap::new(), implicit, done: Unpacked::default(), buffer: vec![0; 256 << 10] }
    }

    /// Adds an entry; `content` gives the bytes of a file.
    pub(super) fn add(&mut self, entry: &Entry, content: Content<'_>) -> Result<(), LayerProblem> {
        self.done.entries += 1;
        if self.done.entries > self.limits.layer_entries {
            return Err(LayerProblem::Limit(format!("{} entries", self.limits.layer_entries)));
        }
        let refuse = |reason: String| LayerProblem::Entry { path: shown(&entry.path), reason };
        let parts = parts(&entry.path, self.limits.path_bytes).map_err(refuse)?;
        let Some((name, folder)) = parts.split_last() else {
            return self.root_entry(entry);
        };
        let place = Place { path: parts.join(&b'/'), parent: folder.join(&b'/'), name };
        if let Some(top @ (b"dev" | b"proc" | b"sys")) = parts.first().copied() {
            if parts.len() > 1 && entry.kind != Kind::Directory {
                self.done.left_out.kernel_places += 1;
                return Ok(());
            }
            if parts.len() == 1 && entry.kind != Kind::Directory {
                return Err(refuse(format!("`/{}` must be a folder, the runtime mounts there", shown(top))));
            }
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&place, refuse);
        }
        match entry.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                self.done.left_out.devices += 1;
                Ok(())
            }
            Kind::Directory => self.folder(&place, entry),
            Kind::File => self.file(&place, entry, content),
            Kind::Symlink => self.symlink(&place, entry),
            Kind::HardLink => self.hard_link(&place, entry),
            Kind::Fifo => self.fifo(&place, entry),
        }
    }

    /// Sets what had to wait for the end.
    pub(super) fn finish(mut self) -> Result<Unpacked, LayerProblem> {
        for (path, time) in std::mem::take(&mut self.times) {
            let folder = self.open_folder(&path).map_err(|error| written(&path, error))?;
            rustix::fs::futimens(&folder, &times(time)).map_err(|error| written(&path, error))?;
        }
        // Paths that are not UTF-8 keep the attributes they were made with: no base image names its folders so.
        self.done.implicit = self.implicit.into_iter().filter_map(|path| String::from_utf8(path).ok()).collect();
        Ok(self.done)
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), LayerProblem> {
        if entry.kind != Kind::Directory {
            return Err(LayerProblem::Entry { path: shown(&entry.path), reason: "the root can only be a folder".into() });
        }
        let root = self.open_folder(b"").map_err(|error| written(b"", error))?;
        self.attributes(root.as_fd(), b"", entry)?;
        self.implicit.remove(&Vec::new());
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn whiteout(&mut self, place: &Place<'_>, refuse: impl Fn(String) -> LayerProblem) -> Result<(), LayerProblem> {
        let fail = |error| written(&place.path, error);
        if place.name == OPAQUE {
            if place.parent.is_empty() {
                // overlayfs does not look for the sign at a root, so the image's list of layers is cut instead.
                self.done.opaque = true;
                return Ok(());
            }
            self.parent(place)?;
            let folder = self.open_folder(&place.parent).map_err(fail)?;
            return self.set_opaque(folder.as_fd()).map_err(fail);
        }
        let hidden = place.name.get(WHITEOUT.len()..).unwrap_or_default();
        if hidden.starts_with(WHITEOUT) {
            // Other signs of AUFS (`.wh..wh.plnk`, `.wh..wh.aufs`) are bookkeeping without content.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refuse("it hides a name that no file can have".into()));
        }
        let parent = self.parent(place)?;
        match there(parent, hidden).map_err(fail)? {
            There::Nothing => {
                let device = rustix::fs::makedev(0, 0);
                rustix::fs::mknodat(parent, os(hidden), FileType::CharacterDevice, Mode::empty(), device).map_err(fail)
            }
            // Only what lies below is hidden, never what the layer itself holds.
            There::Folder => {
                let folder = beneath(parent, hidden, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
                self.set_opaque(folder.as_fd()).map_err(fail)
            }
            There::Whiteout | There::Other => Ok(()),
        }
    }

    fn folder(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerProblem> {
        let fail = |error| written(&place.path, error);
        let parent = self.parent(place)?;
        let was = there(parent, place.name).map_err(fail)?;
        if !matches!(was, There::Folder) {
            if !matches!(was, There::Nothing) {
                rustix::fs::unlinkat(parent, os(place.name), AtFlags::empty()).map_err(fail)?;
            }
            rustix::fs::mkdirat(parent, os(place.name), Mode::from_raw_mode(0o755)).map_err(fail)?;
        }
        let folder = beneath(parent, place.name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
        if matches!(was, There::Whiteout) {
            self.set_opaque(folder.as_fd()).map_err(fail)?;
        }
        self.attributes(folder.as_fd(), &place.path, entry)?;
        self.implicit.remove(&place.path);
        self.times.insert(place.path.clone(), entry.mtime);
        Ok(())
    }

    fn file(&mut self, place: &Place<'_>, entry: &Entry, content: Content<'_>) -> Result<(), LayerProblem> {
        let fail = |error: Errno| written(&place.path, error);
        let parent = self.free(place)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, os(place.name), flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
        let mut file = std::fs::File::from(file);
        let mut buffer = std::mem::take(&mut self.buffer);
        let copied = copy(&mut file, &mut buffer, content, &place.path);
        self.buffer = buffer;
        self.done.bytes += copied?;
        self.attributes(file.as_fd(), &place.path, entry)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(fail)
    }

    fn symlink(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerProblem> {
        let fail = |error| written(&place.path, error);
        if entry.link.is_empty() || entry.link.len() > self.limits.path_bytes {
            return Err(LayerProblem::Entry { path: shown(&entry.path), reason: "its target is empty or too long".into() });
        }
        let (owner, group) = self.owner(entry);
        self.done.left_out.xattrs += entry.xattrs.len() as u64;
        let parent = self.free(place)?;
        rustix::fs::symlinkat(os(&entry.link), parent, os(place.name)).map_err(fail)?;
        rustix::fs::chownat(parent, os(place.name), Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        rustix::fs::utimensat(parent, os(place.name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    fn hard_link(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerProblem> {
        let refuse = |reason: String| LayerProblem::Entry { path: shown(&entry.path), reason };
        let to = shown(&entry.link);
        let target =
            parts(&entry.link, self.limits.path_bytes).map_err(|reason| refuse(format!("its target `{to}` is unsafe: {reason}")))?;
        if matches!(target.first(), Some(&(b"dev" | b"proc" | b"sys"))) {
            self.done.left_out.kernel_places += 1;
            return Ok(());
        }
        let Some((name, folder)) = target.split_last() else {
            return Err(refuse("it is a hard link to the root".into()));
        };
        if target.join(&b'/') == place.path {
            return Err(refuse("it is a hard link to itself".into()));
        }
        let missing = || refuse(format!("it is a hard link to `{to}`, which is not a file of this layer"));
        let target = self.open_folder(&folder.join(&b'/')).map_err(|_| missing())?;
        if !matches!(there(target.as_fd(), name).map_err(|_| missing())?, There::Other) {
            return Err(missing());
        }
        let parent = self.free(place)?;
        rustix::fs::linkat(&target, os(name), parent, os(place.name), AtFlags::empty()).map_err(|error| match error {
            Errno::NOENT => missing(),
            error => written(&place.path, error),
        })
    }

    fn fifo(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerProblem> {
        let fail = |error| written(&place.path, error);
        let (owner, group) = self.owner(entry);
        self.done.left_out.xattrs += entry.xattrs.len() as u64;
        let parent = self.free(place)?;
        rustix::fs::mknodat(parent, os(place.name), FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(fail)?;
        rustix::fs::chownat(parent, os(place.name), Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        // Not a link: it was made a line above, in a folder that nobody else can enter.
        rustix::fs::chmodat(parent, os(place.name), Mode::from_raw_mode(entry.mode), AtFlags::empty()).map_err(fail)?;
        rustix::fs::utimensat(parent, os(place.name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// The folder that an entry lies in, made where it is missing.
    fn parent(&mut self, place: &Place<'_>) -> Result<BorrowedFd<'_>, LayerProblem> {
        if self.last.as_ref().is_none_or(|(path, _)| *path != place.parent) {
            let folder = match self.open_folder(&place.parent) {
                Ok(folder) => folder,
                Err(_) => self.make_folders(place)?,
            };
            self.last = Some((place.parent.clone(), folder));
        }
        Ok(self.last.as_ref().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd()))
    }

    /// The folder that an entry lies in, where the entry's name is free: what this layer had there is removed, as if unpacked over it.
    fn free(&mut self, place: &Place<'_>) -> Result<BorrowedFd<'_>, LayerProblem> {
        let fail = |error: Errno| written(&place.path, error);
        let parent = self.parent(place)?;
        match there(parent, place.name).map_err(fail)? {
            There::Nothing => {}
            There::Whiteout | There::Other => rustix::fs::unlinkat(parent, os(place.name), AtFlags::empty()).map_err(fail)?,
            There::Folder => {
                let path = std::path::Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(os(place.name));
                std::fs::remove_dir_all(path).map_err(|source| LayerProblem::Write { path: shown(&place.path), source })?;
                let beneath = [&place.path, &b"/"[..]].concat();
                let gone = |path: &[u8]| path == place.path || path.starts_with(&beneath);
                self.implicit.retain(|path| !gone(path));
                self.times.retain(|path, _| !gone(path));
            }
        }
        self.parent(place)
    }

    /// Walks down, makes what is missing, and says which part is in the way.
    fn make_folders(&mut self, place: &Place<'_>) -> Result<OwnedFd, LayerProblem> {
        let mut folder = self.open_folder(b"").map_err(|error| written(b"", error))?;
        let mut path = Vec::new();
        for part in place.parent.split(|byte| *byte == b'/') {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            let fail = |error: Errno| written(&path, error);
            let was = there(folder.as_fd(), part).map_err(fail)?;
            match was {
                There::Folder => {}
                There::Other => {
                    let reason = format!("it lies under `{}`, which this layer makes a link or a file", shown(&path));
                    return Err(LayerProblem::Entry { path: shown(&place.path), reason });
                }
                There::Nothing | There::Whiteout => {
                    if matches!(was, There::Whiteout) {
                        rustix::fs::unlinkat(&folder, os(part), AtFlags::empty()).map_err(fail)?;
                    }
                    rustix::fs::mkdirat(&folder, os(part), Mode::from_raw_mode(0o755)).map_err(fail)?;
                }
            }
            let next = beneath(folder.as_fd(), part, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
            if !matches!(was, There::Folder) {
                // The process' file mode mask and a parent's setgid bit have no say in a layer.
                rustix::fs::fchown(&next, Some(Uid::from_raw(self.owners.first())), Some(Gid::from_raw(self.owners.first())))
                    .map_err(fail)?;
                rustix::fs::fchmod(&next, Mode::from_raw_mode(0o755)).map_err(fail)?;
                self.implicit.insert(path.clone());
            }
            if matches!(was, There::Whiteout) {
                self.set_opaque(next.as_fd()).map_err(fail)?;
            }
            folder = next;
        }
        Ok(folder)
    }

    fn open_folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        beneath(self.root.as_fd(), if path.is_empty() { b"." } else { path }, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Owner, mode and xattrs, in the order in which one does not undo the other.
    fn attributes(&mut self, file: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), LayerProblem> {
        let fail = |error| written(path, error);
        let (owner, group) = self.owner(entry);
        rustix::fs::fchown(file, Some(owner), Some(group)).map_err(fail)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(fail)?;
        for (name, value) in &entry.xattrs {
            let kept = match std::str::from_utf8(name) {
                Ok(name) if is_safe_xattr(name, value, entry.kind) => match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                    Ok(()) => true,
                    // A file system without them, or a value over its limit.
                    Err(Errno::NOTSUP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => false,
                    Err(error) => return Err(fail(error)),
                },
                _ => false,
            };
            if !kept {
                self.done.left_out.xattrs += 1;
            }
        }
        Ok(())
    }

    fn owner(&mut self, entry: &Entry) -> (Uid, Gid) {
        if entry.uid > LAST_ID || entry.gid > LAST_ID {
            self.done.left_out.owners += 1;
        }
        let clamp = |id: u64| u32::try_from(id).ok().filter(|id| u64::from(*id) <= LAST_ID).unwrap_or(NOBODY);
        let first = self.owners.first();
        (Uid::from_raw(first + clamp(entry.uid)), Gid::from_raw(first + clamp(entry.gid)))
    }

    fn set_opaque(&self, folder: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = match self.owners {
            Owners::AsInside => OPAQUE_XATTR,
            Owners::From(_) => OPAQUE_BY_USERS,
        };
        rustix::fs::fsetxattr(folder, name, b"y", XattrFlags::empty())
    }
}

/// Splits a path, refusing what leads up. A leading `/` means the layer's root.
fn parts(path: &[u8], limit: usize) -> Result<Vec<&[u8]>, String> {
    if path.len() > limit {
        return Err(format!("its path has more than {limit} bytes"));
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err("its path has a `..`".into());
    }
    if parts.iter().any(|part| part.len() > 255) {
        return Err("a name in its path has more than 255 bytes".into());
    }
    Ok(parts)
}

/// `user.*` means nothing to the kernel except overlayfs' own; file capabilities are taken without a namespace's root id (version 3).
fn is_safe_xattr(name: &str, value: &[u8], kind: Kind) -> bool {
    match name {
        "security.capability" => {
            kind == Kind::File && value.len() == 20 && value.get(..4).is_some_and(|magic| matches!(magic, [0 | 1, 0, 0, 2]))
        }
        name => name.starts_with("user.") && !name.starts_with("user.overlay."),
    }
}

fn copy(file: &mut std::fs::File, buffer: &mut [u8], content: Content<'_>, path: &[u8]) -> Result<u64, LayerProblem> {
    let mut all = 0;
    loop {
        let count = content(buffer).map_err(super::read_problem)?;
        if count == 0 {
            return Ok(all);
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        file.write_all(bytes).map_err(|source| LayerProblem::Write { path: shown(path), source })?;
        all += count as u64;
    }
}

/// Opens one path beneath a folder, through no link and no mount.
fn beneath(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, os(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn there(folder: BorrowedFd<'_>, name: &[u8]) -> Result<There, Errno> {
    match rustix::fs::statat(folder, os(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(&stat) => Ok(There::Whiteout),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(There::Folder),
        Ok(_) => Ok(There::Other),
        Err(Errno::NOENT) => Ok(There::Nothing),
        Err(error) => Err(error),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(300).collect()
}

fn written(path: &[u8], error: Errno) -> LayerProblem {
    LayerProblem::Write { path: shown(path), source: error.into() }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
