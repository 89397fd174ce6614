//! Releases: a copy of a service's source and what its build made of it.
//!
//! `STATE/releases/NAME/project/src` is the copy; the build writes to `project`; `STATE/releases/NAME/sealed` says that the
//! build is done and that nothing is written any more. NAME is the slug and a digest of everything the build is made of, so
//! the same source is built once.
//!
//! Invariant: an instance other than a build only ever runs a sealed release.

use crate::checkout::checkout;
use crate::engine::{Inner, LinuxEngine, folder};
use crate::lower::sandbox::UID;
use crate::{recipe, source, tree};
use moat_engine::EngineError;
use moat_model::state::{InstancePhase, Source, Workload};
use moat_model::{NativeRuntime, Purpose, Service, ServiceId, Slug};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// Says that a release is finished; holds the id of the image where it came to one.
pub const SEALED: &str = "sealed";
/// How the name of a folder begins that is not a release yet.
const UNNAMED: &str = ".new-";

/// What a release is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    /// The service.
    pub service: ServiceId,
    /// Its slug.
    pub slug: Slug,
    /// Where its source is.
    pub source: Source,
    /// The working folder below it.
    pub root_dir: PathBuf,
    /// Everything else the build is made of.
    pub build_fingerprint: String,
    /// Its language.
    pub runtime: NativeRuntime,
    /// The version asked for.
    pub version: Option<String>,
}

impl BuildRequest {
    /// What a service's release is made of; `None` for what is not built.
    pub fn of(service: &Service) -> Option<Self> {
        match &service.workload {
            Workload::Native(native) => Some(Self {
                service: service.id.clone(),
                slug: service.slug.clone(),
                source: native.source.clone(),
                root_dir: native.root_dir.clone(),
                build_fingerprint: service.build_fingerprint.clone(),
                runtime: native.runtime,
                version: native.version.clone(),
            }),
            Workload::Image(_) | Workload::KeyValue(_) | Workload::Postgres(_) | Workload::Static(_) => None,
        }
    }
}

/// A release by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its name, for `InstanceSpec::release`.
    pub name: String,
    /// Whether it is finished already: nothing is to be built. Otherwise run an instance with `Purpose::Build` (when there is
    /// a build command) and call [`LinuxEngine::seal_release`] once that has exited with 0.
    pub cached: bool,
}

impl LinuxEngine {
    /// Copies the source, unless a finished release of the very same exists. What a build that never finished has left is
    /// replaced. Fails when the toolchain is missing, when the source or `root_dir` is, and, to be tried again, while a build
    /// of the same release runs.
    pub async fn prepare_release(&self, request: BuildRequest) -> Result<Release, EngineError> {
        self.blocking(move |inner| prepare(inner, &request)).await
    }

    /// Finishes a release: from now on it is never written.
    pub async fn seal_release(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let folder = checked(inner, &name)?;
            fs::write(folder.join(SEALED), b"").map_err(|error| fail(&name, &folder, error))
        })
        .await
    }

    /// Removes every release but those in `keep` and those that a live instance runs; and what a crash has left behind.
    /// A release that is being prepared or built must be in `keep`.
    pub async fn collect_garbage(&self, keep: &BTreeSet<String>) -> Result<(), EngineError> {
        let mut keep = keep.clone();
        self.blocking(move |inner| {
            let mut live = BTreeSet::new();
            for id in folder::ids(inner)? {
                live.insert(id.as_str().to_owned());
                keep.extend(folder::look(inner, &id)?.and_then(|look| look.facts).and_then(|facts| facts.release));
            }
            // What an image was built from says that it need not be built again.
            for entry in fs::read_dir(inner.paths.releases()).into_iter().flatten().flatten() {
                if recipe::built(&entry.path()).is_some_and(|id| keep.contains(&id.to_string())) {
                    keep.extend(entry.file_name().into_string());
                }
            }
            sweep(&inner.paths.releases(), &keep)?;
            sweep(&inner.paths.scratches(), &live)
        })
        .await
    }
}

fn sweep(folder: &Path, keep: &BTreeSet<String>) -> Result<(), EngineError> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| !keep.contains(name)) {
            tree::remove(&entry.path()).map_err(|error| fail("old releases", &entry.path(), error))?;
        }
    }
    Ok(())
}

fn fail(name: &str, path: &Path, error: io::Error) -> EngineError {
    EngineError::new(format!("prepare `{name}`"), format!("`{}`: {error}", path.display())).caused_by(error)
}

/// The folder of a release that exists.
pub fn checked(inner: &Inner, name: &str) -> Result<PathBuf, EngineError> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    let folder = inner.paths.releases().join(name);
    if plain && folder.is_dir() {
        Ok(folder)
    } else {
        Err(EngineError::new(format!("find the release `{name}`"), "there is no such release"))
    }
}

