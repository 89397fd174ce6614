//! Published images: pulled into the store of the state folder, and looked into when an instance starts.
//!
//! A release of an image service is the id of its image, the digest of its configuration: whatever a tag is moved to later, a
//! release stays what it is.

use crate::engine::{Inner, LinuxEngine, folder};
use crate::lock::{self, Language};
use crate::lower::image::Facts;
use crate::lower::sandbox::{HOME, Machine, UID};
use crate::release::Release;
use crate::toolchain::Toolchain;
use moat_engine::EngineError;
use moat_image::{
    Cancel, CollectOptions, Credentials, ImageError, ImageId, LeftOut, Listed, LoadOptions, Owners, Progress, PullOptions, Reference, Store,
};
use moat_model::Secret;
use moat_planner::plan::InstanceSpec;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What came here within this time may be what a deploy is about to run.
const YOUNG: Duration = Duration::from_mins(10);
/// So long a pulled image stays without a release: a deploy that failed is tried again, and not with another download.
const PULLED_AGAIN: Duration = Duration::from_hours(24);
/// How often a pull says how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Which image to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// As written.
    pub image: String,
    /// `user:password` of its registry.
    pub credential: Option<Secret>,
}

/// Which images are removed that nothing is known to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// What deploys have left: images that were built, and those that were pulled a day ago. Those that were loaded stay, since no
    /// registry may have them.
    Left,
    /// All, and downloads that nobody continues now: by a person's word.
    All {
        /// Deploys are under way: what came in the last minutes stays, which one of them may be about to run.
        under_way: bool,
    },
}

impl LinuxEngine {
    /// Brings an image into the store, and says meanwhile how far it is, in words. What a pull that was cut off has brought
    /// is not brought again. Where it can't be pulled now and is here, that one is taken, and why is given as well.
    pub async fn pull_image(
        &self,
        request: PullRequest,
        tell: impl Fn(String) + Send + 'static,
    ) -> Result<(Release, Option<EngineError>), EngineError> {
        self.bringing(move |inner, cancel| {
            let (id, instead_of) = pull(inner, &request.image, request.credential.as_ref(), cancel, tell)?;
            Ok((Release { name: id.to_string(), cached: true, commit: None }, instead_of))
        })
        .await
    }

    /// Takes the images of a `docker save` archive or an OCI layout (a folder or an archive) into the store: their names. Says
    /// meanwhile how far it is, in words.
    pub async fn load_images(
        &self,
        path: PathBuf,
        tell: impl Fn(String) + Send + 'static,
    ) -> Result<Vec<(Option<String>, String)>, EngineError> {
        self.bringing(move |inner, cancel| {
            let options = LoadOptions { cancel: cancel.clone(), ..LoadOptions::default() };
            let mut teller = Teller::of_load(tell);
            let loaded = store(inner).and_then(|store| store.load(&path, &options, &mut |progress| teller.take(&progress)));
            let named = |(name, id): (Option<Reference>, ImageId)| (name.map(|name| name.to_string()), id.to_string());
            loaded
                .map(|list| list.into_iter().map(named).collect())
                .map_err(|error| image_error(format!("load `{}`", path.display()), error))
        })
        .await
    }

    /// Every image of the store.
    pub async fn images(&self) -> Result<Vec<Listed>, EngineError> {
        self.blocking(|inner| store(inner).and_then(|store| store.list()).map_err(|error| image_error("list the images", error))).await
    }

    /// What people should know of an image that a service is about to run, whose disk is mounted there; nothing of one that is not here.
    pub async fn image_notices(&self, id: &str, disk: Option<PathBuf>) -> Vec<String> {
        let id = id.to_owned();
        let looked = self.blocking(move |inner| {
            let id: ImageId = id.parse().map_err(|error: moat_image::DigestError| EngineError::new("look", error.to_string()))?;
            let image = store(inner).and_then(|store| store.image(&id)).map_err(|error| image_error("look into an image", error))?;
            Ok(not_kept(&image.config.volumes, disk.as_deref()).into_iter().chain(left_out(&image.left_out)).collect())
        });
        looked.await.unwrap_or_default()
    }

