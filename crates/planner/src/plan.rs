//! A plan: ordered steps that leave no choice to whoever applies them.
//!
//! Invariant: what becomes forbidden closes first, what becomes allowed opens last, so every prefix of a plan is safe.

use moat_model::policy::NetPolicy;
use moat_model::state::Workload;
use moat_model::{AddressPair, Generation, InstanceId, Limits, LinkName, Purpose, Secret, Service, ServiceId, Slug};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ordered steps towards one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The generation this leads to; an engine that knows a newer one refuses it.
    pub generation: Generation,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step. Applying it twice equals applying it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Makes the router namespace, its uplink and its closed filter when they are missing.
    EnsureRouter,
    /// Makes the filter decide by this, all at once.
    SetPolicy {
        /// The whole policy.
        policy: Arc<NetPolicy>,
    },
    /// Makes the sandbox (closed by what `SetPolicy` said before) and runs the program in it.
    StartInstance {
        /// Everything about it.
        instance: Box<InstanceSpec>,
    },
    /// SIGTERM, wait, SIGKILL; then removes the sandbox. Does nothing when it is gone.
    StopInstance {
        /// Which.
        id: InstanceId,
        /// Seconds between SIGTERM and SIGKILL.
        grace_seconds: u32,
    },
    /// Removes the router namespace and the uplink. Only planned when no instance is left.
    RemoveRouter,
}

/// Everything an engine needs to run one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Its id.
    pub id: InstanceId,
    /// Its service's id.
    pub service: ServiceId,
    /// Its service's slug.
    pub slug: Slug,
    /// What it runs for.
    pub purpose: Purpose,
    /// What it is made of.
    pub fingerprint: String,
    /// Its addresses.
    pub address: AddressPair,
    /// Its link in the router namespace.
    pub link: LinkName,
    /// What runs. The command is chosen by `purpose`.
    pub workload: Workload,
    /// A command other than the workload's own (one-off jobs).
    pub command: Option<String>,
    /// Environment, `RENDER_INSTANCE_ID` included.
    pub env: BTreeMap<String, Secret>,
    /// Secret files by name.
    pub secret_files: BTreeMap<String, Secret>,
    /// Limits.
    pub limits: Limits,
    /// What it runs: a folder name in the state folder that a build has filled, or an image's id; none for a datastore on the
    /// machine's own server.
    pub release: Option<String>,
}

impl InstanceSpec {
    /// An instance of a service.
    pub fn of(service: &Service, id: InstanceId, purpose: Purpose, address: AddressPair, release: Option<String>) -> Self {
        let build = matches!(purpose, Purpose::Build);
        let mut env = if build { service.build_env.clone() } else { service.env.clone() };
        env.insert("RENDER_INSTANCE_ID".to_owned(), Secret::new(id.as_str()));
        Self {
            id,
            service: service.id.clone(),
            slug: service.slug.clone(),
            purpose,
            fingerprint: service.fingerprint.clone(),
            address,
            link: LinkName::of(address.v4),
            workload: service.workload.clone(),
            command: None,
            env,
            secret_files: service.secret_files.clone(),
            limits: if build { build_limits(service.limits) } else { service.limits },
            release,
        }
    }

    /// Its host name in the sandbox, which the private network's DNS knows too.
    pub fn host_name(&self) -> &str {
        host_name(&self.workload, self.purpose, &self.id, &self.slug)
    }
}

/// An instance's host name. Several of a service may run, and each has a name of its own: its id, as systems that find their peers
/// by DNS need it (RabbitMQ), and those that name themselves after their host (Celery). Where there is one at a time, since it has
/// a disk or data, it is the service's slug, which a program may have written into its data.
pub(crate) fn host_name<'a>(workload: &Workload, purpose: Purpose, id: &'a InstanceId, slug: &'a Slug) -> &'a str {
    match purpose {
        Purpose::Serve if workload.disk().is_none() && !workload.is_datastore() => id.as_str(),
        Purpose::Serve | Purpose::Build | Purpose::PreDeploy | Purpose::Cron | Purpose::Job => slug.as_str(),
    }
}

/// A build is not what the plan was chosen for: compilers and installers get at least 4 GiB, four CPUs' worth and room for
/// their processes.
fn build_limits(limits: Limits) -> Limits {
    Limits { memory_bytes: limits.memory_bytes.max(4 << 30), cpu_millis: limits.cpu_millis.max(4000), pids: limits.pids.max(4096) }
}
