//! A folder or a tar archive as a set of files by path. What an archive says about paths is only ever compared, never opened.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::LoadOptions;
use crate::error::{Doing as _, ImageError};
use crate::limits::Limits;
use crate::pull::{Cancel, too_much};
use crate::room::Room;
use crate::unpack::tar::{Kind, TarReader};
use crate::unpack::{self, is_compressed};

/// More files than this are not the archive of an image: it has some for each layer.
const MEMBERS: usize = 100_000;
/// Links in old archives lead from one layer to another once.
const LINKS: usize = 4;

pub(super) struct Source {
    path: PathBuf,
    kind: SourceKind,
}

enum SourceKind {
    Folder(OwnedFd),
    Tar { file: File, members: BTreeMap<String, Member> },
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// A file of a source.
pub(super) struct Section {
    file: File,
    position: u64,
    end: u64,
    cancel: Cancel,
}

impl Source {
    /// Opens a source; a packed archive is first unpacked to `temporary`, which has no name afterwards.
    pub(super) fn open(path: &Path, temporary: &Path, options: &LoadOptions, room: &Room) -> Result<Self, ImageError> {
        let limits = &options.limits;
        let data = std::fs::metadata(path).doing("open", path)?;
        let archive = |reason: String| ImageError::Archive { path: path.to_owned(), reason };
        if data.is_dir() {
            let folder = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing("open", path)?;
            return Ok(Self { path: path.to_owned(), kind: SourceKind::Folder(folder) });
        }
        if !data.is_file() {
            return Err(archive("it is neither a file nor a folder".into()));
        }
        let mut file = File::open(path).doing("open", path)?;
        let mut start = [0; 4];
        let length = file.read_at(&mut start, 0).doing("read", path)?;
        if is_compressed(start.get(..length).unwrap_or_default()) {
            let making = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
            let mut plain = making.open(temporary).doing("make", temporary)?;
            std::fs::remove_file(temporary).doing("remove", temporary)?;
            let end = data.len();
            let packed = Section { file, position: 0, end, cancel: options.cancel.clone() };
            let unpacked = unpack::decompressed(packed).doing("read", path)?;
            let count = io::copy(&mut room.writing(unpacked.take(limits.image_bytes + 1)), &mut plain).doing("unpack", path)?;
            if count > limits.image_bytes {
                return Err(too_much("the archive", count, limits.image_bytes));
            }
            file = plain;
        }
        let members = members(&file, limits).map_err(archive)?;
        Ok(Self { path: path.to_owned(), kind: SourceKind::Tar { file, members } })
    }

    /// Opens one file of it, none where there is none.
    pub(super) fn open_file(&self, path: &str) -> Result<Option<Section>, ImageError> {
        match &self.kind {
            SourceKind::Folder(folder) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = match rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve) {
                    Ok(file) => File::from(file),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(error) => return Err(error).doing("open", &self.path.join(path)),
                };
                let data = file.metadata().doing("look at", &self.path)?;
                Ok(data.is_file().then(|| Section { file, position: 0, end: data.len(), cancel: Cancel::default() }))
            }
            SourceKind::Tar { file, members } => {
                let Some((offset, size)) = find(members, path) else { return Ok(None) };
                let file = file.try_clone().doing("open", &self.path)?;
                Ok(Some(Section { file, position: offset, end: offset + size, cancel: Cancel::default() }))
            }
        }
    }

    /// The whole of a small file.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(section) = self.open_file(path)? else { return Ok(None) };
        if section.size() > limit {
            return Err(too_much(&format!("`{path}`"), section.size(), limit));
        }
        let mut bytes = Vec::new();
        section.take(limit).read_to_end(&mut bytes).doing("read", &self.path)?;
        Ok(Some(bytes))
    }
}

impl Section {
    pub(super) fn size(&self) -> u64 {
        self.end - self.position
    }

    /// The same, whose reading ends when the flag is set.
    pub(super) fn cancelled_by(self, cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), ..self }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            return Err(io::Error::other("cancelled"));
        }
        let most = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Where the files of an archive are. The error is a reason.
fn members(file: &File, limits: &Limits) -> Result<BTreeMap<String, Member>, String> {
    let mut members = BTreeMap::new();
    let whole = io::BufReader::with_capacity(
        1 << 20,
        Section { file: file.try_clone().map_err(|error| error.to_string())?, position: 0, end: u64::MAX, cancel: Cancel::default() },
    );
    let mut archive = TarReader::new(whole, limits.extended_header_bytes);
    while let Some(entry) = archive.next().map_err(|error| error.to_string())? {
        let path = plain(&entry.path);
        let member = match entry.kind {
            Kind::File => Member::File { offset: archive.position(), size: entry.size },
            // Relative to the link's own folder, or for a hard link to the archive's root.
            Kind::Symlink => Member::Link(beside(&path, &entry.link)),
            Kind::HardLink => Member::Link(plain(&entry.link)),
            Kind::Directory | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => continue,
        };
        members.insert(path, member);
        if members.len() > MEMBERS {
            return Err(format!("it has more than {MEMBERS} files"));
        }
    }
    Ok(members)
}

fn find(members: &BTreeMap<String, Member>, path: &str) -> Option<(u64, u64)> {
    let mut path = plain(path.as_bytes());
    for _ in 0..LINKS {
        match members.get(&path)? {
            Member::File { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => path.clone_from(target),
        }
    }
    None
}

fn plain(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

fn beside(path: &str, target: &[u8]) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    let target = String::from_utf8_lossy(target);
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}
