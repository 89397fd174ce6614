//! Static sites: their builds, and the folder that becomes a release.
//!
//! A build runs as every native one does, with each language of this machine at hand. What it leaves in `staticPublishPath`
//! is copied to `STATE/releases/NAME/site` ([`publish`]); the rest goes, unless a pre-deploy command still needs it.
//!
//! Invariant: the folder of a sealed release is never written again, and nothing in it leads out of it.

mod publish;

use crate::engine::{Inner, LinuxEngine};
use crate::lock::Lock;
use crate::lower::sandbox::{UID, VENV};
use crate::release::{self, BuildRequest, Prepared, SEALED};
use crate::toolchain::Toolchain;
use crate::tree;
use moat_engine::EngineError;
use moat_model::state::{NativeWorkload, Source, StaticWorkload, Workload};
use moat_model::{NativeRuntime, Purpose, Secret, Service, ServiceId, Slug};
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The published files of a release.
const SITE: &str = "site";
/// Languages that every site's build finds, where this machine has them.
const AT_HAND: [NativeRuntime; 4] = [NativeRuntime::Node, NativeRuntime::Python, NativeRuntime::Ruby, NativeRuntime::Go];

/// What a site's release is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRequest {
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
    /// Versions of languages asked for.
    pub versions: BTreeMap<NativeRuntime, String>,
    /// Its commands.
    pub commands: Vec<String>,
    /// Variables of the build.
    pub env: BTreeMap<String, Secret>,
}

impl SiteRequest {
    /// What a service's site is made of; `None` for what is no site.
    pub fn of(service: &Service) -> Option<Self> {
        let Workload::Static(site) = &service.workload else { return None };
        Some(Self {
            service: service.id.clone(),
            slug: service.slug.clone(),
            source: site.source.clone(),
            root_dir: site.root_dir.clone(),
            build_fingerprint: service.build_fingerprint.clone(),
            versions: site.versions.clone(),
            commands: [&site.build_command, &site.pre_deploy_command].into_iter().flatten().cloned().collect(),
            env: service.build_env.clone(),
        })
    }
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Files, links aside.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether there is an `index.html` at the top.
    pub index: bool,
    /// Symbolic links that lead out of the folder, which were left out.
    pub left_out: Vec<PathBuf>,
}

impl LinuxEngine {
    /// Copies a site's source, unless a finished release of the very same exists; as
    /// [`prepare_release`](Self::prepare_release) does, over the language that its commands speak of.
    pub async fn prepare_site(&self, request: SiteRequest, tell: impl Fn(String) + Send + 'static) -> Result<Prepared, EngineError> {
        self.bringing(move |inner, cancel| {
            let SiteRequest { service, slug, source, root_dir, build_fingerprint, versions, commands, env } = request;
            if commands.is_empty() {
                return release::prepare_copy(inner, &service, &slug, &source, &root_dir, &[&build_fingerprint, SITE], UID)
                    .map(Prepared::from);
            }
            let runtime = language(&commands, &versions, |runtime| inner.toolchain(runtime, None).is_ok());
            let version = versions.get(&runtime).cloned();
            release::prepare(
                inner,
                &BuildRequest { service, slug, source, root_dir, build_fingerprint, runtime, version, commands, env },
                cancel,
                tell,
            )
        })
        .await
    }

    /// Finishes a site's release: what its build left to publish becomes the folder that is served. Fails when there is no
    /// such folder, or nothing in it, and says what there is instead.
    pub async fn seal_site(&self, name: &str, site: &StaticWorkload) -> Result<Published, EngineError> {
        let (name, site) = (name.to_owned(), site.clone());
        self.blocking(move |inner| seal(inner, &name, &site)).await
    }

