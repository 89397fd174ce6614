//! Settings of the network namespace the calling thread is in.

use std::io;
use std::path::PathBuf;

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
    match get(name)? {
        Some(current) if current != value => std::fs::write(path(name), value).map(|()| true),
        Some(_) | None => Ok(false),
    }
}

/// Whether this kernel has IPv6 and it is not switched off here.
pub fn has_ipv6() -> bool {
    ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"].iter().all(|name| matches!(get(name), Ok(Some(value)) if value == "0"))
}
