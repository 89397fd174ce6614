//! What running pulls and loads use, told to the collection by a locked file: a lease of a dead process has no lock.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{Store, entries, read_json};
use crate::digest::Digest;
use crate::error::{Doing as _, ImageError};

/// The right to use images and layers until dropped.
pub(crate) struct Lease {
    id: String,
    path: PathBuf,
    temporary: PathBuf,
    next: AtomicU64,
    _locked: File,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Lease {
    /// A path for something in the making, different each time.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.temporary.join(format!("{}.{}", self.id, self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What stays by a failure here is collected: the lock goes with the file's descriptor.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// Takes a lease, which uses nothing yet.
    pub(crate) fn lease(&self) -> Result<Lease, ImageError> {
        let _lock = self.lock()?;
        let pid = rustix::process::getpid().as_raw_nonzero();
        loop {
            let id = format!("{pid}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let path = self.root.join("leases").join(&id);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).doing("lock", &path)?;
                    return Ok(Lease { id, path, temporary: self.root.join("tmp"), next: AtomicU64::new(0), _locked: file });
                }
                // Of another process with this id, dead or in another pid namespace.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).doing("make", &path),
            }
        }
    }

    /// From here on the collection leaves these blobs and layers alone.
    pub(crate) fn protect(&self, lease: &Lease, digests: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let text = serde_json::to_vec(digests).map_err(std::io::Error::other).doing("write", &lease.path)?;
        fs::write(&lease.path, text).doing("write", &lease.path)
    }

    /// The ids of living leases and all that they use; dead ones are removed. To be called with the store locked.
    pub(super) fn leased(&self) -> Result<(BTreeSet<String>, BTreeSet<Digest>), ImageError> {
        let (mut living, mut used) = (BTreeSet::new(), BTreeSet::new());
        let folder = self.root.join("leases");
        for id in entries(&folder)? {
            let path = folder.join(&id);
            let file = match File::open(&path) {
                Ok(file) => file,
                // Dropped just now; a lease is dropped without the store's lock.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).doing("open", &path),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => super::collect::remove(&path)?,
                Err(Errno::WOULDBLOCK) => {
                    // Empty until it protects something.
                    if file.metadata().is_ok_and(|data| data.len() > 0) {
                        used.extend(read_json::<BTreeSet<Digest>>(&path)?.unwrap_or_default());
                    }
                    living.insert(id);
                }
                Err(error) => return Err(error).doing("lock", &path),
            }
        }
        Ok((living, used))
    }
}
