//! Images built from Dockerfiles: what is made ready before the build, and what becomes of its result.
//!
//! The release's folder holds the source's copy, as for every build, and [`Recipe`] beside it. Images that the Dockerfile
//! builds on are pulled here, with this machine's credentials and mirrors, and shown to the build as an OCI layout; the build
//! leaves an archive in `project`, which is taken into the store of images with nothing believed. The image's id is then
//! what the service runs, and the folder only remembers it.

use crate::dockerfile::{self, Scan};
use crate::engine::{Inner, LinuxEngine};
use crate::images::{self, Teller};
use crate::lower::builder::{OUTPUT, Recipe};
use crate::monitor::files;
use crate::release::{self, Release, SEALED};
use crate::{sys, toolchain, tree};
use moat_engine::EngineError;
use moat_image::{Cancel, ImageId, LayoutImage, LoadOptions, PullOptions, Reference, Store};
use moat_model::state::{Dockerfile, Workload};
use moat_model::{Secret, Service, ServiceId, Slug};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Component, Path, PathBuf};

/// File name of [`Recipe`] in a release.
const RECIPE: &str = "recipe.json";
/// A longer Dockerfile is not looked into.
const LONGEST: u64 = 4 << 20;
/// What to do where Buildah is missing.
pub const BUILDAH_HINT: &str = "apt-get install buildah (it builds Dockerfiles)";

/// What an image is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuildRequest {
    /// The service.
    pub service: ServiceId,
    /// Its slug.
    pub slug: Slug,
    /// Its Dockerfile.
    pub dockerfile: Dockerfile,
    /// `user:password` of the registry of the images it builds on.
    pub credential: Option<Secret>,
    /// Everything else the build is made of.
    pub build_fingerprint: String,
    /// Build arguments, for those that it asks for.
    pub env: BTreeMap<String, Secret>,
}

impl ImageBuildRequest {
    /// What a service's image is built from; `None` for what is not built so.
    pub fn of(service: &Service) -> Option<Self> {
        let Workload::Image(image) = &service.workload else { return None };
        Some(Self {
            service: service.id.clone(),
            slug: service.slug.clone(),
            dockerfile: image.dockerfile()?.clone(),
            credential: image.credential.clone(),
            build_fingerprint: service.build_fingerprint.clone(),
            env: service.build_env.clone(),
        })
    }
}

impl LinuxEngine {
    /// Copies the source and pulls what the Dockerfile builds on, unless the very same was built and its image is still here:
    /// then that image's id is the release, and `cached`. Otherwise run an instance with `Purpose::Build` and this release, and
    /// call [`LinuxEngine::seal_image`] once that has exited with 0. Says meanwhile how far it is, in words.
    pub async fn prepare_image(&self, request: ImageBuildRequest, tell: impl Fn(String) + Send + 'static) -> Result<Release, EngineError> {
        self.bringing(move |inner, cancel| prepare(inner, &request, cancel, tell)).await
    }

    /// Takes the image that a build has left into the store: its id, which instances name as their release.
    pub async fn seal_image(&self, name: &str) -> Result<String, EngineError> {
        let name = name.to_owned();
        self.bringing(move |inner, cancel| seal(inner, &name, cancel)).await
    }
}

fn prepare(inner: &Inner, request: &ImageBuildRequest, cancel: &Cancel, tell: impl Fn(String)) -> Result<Release, EngineError> {
    let doing = format!("prepare `{}`", request.slug);
    let dockerfile = &request.dockerfile;
    if toolchain::program("buildah").is_none() {
        return Err(EngineError::new(doing, "`buildah` is not installed: without it no Dockerfile is built").hint(BUILDAH_HINT));
    }
    let parts = [dockerfile.root_dir.to_string_lossy(), dockerfile.file.to_string_lossy(), dockerfile.context.to_string_lossy()];
    let made_of: Vec<&str> =
        ["dockerfile", &request.build_fingerprint].into_iter().chain(parts.iter().map(std::borrow::Cow::as_ref)).collect();
    let release = release::prepare_copy(inner, &request.service, &request.slug, &dockerfile.source, &dockerfile.root_dir, &made_of, 0)?;
    let folder = inner.paths.releases().join(&release.name);
    if release.cached {
        let built = built(&folder);
        if let Some(id) = &built
            && images::store(inner).and_then(|store| store.image(id)).is_ok()
        {
            return Ok(Release { name: id.to_string(), cached: true, commit: release.commit });
        }
        // Its image was removed since.
        tree::remove(&folder).map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))?;
        return prepare(inner, request, cancel, tell);
    }
    let source = folder.join("project/src");
    let (file, text) = found_file(&source, dockerfile).map_err(|why| {
        EngineError::new(&doing, why).hint("write `dockerfilePath: …`, relative to `rootDir`; files that git ignores are not there")
    })?;
    let context = found_folder(&source, dockerfile)
        .map_err(|why| EngineError::new(&doing, why).hint("write `dockerContext: …`, relative to `rootDir`"))?;
    let scan = dockerfile::scan(&text, &request.env, std::env::consts::ARCH);
    let bases = pull_bases(inner, request, &scan, cancel, tell)?;
    let recipe = Recipe { file, context, args: scan.args, complete: scan.complete && bases.len() == scan.images.len(), bases };
    files::write_json(&folder.join(RECIPE), &recipe).map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))?;
    Ok(release)
}