    /// The folder of a sealed release's published files.
    pub async fn site_folder(&self, name: &str) -> Result<PathBuf, EngineError> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let folder = release::checked(inner, &name)?;
            let site = folder.join(SITE);
            if folder.join(SEALED).exists() && site.is_dir() {
                show(&site).map_err(|error| {
                    EngineError::new(format!("serve the release `{name}`"), format!("`{}`: {error}", site.display())).caused_by(error)
                })?;
                Ok(site)
            } else {
                Err(EngineError::new(format!("serve the release `{name}`"), "its files are not there"))
            }
        })
        .await
    }
}

/// Has others enter the folders of a site that was published where only its owner could.
fn show(folder: &Path) -> io::Result<()> {
    if fs::symlink_metadata(folder)?.permissions().mode() & 0o005 == 0o005 {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            show(&entry.path())?;
        }
    }
    // Last: where this is cut off, it is done again.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn seal(inner: &Inner, name: &str, site: &StaticWorkload) -> Result<Published, EngineError> {
    let folder = release::checked(inner, name)?;
    let doing = || format!("publish `{}`", site.publish_path.display());
    let fail = |error: io::Error| {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let made = EngineError::new(doing(), error.to_string()).caused_by(error);
        if full { made.hint("free some space on the disk of the state folder") } else { made }
    };
    let fresh = folder.join("site.new");
    tree::remove(&fresh).map_err(fail)?;
    let published = publish::publish(&folder, &site.root_dir, &site.publish_path, &fresh, site.build_command.is_some())
        .map_err(|why| why.into_error(doing()))?;
    tree::remove(&folder.join(SITE)).map_err(fail)?;
    fs::rename(&fresh, folder.join(SITE)).map_err(fail)?;
    if site.pre_deploy_command.is_none() {
        tree::remove(&folder.join("project")).map_err(fail)?;
    }
    release::finish(&folder, b"").map_err(fail)?;
    Ok(published)
}

/// The language that commands speak of: one whose version is asked for, else that of a program they call, else the first
/// that is here.
fn language(commands: &[String], versions: &BTreeMap<NativeRuntime, String>, here: impl Fn(NativeRuntime) -> bool) -> NativeRuntime {
    const WORDS: [(NativeRuntime, &[&str]); 5] = [
        (NativeRuntime::Node, &["npm", "npx", "node", "yarn", "pnpm", "bun", "bunx", "corepack"]),
        (NativeRuntime::Python, &["pip", "pip3", "python", "python3", "poetry", "uv", "uvx", "pipenv", "mkdocs", "sphinx-build"]),
        (NativeRuntime::Ruby, &["bundle", "gem", "ruby", "jekyll", "rake"]),
        (NativeRuntime::Go, &["go"]),
        (NativeRuntime::Rust, &["cargo"]),
    ];
    let words: Vec<&str> =
        commands.iter().flat_map(|command| command.split(|letter: char| !(letter.is_alphanumeric() || "-_.".contains(letter)))).collect();
    let called = WORDS.iter().filter(|(_, programs)| words.iter().any(|word| programs.contains(word))).map(|(runtime, _)| *runtime);
    let mut called: Vec<NativeRuntime> = called.collect();
    called.sort_by_key(|runtime| !versions.contains_key(runtime));
    let asked = versions.keys().next().copied();
    called.first().copied().or(asked).or_else(|| AT_HAND.into_iter().find(|runtime| here(*runtime))).unwrap_or(NativeRuntime::Node)
}

