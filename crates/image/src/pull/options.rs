//! What a pull can be told.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::credentials::{Credentials, DockerConfig};
use crate::limits::Limits;
use crate::platform::Platform;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// For which platform; this machine's by default.
    pub platform: Platform,
    /// For the reference's own registry, before those of the Docker config file. Never shown to a mirror.
    pub credentials: Option<Credentials>,
    /// Where credentials are looked up, by the host that is asked.
    pub docker_config: DockerConfig,
    /// Asked before a registry itself, in this order. A mirror is believed what a tag stands for.
    pub mirrors: Vec<Mirror>,
    /// Hosts (with port, as in the reference) that are spoken to without TLS. Loopback hosts always are.
    pub plain_http: BTreeSet<String>,
    /// What an image may ask of this machine.
    pub limits: Limits,
    /// Layers that are downloaded at the same time.
    pub downloads: NonZeroUsize,
    /// Ends the pull from another thread.
    pub cancel: Cancel,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            credentials: None,
            docker_config: DockerConfig::default(),
            mirrors: Vec::new(),
            plain_http: BTreeSet::new(),
            limits: Limits::default(),
            downloads: const { NonZeroUsize::new(3).expect("3 is not 0") },
            cancel: Cancel::default(),
        }
    }
}

/// A copy of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it is a copy of, such as `docker.io`.
    pub registry: String,
    /// Where it is: a host with port, then a path in which the repositories lie, such as `mirror.example.com:5000/hub`.
    pub location: String,
}

/// A flag that ends a pull or load soon after it is set.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends what was given this flag.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
