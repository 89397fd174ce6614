//! What can go wrong with the network of this machine.

use crate::lower::PolicyError;
use std::io;
use std::path::PathBuf;

/// Why a network operation failed. `Display` says what was being done; the cause is its source.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file, mount or namespace operation failed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, such as ``mount `/run/moat/netns/router` ``.
        doing: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a link, address, route or neighbour.
    #[error("the kernel refused to {doing}")]
    Link {
        /// What was being done.
        doing: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// `nft` refused a ruleset or a listing.
    #[error("`nft` failed to {doing}: {output}")]
    Nft {
        /// What was being done.
        doing: &'static str,
        /// What it printed.
        output: String,
    },
    /// A program that is needed is not installed.
    #[error("`{tool}` is not installed; hint: {hint}")]
    MissingTool {
        /// Its name.
        tool: &'static str,
        /// The command that installs it.
        hint: &'static str,
    },
    /// A policy that contradicts itself.
    #[error("the policy can't be applied")]
    Policy(#[from] PolicyError),
    /// There is no router namespace.
    #[error("there is no router namespace at `{path}`; hint: apply `EnsureRouter` first")]
    NoRouter {
        /// Where it would be.
        path: PathBuf,
    },
    /// Every range for the uplink overlaps a route of this machine.
    #[error(
        "no free range for the uplink: `{pool}` is covered by routes of this machine; hint: look for them with `ip route show table all`"
    )]
    NoUplinkRange {
        /// The pool that was searched.
        pool: &'static str,
    },
    /// A file of the runtime folder can't be read as what it should be.
    #[error("`{path}` is not what Moat wrote; hint: remove it, the filter is then loaded afresh")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A background task ended without an answer.
    #[error("a network task ended early")]
    Task(#[source] tokio::task::JoinError),
}

impl NetError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
    /// Wraps the kernel's refusal of a link operation.
    pub(crate) fn link(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Link { doing, source }
    }
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Link { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::OutOfMemory
                )
            }
            Self::Nft { .. } | Self::Task(_) => true,
            Self::MissingTool { .. } | Self::Policy(_) | Self::NoRouter { .. } | Self::NoUplinkRange { .. } | Self::Record { .. } => false,
        }
    }
}
