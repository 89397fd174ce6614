//! Copies of what services keep, and putting one in the place of what is kept now.
//!
//! ```text
//! STATE/snapshots/disks/SERVICE/DISK/NAME    a copy of a disk, whole
//! STATE/snapshots/data/SERVICE/NAME          what a datastore had before something else was brought back
//! …/NAME.part                                one in the making
//! …/new.part ─▶ …/new.ready ─▶ its place     what is brought back: in the making, whole, in use
//! ```
//!
//! Invariants: a kill at any moment leaves the old or the new content in its place, once [`LinuxEngine::settle_snapshots`] ran; what
//! was replaced is kept as a snapshot; a copy never takes the last room of the disk.

mod copy;
mod install;

use crate::engine::{Inner, LinuxEngine, folder};
use crate::{cgroup, tree};
use copy::Copy;
use moat_engine::EngineError;
use moat_model::state::{InstancePhase, KeyValueWorkload, Persistence, Workload};
use moat_model::{InstanceId, Service, ServiceId};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a service may stand still for a copy: well below what a health check forgives.
const STANDS_STILL: Duration = Duration::from_secs(10);
/// What is being brought back.
const NEW: &str = "new.part";
/// The same once it is whole.
const READY: &str = "new.ready";
/// Room that copies leave: a twentieth of the file system, and no more than this.
const MOST_ROOM_LEFT: u64 = 1 << 30;

/// A folder that a service keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// A disk.
    Disk {
        /// Whose.
        service: ServiceId,
        /// Its name.
        name: String,
    },
    /// A datastore's data.
    Data {
        /// Whose.
        service: ServiceId,
    },
}

impl Kept {
    /// What a service keeps, if anything.
    pub fn of(service: &Service) -> Option<Self> {
        let data = || Some(Self::Data { service: service.id.clone() });
        match &service.workload {
            Workload::Postgres(_)
            | Workload::KeyValue(KeyValueWorkload { persistence: Persistence::JournalSnapshot | Persistence::Snapshot, .. }) => data(),
            Workload::KeyValue(KeyValueWorkload { persistence: Persistence::Off, .. }) => None,
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => {
                let disk = service.workload.disk()?;
                Some(Self::Disk { service: service.id.clone(), name: disk.name.clone() })
            }
        }
    }

    /// Whose it is.
    pub const fn service(&self) -> &ServiceId {
        match self {
            Self::Disk { service, .. } | Self::Data { service } => service,
        }
    }

    /// Its path below the state folder.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Disk { service, name } => Path::new("disks").join(service.as_str()).join(name),
            Self::Data { service } => Path::new("data").join(service.as_str()),
        }
    }
}

/// A copy that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// As it was called.
    pub name: String,
    /// What it takes, not counting that it may share blocks with others.
    pub bytes: u64,
}

/// Something brought back, in the place of what is kept now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// What.
    pub kept: Kept,
    /// The snapshot that the present content becomes.
    pub aside: String,
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let (doing, path) = (doing.to_owned(), path.display().to_string());
    move |error| EngineError::new(doing, format!("`{path}`: {error}")).caused_by(error)
}

impl LinuxEngine {
    /// The folder that something kept is in.
    pub fn kept_folder(&self, kept: &Kept) -> PathBuf {
        self.inner.paths.state().join(kept.path())
    }

    /// The id of this machine that a service's id 0 is.
    pub fn first_id(&self, service: &ServiceId) -> Result<u32, EngineError> {
        self.inner.ranges.first(self.inner.paths.state(), service)
    }

    /// Gives services the very ids that another state folder of this installation gave them (`ranges.json`).
    pub fn take_over_ranges(&self, theirs: &[u8]) -> Result<(), EngineError> {
        self.inner.ranges.take_over(self.inner.paths.state(), theirs)
    }

    /// Which id of a service one of this machine is.
    pub fn id_inside(id: u32) -> u32 {
        crate::ranges::offset(id)
    }

