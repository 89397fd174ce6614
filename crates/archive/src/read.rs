//! Reading an archive: once, from its begin to its end, verifying everything.

use crate::seal::{Opener, read_framed};
use crate::tree::{self, Item, Place, attributes_of, path_of};
use crate::write::{Hashing, digest_entry, head_place, hex};
use crate::{ArchiveError, CONTENTS, DIGESTS, Head, LONGEST_HEAD, MAGIC, PartDigest};
use moat_store::Key;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// 2^27 bytes: the most memory that an archive can make the decoder take.
const WINDOW_LOG: u32 = 27;
/// `contents.json` and `digests.json` are no longer than this.
const LONGEST_TEXT: u64 = 64 << 20;

/// Where a part is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The folder, which is made: nothing may be there.
    pub folder: PathBuf,
    /// Which id of this machine id 0 of the archive is.
    pub first_id: u32,
}

/// Who reads an archive.
pub trait Visitor {
    /// What is in it, as whoever made it said. An error ends the reading.
    fn contents(&mut self, text: &[u8]) -> Result<(), String>;
    /// Where a part is to be made; none skips it. Comes with the part's first entry.
    fn part(&mut self, name: &str) -> Result<Option<Destination>, String>;
}

/// Reads what an archive says without its key.
pub fn read_head(path: &Path) -> Result<Head, ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io(path))?;
    head(&mut file).map(|(head, _)| head)
}

fn head(file: &mut impl Read) -> Result<(Head, Vec<u8>), ArchiveError> {
    let mut magic = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(|error| ArchiveError::stream(&error))?;
    if magic != MAGIC {
        let name = MAGIC.len() - 2;
        return Err(if magic.get(..name) == MAGIC.get(..name) { ArchiveError::Newer } else { ArchiveError::NotAnArchive });
    }
    let stream = |error: io::Error| ArchiveError::stream(&error);
    let text = read_framed(file, LONGEST_HEAD as usize).map_err(stream)?;
    let mut digest = [0; 32];
    file.read_exact(&mut digest).map_err(stream)?;
    let wrong = || ArchiveError::Damaged("its head is not what was written".to_owned());
    if Sha256::digest(&text)[..] != digest {
        return Err(wrong());
    }
    Ok((serde_json::from_slice(&text).map_err(|_| wrong())?, text))
}

/// Fails where a key is not the one that an archive is sealed with.
pub fn check_key(path: &Path, key: &Key) -> Result<Head, ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io(path))?;
    opened(&mut file, key)
}

/// The head of an archive that this key opens; what follows is the first chunk.
fn opened(file: &mut impl Read, key: &Key) -> Result<Head, ArchiveError> {
    let (head, text) = head(file)?;
    let sealed = read_framed(file, 256).map_err(|error| ArchiveError::stream(&error))?;
    if key.open(&head_place(&text), &sealed).is_none() {
        return Err(ArchiveError::WrongKey);
    }
    Ok(head)
}

/// Reads a whole archive: `visitor` says where each part is to be made. Only when this returns are they whole, verified and on
/// disk; after an error they are to be removed.
pub fn read(path: &Path, key: &Key, visitor: &mut impl Visitor) -> Result<Head, ArchiveError> {
    let file = File::open(path).map_err(ArchiveError::io(path))?;
    let mut file = BufReader::new(file);
    let head = opened(&mut file, key)?;
    let stream = |error: io::Error| ArchiveError::stream(&error);
    let mut plain = zstd::stream::read::Decoder::new(Opener::new(file, key.clone(), &head.id)).map_err(stream)?;
    plain.window_log_max(WINDOW_LOG).map_err(stream)?;
    let mut archive = tar::Archive::new(plain);
    let mut reading = Reading { visitor, contents: Vec::new(), parts: Vec::new(), part: None, digests: None };
    for entry in archive.entries().map_err(stream)? {
        reading.entry(&mut entry.map_err(stream)?)?;
    }
    // What follows the last entry: zeros, and the chunk that says that it is the last.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(stream)?;
    reading.finish()?;
    Ok(head)
}

struct Reading<'a, V> {
    visitor: &'a mut V,
    /// The parts that are in it, by `contents.json`'s own order of entries.
    contents: Vec<u8>,
    parts: Vec<PartDigest>,
    part: Option<Part>,
    digests: Option<Vec<PartDigest>>,
}

