//! The mount that keeps the router namespace alive.

use crate::{NetError, ns};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

const NOTHING: Option<&str> = None;

/// The folder `RUN/netns`, a mount of its own, and the file in it that the namespace is bound to.
pub struct Pin {
    folder: PathBuf,
}

impl Pin {
    pub fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("netns") }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.join("router")
    }

    /// Opens the namespace; `None` when there is none.
    pub fn open(&self) -> io::Result<Option<File>> {
        match statfs(&self.file()) {
            Ok(stat) if stat.filesystem_type() == NSFS_MAGIC => File::open(self.file()).map(Some),
            Ok(_) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a new namespace, has `prepare` ready it, and binds it: it is never seen unprepared.
    pub fn create(&self, prepare: impl FnOnce() -> Result<(), NetError> + Send) -> Result<File, NetError> {
        let folder = &self.folder;
        let doing = format!("make `{}`", folder.display());
        fs::create_dir_all(folder).map_err(NetError::io(&doing))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(NetError::io(&doing))?;
        if mounts_at(folder).map_err(NetError::io("read the mounts"))? == 0 {
            let mounting = || format!("mount `{}`", folder.display());
            mount(Some(folder), folder, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(|e| NetError::io(mounting())(e.into()))?;
        }
        mount(NOTHING, folder, NOTHING, MsFlags::MS_PRIVATE, NOTHING)
            .map_err(|e| NetError::io(format!("make the mount `{}` private", folder.display()))(e.into()))?;
        let file = self.file();
        let doing = format!("bind the router namespace to `{}`", file.display());
        File::create(&file).map_err(NetError::io(&doing))?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let doing = || doing.clone();
                    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetError::io("make a network namespace")(e.into()))?;
                    let ns = ns::current().map_err(NetError::io(doing()))?;
                    prepare()?;
                    mount(Some("/proc/thread-self/ns/net"), &file, NOTHING, MsFlags::MS_BIND, NOTHING)
                        .map_err(|e| NetError::io(doing())(e.into()))?;
                    Ok(ns)
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Lets the namespace go and removes its file and folder; whether something was there.
    pub fn remove(&self) -> Result<bool, NetError> {
        let mut changed = false;
        for path in [self.file(), self.folder.clone()] {
            let doing = format!("unmount `{}`", path.display());
            while mounts_at(&path).map_err(NetError::io("read the mounts"))? > 0 {
                umount2(&path, MntFlags::MNT_DETACH).map_err(|e| NetError::io(&doing)(e.into()))?;
                changed = true;
            }
        }
        for result in [fs::remove_file(self.file()), fs::remove_dir(&self.folder)] {
            match result {
                Ok(()) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(NetError::io(format!("remove `{}`", self.folder.display()))(error)),
            }
        }
        Ok(changed)
    }
}

/// How many mounts lie on a path, in the mount namespace of the calling thread.
fn mounts_at(path: &Path) -> io::Result<usize> {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(&unescape(point)) == path).count())
}

/// Undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)): `\040` is a space.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = [ahead.next(), ahead.next(), ahead.next()];
        let octal = digits.iter().try_fold(0u32, |n, digit| digit.and_then(|d| char::from(d).to_digit(8)).map(|d| n * 8 + d));
        match octal.and_then(|n| u8::try_from(n).ok()).filter(|_| byte == b'\\') {
            Some(decoded) => {
                out.push(decoded);
                bytes = ahead;
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes_of_mountinfo() {
        for (text, plain) in [("/run/moat", "/run/moat"), (r"/a\040b", "/a b"), (r"/a\134b", r"/a\b"), (r"/a\b", r"/a\b"), (r"\", r"\")] {
            assert_eq!(unescape(text), plain);
        }
    }
}
