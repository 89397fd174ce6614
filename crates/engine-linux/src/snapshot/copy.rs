//! A copy of a folder that its service goes on writing, as it is at one moment.
//!
//! ```text
//! everything is copied ─▶ the service stands still ─▶ what changed meanwhile is copied again ─▶ it goes on
//! ```
//!
//! Files are cloned where the file system can (`FICLONE`), else copied. Whoever writes the folder is not trusted: it is walked by
//! handles, so that no link that appears meanwhile leads out of it.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A file that was changed so shortly before it was looked at may change again without its time telling.
const COARSE: Duration = Duration::from_millis(50);

/// What tells that a file was changed: the kernel sets the time itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: i64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(about: &Stat) -> Self {
        #[expect(clippy::useless_conversion, reason = "these types differ between machines")]
        let changed = (about.st_ctime.into(), i64::try_from(about.st_ctime_nsec).unwrap_or_default());
        Self { inode: about.st_ino, size: about.st_size, changed }
    }

    /// Whether the file was left alone for a while before `then`.
    fn rested(&self, then: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or_default();
        let changed = SystemTime::UNIX_EPOCH + Duration::new(changed, u32::try_from(self.changed.1).unwrap_or_default());
        changed + COARSE < then
    }
}

/// One copy.
pub(super) struct Copy {
    /// What files were when they were copied, by path below the folder.
    seen: BTreeMap<PathBuf, Stamp>,
    /// When it began.
    began: SystemTime,
    /// When it has to be over.
    ends: Option<Instant>,
}

impl Copy {
    /// Copies all of a folder to a new one.
    pub(super) fn whole(from: &Path, to: &Path) -> io::Result<Self> {
        let mut copy = Self { seen: BTreeMap::new(), began: SystemTime::now(), ends: None };
        let handle = open_folder(rustix::fs::CWD, from.as_os_str())?;
        copy.folder(&handle, to, Path::new(""), true)?;
        Ok(copy)
    }

    /// Makes the copy what the folder is now, in this time at most.
    pub(super) fn settle(mut self, from: &Path, to: &Path, within: Duration) -> io::Result<()> {
        self.ends = Some(Instant::now() + within);
        let handle = open_folder(rustix::fs::CWD, from.as_os_str())?;
        self.folder(&handle, to, Path::new(""), false)
    }

    /// Copies a folder's entries. `first` also writes out what is only in memory: a later write to a mapped file then tells.
    fn folder(&mut self, from: &OwnedFd, to: &Path, name: &Path, first: bool) -> io::Result<()> {
        let about = rustix::fs::fstat(from)?;
        match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !first => {}
            other => other?,
        }
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let entry = OsStr::from_bytes(entry.file_name().to_bytes());
            if entry != "." && entry != ".." {
                names.insert(entry.to_owned());
            }
        }
        if !first {
            for gone in fs::read_dir(to)?.flatten().filter(|entry| !names.contains(&entry.file_name())) {
                remove(&gone.path())?;
            }
        }
        for entry in names {
            if self.ends.is_some_and(|ends| ends < Instant::now()) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it writes more than can be copied while it stands still"));
            }
            match self.entry(from, &entry, &to.join(&entry), &name.join(&entry), first) {
                // Gone meanwhile, or another kind of file by now: the second look finds what is so then.
                Err(error) if first && is_moving(&error) => remove(&to.join(&entry))?,
                other => other?,
            }
        }
        dress(to, &about)
    }

    fn entry(&mut self, folder: &OwnedFd, entry: &OsStr, to: &Path, name: &Path, first: bool) -> io::Result<()> {
        let about = rustix::fs::statat(folder, entry, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(about.st_mode);
        let stamp = Stamp::of(&about);
        if !first && kind != FileType::Directory && self.seen.get(name) == Some(&stamp) && stamp.rested(self.began) {
            return Ok(());
        }
        if !first && (kind != FileType::Directory || !fs::symlink_metadata(to).is_ok_and(|there| there.is_dir())) {
            remove(to)?;
        }
        match kind {
            FileType::Directory => {
                let handle = open_folder(folder, entry)?;
                // One that appeared since is copied as a whole.
                let whole = first || !to.exists();
                return self.folder(&handle, to, name, whole);
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(folder, entry, flags, Mode::empty())?);
                if first {
                    file.sync_data()?;
                }
                // As it is now: a write from here on has a later time.
                self.seen.insert(name.to_owned(), Stamp::of(&rustix::fs::fstat(&file)?));
                copy_file(&file, to)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, entry, Vec::new())?;
                symlink(OsStr::from_bytes(target.to_bytes()), to)?;
                self.seen.insert(name.to_owned(), stamp);
            }
            FileType::Fifo => {
                rustix::fs::mknodat(rustix::fs::CWD, to, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                self.seen.insert(name.to_owned(), stamp);
            }
            // A socket means nothing without its process; a sandbox makes no devices.
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => return Ok(()),
        }
        dress(to, &about)
    }
}

