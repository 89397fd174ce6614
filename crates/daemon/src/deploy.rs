//! One deploy of one service, and what is deployed.

use crate::history::DeployCause;
use moat_engine_linux::MissingTool;
use moat_model::{InstanceId, Service};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

/// What a service runs: its definition and the release of its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The definition.
    pub service: Service,
    /// The release folder's name, or an image's id; none for a datastore on the machine's own server.
    pub release: Option<String>,
    /// The commit of its source, where that comes from a git repository.
    #[serde(default)]
    pub commit: Option<String>,
    /// `initialDeployHook` ran.
    pub hook_ran: bool,
    /// All instances were ready once.
    pub good: bool,
    /// How often its service was started anew by `moat restart`.
    #[serde(default)]
    pub restarts: u64,
}

impl Deployed {
    /// What an instance of it is made of: definition, source and how often it was started anew.
    pub fn fingerprint(&self) -> String {
        let mut text = self.service.fingerprint.clone();
        if let Some(release) = &self.release {
            text.push('+');
            text.push_str(release);
        }
        if self.restarts > 0 {
            text.push('~');
            text.push_str(&self.restarts.to_string());
        }
        text
    }
}

/// The pre-deploy command of a deploy: run once, whatever becomes of the daemon meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreDeploy {
    /// The instance that it runs in.
    pub instance: InstanceId,
    /// The definition's fingerprint.
    pub fingerprint: String,
    /// The release.
    pub release: Option<String>,
    /// It ended well.
    pub done: bool,
}

/// A deploy that somebody asks for.
#[derive(Debug)]
pub struct Ask {
    /// Its record's id.
    pub id: String,
    /// The definition wanted.
    pub service: Service,
    /// Why.
    pub cause: DeployCause,
    /// How long an instance may take until it is ready.
    pub start_timeout: Duration,
    /// What to start, where nothing is to be built.
    pub ready_made: Option<Deployed>,
}

/// A deploy under way.
///
/// ```text
/// Preparing ─▶ Waiting (datastores, tools) ─▶ Building ─▶ Sealing ─▶ PreDeploy ─▶ Starting ─▶ done
///     └── the same source was built ───────────────────────────▲            └▶ failed: previous stays
/// ```
///
/// The pre-deploy command and the start wait for datastores too. A datastore goes from Preparing, where its image is pulled if
/// it needs one, to Starting.
#[derive(Debug)]
pub struct Deploy {
    /// Its record's id.
    pub id: String,
    /// The definition wanted.
    pub service: Service,
    /// Why.
    pub cause: DeployCause,
    /// Where it is.
    pub phase: DeployPhase,
    /// The release, once prepared.
    pub release: Option<String>,
    /// Tools of the build that were not installed yet when it was prepared.
    pub tools: Vec<MissingTool>,
    /// The commit that it is made of, once prepared, where there is one.
    pub commit: Option<String>,
    /// What ran before, to go back to.
    pub previous: Option<Deployed>,
    /// How long an instance may take until it is ready.
    pub start_timeout: Duration,
    /// When the current phase began; of Starting, when the last instance got ready.
    pub since: Instant,
    /// The log of events says that it began. One that turns out to change nothing is not in it.
    pub told: bool,
    /// Instances of it that are ready.
    pub ready: usize,
    /// Whether it brings anything else than what ran well before it.
    pub changes: bool,
    /// A program of it ended before it was ready; what becomes of it depends on others.
    pub early: Option<EarlyEnd>,
    /// What prepares or seals its release now. It ends with the deploy: a pull that nobody wants any more is not gone on with.
    pub work: Option<Work>,
}

/// A task that is ended when this is dropped.
#[derive(Debug)]
pub struct Work(AbortHandle);

impl Work {
    /// Of a task.
    pub fn of(task: &JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How the start of a program ended that was not ready.
#[derive(Debug, Clone)]
pub struct EarlyEnd {
    /// The instance.
    pub instance: InstanceId,
    /// When it began.
    pub began: Instant,
    /// How it ended, in words.
    pub why: String,
    /// It was told that the deploy waits for others.
    pub told: bool,
}

/// The phases of [`Deploy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeployPhase {
    /// The source is being copied and fingerprinted, or an image pulled.
    Preparing,
    /// Waits for datastores and a free build place.
    Waiting,
    /// A tool of the build is being installed in this instance.
    Installing(InstanceId),
    /// The tool's release of this name is being sealed.
    SealingTool(String),
    /// The build runs in this instance.
    Building(InstanceId),
    /// The release is being sealed.
    Sealing,
    /// Ready for the pre-deploy command.
    Built,
    /// The pre-deploy command runs in this instance.
    PreDeploy(InstanceId),
    /// Instances start.
    Starting,
}

impl Deploy {
    /// Goes to another phase now.
    pub fn go(&mut self, phase: DeployPhase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// The instance that runs for this deploy alone, if any.
    pub fn sandbox(&self) -> Option<&InstanceId> {
        match &self.phase {
            DeployPhase::Installing(id) | DeployPhase::Building(id) | DeployPhase::PreDeploy(id) => Some(id),
            DeployPhase::Preparing
            | DeployPhase::Waiting
            | DeployPhase::SealingTool(_)
            | DeployPhase::Sealing
            | DeployPhase::Built
            | DeployPhase::Starting => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_prepares_a_release_ends_with_its_deploy() {
        let (held, ended) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(Work::of(&task));
        assert!(ended.await.is_err(), "it goes on");
    }
}