/// The `project` folder of a release, for an instance with this purpose.
pub fn project_of(inner: &Inner, name: &str, purpose: Purpose, root_dir: &Path) -> Result<PathBuf, EngineError> {
    let folder = checked(inner, name)?;
    let doing = format!("use the release `{name}`");
    match (folder.join(SEALED).exists(), purpose == Purpose::Build) {
        (true, true) => Err(EngineError::new(doing, "it is finished and can't be built again")),
        (false, false) => Err(EngineError::new(doing, "its build has not finished")),
        _ if !folder.join("project/src").join(root_dir).is_dir() => {
            Err(EngineError::new(doing, format!("it has no folder `{}`", root_dir.display())))
        }
        _ => Ok(folder.join("project")),
    }
}

fn prepare(inner: &Inner, request: &BuildRequest) -> Result<Release, EngineError> {
    let toolchain = inner.toolchain(request.runtime, request.version.as_deref())?;
    let root_dir = request.root_dir.to_string_lossy();
    let program = toolchain.program.to_string_lossy();
    let made_of = [&request.build_fingerprint, &*root_dir, request.runtime.word(), &toolchain.version, &*program];
    prepare_copy(inner, &request.service, &request.slug, &request.source, &request.root_dir, &made_of, UID)
}

/// Copies a source for the user `owner` of the service's range, unless there is a finished release of the same text that is
/// `made_of` the same.
pub fn prepare_copy(
    inner: &Inner,
    service: &ServiceId,
    slug: &Slug,
    source: &Source,
    root_dir: &Path,
    made_of: &[&str],
    owner: u32,
) -> Result<Release, EngineError> {
    let slug = slug.as_str();
    let checkout = checkout(inner, slug, source)?;
    let root =
        fs::canonicalize(&checkout.folder).map_err(|error| fail(slug, &checkout.folder, error).hint("the source folder must exist"))?;
    if !root.join(root_dir).is_dir() {
        let message = format!("`rootDir` is `{}`, and `{}` has no such folder", root_dir.display(), root.display());
        return Err(EngineError::new(format!("prepare `{slug}`"), message));
    }
    let name_of = |text: &str| {
        let mut digest = Sha256::new();
        for part in std::iter::once(&text).chain(made_of) {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        format!("{slug}-{}", &source::hex(&digest.finalize())[..16])
    };
    let mut files = source::list(&root).map_err(|error| fail(slug, &root, error))?;
    // Moat's own folders may lie in the source's; they are no source.
    let own: Vec<PathBuf> =
        [inner.paths.state(), inner.paths.run()].into_iter().filter_map(|folder| fs::canonicalize(folder).ok()).collect();
    files.retain(|file| !own.iter().any(|folder| folder.starts_with(&root) && root.join(file).starts_with(folder)));
    let before = name_of(&source::ingest(&root, &files, None).map_err(|error| fail(slug, &root, error))?);
    let releases = inner.paths.releases();
    if releases.join(&before).join(SEALED).exists() {
        return Ok(Release { name: before, cached: true });
    }

    let owner = inner.ranges.first(inner.paths.state(), service)? + owner;
    let fresh = releases.join(format!("{UNNAMED}{slug}-{}", std::process::id()));
    let made = copy(&root, &files, &fresh, owner, root_dir).and_then(|text| settle(inner, &fresh, name_of(&text)));
    // After success it is gone under this name.
    let _ = tree::remove(&fresh);
    made
}

fn copy(root: &Path, files: &[PathBuf], fresh: &Path, owner: u32, root_dir: &Path) -> Result<String, EngineError> {
    let fail = |error: io::Error| {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let made = fail("the source", root, error);
        if full { made.hint("free some space on the disk of the state folder") } else { made }
    };
    tree::remove(fresh).map_err(fail)?;
    let source = fresh.join("project/src");
    fs::create_dir_all(&source).map_err(fail)?;
    for folder in [fresh, &fresh.join("project"), &source] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(fail)?;
    }
    for folder in [fresh.join("project"), source.clone()] {
        lchown(&folder, Some(owner), Some(owner)).map_err(fail)?;
    }
    let text = source::ingest(root, files, Some((&source, owner))).map_err(fail)?;
    // Empty (or all ignored) in the work tree, and still where the commands run.
    if !source.join(root_dir).is_dir() {
        fs::create_dir_all(source.join(root_dir)).map_err(fail)?;
        lchown(source.join(root_dir), Some(owner), Some(owner)).map_err(fail)?;
    }
    Ok(text)
}

/// Gives a finished copy its name.
fn settle(inner: &Inner, fresh: &Path, name: String) -> Result<Release, EngineError> {
    let place = inner.paths.releases().join(&name);
    if place.join(SEALED).exists() {
        return Ok(Release { name, cached: true });
    }
    for id in folder::ids(inner)? {
        let Some(look) = folder::look(inner, &id)? else { continue };
        let builds = look.facts.is_some_and(|facts| facts.purpose == Purpose::Build && facts.release.as_deref() == Some(&name));
        if builds && matches!(look.phase, InstancePhase::Preparing | InstancePhase::Running) {
            let mut error = EngineError::new(format!("prepare `{name}`"), format!("`{id}` is building it"));
            error.retry = true;
            return Err(error);
        }
    }
    tree::remove(&place).map_err(|error| fail(&name, &place, error))?;
    fs::rename(fresh, &place).map_err(|error| fail(&name, &place, error))?;
    Ok(Release { name, cached: false })
}
