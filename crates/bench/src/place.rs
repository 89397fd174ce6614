//! A pretended host: network and mount namespaces of this process' own.

use crate::failure::{Doing, Outcome};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Leaves the machine's network and mounts to others. To be called while this process has one thread.
pub fn enter() -> Outcome {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).doing("make namespaces (this needs root)")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).doing("keep mounts to ourselves")?;
    crate::process::timed(Command::new("ip").args(["link", "set", "lo", "up"])).map(drop)
}