struct Part {
    name: PathBuf,
    place: Option<Place>,
    folder: Option<PathBuf>,
    entries: u64,
    bytes: u64,
    hash: Sha256,
}

impl<V: Visitor> Reading<'_, V> {
    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let path = path_of(&entry.path_bytes());
        let stream = |error: io::Error| ArchiveError::stream(&error);
        if self.digests.is_some() {
            return Err(ArchiveError::Damaged("something follows its digests".to_owned()));
        }
        if path == Path::new(CONTENTS) || path == Path::new(DIGESTS) {
            let mut text = Vec::new();
            entry.take(LONGEST_TEXT).read_to_end(&mut text).map_err(stream)?;
            if path == Path::new(CONTENTS) {
                self.visitor.contents(&text).map_err(ArchiveError::Refused)?;
                self.contents = text;
            } else {
                self.end_part()?;
                let digests = serde_json::from_slice(&text);
                self.digests = Some(digests.map_err(|error| ArchiveError::Damaged(format!("its digests are not understood: {error}")))?);
            }
            return Ok(());
        }
        if self.contents.is_empty() {
            return Err(ArchiveError::Damaged("it does not say what is in it".to_owned()));
        }
        if !self.part.as_ref().is_some_and(|part| path.starts_with(&part.name)) {
            self.begin_part(&path)?;
        }
        let Some(part) = self.part.as_mut() else { return Ok(()) };
        let (kind, size) = (entry.header().entry_type(), entry.size());
        part.entries += 1;
        part.bytes += size;
        digest_entry(&mut part.hash, &path, kind, size);
        let name = path.strip_prefix(&part.name).unwrap_or(&path).to_owned();
        let target = entry.link_name_bytes().map(|bytes| path_of_link(&bytes));
        let target = match (kind, target) {
            // The name of another entry of this part.
            (tar::EntryType::Link, Some(target)) => {
                let inside = target.strip_prefix(&part.name).map(Path::to_owned);
                Some(inside.map_err(|_| ArchiveError::Damaged(format!("`{}` is a file of another part", path.display())))?)
            }
            (_, target) => target,
        };
        let number = |value: io::Result<u64>| value.map_err(stream);
        let item = Item {
            kind,
            mode: entry.header().mode().map_err(stream)?,
            owner: (number(entry.header().uid())?, number(entry.header().gid())?),
            mtime: number(entry.header().mtime())?,
            target,
            attributes: attributes_of(entry).map_err(stream)?,
        };
        let mut content = Hashing { inner: entry, hash: &mut part.hash, read: 0 };
        match &mut part.place {
            Some(place) => place.make(&name, &item, &mut content)?,
            None => drop(io::copy(&mut content, &mut io::sink()).map_err(stream)?),
        }
        if content.read == size { Ok(()) } else { Err(ArchiveError::Damaged(format!("`{}` is cut", path.display()))) }
    }

    /// A part begins with the entry of its own folder.
    fn begin_part(&mut self, path: &Path) -> Result<(), ArchiveError> {
        self.end_part()?;
        let name = path.to_str().ok_or_else(|| ArchiveError::Damaged("the name of a part is no text".to_owned()))?;
        let to = self.visitor.part(name).map_err(ArchiveError::Refused)?;
        self.part = Some(Part {
            name: path.to_owned(),
            folder: to.as_ref().map(|to| to.folder.clone()),
            place: to.map(|to| Place::new(to.folder, to.first_id)),
            entries: 0,
            bytes: 0,
            hash: Sha256::new(),
        });
        Ok(())
    }

    fn end_part(&mut self) -> Result<(), ArchiveError> {
        let Some(part) = self.part.take() else { return Ok(()) };
        if let Some(folder) = part.folder.filter(|folder| folder.exists()) {
            tree::sync(&folder)?;
        }
        let name = part.name.to_string_lossy().into_owned();
        let sha256 = hex(&part.hash.finalize());
        self.parts.push(PartDigest { part: name, entries: part.entries, bytes: part.bytes, sha256 });
        Ok(())
    }

    fn finish(self) -> Result<(), ArchiveError> {
        let digests = self.digests.ok_or_else(|| ArchiveError::Damaged("its digests are missing".to_owned()))?;
        if digests == self.parts {
            return Ok(());
        }
        let differs = digests.iter().find(|digest| !self.parts.contains(digest)).map_or("", |digest| &digest.part);
        Err(ArchiveError::Damaged(format!("the digest of `{differs}` is not what was written")))
    }
}

fn path_of_link(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}
