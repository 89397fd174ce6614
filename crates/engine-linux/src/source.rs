//! The source tree of a service: which files belong to it, what they amount to, and a copy of them.
//!
//! In a git work tree: what git tracks and what it does not ignore, so a file that was never committed runs too. Elsewhere
//! everything but what package managers and interpreters leave behind. Never `.git`.
//!
//! Invariant: no symbolic link is followed, and a copy is named by the digest of what was copied, not of what was read before.

use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folders that are never source where git does not say.
const LEFT_OUT: [&str; 8] = [".git", "node_modules", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".tox", ".DS_Store"];

/// The files of a source tree, relative, sorted.
pub fn list(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if let Some(listed) = ask_git(root)? {
        for path in listed {
            match fs::symlink_metadata(root.join(&path)) {
                // A submodule is listed as its folder.
                Ok(about) if about.is_dir() => found.extend(list(&root.join(&path))?.into_iter().map(|below| path.join(below))),
                Ok(_) => found.push(path),
                // Tracked, and deleted in the work tree.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    } else {
        walk(root, Path::new(""), &mut found)?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What git lists below a folder; `None` when it is in no work tree or git is missing.
fn ask_git(root: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    // A folder that a surrounding work tree ignores is listed as if there were no git.
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        // The tree may belong to the person who called sudo; nothing of its configuration is run by listing.
        command.args(["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-C"]).arg(root).args(args);
        command.stdin(Stdio::null()).stderr(Stdio::null()).output()
    };
    let output = match git(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"]) {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !output.status.success() || git(&["check-ignore", "-q", "."])?.status.success() {
        return Ok(None);
    }
    let paths = output.stdout.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    Ok(Some(paths.map(|path| PathBuf::from(OsString::from_vec(path.strip_suffix(b"/").unwrap_or(path).to_vec()))).collect()))
}

fn walk(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(below)) {
        // Removed since its name was read: editors and builds do so.
        Err(error) if error.kind() == io::ErrorKind::NotFound && below != Path::new("") => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let path = below.join(&name);
        if entry.file_type()?.is_dir() { walk(root, &path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// Reads every file, and copies it to `copy` (an existing folder) when there is one, owned by `owner`. Returns the digest of
/// names, contents, links and execute bits. Sockets, pipes and devices are left out, and files that were removed meanwhile.
pub fn ingest(root: &Path, files: &[PathBuf], copy: Option<(&Path, u32)>) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut field = |kind: &[u8], bytes: &[u8]| {
        digest.update(kind);
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for path in files {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
        let from = root.join(path);
        let about = match fs::symlink_metadata(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about.map_err(at)?,
        };
        let kind = about.file_type();
        if let Some((to, owner)) = copy {
            folders(to, path.parent().unwrap_or(Path::new("")), owner).map_err(at)?;
        }
        if kind.is_symlink() {
            let target = fs::read_link(&from).map_err(at)?;
            field(b"n", path.as_os_str().as_bytes());
            field(b"l", target.as_os_str().as_bytes());
            if let Some((to, owner)) = copy {
                symlink(&target, to.join(path)).and_then(|()| lchown(to.join(path), Some(owner), Some(owner))).map_err(at)?;
            }
        } else if kind.is_file() {
            let executable = about.permissions().mode() & 0o111 != 0;
            let mut source = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&from) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                source => source.map_err(at)?,
            };
            let mut target = match copy {
                Some((to, owner)) => Some(create(&to.join(path), if executable { 0o755 } else { 0o644 }, owner).map_err(at)?),
                None => None,
            };
            field(b"n", path.as_os_str().as_bytes());
            let content = pass(&mut source, target.as_mut()).map_err(at)?;
            field(if executable { b"x" } else { b"f" }, &content);
        }
    }
    Ok(hex(&digest.finalize()))
}

/// Copies one file's content; returns its digest.
fn pass(source: &mut File, mut target: Option<&mut File>) -> io::Result<Vec<u8>> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = source.read(&mut buffer)?;
        if length == 0 {
            return Ok(digest.finalize().to_vec());
        }
        digest.update(&buffer[..length]);
        if let Some(target) = target.as_mut() {
            target.write_all(&buffer[..length])?;
        }
    }
}

fn create(path: &Path, mode: u32, owner: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    fchown(&file, Some(owner), Some(owner))?;
    Ok(file)
}

/// Makes the folders of a relative path below `to`.
fn folders(to: &Path, below: &Path, owner: u32) -> io::Result<()> {
    let mut here = to.to_owned();
    for component in below.components() {
        here.push(component);
        match fs::create_dir(&here) {
            Ok(()) => {
                fs::set_permissions(&here, fs::Permissions::from_mode(0o755))?;
                lchown(&here, Some(owner), Some(owner))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