    /// Everything that services of this machine keep, or kept once.
    pub async fn all_kept(&self) -> Result<Vec<Kept>, EngineError> {
        self.blocking(|inner| Ok(below(inner.paths.state()))).await
    }

    /// Copies what is kept to a new folder, as it is at one moment: whoever writes it stands still for as long as what changed
    /// since the begin of the copy takes.
    pub async fn copy_kept(&self, kept: &Kept, to: PathBuf) -> Result<(), EngineError> {
        let kept = kept.clone();
        self.blocking(move |inner| copy_at_once(inner, &kept, &to)).await
    }

    /// Takes a snapshot of what is kept.
    pub async fn take_snapshot(&self, kept: &Kept, name: &str) -> Result<Snapshot, EngineError> {
        let (kept, name) = (kept.clone(), name.to_owned());
        self.blocking(move |inner| {
            let folder = home(inner, &kept)?;
            let (part, place) = (folder.join(format!("{name}.part")), folder.join(&name));
            let fail = || failed("take a snapshot", &place);
            tree::remove(&part).map_err(fail())?;
            let made =
                copy_at_once(inner, &kept, &part).and_then(|()| sync(&part).and_then(|()| fs::rename(&part, &place)).map_err(fail()));
            if made.is_err() {
                let _ = tree::remove(&part);
            }
            made?;
            let bytes = tree::size(&place).map_err(fail())?;
            Ok(Snapshot { name, bytes })
        })
        .await
    }

    /// The names of the snapshots of what is kept.
    pub async fn snapshot_names(&self, kept: &Kept) -> Result<Vec<String>, EngineError> {
        let kept = kept.clone();
        self.blocking(move |inner| {
            let all = names(&inner.paths.snapshots().join(kept.path()));
            Ok(all.into_iter().filter(|name| !is_in_the_making(name)).collect())
        })
        .await
    }

