//! Copies and removes folders without following a symbolic link.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

/// Copies a folder with owners, modes and links; sockets, pipes and devices are left out.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(from)?;
    let kind = about.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(());
    }
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    if !kind.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    }
    Ok(())
}

/// Bytes that a folder and all below it take on their file system, each file once whatever number of names it has; zero for
/// what is not there. Files come and go meanwhile.
pub fn size(path: &Path) -> io::Result<u64> {
    fn walk(path: &Path, seen: &mut BTreeSet<u64>) -> io::Result<u64> {
        let about = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let mut total = if about.nlink() < 2 || about.is_dir() || seen.insert(about.ino()) { about.blocks() * 512 } else { 0 };
        if about.is_dir() {
            for entry in fs::read_dir(path).into_iter().flatten() {
                total += walk(&entry?.path(), seen)?;
            }
        }
        Ok(total)
    }
    walk(path, &mut BTreeSet::new())
}

/// Removes a folder and all below it; does nothing when it is gone.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a file or a folder with all below it to another owner.
pub fn give(path: &Path, owner: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    lchown(path, Some(owner), Some(owner))
}

/// Lets everybody read a folder and go through it.
pub fn open_to_all(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_what_files_take_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(size(&folder.path().join("nothing")).unwrap(), 0);
        let empty = size(folder.path()).unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/one"), vec![1; 1 << 20]).unwrap();
        let one = size(folder.path()).unwrap();
        assert!(one >= empty + (1 << 20), "{one}");
        // Another name and a link are no other file.
        fs::hard_link(folder.path().join("a/one"), folder.path().join("two")).unwrap();
        symlink("/usr", folder.path().join("usr")).unwrap();
        assert!(size(folder.path()).unwrap() < one + 8192);
    }
}
