//! A running instance whose link somebody removed gets a new one.

use super::folder::{self, Look};
use super::{LinuxEngine, network_error};
use moat_engine::EngineError;
use moat_model::InstanceId;
use moat_model::state::InstancePhase;

impl LinuxEngine {
    /// Connects a running instance to the private network again, with the address and the link that the policy lists for it;
    /// whether it runs and is listed. Its open connections go on where their other ends did not give up.
    pub async fn reconnect(&self, id: &InstanceId) -> Result<bool, EngineError> {
        let Some(Look { phase: InstancePhase::Running, monitor: Some(monitor), .. }) = folder::look(&self.inner, id)? else {
            return Ok(false);
        };
        let policy = self.inner.network.policy();
        let Some(entry) = policy.sources.get(id) else { return Ok(false) };
        let attached = self.inner.network.attach(monitor.pid.unsigned_abs(), entry.address, &entry.link).await;
        attached.map_err(|error| network_error(&format!("connect `{id}` to the private network again"), error))?;
        Ok(true)
    }
}
