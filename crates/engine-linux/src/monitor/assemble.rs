//! The root file system of a sandbox, made of mounts in the monitor's own mount namespace.
//!
//! Invariant: no path inside is followed through a symbolic link while it is made, so what a service's source or build
//! left there can't lead a mount or a file out of the sandbox.

use super::layers;
use crate::lower::sandbox::MountOp;
use crate::{sys, tree};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchown};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Most bytes of the root's own files: a few of `/etc`, and secret files.
const ROOT_SIZE: &str = "mode=0755,size=32m";
const NONE: Option<&str> = None;

/// Makes everything below `rootfs` (an empty folder), then moves it to `root`, whose parents every user can pass. `rootless` where this
/// is root of a user namespace only.
pub fn assemble(rootfs: &Path, root: &Path, ops: &[MountOp], rootless: bool) -> Result<(), String> {
    let fail = |what: &str, path: &Path, error: &dyn std::fmt::Display| format!("{what} `{}`: {error}", path.display());
    let (layered, ops) = if let Some((MountOp::Layers { layers, scratch, first_id }, rest)) = ops.split_first() {
        layers::mount_root(layers, scratch, *first_id, rootfs, rootless)
            .map_err(|error| format!("mounting the image's layers: {error}"))?;
        (true, rest)
    } else {
        mount(Some("moat"), rootfs, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(ROOT_SIZE))
            .map_err(|error| fail("mounting", rootfs, &error))?;
        (false, ops)
    };
    let top = open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| fail("opening", rootfs, &error))?;
    let inside = RootFs { top, layered, rootless };
    for op in ops {
        inside.apply(op).map_err(|error| match op {
            MountOp::ReadOnly { source, .. } | MountOp::Writable { source, .. } | MountOp::Storage { source, .. } => {
                fail("showing", source, &error)
            }
            MountOp::Overlay { lower, .. } => fail("showing", lower, &error),
            MountOp::Layers { scratch, .. } => fail("mounting", scratch, &error),
            MountOp::Dir { path, .. } | MountOp::File { path, .. } | MountOp::Symlink { path, .. } => fail("making", path, &error),
            MountOp::Tmpfs { target, .. } | MountOp::Sysfs { target } => fail("mounting", target, &error),
        })?;
    }
    mount(Some(rootfs), root, NONE, MsFlags::MS_MOVE, NONE).map_err(|error| fail("moving the root to", root, &error))
}

struct RootFs {
    top: OwnedFd,
    /// It is an image's: paths are looked up as inside, where links lead as they do there and never out.
    layered: bool,
    /// This is root of a user namespace only.
    rootless: bool,
}

impl RootFs {
    fn apply(&self, op: &MountOp) -> io::Result<()> {
        match op {
            MountOp::Dir { path, mode, owner } => {
                let dir = self.folder(path)?;
                let handle = open(&handle_path(&dir), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                fchown(&handle, Some(Uid::from_raw(*owner)), Some(Gid::from_raw(*owner)))?;
                File::from(handle).set_permissions(fs::Permissions::from_mode(*mode))
            }
            MountOp::File { path, mode, owner, content } => {
                let (parent, name) = self.parent(path)?;
                if self.layered {
                    make_room(&parent, name)?;
                }
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut file = File::from(openat(&parent, name, flags, Mode::from_bits_truncate(0o600))?);
                file.write_all(content.expose().as_bytes())?;
                fchown(&file, Some(Uid::from_raw(*owner)), Some(Gid::from_raw(*owner)))?;
                file.set_permissions(fs::Permissions::from_mode(*mode))
            }
            MountOp::Symlink { path, target } => {
                let (parent, name) = self.parent(path)?;
                Ok(nix::unistd::symlinkat(target.as_path(), &parent, name)?)
            }
            MountOp::ReadOnly { source, target } => {
                self.bind(source, target)?;
                sys::seal_mount(&handle_path(&self.existing(target)?))
            }
            MountOp::Writable { source, target } => {
                self.bind(source, target)?;
                sys::harden_mount(&handle_path(&self.existing(target)?))
            }
            MountOp::Storage { source, target } => self.bind(source, target),
            MountOp::Overlay { lower, scratch, target } => self.overlay(lower, scratch, target),
            // Only the first one makes a root.
            MountOp::Layers { .. } => Err(Errno::EINVAL.into()),
            MountOp::Tmpfs { target, size, mode } => {
                let options = format!("mode={mode:o},size={size}");
                Ok(mount(
                    Some("tmpfs"),
                    &handle_path(&self.folder(target)?),
                    Some("tmpfs"),
                    MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                    Some(options.as_str()),
                )?)
            }
            MountOp::Sysfs { target } => {
                let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                Ok(mount(Some("sysfs"), &handle_path(&self.folder(target)?), Some("sysfs"), flags, NONE)?)
            }
        }
    }

    fn bind(&self, source: &Path, target: &Path) -> io::Result<()> {
        let point = if fs::metadata(source)?.is_dir() { self.folder(target)? } else { self.file_point(target)? };
        Ok(mount(Some(source), &handle_path(&point), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?)
    }

    /// `lower` with writes kept in `scratch`; where the file system below can't carry an overlay, a whole copy.
    fn overlay(&self, lower: &Path, scratch: &Path, target: &Path) -> io::Result<()> {
        let owner = fs::metadata(lower)?;
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        for folder in [&upper, &work] {
            fs::create_dir_all(folder)?;
        }
        std::os::unix::fs::chown(&upper, Some(owner.uid()), Some(owner.gid()))?;
        fs::set_permissions(&upper, owner.permissions())?;
        let options = layers::options(&layers::escaped(lower), &upper, &work, self.rootless);
        let point = self.folder(target)?;
        match mount(Some("overlay"), &handle_path(&point), Some("overlay"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(&options)) {
            Ok(()) => Ok(()),
            Err(Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP) => {
                let copy = scratch.join("copy");
                tree::copy(lower, &copy)?;
                self.apply(&MountOp::Writable { source: copy, target: target.to_owned() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the folder, making what is missing of it, root's and 0755.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        if self.layered {
            return self.folder_in_root(path);
        }
        let mut here = self.top.try_clone()?;
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL.into()),
            };
            match mkdirat(&here, name, Mode::from_bits_truncate(0o755)) {
                // What is there may be mounted read-only and whole.
                Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
                Err(error) => return Err(error.into()),
            }
            here = openat(&here, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        }
        Ok(here)
    }

    /// The same where links are followed, within the root.
    fn folder_in_root(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::from("/");
        let mut here = self.top.try_clone()?;
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL.into()),
            };
            so_far.push(name);
            here = match sys::open_in_root(self.top.as_fd(), &so_far, false) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // A link that leads nowhere is in the way, and said to be.
                    mkdirat(&here, name, Mode::from_bits_truncate(0o755))?;
                    sys::open_in_root(self.top.as_fd(), &so_far, true)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok(here)
    }

    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        Ok((self.folder(path.parent().ok_or(Errno::EINVAL)?)?, name))
    }

    /// Opens the file, making an empty one where nothing is.
    fn file_point(&self, path: &Path) -> io::Result<OwnedFd> {
        let (parent, name) = self.parent(path)?;
        match openat(
            &parent,
            name,
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::from_bits_truncate(0o644),
        ) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.existing(path)
    }

    fn existing(&self, path: &Path) -> io::Result<OwnedFd> {
        let (parent, name) = self.parent(path)?;
        Ok(openat(&parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
    }
}

/// Removes the file or link that is there.
fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match nix::unistd::unlinkat(parent, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The path that means exactly what the handle means.
fn handle_path(handle: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()))
}