    /// Removes every image but those in `keep`, those that a live instance runs, and those that `prune` leaves; how many, and the bytes
    /// of their files and of downloads.
    pub async fn prune_images(&self, keep: &BTreeSet<String>, prune: Prune) -> Result<(usize, u64), EngineError> {
        let keep = keep.clone();
        self.blocking(move |inner| {
            let mut ids: BTreeSet<ImageId> = keep.iter().filter_map(|name| name.parse().ok()).collect();
            for id in folder::ids(inner)? {
                let release = folder::look(inner, &id)?.and_then(|look| look.facts).and_then(|facts| facts.release);
                ids.extend(release.and_then(|name| name.parse::<ImageId>().ok()));
            }
            ids.extend(lock::images(inner));
            let collected = store(inner).and_then(|store| {
                let options = match prune {
                    Prune::Left => {
                        let is_new = |image: &Listed| image.named.is_some_and(|at| at.elapsed().is_ok_and(|age| age < PULLED_AGAIN));
                        let stays = |image: &Listed| image.loaded || is_new(image);
                        ids.extend(store.list()?.into_iter().filter(stays).map(|image| image.id));
                        CollectOptions::default()
                    }
                    Prune::All { under_way } => {
                        CollectOptions { spare: if under_way { YOUNG } else { Duration::ZERO }, all_downloads: true }
                    }
                };
                store.collect_with(&ids, &options)
            });
            collected.map(|it| (it.images.len(), it.bytes)).map_err(|error| image_error("remove old images", error))
        })
        .await
    }
}

/// Brings an image into the store. Where it can't be pulled now and is here, that one is taken, and why is given as well: an
/// image that was loaded is in no registry, and one that was pulled before runs without its registry.
pub fn pull(
    inner: &Inner,
    image: &str,
    credential: Option<&Secret>,
    cancel: &Cancel,
    tell: impl Fn(String),
) -> Result<(ImageId, Option<EngineError>), EngineError> {
    let doing = format!("pull `{image}`");
    let reference: Reference = image.parse().map_err(|error: moat_image::ReferenceError| EngineError::new(&doing, error.to_string()))?;
    let credentials = credential.map(credentials).transpose().map_err(|why| EngineError::new(&doing, why))?;
    let options = PullOptions { credentials, mirrors: inner.config.mirrors.clone(), cancel: cancel.clone(), ..PullOptions::default() };
    let mut teller = Teller::new(tell);
    let store = store(inner).map_err(|error| image_error(&doing, error))?;
    match store.pull(&reference, &options, &mut |progress| teller.take(&progress)) {
        Ok(id) => Ok((id, None)),
        Err(error @ ImageError::Cancelled) => Err(image_error(&doing, error)),
        Err(error) => {
            let known = store.resolve(&reference).map_err(|error| image_error(&doing, error))?;
            let error = image_error(&doing, error);
            match known {
                Some(id) => Ok((id, Some(error))),
                None => Err(error),
            }
        }
    }
}

/// Folders that an image says hold data and that no disk holds.
fn not_kept(volumes: &[String], disk: Option<&Path>) -> Option<String> {
    let bare: Vec<&String> = volumes.iter().filter(|volume| !disk.is_some_and(|disk| Path::new(volume).starts_with(disk))).collect();
    let first = bare.first()?;
    let list: Vec<String> = bare.iter().map(|volume| format!("`{volume}`")).collect();
    let here = match disk {
        Some(disk) => format!("its disk, at `{}`, does not hold it", disk.display()),
        None => "it has no disk".to_owned(),
    };
    Some(format!(
        "its image keeps data in {}, and {here}: what is written there is lost at each deploy (`disk: {{name: data, mountPath: {first}, sizeGB: 1}}` keeps it)",
        list.join(", ")
    ))
}

/// What of an image was left out or changed.
fn left_out(what: &LeftOut) -> Option<String> {
    let parts = [
        (what.devices, "device nodes"),
        (what.kernel_places, "things below `/dev`, `/proc` or `/sys`"),
        (what.xattrs, "extended attributes"),
        (what.owners, "owners above 65535, now `nobody`"),
    ];
    let list: Vec<String> = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    (!list.is_empty()).then(|| format!("not all of its image has a place in a sandbox: {} were left out or changed", list.join(", ")))
}

/// The store of images.
pub fn store(inner: &Inner) -> Result<Store, ImageError> {
    let store = Store::open(&inner.paths.images())?;
    Ok(if crate::rootless::inside() { store.owned(Owners::From(crate::ranges::FIRST)) } else { store })
}

/// An error of the store in the engine's form, with all of its causes.
pub fn image_error(doing: impl Into<String>, error: ImageError) -> EngineError {
    let hint = error.hint();
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    let made = EngineError::new(doing.into(), message).caused_by(error);
    match hint {
        Some(hint) => made.hint(hint),
        None => made,
    }
}

/// What `user:password` stands for.
pub fn credentials(text: &Secret) -> Result<Credentials, &'static str> {
    let (user, password) = text.expose().split_once(':').ok_or("its registry's credential is not `user:password`")?;
    Ok(Credentials::basic(user, password))
}