/// The image that a finished release is.
pub fn built(folder: &Path) -> Option<ImageId> {
    fs::read_to_string(folder.join(SEALED)).ok()?.parse().ok()
}

/// The recipe of a release that is to be built.
pub fn of_release(inner: &Inner, name: &str) -> Result<Recipe, EngineError> {
    let path = inner.paths.releases().join(name).join(RECIPE);
    let fail = |why: String| EngineError::new(format!("build `{name}`"), why);
    files::read_json(&path).map_err(|error| fail(error.to_string()))?.ok_or_else(|| fail("it is no Dockerfile's release".to_owned()))
}

/// Joins without leaving the source: `..` leads to its root at most.
fn below(base: &Path, path: &Path) -> Option<PathBuf> {
    let mut joined = base.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => joined.push(name),
            Component::ParentDir => {
                if !joined.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(joined)
}

/// Both places where a path may be, the likelier first.
fn places(dockerfile: &Dockerfile, path: &Path) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> =
        [dockerfile.root_dir.as_path(), Path::new("")].into_iter().filter_map(|base| below(base, path)).collect();
    places.dedup();
    places
}

fn found_file(source: &Path, dockerfile: &Dockerfile) -> Result<(PathBuf, String), String> {
    let missing = || format!("there is no Dockerfile `{}` in the source", dockerfile.root_dir.join(&dockerfile.file).display());
    let root = File::open(source).map_err(|error| error.to_string())?;
    for path in places(dockerfile, &dockerfile.file) {
        // A link in the source is followed as it would be inside, and not out of it.
        let Ok(handle) = sys::open_in_root(root.as_fd(), &path, false) else { continue };
        let read = || -> io::Result<Option<String>> {
            let file = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
            if !file.metadata()?.is_file() {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.take(LONGEST).read_to_end(&mut bytes)?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        };
        if let Some(text) = read().map_err(|error| format!("`{}`: {error}", path.display()))? {
            return Ok((path, text));
        }
    }
    Err(missing())
}

fn found_folder(source: &Path, dockerfile: &Dockerfile) -> Result<PathBuf, String> {
    let root = File::open(source).map_err(|error| error.to_string())?;
    let is_folder = |path: &PathBuf| {
        path.as_os_str().is_empty()
            || sys::open_in_root(root.as_fd(), path, false)
                .is_ok_and(|handle| fs::metadata(format!("/proc/self/fd/{}", handle.as_raw_fd())).is_ok_and(|about| about.is_dir()))
    };
    places(dockerfile, &dockerfile.context)
        .into_iter()
        .find(is_folder)
        .ok_or_else(|| format!("there is no folder `{}` in the source", dockerfile.root_dir.join(&dockerfile.context).display()))
}

/// Pulls the images that a Dockerfile builds on into a layout: names in the layout and of the images. What is no reference is
/// left to Buildah, which says so in the build's log.
fn pull_bases(
    inner: &Inner,
    request: &ImageBuildRequest,
    scan: &Scan,
    cancel: &Cancel,
    tell: impl Fn(String),
) -> Result<Vec<(String, String)>, EngineError> {
    let doing = format!("pull what `{}` is built on", request.slug);
    let references: Vec<Reference> = scan.images.iter().filter_map(|image| image.parse().ok()).collect();
    let owner = credential_registry(&references);
    let mut wanted = Vec::new();
    let mut bases = Vec::new();
    for (index, reference) in references.iter().enumerate() {
        let credential = request.credential.as_ref().filter(|_| owner.as_deref() == Some(reference.registry()));
        let credentials = credential.map(images::credentials).transpose().map_err(|why| EngineError::new(&doing, why))?;
        let (mirrors, cancel) = (inner.config.mirrors.clone(), cancel.clone());
        let options = PullOptions { credentials, mirrors, cancel, ..PullOptions::default() };
        let name = format!("base{index}");
        bases.push((name.clone(), reference.to_string()));
        wanted.push(LayoutImage { name, reference: reference.clone(), options });
    }
    let folder = inner.paths.bases(&request.service);
    fs::create_dir_all(&folder).map_err(|error| EngineError::new(&doing, format!("`{}`: {error}", folder.display())).caused_by(error))?;
    let mut teller = Teller::new(tell);
    moat_image::pull_layout(&folder, &wanted, &mut |progress| teller.take(&progress))
        .map_err(|error| images::image_error(&doing, error))?;
    Ok(bases)
}

/// The registry that a credential is for: the only one besides Docker Hub, or Docker Hub where there is no other. With more
/// than one, nobody is shown it.
fn credential_registry(references: &[Reference]) -> Option<String> {
    let registries: BTreeSet<&str> = references.iter().map(Reference::registry).collect();
    let mut others = registries.iter().filter(|registry| **registry != "docker.io");
    match (others.next(), others.next()) {
        (Some(only), None) => Some((*only).to_owned()),
        (Some(_), Some(_)) => None,
        (None, _) => registries.first().map(|hub| (*hub).to_owned()),
    }
}

fn seal(inner: &Inner, name: &str, cancel: &Cancel) -> Result<String, EngineError> {
    let folder = release::checked(inner, name)?;
    let doing = format!("take the image of `{name}`");
    let fail = |error: io::Error| EngineError::new(&doing, error.to_string()).caused_by(error);
    let left = folder.join("project").join(OUTPUT);
    // The build wrote here as it liked; a link could lead anywhere.
    if !fs::symlink_metadata(&left).is_ok_and(|about| about.is_dir() || about.is_file()) {
        return Err(EngineError::new(doing, "the build has left no image"));
    }
    let store: Store = images::store(inner).map_err(|error| images::image_error(&doing, error))?;
    let loaded = store
        .load(&left, &LoadOptions { cancel: cancel.clone(), ..LoadOptions::default() }, &mut |_| {})
        .map_err(|error| images::image_error(&doing, error))?;
    let [(_, id)] = loaded.as_slice() else { return Err(EngineError::new(doing, "the build has left more than one image")) };
    release::finish(&folder, id.to_string().as_bytes()).map_err(fail)?;
    // All that is needed of it is in the store.
    tree::remove(&folder.join("project")).map_err(fail)?;
    Ok(id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_source() {
        for (root_dir, path, want) in [
            ("", "./Dockerfile", vec!["Dockerfile"]),
            ("api", "Dockerfile", vec!["api/Dockerfile", "Dockerfile"]),
            ("api", "..", vec![""]),
            ("api", "../web/Dockerfile", vec!["web/Dockerfile"]),
            ("", "../x", vec![]),
            ("api", "../../../etc/passwd", vec![]),
            ("", "/docker/prod", vec!["docker/prod"]),
        ] {
            let dockerfile =
                Dockerfile { source: PathBuf::new().into(), root_dir: root_dir.into(), file: PathBuf::new(), context: PathBuf::new() };
            let want: Vec<PathBuf> = want.into_iter().map(PathBuf::from).collect();
            assert_eq!(places(&dockerfile, Path::new(path)), want, "{root_dir} {path}");
        }
    }

    #[test]
    fn a_credential_is_shown_to_one_registry() {
        for (images, want) in
            [("python:3", Some("docker.io")), ("python:3 ghcr.io/a/b", Some("ghcr.io")), ("ghcr.io/a/b quay.io/a/b", None), ("", None)]
        {
            let references: Vec<Reference> = images.split_whitespace().map(|image| image.parse().unwrap()).collect();
            assert_eq!(credential_registry(&references).as_deref(), want, "{images}");
        }
    }
}
