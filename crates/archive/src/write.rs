//! Writing an archive.

use crate::seal::{Sealer, write_framed};
use crate::tree::{XATTR, attributes, bytes_of, path_of};
use crate::{ArchiveError, CONTENTS, DIGESTS, Head, MAGIC, PartDigest};
use moat_store::Key;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// zstd's own default: most of the gain for little of the time.
const LEVEL: i32 = 3;

type Stream = zstd::stream::write::Encoder<'static, Sealer<File>>;

/// Writes an archive to a file that gets its name once it is whole and on disk. Dropped before that, it leaves nothing.
pub struct Writer {
    tar: tar::Builder<Stream>,
    place: PathBuf,
    aside: Aside,
    part: Option<PartState>,
    done: Vec<PartDigest>,
}

/// Whose number an owner of this machine gets in the archive.
pub type Owners<'a> = &'a dyn Fn(u32) -> u32;

/// A file that is removed unless it was given its name.
struct Aside(Option<PathBuf>);

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What stays is overwritten by the next try.
            let _ = fs::remove_file(path);
        }
    }
}

struct PartState {
    name: String,
    entries: u64,
    bytes: u64,
    hash: Sha256,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the archive.
    pub bytes: u64,
    /// Entries of all parts.
    pub entries: u64,
}

impl Writer {
    /// Begins an archive that is to be `place`, where nothing may be. `contents` is given back, before all else, to who reads it.
    pub fn create(place: &Path, head: &Head, key: &Key, contents: &[u8]) -> Result<Self, ArchiveError> {
        if fs::symlink_metadata(place).is_ok() {
            return Err(ArchiveError::Io { path: place.to_owned(), source: io::ErrorKind::AlreadyExists.into() });
        }
        let name = place.file_name().ok_or_else(|| ArchiveError::io(place)(io::ErrorKind::InvalidFilename.into()))?;
        let path = place.with_file_name(format!(".{}.new", name.to_string_lossy()));
        let fail = || ArchiveError::io(&path);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(fail())?;
        let aside = Aside(Some(path.clone()));
        let text = serde_json::to_vec(head).map_err(|error| fail()(error.into()))?;
        let sealed = key.seal(&head_place(&text), b"moat")?;
        let begin = || -> io::Result<()> {
            file.write_all(MAGIC)?;
            write_framed(&mut file, &text)?;
            file.write_all(&Sha256::digest(&text))?;
            write_framed(&mut file, &sealed)
        };
        begin_with(begin).map_err(fail())?;
        let stream = zstd::stream::write::Encoder::new(Sealer::new(file, key.clone(), &head.id), LEVEL).map_err(fail())?;
        let mut tar = tar::Builder::new(stream);
        append_text(&mut tar, CONTENTS, contents).map_err(ArchiveError::Write)?;
        Ok(Self { tar, place: place.to_owned(), aside, part: None, done: Vec::new() })
    }

    /// Begins a part. `name` is a clean relative path that no other part's begins with.
    pub fn part(&mut self, name: &str) {
        self.end_part();
        self.part = Some(PartState { name: name.to_owned(), entries: 0, bytes: 0, hash: Sha256::new() });
    }

    fn end_part(&mut self) {
        if let Some(part) = self.part.take() {
            let sha256 = hex(&part.hash.finalize());
            self.done.push(PartDigest { part: part.name, entries: part.entries, bytes: part.bytes, sha256 });
        }
    }

    fn path(&self, name: &Path) -> PathBuf {
        let part = self.part.as_ref().map_or("", |part| &part.name);
        // Joining nothing would add a slash.
        if name.as_os_str().is_empty() { PathBuf::from(part) } else { Path::new(part).join(name) }
    }

    /// Adds a folder of the part; the part's own has no name.
    pub fn folder(&mut self, name: &Path, mode: u32, owner: u32) -> Result<(), ArchiveError> {
        let mut header = header(tar::EntryType::Directory, mode, (owner, owner), 0);
        self.append(&mut header, name, None, &mut io::empty())
    }

