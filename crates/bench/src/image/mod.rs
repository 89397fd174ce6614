//! `moat-bench image`: published images, their pull and unpack, disk and start; `moat-bench traffic`: what clients of Redis and
//! Memcached get through the private network. Each beside its peers.
//!
//! The images are those of the tests, made from Debian's packages; a registry on loopback serves them.

mod pull;
mod start;
mod traffic;

use crate::docker::Docker;
use crate::engine::{Site, Words};
use crate::failure::{Doing, Outcome};
use crate::place::{self, Folder};
use crate::podman::Podman;
use crate::start::peers::Groups;
use moat_engine_linux::PullRequest;
use moat_model::state::{ImageOrigin, ImageWorkload, Workload};
use moat_testkit::images::{Recipe, Registry, layout, recipes};
use std::fs;
use std::path::PathBuf;

pub use traffic::memcached::{CLIENT, client};

/// An image of the registry.
pub struct Published {
    /// As a blueprint or a command line names it.
    pub reference: String,
    /// All that a pull brings.
    pub bytes: u64,
}

impl Published {
    fn new(registry: &Registry, (layout, name): &(PathBuf, &str)) -> Outcome<Self> {
        registry.push(layout, name).doing(format_args!("push `{name}`"))?;
        let mut bytes = 0;
        for blob in fs::read_dir(layout.join("blobs/sha256")).doing("list the blobs of an image")? {
            bytes += blob.and_then(|blob| blob.metadata()).doing("read the size of a blob")?.len();
        }
        Ok(Self { reference: registry.reference(name), bytes })
    }
    /// A service that runs it with this command behind its entry point.
    pub fn workload(&self, command: &str) -> Workload {
        Workload::Image(ImageWorkload {
            origin: ImageOrigin::Published(self.reference.clone()),
            credential: None,
            command: Some(command.to_owned()),
            pre_deploy_command: None,
            initial_deploy_hook: None,
            schedule: None,
            disk: None,
        })
    }
    /// Brings it to an engine; the release that it is.
    pub fn release(&self, site: &Site) -> Outcome<String> {
        let request = PullRequest { image: self.reference.clone(), credential: None };
        Ok(site.runtime.block_on(site.engine.pull_image(request, |_| ())).words()?.0.name)
    }
}

/// Everything that is measured here, and the peers that can be had.
pub struct Stage {
    /// Some 100 MB.
    pub large: Published,
    /// Shares a layer with it.
    pub redis: Published,
    /// Shares the same layer.
    pub memcached: Published,
    /// With storage of this run.
    pub podman: Option<Podman>,
    /// Its daemon.
    pub docker: Option<Docker>,
    /// Moat's side of what runs.
    pub site: Site,
    // Last, so that the others end before their folders go.
    _registry: Registry,
    _groups: Groups,
    /// Of this run.
    pub folder: Folder,
}

/// Measures and prints what images cost.
pub fn run(rounds: usize) -> Outcome {
    staged(|stage| {
        pull::run(stage, rounds)?;
        start::run(stage, rounds)
    })
}

/// Measures and prints what clients get.
pub fn traffic(rounds: usize) -> Outcome {
    staged(|stage| traffic::run(stage, rounds))
}

fn staged(measure: impl FnOnce(&Stage) -> Outcome) -> Outcome {
    // Before the machine's network is left: the first time packages are downloaded.
    let made = |recipe: &Recipe, name| layout(recipe).map(|folder| (folder, name)).doing(format_args!("make the image of `{name}`"));
    let layouts =
        [made(&recipes::POSTGRES, "postgres:15")?, made(&recipes::REDIS, "redis:7")?, made(&recipes::MEMCACHED, "memcached:1.6")?];
    place::enter()?;
    let stage = Stage::set(&layouts)?;
    measure(&stage)?;
    stage.site.close()
}

impl Stage {
    fn set([large, redis, memcached]: &[(PathBuf, &str); 3]) -> Outcome<Self> {
        let folder = Folder::new()?;
        let groups = Groups::new();
        let registry = Registry::start(&folder.path().join("registry")).doing("start the registry")?;
        let podman = Podman::find(folder.path());
        if podman.is_none() {
            println!("skipped: {}\n", Podman::MISSING);
        }
        let docker = Docker::start(folder.path()).unwrap_or_else(|error| {
            println!("docker: {error}\n");
            None
        });
        if docker.is_none() {
            println!("skipped: {}\n", Docker::MISSING);
        }
        Ok(Self {
            large: Published::new(&registry, large)?,
            redis: Published::new(&registry, redis)?,
            memcached: Published::new(&registry, memcached)?,
            podman,
            docker,
            site: Site::open(&folder.path().join("moat"))?,
            _registry: registry,
            _groups: groups,
            folder,
        })
    }
}
