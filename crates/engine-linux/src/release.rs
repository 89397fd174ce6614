//! Releases: a copy of a service's source and what its build made of it.
//!
//! `STATE/releases/NAME/project/src` is the copy; the build writes to `project`; `STATE/releases/NAME/sealed` says that the
//! build is done and that nothing is written any more. NAME is the slug and a digest of everything the build is made of, so
//! the same source is built once.
//!
//! Invariant: an instance other than a build only ever runs a sealed release.

mod prepare;
pub use prepare::prepare;

use crate::checkout::{Checkout, checkout};
use crate::engine::{Inner, LinuxEngine, folder};
use crate::monitor::files;
use crate::{lock, recipe, source, tools, tree};
use moat_engine::EngineError;
use moat_model::state::{InstancePhase, Source, Workload};
use moat_model::{InstanceId, NativeRuntime, Purpose, Secret, Service, ServiceId, Slug};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

/// Says that a release is finished; holds the id of the image where it came to one.
pub const SEALED: &str = "sealed";
/// How the name of a folder begins that is not a release yet.
const UNNAMED: &str = ".new-";
/// How the name of a folder begins that nothing needs any more.
const GONE: &str = ".gone-";

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
    /// Its commands, of which it is read which tools they need.
    pub commands: Vec<String>,
    /// Variables of the build.
    pub env: BTreeMap<String, Secret>,
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
                commands: [&native.build_command, &native.pre_deploy_command, &native.initial_deploy_hook]
                    .into_iter()
                    .flatten()
                    .chain([&native.start_command])
                    .cloned()
                    .collect(),
                env: service.build_env.clone(),
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
    /// The commit of its source, in hexadecimal, where that comes from a git repository.
    pub commit: Option<String>,
}

/// A release, and what is to be done and said before it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The release.
    pub release: Release,
    /// Tools that are not installed yet.
    pub tools: Vec<MissingTool>,
    /// What people should know, in words.
    pub notices: Vec<String>,
}

impl From<Release> for Prepared {
    fn from(release: Release) -> Self {
        Self { release, tools: Vec::new(), notices: Vec::new() }
    }
}

/// A tool that is to be installed: run an instance with `Purpose::Build`, this release and this command, without variables or
/// files of the service, and call [`LinuxEngine::seal_release`] once that has exited with 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTool {
    /// The name of its release.
    pub release: String,
    /// What it is called.
    pub words: String,
    /// What installs it.
    pub command: String,
}

impl LinuxEngine {
    /// Copies the source, unless a finished release of the very same exists. What a build that never finished has left is
    /// replaced. Where this machine has not the toolchain, the language's official image is pulled, and said meanwhile how far
    /// that is. Fails when there is neither, when the source or `root_dir` is missing, and, to be tried again, while a build
    /// of the same release runs.
    pub async fn prepare_release(&self, request: BuildRequest, tell: impl Fn(String) + Send + 'static) -> Result<Prepared, EngineError> {
        self.bringing(move |inner, cancel| prepare(inner, &request, cancel, tell)).await
    }

    /// Whether a release is finished.
    pub fn is_sealed(&self, name: &str) -> bool {
        checked(&self.inner, name).is_ok_and(|folder| folder.join(SEALED).exists())
    }

    /// Finishes a release: from now on it is never written.
    pub async fn seal_release(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let folder = checked(inner, &name)?;
            if tools::is_tool(&name) {
                // No service's user owns what others are shown.
                tree::give(&folder, 0).map_err(|error| fail(&name, &folder, error))?;
            }
            finish(&folder, b"").map_err(|error| fail(&name, &folder, error))
        })
        .await
    }

    /// Removes every release but those in `keep` and those that a live instance runs; and what a crash has left behind.
    /// A release that is being prepared or built must be in `keep`. When this comes back none of them is found any more; their
    /// files go by and by, and where that is cut off, with the next call.
    pub async fn collect_garbage(&self, keep: &BTreeSet<String>) -> Result<(), EngineError> {
        let mut keep = keep.clone();
        self.blocking(move |inner| {
            let mut live = BTreeSet::new();
            for id in folder::ids(inner)? {
                live.insert(id.as_str().to_owned());
                keep.extend(folder::look(inner, &id)?.and_then(|look| look.facts).and_then(|facts| facts.release));
            }
            keep.extend(lock::tools(inner, &keep));
            // What an image was built from says that it need not be built again.
            for entry in fs::read_dir(inner.paths.releases()).into_iter().flatten().flatten() {
                if recipe::built(&entry.path()).is_some_and(|id| keep.contains(&id.to_string())) {
                    keep.extend(entry.file_name().into_string());
                }
            }
            let mut gone = sweep(&inner.paths.releases(), &keep)?;
            gone.extend(sweep(&inner.paths.scratches(), &live)?);
            Ok(gone)
        })
        .await
        .map(|gone| {
            let inner = Arc::clone(&self.inner);
            // Tens of thousands of files take seconds, and nobody waits for these.
            drop(tokio::task::spawn_blocking(move || {
                // One at a time: what another call has found is the same, and it is gone twice then.
                let _alone = inner.removing.lock().unwrap_or_else(PoisonError::into_inner);
                for folder in gone {
                    if let Err(error) = tree::remove(&folder) {
                        tracing::warn!(%error, folder = %folder.display(), "what nothing needs can't be removed");
                    }
                }
            }));
        })
    }
}

