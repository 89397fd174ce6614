//! `StopInstance`: asks the monitor, waits for it, and removes what is left, whatever state that is in.

use super::folder;
use super::{LinuxEngine, network_error};
use crate::monitor::files;
use crate::{cgroup, sys, tree};
use moat_engine::{EngineError, StepOutcome};
use moat_model::InstanceId;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Duration;

/// How long a monitor may take to clean up after its program's end.
const CLEANING: Duration = Duration::from_secs(30);

impl LinuxEngine {
    pub(super) async fn stop(&self, id: &InstanceId, grace_seconds: u32) -> Result<StepOutcome, EngineError> {
        let Some(look) = folder::look(&self.inner, id)? else {
            let scratch = self.inner.paths.scratch(id.as_str());
            if !scratch.exists() {
                return Ok(StepOutcome::Unchanged);
            }
            self.remove(id).await?;
            return Ok(StepOutcome::Changed);
        };
        if look.monitor.is_some() {
            let grace = self.inner.paths.instance(id.as_str()).join(files::GRACE);
            files::write_json(&grace, &grace_seconds).map_err(|error| failed(id, &error.to_string()))?;
            self.signal(id, Signal::SIGTERM)?;
            let limit = Duration::from_secs(u64::from(grace_seconds)) + CLEANING;
            if let Ok(ended) = tokio::time::timeout(limit, self.monitor_ends(&look)).await {
                ended?;
            } else {
                tracing::warn!(instance = %id, "the monitor did not end in time and is killed");
            }
        }
        self.remove(id).await?;
        Ok(StepOutcome::Changed)
    }

    /// Removes what a start has left that was killed before it had written what it starts.
    pub(super) async fn remove_half_made(&self) -> Result<(), EngineError> {
        for id in folder::ids(&self.inner)? {
            let starting = self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
            if !starting && folder::look(&self.inner, &id)?.is_some_and(|look| look.facts.is_none()) {
                self.remove(&id).await?;
            }
        }
        Ok(())
    }

    /// Ends whatever is left of an instance, at once, and removes its traces.
    pub(super) async fn remove(&self, id: &InstanceId) -> Result<(), EngineError> {
        if let Some(look) = folder::look(&self.inner, id)? {
            // A monitor that is killed takes its sandbox with it.
            self.signal(id, Signal::SIGKILL)?;
            let ended = tokio::time::timeout(CLEANING, self.monitor_ends(&look)).await;
            ended.map_err(|_| failed(id, "the monitor can't be killed"))??;
            if let Some(facts) = look.facts {
                let detached = self.inner.network.detach(&facts.link).await;
                detached.map_err(|error| network_error(&format!("detach `{id}`"), error))?;
            }
        }
        let id = id.clone();
        self.blocking(move |inner| {
            let fail = |error: io::Error| failed(&id, &error.to_string()).caused_by(error);
            let paths = &inner.paths;
            cgroup::destroy(&paths.cgroup(id.as_str())).map_err(fail)?;
            tree::remove(&paths.runtime_root().join(id.as_str())).map_err(fail)?;
            tree::remove(&paths.scratch(id.as_str())).map_err(fail)?;
            // Last: as long as it is there, the instance is known and can be cleaned again.
            tree::remove(&paths.instance(id.as_str())).map_err(fail)
        })
        .await
    }

    /// Sends a signal to the monitor of an instance, if that lives.
    fn signal(&self, id: &InstanceId, signal: Signal) -> Result<(), EngineError> {
        let Some(monitor) = folder::look(&self.inner, id)?.and_then(|look| look.monitor) else { return Ok(()) };
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
        let pidfd = match sys::pidfd_open(Pid::from_raw(monitor.pid)) {
            Ok(pidfd) => pidfd,
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(failed(id, &error.to_string()).caused_by(error)),
        };
        // Looked at again with the handle open: from here on the number can't mean another process.
        if !monitor.alive().map_err(|error| failed(id, &error.to_string()).caused_by(error))? {
            return Ok(());
        }
        match sys::pidfd_kill(pidfd.as_fd(), signal) {
            Err(error) if !gone(&error) => Err(failed(id, &error.to_string()).caused_by(error)),
            _ => Ok(()),
        }
    }
}

fn failed(id: &InstanceId, why: &str) -> EngineError {
    EngineError::new(format!("stop `{id}`"), why)
}
