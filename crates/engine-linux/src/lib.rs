//! The embedded engine: sandboxes run by an OCI runtime under a small monitor, native builds, Key Value and PostgreSQL
//! servers.
//!
//! [`LinuxEngine`] applies [`moat_planner::Step`]s. What an instance is made of is decided in [`lower`] (pure); the
//! [`monitor`] makes it and stays beside it; this process may be killed at any moment without an instance noticing.
//!
//! Folders: `RUN/instances/ID` holds what is known of a live instance, `RUN/crun` the runtime's own state;
//! `STATE/releases/NAME/project` a build's result (with a `+` before it, a tool of builds), `STATE/images` the layers of published images, `STATE/sources` fetched repositories, `STATE/instances/ID` an instance's writes, `STATE/logs/SLUG/ID.log` its
//! log, `STATE/cache/SLUG` a service's build cache, `STATE/disks/SERVICE/NAME` and `STATE/data/SERVICE` what it keeps, `STATE/snapshots` copies of that,
//! `STATE/certificates/SERVICE.pem` what a database shows to clients that ask for TLS.
//!
//! Invariant: once `StopInstance` returns, nothing of the instance is left but its log.

mod certificate;
mod cgroup;
mod checkout;
pub mod datastore;
mod dockerfile;
pub mod doctor;
mod engine;
mod floors;
pub mod heap;
mod images;
mod lock;
pub mod log;
pub mod lower;
pub mod monitor;
mod mounts;
mod paths;
mod ranges;
mod recipe;
mod release;
pub mod rootless;
mod site;
mod snapshot;
mod source;
mod sys;
pub mod toolchain;
mod tools;
mod tree;
mod venv;

pub use cgroup::{Controllers, Usage};
pub use datastore::{DatastoreRequest, Origin, Provided, ServerImages};
pub use engine::LinuxEngine;
pub use engine::leftovers::Leftovers;
pub use images::{Prune, PullRequest};
pub use moat_image::{Listed as ListedImage, Mirror};
pub use ranges::outward;
pub use recipe::ImageBuildRequest;
pub use release::{BuildRequest, MissingTool, Prepared, Release};
pub use site::{Published, SiteRequest};
pub use snapshot::{Kept, Replacement, Snapshot};

use std::path::PathBuf;

/// Where things are, and what builds may see of this process' environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// What outlives a reboot: releases, logs, data.
    pub state_dir: PathBuf,
    /// What does not: namespaces, live instances.
    pub run_dir: PathBuf,
    /// The OCI runtime; `crun` of `PATH` when none is given.
    pub oci_runtime: Option<PathBuf>,
    /// Variables of this process that builds see (`PIP_INDEX_URL`).
    pub pass_env: Vec<String>,
    /// Copies of registries, asked before the registries themselves.
    pub mirrors: Vec<Mirror>,
    /// Images that datastores run, where they are not the official ones.
    pub server_images: ServerImages,
    /// Whether packets of open flows may go from link to link where the kernel can do it.
    pub shortcut: bool,
    /// The program whose `__monitor` sub-command is [`monitor::main`].
    pub own_exe: PathBuf,
}