    /// The snapshots of what is kept, by name.
    pub async fn snapshots(&self, kept: &Kept) -> Result<Vec<Snapshot>, EngineError> {
        let kept = kept.clone();
        self.blocking(move |inner| {
            let folder = inner.paths.snapshots().join(kept.path());
            let mut found = Vec::new();
            for name in names(&folder).into_iter().filter(|name| !is_in_the_making(name)) {
                let path = folder.join(&name);
                let bytes = tree::size(&path).map_err(failed("measure a snapshot", &path))?;
                found.push(Snapshot { name, bytes });
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        })
        .await
    }

    /// Removes snapshots whose names `over` says it of, of whatever was ever kept. Returns how many.
    pub async fn remove_snapshots(&self, over: impl Fn(Vec<String>) -> Vec<String> + Send + 'static) -> Result<usize, EngineError> {
        self.blocking(move |inner| {
            let mut count = 0;
            for kept in below(&inner.paths.snapshots()) {
                let folder = inner.paths.snapshots().join(kept.path());
                let whole = names(&folder).into_iter().filter(|name| !is_in_the_making(name)).collect();
                for name in over(whole) {
                    let path = folder.join(name);
                    tree::remove(&path).map_err(failed("remove an old snapshot", &path))?;
                    count += 1;
                }
            }
            Ok(count)
        })
        .await
    }

    /// A path for what a backup needs for a while.
    pub fn scratch_for(&self, kept: &Kept) -> Result<PathBuf, EngineError> {
        let path = home(&self.inner, kept)?.join("backup.part");
        let removed = if path.is_file() { fs::remove_file(&path) } else { tree::remove(&path) };
        removed.map_err(failed("make room for a copy", &path))?;
        Ok(path)
    }

    /// Where something that is brought back is to be made, as a folder that is not there yet.
    pub fn stage(&self, kept: &Kept) -> Result<PathBuf, EngineError> {
        let folder = home(&self.inner, kept)?;
        for name in [NEW, READY] {
            let path = folder.join(name);
            tree::remove(&path).map_err(failed("bring back what was kept", &path))?;
        }
        Ok(folder.join(NEW))
    }

    /// Brings a snapshot back as far as [`Self::stage`] says; the snapshot stays.
    pub async fn stage_snapshot(&self, kept: &Kept, name: &str) -> Result<(), EngineError> {
        let to = self.stage(kept)?;
        let (kept, name) = (kept.clone(), name.to_owned());
        self.blocking(move |inner| {
            let from = inner.paths.snapshots().join(kept.path()).join(&name);
            room(inner, &from)?;
            Copy::whole(&from, &to).and_then(|_| sync(&to)).map_err(failed("bring back a snapshot", &from))
        })
        .await
    }

    /// Where [`Self::stage`] has something made.
    pub fn staged(&self, kept: &Kept) -> PathBuf {
        self.inner.paths.snapshots().join(kept.path()).join(NEW)
    }

    /// Gives up what was staged.
    pub async fn unstage(&self, kept: Vec<Kept>) {
        let done = self.blocking(move |inner| {
            for kept in kept {
                let path = inner.paths.snapshots().join(kept.path()).join(NEW);
                tree::remove(&path).map_err(failed("remove what was not brought back", &path))?;
            }
            Ok(())
        });
        if let Err(error) = done.await {
            // The next daemon does it.
            tracing::warn!(%error, "staged data stays");
        }
    }

    /// Puts what was staged in the place of what is kept now, which becomes a snapshot. Nobody may use it meanwhile.
    pub async fn replace_kept(&self, all: Vec<Replacement>) -> Result<(), EngineError> {
        self.blocking(move |inner| {
            let mut lives = Vec::new();
            for Replacement { kept, .. } in &all {
                lives.extend(writers(inner, &inner.paths.state().join(kept.path()))?);
            }
            if let Some(id) = lives.first() {
                return Err(EngineError::new("bring back what was kept", format!("`{id}` still uses it")));
            }
            // All of them are whole before the first is used.
            for Replacement { kept, .. } in &all {
                let folder = inner.paths.snapshots().join(kept.path());
                fs::rename(folder.join(NEW), folder.join(READY)).map_err(failed("bring back what was kept", &folder))?;
            }
            for Replacement { kept, aside } in &all {
                replace(inner, kept, aside)?;
            }
            Ok(())
        })
        .await
    }

    /// Finishes or undoes what an earlier process began: nobody stands still any more, copies in the making go, and what was about
    /// to be brought back is in its place where the old content was put aside already.
    pub async fn settle_snapshots(&self) -> Result<(), EngineError> {
        self.blocking(|inner| {
            let parent = inner.paths.cgroup_parent();
            for child in cgroup::children(&parent) {
                cgroup::thaw(&format!("{parent}/{child}"));
            }
            let machine = inner.paths.snapshots().join("machine.part");
            tree::remove(&machine).map_err(failed("settle snapshots", &machine))?;
            for kept in below(&inner.paths.snapshots()) {
                let folder = inner.paths.snapshots().join(kept.path());
                let place = inner.paths.state().join(kept.path());
                let fail = || failed("settle snapshots", &folder);
                if folder.join(READY).exists() && !place.exists() {
                    fs::rename(folder.join(READY), &place).map_err(fail())?;
                }
                for path in names(&folder).into_iter().filter(|name| is_in_the_making(name)).map(|name| folder.join(name)) {
                    let removed = if path.is_dir() { tree::remove(&path) } else { fs::remove_file(&path) };
                    removed.map_err(fail())?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn is_in_the_making(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "part" || extension == "ready")
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Everything kept whose folders lie below this one.
fn below(top: &Path) -> Vec<Kept> {
    let services = |kind: &str| names(&top.join(kind)).into_iter().filter_map(|name| ServiceId::new(name).ok());
    let disks = services("disks").flat_map(|service| {
        let names = names(&top.join("disks").join(service.as_str()));
        names.into_iter().map(move |name| Kept::Disk { service: service.clone(), name })
    });
    disks.chain(services("data").map(|service| Kept::Data { service })).collect()
}

/// The folder of the snapshots of what is kept.
fn home(inner: &Inner, kept: &Kept) -> Result<PathBuf, EngineError> {
    let folder = inner.paths.snapshots().join(kept.path());
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("make a folder for snapshots", &folder))?;
    Ok(folder)
}

fn sync(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// Live instances that may write a folder.
fn writers(inner: &Inner, folder: &Path) -> Result<Vec<InstanceId>, EngineError> {
    let mut found = Vec::new();
    for id in folder::ids(inner)? {
        let Some(look) = folder::look(inner, &id)? else { continue };
        let lives = look.program.is_some() || matches!(look.phase, InstancePhase::Running | InstancePhase::Preparing);
        if lives && look.facts.is_some_and(|facts| facts.exclusive.as_deref() == Some(folder)) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Refuses a copy that would leave too little room.
fn room(inner: &Inner, from: &Path) -> Result<(), EngineError> {
    let top = inner.paths.snapshots();
    let fail = || failed("measure the room for a copy", &top);
    let about = rustix::fs::statvfs(&top).map_err(|error| fail()(error.into()))?;
    let left = (about.f_blocks * about.f_frsize / 20).min(MOST_ROOM_LEFT);
    let needed = if copy::clones(&top) { 0 } else { tree::size(from).map_err(fail())? };
    let free = about.f_bavail * about.f_frsize;
    if free >= needed + left {
        return Ok(());
    }
    let words = |bytes: u64| format!("{} MB", bytes / 1_000_000);
    let why =
        format!("a copy of `{}` takes {}, and {} of {} free have to stay free", from.display(), words(needed), words(left), words(free));
    Err(EngineError::new("copy what is kept", why).hint("make room on the disk of the state folder"))
}

/// What to do where writers can't be made to stand still.
const SUSPEND: &str = "`moat suspend` the service for as long as the copy takes, then `moat resume` it";

fn copy_at_once(inner: &Inner, kept: &Kept, to: &Path) -> Result<(), EngineError> {
    let from = inner.paths.state().join(kept.path());
    let fail = || failed("copy what is kept", &from);
    let again = || {
        let why = format!("whoever uses `{}` was started or ended meanwhile", from.display());
        EngineError::new("copy what is kept", why).hint("say it again")
    };
    room(inner, &from)?;
    let before = writers(inner, &from)?;
    let copy = Copy::whole(&from, to).map_err(fail())?;
    if writers(inner, &from)? != before {
        return Err(again());
    }
    if before.is_empty() {
        return Ok(());
    }
    let freeze = |id: &InstanceId| cgroup::freeze(&inner.paths.cgroup(id.as_str()));
    let frozen: Vec<_> = before.iter().map(freeze).collect::<io::Result<_>>().map_err(|error| {
        let unsupported = error.kind() == io::ErrorKind::Unsupported;
        let error = fail()(error);
        if unsupported { error.hint(SUSPEND) } else { error }
    })?;
    if writers(inner, &from)? != before {
        return Err(again());
    }
    let settled = copy.settle(&from, to, STANDS_STILL);
    drop(frozen);
    settled.map_err(|error| {
        let timed_out = error.kind() == io::ErrorKind::TimedOut;
        let error = fail()(error);
        if timed_out { error.hint(SUSPEND) } else { error }
    })
}

fn replace(inner: &Inner, kept: &Kept, aside: &str) -> Result<(), EngineError> {
    let (folder, place) = (inner.paths.snapshots().join(kept.path()), inner.paths.state().join(kept.path()));
    let fail = || failed("bring back what was kept", &place);
    let above = place.parent().unwrap_or(&place);
    DirBuilder::new().recursive(true).mode(0o700).create(above).map_err(fail())?;
    match fs::rename(&place, folder.join(aside)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail()(error)),
        _ => {}
    }
    fs::rename(folder.join(READY), &place).map_err(fail())?;
    for folder in [above, &folder] {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