/// Says that a release is finished, once all that is in it has come to the disk: for half a minute what a build has written may
/// be in memory alone, and after a power cut nobody would build it again.
pub fn finish(folder: &Path, about: &[u8]) -> io::Result<()> {
    rustix::fs::syncfs(File::open(folder)?)?;
    files::replace_durably(&folder.join(SEALED), about)
}

/// Gives what is not to be kept a name that nothing is found by: what is to be removed.
fn sweep(folder: &Path, keep: &BTreeSet<String>) -> Result<Vec<PathBuf>, EngineError> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str().filter(|name| !keep.contains(*name)) else { continue };
        if name.starts_with(GONE) {
            gone.push(path);
            continue;
        }
        let aside = (0..=u32::MAX).map(|n| folder.join(format!("{GONE}{n}-{name}"))).find(|aside| !aside.exists());
        let Some(aside) = aside else { continue };
        fs::rename(&path, &aside).map_err(|error| fail("old releases", &path, error))?;
        gone.push(aside);
    }
    Ok(gone)
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
        _ if !tools::is_tool(name) && !folder.join("project/src").join(root_dir).is_dir() => {
            Err(EngineError::new(doing, format!("it has no folder `{}`", root_dir.display())))
        }
        _ => Ok(folder.join("project")),
    }
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
    let listing = Listing::of(inner, slug, checkout(inner, slug.as_str(), source)?, root_dir)?;
    if let Some(release) = listing.finished(inner, made_of) {
        return Ok(release);
    }
    listing.copy(inner, service, made_of, owner)
}

/// A source that was looked through.
pub struct Listing {
    slug: String,
    /// Its folder, without links on the way to it.
    pub root: PathBuf,
    root_dir: PathBuf,
    files: Vec<PathBuf>,
    text: String,
    checkout: Checkout,
}

impl Listing {
    /// Looks through a source.
    pub fn of(inner: &Inner, slug: &Slug, checkout: Checkout, root_dir: &Path) -> Result<Self, EngineError> {
        let slug = slug.as_str().to_owned();
        let root = fs::canonicalize(&checkout.folder)
            .map_err(|error| fail(&slug, &checkout.folder, error).hint("the source folder must exist"))?;
        if !root.join(root_dir).is_dir() {
            let message = format!("`rootDir` is `{}`, and `{}` has no such folder", root_dir.display(), root.display());
            return Err(EngineError::new(format!("prepare `{slug}`"), message));
        }
        let mut files = source::list(&root).map_err(|error| fail(&slug, &root, error))?;
        // Moat's own folders may lie in the source's; they are no source.
        let own: Vec<PathBuf> =
            [inner.paths.state(), inner.paths.run()].into_iter().filter_map(|folder| fs::canonicalize(folder).ok()).collect();
        files.retain(|file| !own.iter().any(|folder| folder.starts_with(&root) && root.join(file).starts_with(folder)));
        let text = source::ingest(&root, &files, None).map_err(|error| fail(&slug, &root, error))?;
        Ok(Self { slug, root, root_dir: root_dir.to_owned(), files, text, checkout })
    }

    fn name(&self, text: &str, made_of: &[&str]) -> String {
        format!("{}-{}", self.slug, digest(std::iter::once(&text).chain(made_of)))
    }

    /// The finished release of this source that is `made_of` the same, if there is one.
    pub fn finished(&self, inner: &Inner, made_of: &[&str]) -> Option<Release> {
        let name = self.name(&self.text, made_of);
        let there = inner.paths.releases().join(&name).join(SEALED).exists();
        there.then(|| Release { name, cached: true, commit: self.checkout.commit.clone() })
    }

    /// Copies it for the user `owner` of the service's range.
    pub fn copy(&self, inner: &Inner, service: &ServiceId, made_of: &[&str], owner: u32) -> Result<Release, EngineError> {
        let owner = inner.ranges.first(inner.paths.state(), service)? + owner;
        let fresh = inner.paths.releases().join(format!("{UNNAMED}{}-{}", self.slug, std::process::id()));
        let made =
            copy(&self.root, &self.files, &fresh, owner, &self.root_dir).and_then(|text| settle(inner, &fresh, self.name(&text, made_of)));
        // After success it is gone under this name.
        let _ = tree::remove(&fresh);
        made.map(|release| Release { commit: self.checkout.commit.clone(), ..release })
    }
}

/// A short name of these parts.
pub fn digest<'a>(parts: impl Iterator<Item = &'a &'a str>) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    source::hex(&digest.finalize())[..16].to_owned()
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

/// The instance that builds a release now, if any.
fn builder(inner: &Inner, name: &str) -> Result<Option<InstanceId>, EngineError> {
    for id in folder::ids(inner)? {
        let Some(look) = folder::look(inner, &id)? else { continue };
        let builds = look.facts.is_some_and(|facts| facts.purpose == Purpose::Build && facts.release.as_deref() == Some(name));
        if builds && matches!(look.phase, InstancePhase::Preparing | InstancePhase::Running) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Gives a finished copy its name.
fn settle(inner: &Inner, fresh: &Path, name: String) -> Result<Release, EngineError> {
    let place = inner.paths.releases().join(&name);
    if place.join(SEALED).exists() {
        return Ok(Release { name, cached: true, commit: None });
    }
    if let Some(id) = builder(inner, &name)? {
        let mut error = EngineError::new(format!("prepare `{name}`"), format!("`{id}` is building it"));
        error.retry = true;
        return Err(error);
    }
    tree::remove(&place).map_err(|error| fail(&name, &place, error))?;
    fs::rename(fresh, &place).map_err(|error| fail(&name, &place, error))?;
    Ok(Release { name, cached: false, commit: None })
}
