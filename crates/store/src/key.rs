//! The key of this machine's secrets: 32 random bytes in a file that only its owner reads.
//!
//! What is sealed: version byte, 24 bytes of nonce, XChaCha20-Poly1305 of the text (draft-irtf-cfrg-xchacha-03), with the place
//! that the text belongs to as associated data, so that a sealed text that is moved elsewhere does not open.
//!
//! Invariant: a key is on disk, whole, before anything is sealed with it, and is never replaced.

use crate::StoreError;
use crate::copies::Files;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const VERSION: u8 = 1;
const NONCE: usize = 24;
const LENGTH: usize = 32;

/// Seals and opens texts.
#[derive(Clone)]
pub struct Key(XChaCha20Poly1305);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

impl Key {
    /// The key of a state folder. It is made at the first call, and never where there is state that another one sealed.
    pub fn of(folder: &Path) -> Result<Self, StoreError> {
        let files = Files::of(folder);
        if files.is_new() {
            return Self::read_or_make(&files.key);
        }
        Self::read(&files.key)?.ok_or(StoreError::KeyLost { key: files.key, database: files.database })
    }

    /// Where the key of a state folder is.
    pub fn path(folder: &Path) -> PathBuf {
        Files::of(folder).key
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: &[u8; LENGTH]) -> Self {
        Self(XChaCha20Poly1305::new(&(*bytes).into()))
    }

    /// The bytes of a key in any file, which stays as it is.
    pub fn bytes_of(path: &Path) -> Result<[u8; LENGTH], StoreError> {
        let mut bytes = Vec::with_capacity(LENGTH + 1);
        let file = File::open(path).map_err(StoreError::io(path))?;
        file.take(LENGTH as u64 + 1).read_to_end(&mut bytes).map_err(StoreError::io(path))?;
        bytes.try_into().map_err(|_| StoreError::KeyDamaged(path.to_owned()))
    }

    /// Makes these bytes the key of a state folder that has neither key nor state. Says whether they are its key now.
    pub fn take_over(folder: &Path, bytes: &[u8; LENGTH]) -> Result<bool, StoreError> {
        let files = Files::of(folder);
        if files.is_new() && !files.key.exists() {
            Self::put(&files.key, bytes)?;
        }
        Ok(files.key.exists() && Self::bytes_of(&files.key)? == *bytes)
    }

    /// The key in a file; `None` when there is no file. A file that others could read is closed to them.
    fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(path)(error)),
        };
        if file.metadata().map_err(StoreError::io(path))?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600)).map_err(StoreError::io(path))?;
        }
        // One byte more than a key has, so that a longer file is no key.
        let mut bytes = Vec::with_capacity(LENGTH + 1);
        (&file).take(LENGTH as u64 + 1).read_to_end(&mut bytes).map_err(StoreError::io(path))?;
        let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| StoreError::KeyDamaged(path.to_owned()))?;
        Ok(Some(Self::from_bytes(&bytes)))
    }

    /// The key in a file, made at the first call. Of two that make one at once, both get the same.
    fn read_or_make(path: &Path) -> Result<Self, StoreError> {
        if let Some(key) = Self::read(path)? {
            return Ok(key);
        }
        let mut bytes = [0; LENGTH];
        getrandom::fill(&mut bytes).map_err(StoreError::Random)?;
        Self::put(path, &bytes)?;
        Self::read(path)?.ok_or_else(|| StoreError::io(path)(io::ErrorKind::NotFound.into()))
    }

    /// Makes a key's file, synced; one that is there stays.
    fn put(path: &Path, bytes: &[u8; LENGTH]) -> Result<(), StoreError> {
        let aside = path.with_extension(format!("new-{}", std::process::id()));
        let made = write_synced(&aside, bytes).and_then(|()| match fs::hard_link(&aside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        });
        let _ = fs::remove_file(&aside);
        made.map_err(StoreError::io(path))?;
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))?;
        }
        Ok(())
    }

    /// Seals a text for its place.
    pub fn seal(&self, place: &str, text: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(StoreError::Random)?;
        let payload = Payload { msg: text, aad: place.as_bytes() };
        // Fails for texts of more than 256 GiB only.
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload).map_err(|_| StoreError::Random(getrandom::Error::UNEXPECTED))?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// The text that was sealed for this place; `None` where it was not, or not by this key, or was changed since.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = sealed.split_first()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>()?;
        if *version != VERSION {
            return None;
        }
        self.0.decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: place.as_bytes() }).ok()
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(Key::read(&path).unwrap().is_none());
        let sealed = Key::read_or_make(&path).unwrap().seal("here", b"text").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Key::read_or_make(&path).unwrap().open("here", &sealed).unwrap(), b"text");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        Key::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_of_elsewhere_is_taken_over_by_a_new_folder_only() {
        let (new, used) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Key::of(used.path()).unwrap();
        for (folder, expect) in [(new.path(), true), (new.path(), true), (used.path(), false)] {
            assert_eq!(Key::take_over(folder, &[7; LENGTH]).unwrap(), expect);
        }
        assert_eq!(Key::bytes_of(&Key::path(new.path())).unwrap(), [7; LENGTH]);
        let sealed = Key::from_bytes(&[7; LENGTH]).seal("here", b"text").unwrap();
        assert_eq!(Key::of(new.path()).unwrap().open("here", &sealed).unwrap(), b"text");
    }

    #[test]
    fn what_is_no_key_is_said_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 31, 33] {
            let path = folder.path().join(length.to_string());
            fs::write(&path, vec![7; length]).unwrap();
            assert!(matches!(Key::read_or_make(&path), Err(StoreError::KeyDamaged(_))), "{length}");
            assert_eq!(fs::read(&path).unwrap().len(), length);
        }
    }

    #[test]
    fn only_the_same_key_place_and_text_open() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let (a, b) = (Key::read_or_make(&a).unwrap(), Key::read_or_make(&b).unwrap());
        let sealed = a.seal("here", b"text").unwrap();
        assert_ne!(sealed, a.seal("here", b"text").unwrap(), "the nonce is random");
        assert_eq!(a.open("here", &sealed).unwrap(), b"text");
        assert_eq!(b.open("here", &sealed), None);
        assert_eq!(a.open("there", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(a.open("here", &changed), None, "byte {at}");
            assert_eq!(a.open("here", &sealed[..at]), None, "cut at {at}");
        }
    }
}
