//! The folder where packages and finished images stay: `target/test-images`, or what `MOAT_TEST_IMAGES` names.
//!
//! Invariant: a folder appears under its final name only when it is complete ([`Cache::once`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The cache, locked: one process at a time downloads and builds what the lock is for.
pub struct Cache {
    root: PathBuf,
    /// Held until dropped.
    _lock: File,
}

/// Where the cache is.
pub fn root() -> PathBuf {
    let target = || match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    std::env::var_os("MOAT_TEST_IMAGES").map_or_else(|| target().join("test-images"), PathBuf::from)
}

impl Cache {
    /// Waits for the lock.
    pub fn lock() -> io::Result<Self> {
        Self::lock_by("lock")
    }

    /// Waits for a lock of another name, for what takes minutes and shares no folder with the rest.
    pub fn lock_by(name: &str) -> io::Result<Self> {
        let root = root();
        fs::create_dir_all(&root)?;
        let root = root.canonicalize()?;
        let lock = File::create(root.join(name))?;
        lock.lock()?;
        Ok(Self { root, _lock: lock })
    }

    /// A folder of the cache, made when it is not there.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A folder that is made by `make` in a place of its own and then gets its name; made before, it is taken as it is.
    pub fn once(&self, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
        let folder = self.root.join(name);
        if folder.is_dir() {
            return Ok(folder);
        }
        let unfinished = self.root.join(format!("{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir(&unfinished)?;
        make(&unfinished)?;
        fs::rename(&unfinished, &folder)?;
        Ok(folder)
    }
}