/// What the image of an instance says.
pub fn facts(inner: &Inner, spec: &InstanceSpec) -> Result<Facts, EngineError> {
    let doing = format!("start `{}`", spec.id);
    let release = spec.release.as_deref().ok_or_else(|| EngineError::new(&doing, "the instance names no release"))?;
    let id: ImageId = release.parse().map_err(|error: moat_image::DigestError| EngineError::new(&doing, error.to_string()))?;
    let image = store(inner).and_then(|store| store.image(&id)).map_err(|error| image_error(&doing, error))?;
    let user = image.user(&image.config.user).map_err(|error| image_error(&doing, error))?;
    Ok(Facts {
        layers: image.layers,
        entrypoint: image.config.entrypoint,
        command: image.config.cmd,
        env: image.config.env,
        working_dir: image.config.working_dir,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        home: user.home,
        stop_signal: image.config.stop_signal.unwrap_or(Signal::SIGTERM as i32),
    })
}

/// An image that is a language's toolchain, looked into.
pub struct LanguageFacts {
    /// What of it a sandbox is told.
    pub toolchain: Toolchain,
    /// Its layers and its variables.
    pub facts: Facts,
    bash: bool,
}

/// What of this machine's `/etc` counts in an image too: certificates, and the package managers' system-wide settings.
const SHARED_ETC: [&str; 6] = [
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted",
    "/etc/pip.conf",
    "/etc/npmrc",
];

impl LanguageFacts {
    /// The machine as a sandbox over this image sees it.
    pub fn machine(&self, machine: &Machine) -> Machine {
        let etc = machine.etc.iter().filter(|path| SHARED_ETC.iter().any(|shared| path.as_path() == Path::new(shared))).cloned().collect();
        Machine { etc, bash: self.bash, usr_merge: BTreeMap::new(), ..machine.clone() }
    }
}

/// What the image of a language holds.
pub fn language(inner: &Inner, language: &Language) -> Result<LanguageFacts, EngineError> {
    let doing = format!("use `{}`", language.reference);
    let id: ImageId = language.image.parse().map_err(|error: moat_image::DigestError| EngineError::new(&doing, error.to_string()))?;
    let image = store(inner)
        .and_then(|store| store.image(&id))
        .map_err(|error| image_error(&doing, error).hint("`moat up` makes the service anew, with the image pulled again"))?;
    let has = |path: &str| image.read(path, 1).map(|found| found.is_some()).map_err(|error| image_error(&doing, error));
    let variable = |key: &str| image.config.env.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let mut path: Vec<PathBuf> =
        variable("PATH").unwrap_or_default().split(':').filter(|folder| folder.starts_with('/')).map(PathBuf::from).collect();
    if let Some(version) = variable("RUST_VERSION") {
        // rustup's own commands look for toolchains where `RUSTUP_HOME` says, which is the service's.
        let bin = format!("/usr/local/rustup/toolchains/{version}-{}-unknown-linux-gnu/bin", std::env::consts::ARCH);
        if has(&format!("{bin}/cargo"))? {
            path.insert(0, bin.into());
        }
    }
    let version = ["PYTHON_VERSION", "NODE_VERSION", "RUBY_VERSION", "GOLANG_VERSION", "RUST_VERSION", "ELIXIR_VERSION"];
    let version = version.into_iter().find_map(variable).or_else(|| language.reference.rsplit(':').next()).unwrap_or_default();
    let env = image.config.env.iter().filter(|(key, _)| !matches!(key.as_str(), "PATH" | "HOME")).cloned().collect();
    let toolchain = Toolchain { version: version.trim_start_matches('v').to_owned(), path, env, ..Toolchain::default() };
    let bash = has("/bin/bash")?;
    let facts = Facts {
        layers: image.layers.clone(),
        entrypoint: Vec::new(),
        command: Vec::new(),
        env: Vec::new(),
        working_dir: "/".to_owned(),
        uid: UID,
        gid: UID,
        groups: Vec::new(),
        home: HOME.to_owned(),
        stop_signal: Signal::SIGTERM as i32,
    };
    Ok(LanguageFacts { toolchain, facts, bash })
}

/// An image of a registry: the one that is here, if any.
pub fn known(inner: &Inner, reference: &str) -> Result<Option<ImageId>, EngineError> {
    let doing = format!("look for `{reference}`");
    let name: Reference = reference.parse().map_err(|error: moat_image::ReferenceError| EngineError::new(&doing, error.to_string()))?;
    store(inner).and_then(|store| store.resolve(&name)).map_err(|error| image_error(doing, error))
}

