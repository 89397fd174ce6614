//! What every way of running services implements.
//!
//! Invariant: applying a step twice, half, late or after a crash converges; an older generation is refused by the caller
//! that orders plans, not here.

use moat_model::InstanceId;
use moat_model::state::{InstancePhase, Listener, ObservedState};
use moat_planner::Step;
use serde::Serialize;
use std::future::Future;

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// Something changed.
    Changed,
    /// It was so already.
    Unchanged,
}

/// Why a step failed. `Display` holds what a person can do about it; the cause is its source.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {message}")]
pub struct EngineError {
    /// What was being done, such as ``start `web-1` ``.
    pub doing: String,
    /// What went wrong, in words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether trying again later may help.
    pub retry: bool,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl EngineError {
    /// An error without hint or cause.
    pub fn new(doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self { doing: doing.into(), message: message.into(), hint: None, retry: false, source: None }
    }
    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The same with a cause, whose text is added to the message.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

/// What an engine can do here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Memory, CPU and pids limits bite.
    pub limits: bool,
    /// IPv6 works in namespaces.
    pub ipv6: bool,
    /// User namespaces are used.
    pub user_namespaces: bool,
}

/// One way of running services.
pub trait Engine: Send + Sync {
    /// Reads what runs, from the system itself.
    fn observe(&self) -> impl Future<Output = Result<ObservedState, EngineError>> + Send;
    /// Applies one step.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<StepOutcome, EngineError>> + Send;
    /// Waits until the instance has ended (or was never there) and says how.
    fn wait(&self, id: &InstanceId) -> impl Future<Output = Result<InstancePhase, EngineError>> + Send;
    /// The sockets an instance listens on, read from its namespace.
    fn listeners(&self, id: &InstanceId) -> impl Future<Output = Result<Vec<Listener>, EngineError>> + Send;
    /// What can be done here.
    fn capabilities(&self) -> Capabilities;
}
