//! What a release was made over, beside its files: the image of its language, and the tools that its builds were given.
//!
//! Invariant: what a release runs over is decided when it is made, and stays the same for as long as the release is there.

use crate::engine::Inner;
use crate::monitor::files;
use crate::toolchain::{Toolchain, version};
use moat_engine::EngineError;
use moat_image::ImageId;
use moat_model::NativeRuntime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// File name of [`Lock`] in a release.
const LOCK: &str = "lock.json";

/// What a release is over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lock {
    /// Its language.
    #[serde(default)]
    pub runtime: Option<NativeRuntime>,
    /// The version of the machine's toolchain that was asked for.
    pub version: Option<String>,
    /// The version of the machine's toolchain that it was made with; none of what was made before this was written down.
    #[serde(default)]
    pub exact: Option<String>,
    /// The image that holds the toolchain instead.
    pub image: Option<Language>,
    /// Releases of the tools that it is shown.
    pub tools: Vec<String>,
}

/// An image that is a language's toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Language {
    /// Its name, such as `docker.io/library/python:3.12`.
    pub reference: String,
    /// The digest of its configuration: the image itself, whatever the name means later.
    pub image: String,
}

impl Lock {
    /// Writes it into a release's folder.
    pub fn write(&self, folder: &Path) -> Result<(), EngineError> {
        let path = folder.join(LOCK);
        files::write_json(&path, self).map_err(|error| {
            EngineError::new("write down what a release is over", format!("`{}`: {error}", path.display())).caused_by(error)
        })
    }

    /// Reads it; `None` where the release has none.
    pub fn read(folder: &Path) -> Result<Option<Self>, EngineError> {
        let path = folder.join(LOCK);
        files::read_json(&path)
            .map_err(|error| EngineError::new("read what a release is over", format!("`{}`: {error}", path.display())).caused_by(error))
    }
}

/// The machine's toolchain for what is made: the one asked for, and of the line that the release was made with.
///
/// What a build has installed is for one line of a language (Python's `lib/python3.11`, Node's compiled modules). After an upgrade of
/// the machine that line may be gone; the program would then fail in ways that say nothing about why.
pub fn toolchain(inner: &Inner, runtime: NativeRuntime, asked: Option<&str>, lock: Option<&Lock>) -> Result<Toolchain, EngineError> {
    let asked = lock.map_or(asked, |lock| lock.version.as_deref());
    let found = inner.toolchain(runtime, asked)?;
    let Some(exact) = lock.and_then(|lock| lock.exact.as_deref()) else { return Ok(found) };
    let Some(line) = version::line(runtime, exact) else { return Ok(found) };
    if version::matches(&line, &found.version) != Some(false) {
        return Ok(found);
    }
    // One that is not the preferred one any more may be here still.
    inner.toolchain(runtime, Some(&line)).map_err(|_| {
        let (word, now) = (runtime.word(), &found.version);
        let why = format!(
            "its release was built with {word} {exact}, and this machine has {word} {now} now, which does not fit what was installed"
        );
        EngineError::new("use a release", why).hint(format!("`moat up` builds it anew, with {now}; or install {word} {line} again"))
    })
}

/// The locks of these releases. One that can't be read keeps nothing.
fn locks(inner: &Inner, names: impl Iterator<Item = String>) -> impl Iterator<Item = Lock> {
    let releases = inner.paths.releases();
    names.filter_map(move |name| {
        // The id of an image is no folder's name.
        let folder = releases.join(&name);
        folder.is_dir().then(|| Lock::read(&folder).ok().flatten()).flatten()
    })
}

/// The tools that these releases are shown.
pub fn tools(inner: &Inner, releases: &BTreeSet<String>) -> BTreeSet<String> {
    locks(inner, releases.iter().cloned()).flat_map(|lock| lock.tools).collect()
}

/// The images of languages that any release is over.
pub fn images(inner: &Inner) -> BTreeSet<ImageId> {
    let names =
        fs::read_dir(inner.paths.releases()).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    locks(inner, names).filter_map(|lock| lock.image?.image.parse().ok()).collect()
}
