//! What the process may do once it has its sockets: very little.
//!
//! It sees no file but those below the folder of releases, has no capability, and can't get one back. Connections towards
//! instances need none: a thread that stays in the router namespace makes their sockets.

use rustix::thread::{CapabilitySet, CapabilitySets};
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel takes others first when memory runs out: everyone's requests come through here.
pub fn prefer_others() {
    // Needs `CAP_SYS_RESOURCE`; without it the process is like any other.
    let _ = fs::write("/proc/self/oom_score_adj", "-500");
}

/// As many connections as may be open without privileges.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A failure leaves the usual number.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Gives up everything but the files below `root`; where these are found from now on.
///
/// Capabilities belong to threads: those that are started later inherit this.
pub fn confine(root: &Path) -> PathBuf {
    // What can't be given up (in a sandbox that allows little anyway) does not keep it from serving.
    let base = match std::os::unix::fs::chroot(root).and_then(|()| std::env::set_current_dir("/")) {
        Ok(()) => PathBuf::from("/"),
        Err(error) => {
            tracing::warn!(%error, "the data plane sees the machine's files");
            root.to_owned()
        }
    };
    give_up_privileges();
    base
}

/// Gives up the capabilities of the calling thread, and what could bring them back.
pub fn give_up_privileges() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "the data plane may gain privileges");
    }
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    if let Err(error) = rustix::thread::set_capabilities(None, none) {
        tracing::warn!(%error, "the data plane keeps its privileges");
    }
}
