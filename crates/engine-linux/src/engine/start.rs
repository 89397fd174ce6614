//! `StartInstance`: folders, toolchain and lowering; then the monitor, the network, and the word to go on.
//!
//! Invariant: the program's first instruction comes after its network is attached and closed by the policy in force.

use super::folder::{self, FACTS, Facts};
use super::{Inner, LinuxEngine, network_error};
use crate::certificate;
use crate::datastore;
use crate::images;
use crate::lock::{self, Lock};
use crate::lower::sandbox::{self, IDS, Input, Places, UID};
use crate::monitor::files::{self, Job};
use crate::monitor::{GO, READY, RUNNING, VERB};
use crate::ranges;
use crate::recipe;
use crate::release;
use crate::site;
use crate::toolchain::Toolchain;
use crate::tools;
use moat_engine::{EngineError, StepOutcome};
use moat_model::state::{ExitReport, InstancePhase, KeyValueWorkload, Persistence, Workload};
use moat_model::{InstanceId, Purpose, Slug};
use moat_planner::plan::InstanceSpec;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a monitor may take to make its namespaces on a busy machine.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// Seconds between SIGTERM and SIGKILL when a monitor is stopped by hand.
const GRACE: u32 = 30;
/// How many logs of ended instances of one service are kept.
const LOGS_KEPT: usize = 20;
/// How many bytes they may have together.
const LOG_BYTES_KEPT: u64 = 128 << 20;

impl LinuxEngine {
    pub(super) async fn start(&self, spec: &InstanceSpec) -> Result<StepOutcome, EngineError> {
        if let Some(look) = folder::look(&self.inner, &spec.id)? {
            let half_made = look.facts.is_none() || !look.began && matches!(look.phase, InstancePhase::Lost | InstancePhase::Exited(_));
            if !half_made {
                return Ok(StepOutcome::Unchanged);
            }
            self.remove(&spec.id).await?;
        }
        let _groups = self.inner.groups.read().await;
        self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.id.clone());
        let started = self.start_new(spec).await;
        self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner).remove(&spec.id);
        if let Err(error) = started {
            if let Err(cleaning) = self.remove(&spec.id).await {
                tracing::warn!(instance = %spec.id, %cleaning, "what a failed start left could not be removed");
            }
            return Err(error);
        }
        Ok(StepOutcome::Changed)
    }

    async fn start_new(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        let doing = format!("start `{}`", spec.id);
        let fail = |error: io::Error| EngineError::new(&doing, error.to_string()).caused_by(error);
        let dir = self.inner.paths.instance(spec.id.as_str());
        let owned = spec.clone();
        self.blocking(move |inner| write_folder(inner, &owned)).await?;

        let (mut mine, theirs) =
            UnixStream::pair().map_err(fail).and_then(|(mine, theirs)| Ok((mine, theirs.into_std().map_err(fail)?)))?;
        theirs.set_nonblocking(false).map_err(fail)?;
        let mut child = tokio::process::Command::new(&self.inner.config.own_exe)
            .arg(VERB)
            .arg(&dir)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(fail)?;
        let pid = child.id().ok_or_else(|| EngineError::new(&doing, "the monitor ended at once"))?;
        // Only so that no dead process stays behind; nothing waits for this.
        tokio::spawn(async move { child.wait().await });

        let mut word = [0; READY.len()];
        match tokio::time::timeout(READY_WITHIN, mine.read_exact(&mut word)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(self.told(spec, &doing, "the monitor ended before it was ready")),
            Err(_) => return Err(EngineError::new(&doing, "the monitor did not get ready in a minute")),
        }
        let attached = self.inner.network.attach(pid, spec.address, &spec.link).await;
        attached.map_err(|error| network_error(&format!("attach `{}` to the private network", spec.id), error))?;
        mine.write_all(GO).await.map_err(fail)?;
        let mut word = [0; RUNNING.len()];
        match mine.read_exact(&mut word).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.told(spec, &doing, "the monitor ended before the program ran")),
        }
    }

    /// The error of a start that failed, in the monitor's own words where it left some.
    fn told(&self, spec: &InstanceSpec, doing: &str, otherwise: &str) -> EngineError {
        let path = self.inner.paths.instance(spec.id.as_str()).join(files::STATUS);
        let report: Option<ExitReport> = files::read_json(&path).ok().flatten();
        EngineError::new(doing, report.and_then(|report| report.error).unwrap_or_else(|| otherwise.to_owned()))
    }
}

