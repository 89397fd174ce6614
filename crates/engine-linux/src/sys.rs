//! System calls that have no safe wrapper in the crates used here.
//!
//! Invariant: the only module of this crate with `unsafe`.
#![expect(
    unsafe_code,
    reason = "close_range, mount_setattr, open_tree, move_mount, pidfd_open, pidfd_send_signal, fork, madvise, mallopt, sbrk and registering a descriptor have no safe wrapper"
)]

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Closes every descriptor from `first` on (close_range(2)).
///
/// The caller owns none of them any more; only called before anything else has been opened.
pub fn close_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the arguments are plain integers; the callers hold no owned descriptor in the range.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a mount and everything below it read-only, without set-user-id programs and without devices
/// (mount_setattr(2) with `AT_RECURSIVE`, Linux 5.12).
pub fn seal_mount(path: &Path) -> io::Result<()> {
    set_mount(path, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, libc::AT_RECURSIVE)
}

/// Takes set-user-id programs and devices from one mount, and leaves what else it is without (mount_setattr(2)).
pub fn harden_mount(path: &Path) -> io::Result<()> {
    set_mount(path, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, 0)
}

fn set_mount(path: &Path, attr_set: u64, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is NUL-terminated, `attributes` lives across the call and its true size is passed.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, &raw const attributes, size_of::<libc::mount_attr>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A copy of a folder's mount in which id `n` of the file system is id `n` of a user namespace (open_tree(2) and
/// mount_setattr(2) with `MOUNT_ATTR_IDMAP`, Linux 5.12; below overlayfs since 5.19). It is mounted nowhere yet.
pub fn idmapped(folder: &Path, users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is NUL-terminated.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(fd) };
    let userns_fd = u64::try_from(users.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the path is empty and NUL-terminated, `attributes` lives across the call and its true size is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// Mounts what [`idmapped`] made on a folder (move_mount(2)).
pub fn move_mount(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are NUL-terminated.
    let done = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens below a folder as if that were the root: a symbolic link can't lead out of it (openat2(2) with
/// `RESOLVE_IN_ROOT`, Linux 5.6). `nofollow` is about the last component.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, nofollow: bool) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    let mut flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_NOFOLLOW, nofollow);
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// Opens a handle of a process that can't be confused with a later one of the same number (pidfd_open(2)).
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly the process of the handle (pidfd_send_signal(2)).
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means the same as kill(2).
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the process of the handle has ended.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` means one and the same descriptor until it is dropped, and closes it only then.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    pidfd.readable().await.map(|_| ())
}

/// Gives back the pages of program text and constants that only starting needed: of every file-backed mapping without a
/// page of our own, so nothing is lost and what is needed again is read again (madvise(2), `MADV_DONTNEED`).
pub fn trim() {
    let table = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut mapping: Option<(usize, usize)> = None;
    for line in table.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(first) = fields.next() else { continue };
        if first == "Anonymous:" {
            if let (Some((start, end)), Some("0")) = (mapping.take(), fields.next()) {
                // SAFETY: the range is one mapping of this process, of a file and without private pages: its pages are read
                // from the file again when they are touched.
                unsafe { libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
            }
        } else if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let from_file = fields.nth(3).is_some_and(|inode| inode != "0");
            let range = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            mapping = range.filter(|_| from_file);
        }
    }
}

/// Forks a process that has one thread.
pub fn fork_single_threaded() -> Result<ForkResult, Errno> {
    // SAFETY: the monitor never starts a thread, so no lock can be held by another one in the child.
    unsafe { nix::unistd::fork() }
}

/// Has glibc grow its heap by so many bytes at once and never give any back, and the kernel back them with huge pages (mallopt(3),
/// madvise(2) with `MADV_HUGEPAGE`). Only speed depends on it.
#[cfg(target_env = "gnu")]
pub fn grow_heap(bytes: usize) {
    /// Of the machine; one that has others ignores the advice.
    const HUGE_PAGE: usize = 2 << 20;
    // An allocation larger than what is free makes the heap grow; it must not be a mapping of its own.
    const PROBE: usize = 1 << 20;
    let Ok(pad) = libc::c_int::try_from(bytes) else { return };
    // SAFETY: settings of the allocator, plain integers.
    let set = unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::MAX) == 1
            && libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) == 1
            && libc::mallopt(libc::M_TOP_PAD, pad) == 1
    };
    if !set {
        return;
    }
    let top = || {
        // SAFETY: asks where the heap ends, and moves nothing.
        unsafe { libc::sbrk(0) }.addr()
    };
    let before = top();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(PROBE)));
    let (from, to) = (before.next_multiple_of(HUGE_PAGE), top());
    if from < to {
        // SAFETY: these pages are the heap's, which goes on as it is: the advice changes how they are backed, not what is in them.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(from), to - from, libc::MADV_HUGEPAGE) };
    }
}

/// Other allocators do as they do.
#[cfg(not(target_env = "gnu"))]
pub fn grow_heap(_bytes: usize) {}
