//! What the process may do once it has its sockets: very little.
//!
//! It is a user of its own, who owns nothing; it sees no file but those below the folder of releases, has no capability, and
//! can't get one back. Connections towards
//! instances need none: a thread that stays in the router namespace makes their sockets.

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
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

/// Gives up everything but the files below `root` that `user` may read; where these are found from now on.
///
/// Capabilities and users belong to threads: those that are started later inherit this.
pub fn confine(root: &Path, user: Option<u32>) -> PathBuf {
    // What can't be given up (in a sandbox that allows little anyway) does not keep it from serving.
    let base = match std::os::unix::fs::chroot(root).and_then(|()| std::env::set_current_dir("/")) {
        Ok(()) => PathBuf::from("/"),
        Err(error) => {
            tracing::warn!(%error, "the data plane sees the machine's files");
            root.to_owned()
        }
    };
    give_up_privileges(user);
    base
}

/// Has the calling thread be `user` (and of the group of that number, and no other) without capabilities, and what could bring
/// these back given up. Without a user it stays who it is.
pub fn give_up_privileges(user: Option<u32>) {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "the data plane may gain privileges");
    }
    // The system calls, which are for one thread: each of this process' gives up its own.
    let become_user = |user| {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    };
    if let Some(Err(error)) = user.map(become_user) {
        tracing::warn!(%error, "the data plane runs as the user of the daemon");
    }
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    if let Err(error) = rustix::thread::set_capabilities(None, none) {
        tracing::warn!(%error, "the data plane keeps its privileges");
    }
}