/// Everything the monitor reads, in the instance's folder; the folders of the host that the sandbox shows.
fn write_folder(inner: &Inner, spec: &InstanceSpec) -> Result<(), EngineError> {
    let program = site::as_program(inner, spec)?;
    let (site, spec) = (program.as_ref().map(|_| spec), program.as_ref().unwrap_or(spec));
    let doing = format!("start `{}`", spec.id);
    let fail = |path: &Path, error: io::Error| EngineError::new(&doing, format!("`{}`: {error}", path.display())).caused_by(error);
    let first_id = inner.ranges.first(inner.paths.state(), &spec.service)?;
    let lock = match (&spec.workload, &spec.release) {
        (Workload::Native(_), Some(release)) => Lock::read(&release::checked(inner, release)?)?,
        _ => None,
    };
    let language = lock.as_ref().and_then(|lock| lock.image.as_ref()).map(|image| images::language(inner, image)).transpose()?;
    let (mut toolchain, image) = match (&spec.workload, &language) {
        (Workload::Native(_), Some(language)) => (language.toolchain.clone(), None),
        // `RUSTUP_TOOLCHAIN=stable` and the like name what rustup has; every other version is checked.
        (Workload::Native(native), None) => (lock::toolchain(inner, native.runtime, native.version.as_deref(), lock.as_ref())?, None),
        (Workload::Image(_), _) if spec.purpose == Purpose::Build => (Toolchain::default(), None),
        (Workload::Image(_), _) => (Toolchain::default(), Some(images::facts(inner, spec)?)),
        (Workload::KeyValue(_) | Workload::Postgres(_) | Workload::Static(_), _) => datastore::server_of(inner, spec)?,
    };
    if let (Some(site), None) = (site, &language) {
        site::add_languages(inner, site, &mut toolchain);
    }
    let recipe = match (&spec.workload, &spec.release) {
        (Workload::Image(_), Some(release)) if spec.purpose == Purpose::Build => Some(recipe::of_release(inner, release)?),
        _ => None,
    };
    // Whoever builds an image is root of the service's range.
    let tool = spec.purpose == Purpose::Build && spec.release.as_deref().is_some_and(tools::is_tool);
    let user = first_id + if recipe.is_some() { 0 } else { image.as_ref().map_or(UID, |image| image.uid) };
    let places = places(inner, spec, lock.as_ref())?;
    let machine = language.as_ref().map(|language| language.machine(&inner.machine));
    let exclusive = places.disk.clone().or_else(|| places.data.clone());
    if let Some(folder) = &exclusive {
        alone(inner, &spec.id, folder)?;
    }
    let sandbox = sandbox::lower(&Input {
        instance: spec,
        machine: machine.as_ref().unwrap_or(&inner.machine),
        places: &places,
        first_id,
        toolchain: &toolchain,
        image: image.as_ref().or(language.as_ref().map(|language| &language.facts)),
        recipe: recipe.as_ref(),
        pass_env: &inner.pass_env,
    })
    .map_err(|why| EngineError::new(&doing, why))?;

    let make = |path: &Path, mode: u32, owner: u32| own_folder(path, mode, owner).map_err(|error| fail(path, error));
    make(&places.scratch, 0o700, 0)?;
    make(&places.scratch.join("home"), 0o755, user)?;
    if spec.purpose == Purpose::Build {
        make(&places.scratch.join("tmp"), 0o1777, user)?;
        make(&places.cache, 0o700, user)?;
    }
    if let Some(project) = &places.project {
        make(&places.scratch.join("project"), 0o700, 0)?;
        if tool {
            // Whoever began it first may have been another service.
            make(project, 0o755, user)?;
        }
    }
    if let Some(folder) = &exclusive {
        data_folder(folder, first_id, user).map_err(|error| fail(folder, error))?;
    }
    let dir = inner.paths.instance(spec.id.as_str());
    make(&dir, 0o700, 0)?;
    let log = inner.paths.logs(&spec.slug).join(format!("{}.log", spec.id));
    forget_old_logs(inner, &spec.slug);
    let facts = Facts::of(spec, exclusive);
    let job = Job {
        id: spec.id.as_str().to_owned(),
        runtime: inner.runtime.clone(),
        runtime_root: inner.paths.runtime_root(),
        cgroup: places.cgroup.clone(),
        log,
        netns_dir: inner.paths.netns(),
        root: places.root.clone(),
        grace_seconds: GRACE,
        stop_signal: image.as_ref().map(|image| image.stop_signal),
        limits: inner.machine.limits.is_some(),
        rootless: crate::rootless::inside(),
    };
    for folder in [files::BUNDLE, files::ROOTFS] {
        make(&dir.join(folder), 0o700, 0)?;
    }
    let write = |name: &str, done: io::Result<()>| done.map_err(|error| fail(&dir.join(name), error));
    write(FACTS, files::write_json(&dir.join(FACTS), &facts))?;
    write(files::JOB, files::write_json(&dir.join(files::JOB), &job))?;
    write(files::MOUNTS, files::write_json(&dir.join(files::MOUNTS), &sandbox.mounts))?;
    write(files::BUNDLE, files::write_json(&dir.join(files::BUNDLE).join("config.json"), &sandbox.oci))
}

