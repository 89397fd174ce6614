//! What of ours exists on this machine right now, read from the system, for `down` and for tests.

use super::{LinuxEngine, folder};
use crate::{cgroup, mounts};
use moat_engine::EngineError;
use moat_model::InstanceId;
use std::path::PathBuf;

/// Everything that [`LinuxEngine`] makes and that must be gone once the last instance and the router are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Instances that have a folder.
    pub instances: Vec<InstanceId>,
    /// Monitors that live.
    pub monitors: Vec<i32>,
    /// Control groups, from the root of each hierarchy.
    pub cgroups: Vec<String>,
    /// Mount points below the runtime and state folders in this mount namespace.
    pub mounts: Vec<PathBuf>,
    /// Links in the router namespace.
    pub links: Vec<String>,
    /// Folders with instances' writes.
    pub scratch: Vec<PathBuf>,
}

impl Leftovers {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl LinuxEngine {
    /// Looks for everything of ours.
    pub async fn leftovers(&self) -> Result<Leftovers, EngineError> {
        let links = match self.network().router_ns() {
            Ok(_) => self
                .network()
                .links()
                .await
                .map_err(|error| super::network_error("list the links", error))?
                .iter()
                .map(ToString::to_string)
                .collect(),
            Err(_) => Vec::new(),
        };
        self.blocking(move |inner| {
            let instances = folder::ids(inner)?;
            let looks = instances.iter().map(|id| folder::look(inner, id)).collect::<Result<Vec<_>, _>>()?;
            let parent = inner.paths.cgroup_parent();
            let mut cgroups: Vec<String> = cgroup::children(&parent).into_iter().map(|name| format!("{parent}/{name}")).collect();
            if !cgroup::folders(&parent).is_empty() {
                cgroups.push(parent);
            }
            let below = |path| mounts::below(path).map_err(|error| EngineError::new("read the mount table", error.to_string()));
            let mut mounts = below(inner.paths.run())?;
            mounts.extend(below(inner.paths.state())?);
            // A folder that the machine itself mounts there is not ours.
            mounts.retain(|point| point != inner.paths.run() && point != inner.paths.state());
            let scratch = std::fs::read_dir(inner.paths.scratches()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            Ok(Leftovers {
                instances,
                monitors: looks.into_iter().flatten().filter_map(|look| look.monitor).map(|monitor| monitor.pid).collect(),
                cgroups,
                mounts,
                links,
                scratch,
            })
        })
        .await
    }
}