    /// Adds a file of the part.
    pub fn file(&mut self, name: &Path, mode: u32, owner: u32, content: &mut impl Read, size: u64) -> Result<(), ArchiveError> {
        let mut header = header(tar::EntryType::Regular, mode, (owner, owner), 0);
        header.set_size(size);
        self.append(&mut header, name, None, content)
    }

    /// Adds a file or a folder with all below it, which nobody writes meanwhile. Sockets are left out.
    pub fn tree(&mut self, from: &Path, name: &Path, owners: Owners<'_>) -> Result<(), ArchiveError> {
        self.walk(from, name, owners, &mut BTreeMap::new())
    }

    fn walk(&mut self, from: &Path, name: &Path, owners: Owners<'_>, seen: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<(), ArchiveError> {
        let fail = || ArchiveError::io(from);
        let about = fs::symlink_metadata(from).map_err(fail())?;
        let kind = about.file_type();
        let owner = (owners(about.uid()), owners(about.gid()));
        let of = |kind| header(kind, about.mode() & 0o7777, owner, u64::try_from(about.mtime()).unwrap_or_default());
        if kind.is_symlink() {
            let target = fs::read_link(from).map_err(fail())?;
            return self.append(&mut of(tar::EntryType::Symlink), name, Some(&target), &mut io::empty());
        }
        if kind.is_file() {
            if about.nlink() > 1
                && let Some(first) = seen.get(&(about.dev(), about.ino()))
            {
                let target = self.path(first);
                return self.append(&mut of(tar::EntryType::Link), name, Some(&target), &mut io::empty());
            }
            seen.insert((about.dev(), about.ino()), name.to_owned());
            self.attributes(from)?;
            let mut header = of(tar::EntryType::Regular);
            header.set_size(about.len());
            let mut content = File::open(from).map_err(fail())?.take(about.len());
            return self
                .append(&mut header, name, None, &mut content)
                .map_err(|error| if matches!(error, ArchiveError::Changed(_)) { ArchiveError::Changed(from.to_owned()) } else { error });
        }
        if kind.is_dir() {
            self.attributes(from)?;
            self.append(&mut of(tar::EntryType::Directory), name, None, &mut io::empty())?;
            let mut entries: Vec<_> = fs::read_dir(from).and_then(Iterator::collect).map_err(fail())?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                self.walk(&entry.path(), &name.join(entry.file_name()), owners, seen)?;
            }
            return Ok(());
        }
        if kind.is_fifo() {
            return self.append(&mut of(tar::EntryType::Fifo), name, None, &mut io::empty());
        }
        if kind.is_char_device() && about.rdev() == 0 {
            return self.append(&mut of(tar::EntryType::Char), name, None, &mut io::empty());
        }
        // A socket means nothing without the process that listens on it.
        if kind.is_socket() { Ok(()) } else { Err(ArchiveError::Kind(from.to_owned())) }
    }

    /// Adds the entries of another tar stream below a folder of the part.
    pub fn stream(&mut self, name: &Path, from: impl Read) -> Result<(), ArchiveError> {
        let broken = |error: io::Error| ArchiveError::Io { path: name.to_owned(), source: error };
        let mut archive = tar::Archive::new(from);
        let mut count = 0;
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let inner = path_of(&entry.path_bytes());
            let inner = inner.strip_prefix("./").unwrap_or(&inner).to_owned();
            if inner.as_os_str().is_empty() || inner == Path::new(".") {
                continue;
            }
            let target = entry.link_name().map_err(broken)?.map(std::borrow::Cow::into_owned);
            let from = entry.header();
            let number = |value: io::Result<u64>| value.map(|id| u32::try_from(id).unwrap_or(u32::MAX)).map_err(broken);
            let owner = (number(from.uid())?, number(from.gid())?);
            let mut header = header(from.entry_type(), from.mode().map_err(broken)?, owner, from.mtime().map_err(broken)?);
            header.set_size(entry.size());
            self.append(&mut header, &name.join(inner), target.as_deref(), &mut entry)?;
            count += 1;
        }
        // A program that fails at once leaves an empty stream, which is a whole archive to `tar`.
        if count == 0 { Err(broken(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    fn attributes(&mut self, from: &Path) -> Result<(), ArchiveError> {
        let found = attributes(from).map_err(ArchiveError::io(from))?;
        if found.is_empty() {
            return Ok(());
        }
        let named: Vec<(String, Vec<u8>)> = found.into_iter().map(|(name, value)| (format!("{XATTR}{name}"), value)).collect();
        let records = named.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(ArchiveError::Write)
    }

    fn append(&mut self, header: &mut tar::Header, name: &Path, target: Option<&Path>, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = self.path(name);
        let size = header.size().map_err(ArchiveError::Write)?;
        let Some(part) = self.part.as_mut() else { return Err(ArchiveError::Changed(path)) };
        part.entries += 1;
        part.bytes += size;
        digest_entry(&mut part.hash, &path, header.entry_type(), size);
        if let Some(target) = target {
            return self.tar.append_link(header, path, target).map_err(ArchiveError::Write);
        }
        let mut hashing = Hashing { inner: content, hash: &mut part.hash, read: 0 };
        let appended = self.tar.append_data(header, &path, &mut hashing);
        // Nothing that follows would be read as what it is.
        if hashing.read != size && appended.is_ok() {
            return Err(ArchiveError::Changed(path));
        }
        appended.map_err(ArchiveError::Write)
    }

    /// Writes the end, and gives the file its name once everything is on disk.
    pub fn finish(mut self) -> Result<Written, ArchiveError> {
        self.end_part();
        let entries = self.done.iter().map(|part| part.entries).sum();
        let digests = serde_json::to_vec(&self.done).map_err(|error| ArchiveError::Write(error.into()))?;
        let place = self.place.clone();
        append_text(&mut self.tar, DIGESTS, &digests).map_err(ArchiveError::Write)?;
        let file = self.tar.into_inner().and_then(zstd::stream::write::Encoder::finish).and_then(Sealer::finish);
        let file = file.map_err(ArchiveError::Write)?;
        let mut aside = self.aside;
        let named = || -> io::Result<u64> {
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            let from = aside.0.as_deref().unwrap_or(Path::new(""));
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, &place, flags)?;
            let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()?;
            Ok(bytes)
        };
        let bytes = begin_with(named).map_err(ArchiveError::io(&place))?;
        aside.0 = None;
        Ok(Written { bytes, entries })
    }
}

/// Runs what uses `?` on one kind of error.
fn begin_with<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    work()
}