/// Turns the steps of a pull into a few lines.
pub struct Teller<F> {
    tell: F,
    loads: bool,
    last: Option<Instant>,
    downloads: BTreeMap<moat_image::Digest, (u64, u64)>,
    unpacking: BTreeMap<moat_image::Digest, (u64, u64)>,
}

impl<F: Fn(String)> Teller<F> {
    /// Tells by `tell`.
    pub fn new(tell: F) -> Self {
        Self { tell, loads: false, last: None, downloads: BTreeMap::new(), unpacking: BTreeMap::new() }
    }

    /// The same of a load, which downloads nothing.
    pub fn of_load(tell: F) -> Self {
        Self { loads: true, ..Self::new(tell) }
    }

    /// One step.
    pub fn take(&mut self, progress: &Progress) {
        match progress {
            Progress::Resolved { layers, .. } => {
                self.downloads = layers.iter().filter(|layer| !layer.present).map(|layer| (layer.layer, (0, layer.size))).collect();
                self.unpacking.clear();
            }
            Progress::Downloading { layer, done, total } => drop(self.downloads.insert(*layer, (*done, *total))),
            Progress::Unpacking { layer, done, total } => drop(self.unpacking.insert(*layer, (*done, *total))),
            Progress::Retrying { reason, .. } => return (self.tell)(format!("going on with the download: {reason}")),
            Progress::Ready { .. } | _ => {}
        }
        if self.last.is_some_and(|last| last.elapsed() < TELL_EVERY) || self.downloads.is_empty() {
            return;
        }
        self.last = Some(Instant::now());
        let sum = |parts: &BTreeMap<_, (u64, u64)>| parts.values().fold((0, 0), |(done, total), part| (done + part.0, total + part.1));
        let ((done, total), (unpacked, _)) = (sum(&self.downloads), sum(&self.unpacking));
        let megabytes = |bytes: u64| format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10);
        (self.tell)(if done < total && !self.loads {
            format!("pulling: {} of {} MB", megabytes(done), megabytes(total))
        } else {
            format!("unpacking: {} of {} MB", megabytes(unpacked), megabytes(total))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_image::{Digest, LayerStart};
    use std::sync::Mutex;

    #[test]
    fn what_an_image_keeps_is_lost_without_a_disk_at_it_or_above_it() {
        for (volumes, disk, says) in [
            (&["/data"][..], None, Some("keeps data in `/data`, and it has no disk")),
            (&["/data", "/var/log"], Some("/data"), Some("keeps data in `/var/log`, and its disk, at `/data`, does not hold it")),
            (&["/data"], Some("/data/deeper"), Some("mountPath: /data,")),
            (&["/database"], Some("/data"), Some("`/database`")),
            (&["/data", "/data/more"], Some("/data"), None),
            (&["/var/lib/x"], Some("/var/lib"), None),
            (&[], None, None),
        ] {
            let volumes: Vec<String> = volumes.iter().map(|&volume| volume.to_owned()).collect();
            let said = not_kept(&volumes, disk.map(Path::new));
            assert_eq!(said.is_some(), says.is_some(), "{volumes:?} {disk:?}: {said:?}");
            assert!(said.unwrap_or_default().contains(says.unwrap_or_default()), "{volumes:?} {disk:?}");
        }
        assert_eq!(left_out(&LeftOut::default()), None);
        let some = LeftOut { devices: 2, owners: 1, ..LeftOut::default() };
        assert!(left_out(&some).unwrap().contains("2 device nodes, 1 owners above 65535"), "{:?}", left_out(&some));
    }

    #[test]
    fn a_load_says_what_it_unpacks_and_a_pull_what_it_downloads() {
        let layer = Digest::of(b"x");
        for (loads, expect) in [(true, "unpacking: 1.0 of 4.0 MB"), (false, "pulling: 0.0 of 4.0 MB")] {
            let said = Mutex::new(Vec::new());
            let tell = |text| said.lock().unwrap().push(text);
            let mut teller = if loads { Teller::of_load(tell) } else { Teller::new(tell) };
            // Said at once, and then not again for a while.
            teller.last = Some(Instant::now());
            teller.take(&Progress::Resolved { image: layer, layers: vec![LayerStart { layer, size: 4_000_000, present: false }] });
            teller.last = None;
            teller.take(&Progress::Unpacking { layer, done: 1_000_000, total: 4_000_000 });
            teller.take(&Progress::Unpacking { layer, done: 2_000_000, total: 4_000_000 });
            assert_eq!(*said.lock().unwrap(), [expect]);
        }
    }
}