/// The instance of a site's build or pre-deploy command, as the native program that it is; `None` for every other instance.
pub fn as_program(inner: &Inner, spec: &InstanceSpec) -> Result<Option<InstanceSpec>, EngineError> {
    let Workload::Static(site) = &spec.workload else { return Ok(None) };
    let doing = || format!("start `{}`", spec.id);
    if !matches!(spec.purpose, Purpose::Build | Purpose::PreDeploy) {
        return Err(EngineError::new(doing(), "a static site has no instances: the ingress serves its files"));
    }
    let name = spec.release.as_deref().ok_or_else(|| EngineError::new(doing(), "the instance names no release"))?;
    let lock = Lock::read(&release::checked(inner, name)?)?.unwrap_or_default();
    let runtime = lock.runtime.unwrap_or(NativeRuntime::Node);
    let native = NativeWorkload {
        runtime,
        version: site.versions.get(&runtime).cloned(),
        source: site.source.clone(),
        root_dir: site.root_dir.clone(),
        build_command: site.build_command.as_deref().map(|command| with_environment(command, true)),
        pre_deploy_command: site.pre_deploy_command.as_deref().map(|command| with_environment(command, false)),
        initial_deploy_hook: None,
        start_command: String::new(),
        schedule: None,
        disk: None,
    };
    Ok(Some(InstanceSpec { workload: Workload::Native(native), ..spec.clone() }))
}

/// Shows a site's build the other languages of this machine too: bundlers call Python, generators of Python call Node.
pub fn add_languages(inner: &Inner, site: &InstanceSpec, toolchain: &mut Toolchain) {
    let Workload::Static(workload) = &site.workload else { return };
    for runtime in AT_HAND {
        let version = workload.versions.get(&runtime).map(String::as_str);
        // One that is missing is missed by the command that calls it.
        let Ok(found) = inner.toolchain(runtime, version) else { continue };
        if found.program == toolchain.program {
            continue;
        }
        let new = found.trees.into_iter().filter(|tree| !covered(&toolchain.trees, tree)).collect::<Vec<_>>();
        toolchain.trees.extend(new);
        toolchain.path.extend(found.path);
        toolchain.others.extend(found.names.into_iter().map(|name| (name, found.program.clone())));
        for (key, value) in found.env {
            toolchain.env.entry(key).or_insert(value);
        }
    }
}

/// A command that finds the packages of Python that a build of this site installs: in an environment of their own, which is
/// made where the source lists packages or the command calls `pip`.
fn with_environment(command: &str, build: bool) -> String {
    let wanted = if !build {
        "false".to_owned()
    } else if command.contains("pip") {
        "command -v python3 >/dev/null".to_owned()
    } else {
        "command -v python3 >/dev/null && { test -e requirements.txt || test -e pyproject.toml; }".to_owned()
    };
    let environment = crate::venv::make(VENV);
    format!(
        "if {wanted}; then\n{environment}\nfi\n\
         if test -x {VENV}/bin/python; then export VIRTUAL_ENV={VENV} PATH={VENV}/bin:\"$PATH\"; fi\n{command}"
    )
}

fn covered(trees: &[PathBuf], tree: &Path) -> bool {
    trees.iter().any(|known| tree.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_of_commands() {
        use NativeRuntime::{Go, Node, Python, Ruby};
        for (command, versions, here, want) in [
            ("npm ci && npm run build", &[][..], &[][..], Node),
            ("yarn build", &[], &[Python], Node),
            ("pip install mkdocs && mkdocs build", &[], &[Node], Python),
            ("python3 -m pip install x; npm run build", &[], &[], Node),
            ("python3 -m pip install x; npm run build", &[Python], &[], Python),
            ("bundle exec jekyll build", &[], &[], Ruby),
            ("./nodes.sh pipes", &[], &[Python], Python),
            ("hugo", &[], &[Python, Node], Node),
            ("hugo", &[Go], &[Node], Go),
            ("make", &[], &[], Node),
        ] {
            let versions = versions.iter().map(|runtime| (*runtime, "1".to_owned())).collect();
            assert_eq!(language(&[command.to_owned()], &versions, |runtime| here.contains(&runtime)), want, "{command}");
        }
    }

    #[test]
    fn commands_of_python_get_an_environment() {
        assert!(with_environment("pip install mkdocs", true).starts_with("if command -v python3 >/dev/null; then\nif ! test -x"));
        assert!(with_environment("mkdocs build", true).contains("test -e requirements.txt"));
        assert!(with_environment("pip list", false).starts_with("if false;"));
        assert!(with_environment("make", true).ends_with("\nmake"));
    }
}