/// Where the sealed word of a head belongs.
pub(crate) fn head_place(head: &[u8]) -> String {
    format!("backup-head\0{}", hex(&Sha256::digest(head)))
}

fn header(kind: tar::EntryType, mode: u32, owner: (u32, u32), mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0.into());
    header.set_gid(owner.1.into());
    header.set_mtime(mtime);
    header.set_size(0);
    header
}

fn append_text(tar: &mut tar::Builder<Stream>, name: &str, text: &[u8]) -> io::Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o600, (0, 0), 0);
    header.set_size(text.len() as u64);
    tar.append_data(&mut header, name, text)
}

/// What a digest is told of an entry before its content.
pub(crate) fn digest_entry(hash: &mut Sha256, path: &Path, kind: tar::EntryType, size: u64) {
    let path = bytes_of(path);
    hash.update((path.len() as u64).to_be_bytes());
    hash.update(path);
    hash.update([kind.as_byte()]);
    hash.update(size.to_be_bytes());
}

/// Tells a digest what is read.
pub(crate) struct Hashing<'a, R: ?Sized> {
    pub(crate) inner: &'a mut R,
    pub(crate) hash: &'a mut Sha256,
    pub(crate) read: u64,
}

impl<R: Read + ?Sized> Read for Hashing<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.hash.update(&out[..read]);
        self.read += read as u64;
        Ok(read)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
