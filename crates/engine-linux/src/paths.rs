//! Where everything is.

use crate::monitor::files;
use moat_engine::EngineError;
use moat_model::{InstanceId, ServiceId, Slug};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// The two folders everything is below.
#[derive(Debug, Clone)]
pub struct Paths {
    run: PathBuf,
    state: PathBuf,
    /// The control group that all others are below; nothing for the root.
    group: String,
}

/// A short name of the Moat of a runtime folder, for what every process of the machine sees.
pub fn tag(run: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    crate::source::hex(&Sha256::digest(run.as_os_str().as_bytes())[..3])
}

impl Paths {
    /// Makes both folders with what is in them; only root can look inside most.
    pub fn make(run: &Path, state: &Path) -> Result<Self, EngineError> {
        let fail = |path: &Path, error: io::Error| {
            let hint = if error.kind() == io::ErrorKind::PermissionDenied {
                "run moat as root, or choose folders of your own with MOAT_STATE_DIR and MOAT_RUN_DIR"
            } else {
                "check the folder and the space left on its disk"
            };
            EngineError::new("prepare the folders", format!("`{}`: {error}", path.display())).hint(hint).caused_by(error)
        };
        for folder in [run, state] {
            DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(|error| fail(folder, error))?;
        }
        let absolute = |folder: &Path| fs::canonicalize(folder).map_err(|error| fail(folder, error));
        let paths = Self { run: absolute(run)?, state: absolute(state)?, group: String::new() };
        let private = ["releases", "instances", "logs", "cache", "disks", "data", "certificates", "builds", "snapshots"]
            .map(|name| paths.state.join(name));
        for folder in private.iter().chain(&[paths.run.join("instances"), paths.run.join("crun"), paths.run.join("netns")]) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| fail(folder, error))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|error| fail(folder, error))?;
        }
        // Who answers the internet with the files of sites finds them by their names.
        let releases = paths.releases();
        if nix::unistd::geteuid().is_root() {
            lchown(&releases, None, Some(crate::ranges::outward()))
                .and_then(|()| fs::set_permissions(&releases, fs::Permissions::from_mode(0o710)))
                .map_err(|error| fail(&releases, error))?;
        }
        Ok(paths)
    }

    /// A short name of this installation, for what every process of the machine sees.
    pub fn tag(&self) -> String {
        tag(&self.run)
    }

    /// The same with the control groups below another one than the root.
    pub fn below(self, group: String) -> Self {
        Self { group, ..self }
    }

    /// Whether control groups are below another one than the root.
    pub fn has_groups(&self) -> bool {
        !self.group.is_empty()
    }
    /// The control group that holds every instance's.
    pub fn cgroup_parent(&self) -> String {
        format!("{}/moat-{}", self.group, self.tag())
    }
    /// An instance's control group.
    pub fn cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup_parent())
    }
    /// The runtime folder.
    pub fn run(&self) -> &Path {
        &self.run
    }
    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }
    /// Live instances.
    pub fn instances(&self) -> PathBuf {
        self.run.join("instances")
    }
    /// One live instance.
    pub fn instance(&self, id: &str) -> PathBuf {
        self.instances().join(id)
    }
    /// The OCI runtime's state.
    pub fn runtime_root(&self) -> PathBuf {
        self.run.join("crun")
    }
    /// Bind-mounted network namespaces.
    pub fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }
    /// An instance's writes.
    pub fn scratch(&self, id: &str) -> PathBuf {
        self.state.join("instances").join(id)
    }
    /// Every instance's writes.
    pub fn scratches(&self) -> PathBuf {
        self.state.join("instances")
    }
    /// Releases.
    pub fn releases(&self) -> PathBuf {
        self.state.join("releases")
    }
    /// A service's logs.
    pub fn logs(&self, slug: &Slug) -> PathBuf {
        self.state.join("logs").join(slug.as_str())
    }
    /// A service's build cache.
    pub fn cache(&self, slug: &Slug) -> PathBuf {
        self.state.join("cache").join(slug.as_str())
    }
    /// What builds of Dockerfiles leave, by service.
    pub fn builds(&self) -> PathBuf {
        self.state.join("builds")
    }

    /// The images that a service's Dockerfile builds on.
    pub fn bases(&self, service: &ServiceId) -> PathBuf {
        self.state.join("builds").join(service.as_str()).join("bases")
    }

    /// What builds of a service's Dockerfile keep for the next one.
    pub fn build_storage(&self, service: &ServiceId) -> PathBuf {
        self.state.join("builds").join(service.as_str()).join("storage")
    }

    /// A service's disk.
    pub fn disk(&self, service: &ServiceId, name: &str) -> PathBuf {
        self.state.join("disks").join(service.as_str()).join(name)
    }
    /// A datastore's data.
    pub fn data(&self, service: &ServiceId) -> PathBuf {
        self.state.join("data").join(service.as_str())
    }
    /// Copies of what services keep.
    pub fn snapshots(&self) -> PathBuf {
        self.state.join("snapshots")
    }
    /// A database's certificate and key. Apart from its data, where the service's own user writes.
    pub fn certificate(&self, service: &ServiceId) -> PathBuf {
        self.state.join("certificates").join(format!("{service}.pem"))
    }
    /// Fetched repositories.
    pub fn sources(&self) -> PathBuf {
        self.state.join("sources")
    }
    /// The store of images.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }
    /// The log of an instance, wherever its service's folder is.
    pub fn log(&self, id: &InstanceId) -> PathBuf {
        let name = format!("{id}.log");
        let folders = fs::read_dir(self.state.join("logs")).into_iter().flatten().flatten();
        let found = folders.map(|entry| entry.path().join(&name)).find(|path| path.exists());
        // Not written yet: the instance's own folder knows where it will be.
        found.unwrap_or_else(|| {
            let job: Option<files::Job> = files::read_json(&self.instance(id.as_str()).join(files::JOB)).ok().flatten();
            job.map_or_else(|| self.state.join("logs").join(&name), |job| job.log)
        })
    }

    /// A folder that every user can pass to, which the monitor may cover in its own mount namespace.
    pub fn root_point(&self) -> Result<PathBuf, EngineError> {
        let free = |folder: &&&str| Path::new(folder).is_dir() && !self.run.starts_with(folder) && !self.state.starts_with(folder);
        ["/mnt", "/media", "/srv", "/opt"].iter().find(free).map(PathBuf::from).ok_or_else(|| {
            EngineError::new("prepare a sandbox", "none of `/mnt`, `/media`, `/srv`, `/opt` can hold its root").hint("mkdir /mnt")
        })
    }
}
