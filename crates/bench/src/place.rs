//! A pretended host: network and mount namespaces of this process' own.

use crate::failure::{Doing, Outcome};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Leaves the machine's network and mounts to others. To be called while this process has one thread.
pub fn enter() -> Outcome {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).doing("make namespaces (this needs root)")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).doing("keep mounts to ourselves")?;
    crate::process::timed(Command::new("ip").args(["link", "set", "lo", "up"])).map(drop)
}

/// A folder of this run that goes with everything in it, mounts too, however the run ends.
pub struct Folder(Option<TempDir>);

impl Folder {
    /// An empty one that every user may pass: the users of sandboxes have to.
    pub fn new() -> Outcome<Self> {
        let folder = tempfile::tempdir().doing("make a folder")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).doing("open a folder to all")?;
        Ok(Self(Some(folder)))
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), TempDir::path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // The deepest last in the list, so it goes first.
        for point in
            mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(folder.path()))
        {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        if let Err(error) = folder.close() {
            eprintln!("a folder of this run stays: {error}");
        }
    }
}
