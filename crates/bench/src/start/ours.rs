//! Moat's own starts: the engine's step, from its call to the program's first instruction.

use super::hello;
use crate::engine::{Site, Words};
use crate::failure::{Doing, Failure, Outcome};
use moat_engine::Engine;
use moat_model::InstanceId;
use moat_model::state::{NativeWorkload, Workload};
use moat_planner::plan::InstanceSpec;
use std::fs;
use std::path::Path;

pub use crate::engine::MOST;

/// An engine with folders of its own and the measured program as a finished release.
pub struct Ours {
    site: Site,
    workload: NativeWorkload,
    release: String,
}

impl Ours {
    /// Opens the engine, makes the network, and copies `program`'s folder as a release.
    pub fn new(home: &Path, program: &Path) -> Outcome<Self> {
        let site = Site::open(home)?;
        let (release, workload) = site.release(program)?;
        Ok(Self { site, workload, release })
    }

    fn spec(&self, number: u16, command: &str) -> Outcome<InstanceSpec> {
        let workload = NativeWorkload { start_command: command.to_owned(), ..self.workload.clone() };
        Site::spec(number, Workload::Native(workload), &self.release)
    }

    /// Milliseconds from the call of the step to the first instruction.
    pub fn start(&self, number: u16) -> Outcome<f64> {
        let spec = self.spec(number, "./hello")?;
        let asked = hello::now()?;
        let id = self.site.start(spec)?;
        Ok(hello::millis(asked, hello::first(&self.site.end(&id)?)?))
    }

    /// Starts an instance that goes on for ever; its id and the pid of its monitor.
    pub fn idle(&self, number: u16) -> Outcome<(InstanceId, u32)> {
        let id = self.site.start(self.spec(number, "exec ./hello idle")?)?;
        let seen = self.site.runtime.block_on(self.site.engine.observe()).words()?;
        let monitor =
            seen.instances.get(&id).and_then(|instance| instance.monitor_pid).ok_or_else(|| Failure::new("an idle instance has ended"))?;
        Ok((id, monitor))
    }

    /// Stops and removes an instance.
    pub fn stop(&self, id: &InstanceId) -> Outcome {
        self.site.stop(id)
    }

    /// What the OCI runtime was told of an instance that lives.
    pub fn bundle(&self, id: &InstanceId) -> Outcome<serde_json::Value> {
        let path = self.site.run_dir.join("instances").join(id.as_str()).join("bundle/config.json");
        let bytes = fs::read(&path).doing(format_args!("read `{}`", path.display()))?;
        serde_json::from_slice(&bytes).doing("read a bundle")
    }

    /// Removes the network.
    pub fn close(self) -> Outcome {
        self.site.close()
    }
}
