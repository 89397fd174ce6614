//! The folder of a site: what of it answers a path.
//!
//! Every look-up is `openat2` with `RESOLVE_BENEATH`: whatever a name or a symbolic link says, the kernel opens nothing that
//! lies outside the folder.

use super::exchange::Coding;
use super::path::SitePath;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Where publishing has written the digest of a file.
const ETAG: &str = "user.moat.etag";
const INDEX: &[u8] = b"index.html";

/// A published folder.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
}

/// What a path stands for.
#[derive(Debug)]
pub enum Found {
    /// A file.
    File(Variants),
    /// A folder with an `index.html`, asked for without its slash.
    AddSlash,
}

/// A file and its neighbours that are compressed already.
#[derive(Debug)]
pub struct Variants {
    /// The file itself.
    pub plain: Published,
    /// Its name below the folder, by which its type is known.
    pub name: Vec<u8>,
    /// `NAME.br` and the like.
    pub coded: Vec<(Coding, Published)>,
}

/// An open file.
#[derive(Debug)]
pub struct Published {
    /// The file.
    pub file: File,
    /// Its length in bytes.
    pub length: u64,
    /// Its entity tag, quotes included: strong, since the file never changes.
    pub etag: String,
    /// When it was published, to the second.
    pub modified: SystemTime,
}

impl Folder {
    /// Opens a folder; it may be removed while it is served, and then has no files.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// What a path stands for: a file of that name, `index.html` of a folder, or a page whose `.html` was left out.
    ///
    /// # Errors
    /// When the system can't open or read a file that is there.
    pub fn find(&self, path: &SitePath) -> io::Result<Option<Found>> {
        let Some(name) = path.file() else { return Ok(None) };
        let with = |end: &[u8]| [&name[..], end].concat();
        if path.is_folder() {
            let index = if name.is_empty() { INDEX.to_vec() } else { with(b"/index.html") };
            return match self.variants(index)? {
                Some(found) => Ok(Some(Found::File(found))),
                None if name.is_empty() => Ok(None),
                None => Ok(self.variants(with(b".html"))?.map(Found::File)),
            };
        }
        for candidate in [name.clone(), with(b".html")] {
            if let Some(found) = self.variants(candidate)? {
                return Ok(Some(Found::File(found)));
            }
        }
        Ok(self.file(&with(b"/index.html"))?.map(|_| Found::AddSlash))
    }

    /// The file of this name and its compressed neighbours.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn variants(&self, name: Vec<u8>) -> io::Result<Option<Variants>> {
        let Some(plain) = self.file(&name)? else { return Ok(None) };
        let mut coded = Vec::new();
        for coding in Coding::ALL {
            if let Some(file) = self.file(&[&name, coding.extension().as_bytes()].concat())? {
                coded.push((coding, file));
            }
        }
        Ok(Some(Variants { plain, name, coded }))
    }

    fn file(&self, name: &[u8]) -> io::Result<Option<Published>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = loop {
            match rustix::fs::openat2(&self.root, OsStr::from_bytes(name), flags, Mode::empty(), beneath) {
                Ok(file) => break File::from(file),
                // No file, or one that a name or a link can't lead to from inside.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL | Errno::NXIO) => {
                    return Ok(None);
                }
                // The kernel could not tell because of a rename elsewhere, or was interrupted.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let about = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let length = u64::try_from(about.st_size).unwrap_or_default();
        let seconds = u64::try_from(about.st_mtime).unwrap_or_default();
        let mut digest = [0; 64];
        let etag = match rustix::fs::fgetxattr(&file, ETAG, &mut digest) {
            Ok(written) if written > 0 && digest[..written].iter().all(u8::is_ascii_hexdigit) => {
                format!("\"{}\"", String::from_utf8_lossy(&digest[..written]))
            }
            // A file system without attributes. A release never changes, so that time and length are as good within it.
            Ok(_) | Err(_) => format!("\"{seconds:x}.{:x}-{length:x}\"", about.st_mtime_nsec),
        };
        Ok(Some(Published { file, length, etag, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) }))
    }
}