fn is_moving(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO))
}

fn open_folder(at: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Owner, mode and times of what was copied.
fn dress(to: &Path, about: &Stat) -> io::Result<()> {
    lchown(to, Some(about.st_uid), Some(about.st_gid))?;
    if FileType::from_raw_mode(about.st_mode) == FileType::Symlink {
        return Ok(());
    }
    fs::set_permissions(to, fs::Permissions::from_mode(about.st_mode & 0o7777))?;
    let time = |seconds, nanos| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    #[expect(clippy::useless_conversion, reason = "these types differ between machines")]
    let times = rustix::fs::Timestamps {
        last_access: time(about.st_atime.into(), i64::try_from(about.st_atime_nsec).unwrap_or_default()),
        last_modification: time(about.st_mtime.into(), i64::try_from(about.st_mtime_nsec).unwrap_or_default()),
    };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Clones a file's content, or copies it.
fn copy_file(from: &File, to: &Path) -> io::Result<()> {
    let mut to = fs::OpenOptions::new().write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&to, from).is_err() {
        // By copy_file_range(2), which leaves the work to the file system.
        io::copy(&mut &*from, &mut to)?;
    }
    Ok(())
}

/// Whether files of this folder can be cloned.
pub(super) fn clones(folder: &Path) -> bool {
    let [one, other] = ["clone-from", "clone-to"].map(|name| folder.join(format!(".{name}-{}", std::process::id())));
    let tried = fs::write(&one, [1; 4096]).and_then(|()| {
        let (from, to) = (File::open(&one)?, File::create(&other)?);
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    });
    for path in [&one, &other] {
        // What stays is overwritten by the next try.
        let _ = fs::remove_file(path);
    }
    tried.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_the_folder_is_at_the_second_look() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        for name in ["same", "changed", "gone", "sub/same", "sub/turns", "sub/deep/file"] {
            fs::write(from.join(name), name).unwrap();
        }
        fs::set_permissions(from.join("same"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let copy = Copy::whole(&from, &to).unwrap();

        fs::write(from.join("changed"), "CHANGED").unwrap();
        fs::remove_file(from.join("gone")).unwrap();
        fs::remove_file(from.join("sub/turns")).unwrap();
        symlink("/etc", from.join("sub/turns")).unwrap();
        fs::remove_dir_all(from.join("sub/deep")).unwrap();
        fs::write(from.join("sub/deep"), "a file now").unwrap();
        fs::create_dir(from.join("new")).unwrap();
        fs::write(from.join("new/file"), "new").unwrap();
        copy.settle(&from, &to, Duration::from_mins(1)).unwrap();

        let all = |top: &Path| -> BTreeMap<PathBuf, String> {
            let mut found = BTreeMap::new();
            let mut left = vec![top.to_owned()];
            while let Some(path) = left.pop() {
                let about = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(top).unwrap().to_owned();
                let mode = about.permissions().mode();
                if about.is_dir() {
                    left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                    found.insert(name, format!("{mode:o}"));
                } else if about.is_symlink() {
                    found.insert(name, fs::read_link(&path).unwrap().display().to_string());
                } else {
                    found.insert(name, format!("{mode:o} {}", fs::read_to_string(&path).unwrap()));
                }
            }
            found
        };
        assert_eq!(all(&to), all(&from));
        let copy = Copy::whole(&from, &folder.path().join("again")).unwrap();
        let late = copy.settle(&from, &folder.path().join("again"), Duration::ZERO).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
