//! Whether a command can be started in a sandbox: an OCI runtime says neither which of the two is the matter, nor by the codes that
//! shells have for them.

use crate::lower::oci::{Process, User};
use crate::sys;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Exit code of a command that is not there.
pub const NOT_FOUND: i32 = 127;
/// Exit code of a command that is there and can't be run.
pub const NOT_EXECUTABLE: i32 = 126;

/// Why a process can't be started beside the process `pid` of a sandbox: the exit code, and words. None when it can, or when
/// that can't be told.
pub fn problem(pid: i32, process: &Process) -> Option<(i32, String)> {
    let name = process.args.first()?;
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let root = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder.join("root")).ok()?;
    let who = Who::of(&folder, &process.user)?;
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![Path::new(&process.cwd).join(name)]
    } else {
        let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH="))?;
        path.split(':').map(|folder| Path::new(&process.cwd).join(folder).join(name)).collect()
    };
    let mut found = false;
    for candidate in candidates {
        match look(&root, &candidate, &who) {
            Ok(Some(handle)) => {
                let interpreter = interpreter(&handle)?;
                return match look(&root, &Path::new(&process.cwd).join(&interpreter), &who) {
                    Ok(None) => Some((NOT_EXECUTABLE, format!("`{name}`: its interpreter `{}` can't be run", interpreter.display()))),
                    Err(error) if is_missing(&error) => {
                        Some((NOT_FOUND, format!("`{name}`: its interpreter `{}` is not there", interpreter.display())))
                    }
                    Ok(Some(_)) | Err(_) => None,
                };
            }
            Ok(None) => found = true,
            Err(error) if is_missing(&error) => {}
            Err(_) => return None,
        }
    }
    Some(if found { (NOT_EXECUTABLE, format!("`{name}`: it can't be run")) } else { (NOT_FOUND, format!("`{name}`: command not found")) })
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A handle of a file that may be run; none for what is there and may not.
fn look(root: &File, path: &Path, who: &Who) -> io::Result<Option<File>> {
    let handle = File::from(sys::open_in_root(root.as_fd(), path, false)?);
    let about = handle.metadata()?;
    Ok(Some(handle).filter(|_| about.is_file() && who.may_run(&about)))
}

/// The interpreter of a script; none for any other file.
fn interpreter(handle: &File) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    String::from_utf8_lossy(line).split_whitespace().next().map(PathBuf::from)
}

/// The process' user and groups as the host sees them.
struct Who {
    /// Root inside, which may run what anybody may.
    root: bool,
    user: u32,
    groups: Vec<u32>,
}

impl Who {
    fn of(process: &Path, user: &User) -> Option<Self> {
        let map = |file: &str| fs::read_to_string(process.join(file)).ok();
        let (users, groups) = (map("uid_map")?, map("gid_map")?);
        let outside = |map: &str, id: u32| {
            map.lines().find_map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse::<u32>);
                let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
                let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
                outside.checked_add(offset)
            })
        };
        let all = std::iter::once(&user.gid).chain(&user.additional_gids);
        Some(Self {
            root: user.uid == 0,
            user: outside(&users, user.uid)?,
            groups: all.filter_map(|group| outside(&groups, *group)).collect(),
        })
    }

    fn may_run(&self, about: &fs::Metadata) -> bool {
        let bits = if self.root {
            0o111
        } else if about.uid() == self.user {
            0o100
        } else if self.groups.contains(&about.gid()) {
            0o010
        } else {
            0o001
        };
        about.mode() & bits != 0
    }
}