fn places(inner: &Inner, spec: &InstanceSpec, lock: Option<&Lock>) -> Result<Places, EngineError> {
    let paths = &inner.paths;
    let image_build = matches!(spec.workload, Workload::Image(_)) && spec.purpose == Purpose::Build;
    let project = match (&spec.workload, &spec.release) {
        (Workload::Native(native), Some(release)) => Some(release::project_of(inner, release, spec.purpose, &native.root_dir)?),
        (Workload::Native(_), None) => return Err(EngineError::new(format!("start `{}`", spec.id), "the instance names no release")),
        (Workload::Image(_), Some(release)) if image_build => Some(release::project_of(inner, release, spec.purpose, Path::new(""))?),
        (Workload::Image(_) | Workload::KeyValue(_) | Workload::Postgres(_) | Workload::Static(_), _) => None,
    };
    let serves = spec.purpose == Purpose::Serve;
    let disk = spec.workload.disk().filter(|_| serves).map(|disk| paths.disk(&spec.service, &disk.name));
    let data = match &spec.workload {
        Workload::KeyValue(KeyValueWorkload { persistence: Persistence::JournalSnapshot | Persistence::Snapshot, .. }) => {
            Some(paths.data(&spec.service))
        }
        Workload::Postgres(_) => Some(paths.data(&spec.service)),
        Workload::KeyValue(_) | Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => None,
    };
    let identity = match &spec.workload {
        Workload::Postgres(_) => Some(certificate::of(&paths.certificate(&spec.service), &spec.slug)?),
        Workload::KeyValue(_) | Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => None,
    };
    Ok(Places {
        root: paths.root_point()?,
        project,
        scratch: paths.scratch(spec.id.as_str()),
        cache: if image_build {
            paths.build_storage(&spec.service)
        } else if spec.release.as_deref().is_some_and(tools::is_tool) {
            // What a service's builds left in its own is not for a tool that others are shown too.
            paths.scratch(spec.id.as_str()).join("cache")
        } else {
            paths.cache(&spec.slug)
        },
        disk,
        data,
        identity,
        bases: image_build.then(|| paths.bases(&spec.service)),
        tools: lock
            .map(|lock| lock.tools.iter().map(|name| (name.clone(), paths.releases().join(name).join("project"))).collect())
            .unwrap_or_default(),
        cgroup: paths.cgroup(spec.id.as_str()),
    })
}

/// Refuses a second writer of a disk or of a datastore's data.
fn alone(inner: &Inner, id: &InstanceId, exclusive: &Path) -> Result<(), EngineError> {
    for other in folder::ids(inner)? {
        let Some(look) = folder::look(inner, &other)? else { continue };
        let writes = look.facts.is_some_and(|facts| facts.exclusive.as_deref() == Some(exclusive));
        // An image's program outlives a monitor that was killed, until its instance is removed.
        let lives = look.program.is_some() || matches!(look.phase, InstancePhase::Running | InstancePhase::Preparing);
        if other != *id && writes && lives {
            let mut error = EngineError::new(format!("start `{id}`"), format!("`{}` is in use by `{other}`", exclusive.display()))
                .hint("stop that instance first");
            error.retry = true;
            return Err(error);
        }
    }
    Ok(())
}

