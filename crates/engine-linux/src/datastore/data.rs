//! What has written the data that a datastore has.
//!
//! The folder is the service's own, so what is there is not trusted: no link leads out of it, nothing is waited for, and
//! nothing but a number is taken.

use crate::lower::{keyvalue, postgres};
use crate::sys;
use crate::toolchain;
use moat_engine::EngineError;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

/// The start of a file below a folder, none where there is no such file. The folder is a service's own, so what is there is
/// not trusted: no link leads out of it, nothing is waited for.
fn start_of(folder: &Path, path: &Path, length: u64) -> io::Result<Option<Vec<u8>>> {
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    let top = match File::open(folder) {
        Ok(top) => top,
        Err(error) => return absent(error),
    };
    let handle = match sys::open_in_root(top.as_fd(), path, true) {
        Ok(handle) => handle,
        Err(error) => return absent(error),
    };
    let proper = format!("/proc/self/fd/{}", handle.as_raw_fd());
    if !fs::metadata(&proper)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is no file", path.display())));
    }
    let mut bytes = Vec::new();
    File::open(&proper)?.take(length).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The major version that wrote a database's data; none where no server was made yet.
pub fn version(data: &Path) -> Result<Option<u16>, EngineError> {
    let look = || -> io::Result<Option<u16>> {
        let cluster = Path::new(postgres::CLUSTER);
        match fs::symlink_metadata(data.join(cluster)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let text = start_of(data, &cluster.join("PG_VERSION"), 16)?.ok_or_else(|| invalid("there is no `PG_VERSION`"))?;
        let major = String::from_utf8_lossy(&text).trim().parse().map_err(|_| invalid("`PG_VERSION` holds no version"))?;
        Ok(Some(major))
    };
    look().map_err(|error| {
        EngineError::new("read the version of the database's data", error.to_string())
            .hint("bring the folder back from a backup, or move it away to begin anew")
            .caused_by(error)
    })
}

/// The latest format among the files of a Key Value's data; none where there is no data.
pub fn format(data: &Path) -> Result<Option<u16>, EngineError> {
    let look = || -> io::Result<Option<u16>> {
        let mut files: Vec<PathBuf> = keyvalue::SNAPSHOTS.map(PathBuf::from).into();
        let journal = data.join(keyvalue::JOURNAL);
        if fs::symlink_metadata(&journal).is_ok_and(|about| about.is_dir()) {
            for entry in fs::read_dir(&journal)? {
                let name = Path::new(keyvalue::JOURNAL).join(entry?.file_name());
                // The others are commands.
                files.extend(Some(name).filter(|name| name.extension().is_some_and(|extension| extension == "rdb")));
            }
        }
        let mut latest = None;
        for file in files {
            latest = latest.max(start_of(data, &file, 9)?.and_then(|start| toolchain::keyvalue::format(&start)));
        }
        Ok(latest)
    };
    look().map_err(|error| {
        EngineError::new("read the format of the Key Value's data", error.to_string())
            .hint("bring the folder back from a backup, or move it away to begin anew")
            .caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_version_of_a_database_is_read_and_never_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        assert_eq!(version(&data.join("nothing")).unwrap(), None);
        assert_eq!(version(data).unwrap(), None);
        write(data, "data/PG_VERSION", "17\n");
        assert_eq!(version(data).unwrap(), Some(17));
        for spoilt in ["", "seventeen\n", "15.3\n"] {
            write(data, "data/PG_VERSION", spoilt);
            assert!(version(data).unwrap_err().hint.is_some(), "{spoilt}");
        }
        fs::remove_file(data.join("data/PG_VERSION")).unwrap();
        assert!(version(data).is_err());
    }

    #[test]
    fn links_of_a_folder_of_data_lead_nowhere() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = folder.path();
        write(outside.path(), "PG_VERSION", "15\n");
        symlink(outside.path(), data.join("data")).unwrap();
        assert!(version(data).is_err());
        write(outside.path(), "a.rdb", "REDIS0012");
        symlink(outside.path().join("a.rdb"), data.join("dump.rdb")).unwrap();
        assert!(format(data).is_err());
        fs::remove_file(data.join("dump.rdb")).unwrap();
        symlink(outside.path(), data.join("appendonlydir")).unwrap();
        assert_eq!(format(data).unwrap(), None);
    }

    #[test]
    fn the_latest_format_of_a_key_value_counts() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        assert_eq!(format(&data.join("nothing")).unwrap(), None);
        write(data, "appendonlydir/appendonly.aof.1.incr.aof", "*1\r\n$4\r\nPING");
        assert_eq!(format(data).unwrap(), None);
        write(data, "dump.rdb", "REDIS0010\u{1}");
        assert_eq!(format(data).unwrap(), Some(10));
        write(data, "appendonlydir/appendonly.aof.1.base.rdb", "REDIS0011\u{1}");
        assert_eq!(format(data).unwrap(), Some(11));
        write(data, "dump.rdb", "VALKEY080\u{1}");
        assert_eq!(format(data).unwrap(), Some(80));
    }
}
