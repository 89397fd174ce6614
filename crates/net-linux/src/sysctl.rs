//! Settings of the network namespace the calling thread is in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// The value of a setting, or `None` when this kernel has none of that name.
pub fn get(name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a value unless it is set already; whether something changed. A setting that the kernel lacks is left out.
pub fn set(name: &str, value: &str) -> io::Result<bool> {
    change(name, get(name)?, value)
}

fn change(name: &str, current: Option<String>, value: &str) -> io::Result<bool> {
    match current {
        Some(current) if current != value => std::fs::write(path(name), value).map(|()| true),
        Some(_) | None => Ok(false),
    }
}

/// Settings of one namespace that are looked at again and again: their files stay open.
///
/// The way to such a file gets longer with every namespace of the machine: all of them share a bucket of the kernel's table of
/// names. Reading an open one does not.
#[derive(Debug, Default)]
pub struct Kept {
    /// By name. What is not there is not remembered: a module that is loaded later brings it.
    files: Mutex<BTreeMap<String, File>>,
}

impl Kept {
    /// What [`get`] finds. The calling thread is in the same namespace each time, or [`Self::forget`] was called between.
    pub fn get(&self, name: &str) -> io::Result<Option<String>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose link is gone can't be read any more.
        if let Some(value) = files.get(name).and_then(|file| read(file).ok()) {
            return Ok(Some(value));
        }
        files.remove(name);
        let file = match File::open(path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let value = read(&file)?;
        files.insert(name.to_owned(), file);
        Ok(Some(value))
    }

    /// Sets a value unless it is set already, as [`set`] does.
    pub fn set(&self, name: &str, value: &str) -> io::Result<bool> {
        change(name, self.get(name)?, value)
    }

    /// Forgets all: links came or went, or the namespace is another.
    pub fn forget(&self) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A setting's value, which is a number or a short word.
fn read(file: &File) -> io::Result<String> {
    let mut bytes = [0; 64];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).trim().to_owned())
}

/// Whether this kernel has IPv6 and it is not switched off here.
pub fn has_ipv6() -> bool {
    ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"].iter().all(|name| matches!(get(name), Ok(Some(value)) if value == "0"))
}
