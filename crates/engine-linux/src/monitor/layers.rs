//! The root file system of an image: its layers, shared and never written, below a folder of the instance's own.
//!
//! Files of the layers belong to ids 0 to 65535, as in the image; each layer is shown through a mount on which these are the
//! ids of the service's own range. Invariant: a layer is only ever reached through a mount of overlayfs' lower side, so no
//! service writes what another one reads.

use crate::lower::sandbox::IDS;
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, pipe2};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NONE: Option<&str> = None;

/// Mounts the layers, the topmost first, on `target`; writes go to `scratch`. Layers that were unpacked without root have the ids of
/// the one range of services already.
pub fn mount_root(layers: &[PathBuf], scratch: &Path, first_id: u32, target: &Path, rootless: bool) -> io::Result<()> {
    let users = if rootless { None } else { Some(users(first_id)?) };
    mount_over(layers, scratch, first_id, target, users.as_ref())
}

/// The same with a user namespace of these ids; none: without root.
fn mount_over(layers: &[PathBuf], scratch: &Path, first_id: u32, target: &Path, users: Option<&File>) -> io::Result<()> {
    let [upper, work, shown] = ["upper", "work", "layers"].map(|name| scratch.join(name));
    for folder in [&upper, &work, &shown] {
        fs::create_dir_all(folder)?;
    }
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?;
    chown(&upper, Some(first_id), Some(first_id))?;
    // Short names in a place of their own: the options of a mount have one page.
    mount(Some("moat"), &shown, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m"))?;
    let mut lower = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let point = shown.join(index.to_string());
        fs::create_dir(&point)?;
        let Some(users) = users else {
            mount(Some(layer), &point, NONE, MsFlags::MS_BIND, NONE)?;
            lower.push(index.to_string());
            continue;
        };
        let tree = sys::idmapped(layer, users.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => io::Error::other(format!(
                "`{}`: {error}: images need Linux 5.19 and a file system below the state folder that can be shown with other ids, such as ext4, xfs or btrfs",
                layer.display()
            )),
            _ => error,
        })?;
        sys::move_mount(tree.as_fd(), &point)?;
        lower.push(index.to_string());
    }
    if lower.is_empty() {
        fs::create_dir(shown.join("empty"))?;
        lower.push("empty".to_owned());
    }
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&shown)?;
    let done = overlay(&lower.join(":"), &upper, &work, target, users.is_none());
    std::env::set_current_dir(before)?;
    done?;
    // The overlay holds what it needs of them.
    Ok(umount2(&shown, MntFlags::MNT_DETACH)?)
}

fn overlay(lower: &str, upper: &Path, work: &Path, target: &Path, rootless: bool) -> io::Result<()> {
    let options = options(lower.as_bytes(), upper, work, rootless);
    // Set-user-id programs of the image give ids of the service's range at most, and `no_new_privileges` forbids even that.
    mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(&options)).map_err(|error| {
        if error == Errno::EINVAL {
            io::Error::other("the kernel can't show layers with other ids below an overlay: images need Linux 5.19")
        } else {
            error.into()
        }
    })
}

/// The options of an overlay over `lower`, which is as the kernel reads it: folders with colons between. Without root its own signs
/// are attributes that users may write (`userxattr`, Linux 5.11).
pub fn options(lower: &[u8], upper: &Path, work: &Path, rootless: bool) -> PathBuf {
    let signs: &[u8] = if rootless { b",userxattr" } else { b"" };
    let parts = [&b"lowerdir="[..], lower, b",upperdir=", &escaped(upper), b",workdir=", &escaped(work), signs];
    PathBuf::from(OsString::from_vec(parts.concat()))
}

/// A path as the options of a mount take it: what they would read as their own is marked.
pub fn escaped(path: &Path) -> Vec<u8> {
    let mark = |&byte: &u8| if matches!(byte, b'\\' | b':' | b',') { vec![b'\\', byte] } else { vec![byte] };
    path.as_os_str().as_bytes().iter().flat_map(mark).collect()
}

/// A user namespace whose ids 0 to 65535 are those from `first_id` on.
fn users(first_id: u32) -> io::Result<File> {
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match sys::fork_single_threaded()? {
        ForkResult::Child => {
            drop(read);
            let done = unshare(CloneFlags::CLONE_NEWUSER);
            let word = if done.is_ok() { b"y" } else { b"n" };
            let _ = nix::unistd::write(&write, word);
            // Until it is killed, or its parent is.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut word = [0];
            let made = (|| {
                File::from(read).read_exact(&mut word)?;
                if word != *b"y" {
                    return Err(io::Error::other("a user namespace can't be made"));
                }
                ids_of(&PathBuf::from(format!("/proc/{child}")), first_id)
            })();
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            made
        }
    }
}

/// Tries to show a folder as the layer of an image, and to write over it, in `place`, which the caller makes and removes. For a thread
/// of its own, which ends with the mount namespace that it makes.
pub fn trial(place: &Path) -> io::Result<()> {
    const FIRST: u32 = 1_000_000;
    let [layer, scratch, target] = ["layer", "scratch", "target"].map(|name| place.join(name));
    for folder in [&layer, &scratch, &target] {
        fs::create_dir(folder)?;
    }
    fs::write(layer.join("file"), b"content")?;
    let users = users_by_command(FIRST)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    mount_over(&[layer], &scratch, FIRST, &target, Some(&users))?;
    let shown = fs::metadata(target.join("file"))?.uid();
    if shown != FIRST {
        return Err(io::Error::other(format!("a file of id 0 is shown with id {shown}")));
    }
    fs::write(target.join("file"), b"other content")
}

/// What [`users`] gives, for whoever has threads and so can't fork.
fn users_by_command(first_id: u32) -> io::Result<File> {
    let mut command = Command::new("unshare");
    command.args(["--user", "sh", "-c", "echo; read word"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = command.spawn().map_err(|error| io::Error::other(format!("`unshare` can't be run: {error}")))?;
    let mut word = [0];
    let held = holder.stdout.take().map_or(Ok(()), |mut out| out.read_exact(&mut word));
    let users = held
        .map_err(|_| io::Error::other("a user namespace can't be made"))
        .and_then(|()| ids_of(&PathBuf::from(format!("/proc/{}", holder.id())), first_id));
    // Its input ends, and so does it.
    drop(holder.stdin.take());
    let _ = holder.wait();
    users
}

/// Gives a user namespace, whose process this folder of `/proc` is of, the ids from `first_id` on, and opens it.
fn ids_of(process: &Path, first_id: u32) -> io::Result<File> {
    for file in ["uid_map", "gid_map"] {
        fs::write(process.join(file), format!("0 {first_id} {IDS}\n"))?;
    }
    File::open(process.join("ns/user"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn names_are_read_as_names_whatever_they_hold() {
        let odd = Path::new(OsStr::from_bytes(b"/a:b,c\\d\xff"));
        let text = options(b"0:1", odd, Path::new("/w"), false);
        assert_eq!(text.as_os_str().as_bytes(), b"lowerdir=0:1,upperdir=/a\\:b\\,c\\\\d\xff,workdir=/w");
        assert!(options(b"0:1", odd, Path::new("/w"), true).as_os_str().as_bytes().ends_with(b",workdir=/w,userxattr"));
    }
}