/// Makes a disk or a datastore's folder, the user's own. What is in one that was made before belongs to whichever users of
/// the service made it, and stays so; only where it comes from another range of ids, every owner moves to this one.
fn data_folder(path: &Path, first_id: u32, user: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let owner = fs::symlink_metadata(path)?.uid();
    if owner == 0 {
        lchown(path, Some(user), Some(user))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    } else if !(first_id..first_id + IDS).contains(&owner) {
        move_to_range(path, first_id)
    } else {
        Ok(())
    }
}

fn move_to_range(path: &Path, first_id: u32) -> io::Result<()> {
    let about = fs::symlink_metadata(path)?;
    if about.is_dir() {
        for entry in fs::read_dir(path)? {
            move_to_range(&entry?.path(), first_id)?;
        }
    }
    let [uid, gid] = [about.uid(), about.gid()].map(|id| Some(first_id + ranges::offset(id)));
    lchown(path, uid, gid)?;
    // Giving a file away takes its set-user-id bits.
    if about.is_file() { fs::set_permissions(path, about.permissions()) } else { Ok(()) }
}

/// Makes a folder with its parents (0700); where it was made for another range of ids, what is in it changes hands.
fn own_folder(path: &Path, mode: u32, owner: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if fs::symlink_metadata(path)?.uid() != owner {
        crate::tree::give(path, owner)?;
    }
    Ok(())
}

/// Keeps the newest logs of a service, by number and by size; those of live instances always.
fn forget_old_logs(inner: &Inner, slug: &Slug) {
    let entries = fs::read_dir(inner.paths.logs(slug)).into_iter().flatten().flatten();
    let mut ended: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.path();
        let live = path.file_stem().is_some_and(|id| inner.paths.instances().join(id).exists());
        if path.extension().is_some_and(|extension| extension == "log") && !live {
            let about = entry.metadata().ok();
            let modified = about.as_ref().and_then(|about| about.modified().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
            let size = |about: Option<fs::Metadata>| about.map_or(0, |about| about.len());
            let bytes = size(about) + size(fs::metadata(rotated(&path)).ok());
            ended.push((modified, bytes, path));
        }
    }
    for path in surplus(ended) {
        // An old log that stays does no harm; the next start tries again.
        let _ = fs::remove_file(rotated(&path));
        let _ = fs::remove_file(path);
    }
}

fn rotated(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Which logs of ended instances are too many, before one more is begun: with times and bytes of each.
fn surplus(mut ended: Vec<(SystemTime, u64, PathBuf)>) -> Vec<PathBuf> {
    ended.sort();
    let mut kept = 0;
    let mut newest_first = ended.into_iter().rev().enumerate();
    let mut gone = Vec::new();
    for (index, (_, bytes, path)) in newest_first.by_ref() {
        kept += bytes;
        // What the instance wrote that ended last is what people look for.
        if index > 0 && (index + 1 >= LOGS_KEPT || kept > LOG_BYTES_KEPT) {
            gone.push(path);
            break;
        }
    }
    gone.extend(newest_first.map(|(_, (_, _, path))| path));
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn old_logs_are_forgotten_by_number_and_by_size() {
        const MIB: u64 = 1 << 20;
        let logs = |sizes: &[u64]| {
            let at = |i: usize| SystemTime::UNIX_EPOCH + Duration::from_secs(i as u64);
            sizes.iter().enumerate().map(|(i, bytes)| (at(i), *bytes, PathBuf::from(i.to_string()))).collect::<Vec<_>>()
        };
        let gone = |sizes: &[u64]| {
            let mut gone: Vec<usize> = surplus(logs(sizes)).iter().map(|path| path.to_str().unwrap().parse().unwrap()).collect();
            gone.sort_unstable();
            gone
        };
        assert_eq!(gone(&[]), [0; 0]);
        assert_eq!(gone(&[1; LOGS_KEPT - 1]), [0; 0]);
        assert_eq!(gone(&[1; LOGS_KEPT + 1]), [0, 1]);
        assert_eq!(gone(&[32 * MIB, 32 * MIB, 32 * MIB, 32 * MIB]), [0; 0]);
        assert_eq!(gone(&[1, 32 * MIB, 32 * MIB, 32 * MIB, 32 * MIB, 1]), [0, 1]);
        assert_eq!(gone(&[1, 900 * MIB]), [0], "the newest stays");
    }
}
