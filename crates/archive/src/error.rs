//! Why an archive can't be written or read.

use std::io;
use std::path::{Path, PathBuf};

/// Why an archive can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file can't be read or made.
    #[error("can't use `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("it is no backup of Moat's")]
    NotAnArchive,
    /// Of a newer Moat.
    #[error("it was made by a newer version of Moat")]
    Newer,
    /// Sealed by another key.
    #[error("it does not open with this key: it was sealed by the key of another machine")]
    WrongKey,
    /// Not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The archive itself can't be written on.
    #[error("the archive can't be written")]
    Write(#[source] io::Error),
    /// A file was written while it was read.
    #[error("`{0}` changed while it was read")]
    Changed(PathBuf),
    /// A kind of file that is not kept.
    #[error("`{0}` is neither a file, a folder, a link nor a pipe")]
    Kind(PathBuf),
    /// Who reads it does not want it; why.
    #[error("{0}")]
    Refused(String),
    /// What is sealed by the key.
    #[error(transparent)]
    Seal(#[from] moat_store::StoreError),
}

impl ArchiveError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// The stream of an archive could not be read: whatever the layer that noticed it says.
    pub(crate) fn stream(error: &io::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}
