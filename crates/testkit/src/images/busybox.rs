//! An image of two megabytes, for where reading and unpacking one is slow: busybox and some scripts.

use super::{debian, oci};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

/// What busybox is called as.
const APPLETS: [&str; 12] = ["sh", "cat", "echo", "httpd", "mkdir", "mkfifo", "nc", "printf", "seq", "sleep", "tail", "timeout"];

/// An archive as `docker save` writes it, under this reference (`library/busy:1`): busybox, and scripts by absolute path. It runs as root.
///
/// # Errors
/// There is no `busybox` here; the archive can't be written.
pub fn busybox_archive(reference: &str, scripts: &[(&str, &str)], to: &Path) -> io::Result<()> {
    let found = debian::run(Command::new("sh").args(["-c", "command -v busybox"]))?;
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin", "etc", "tmp", "root"] {
        let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
        entry(&mut layer, tar::EntryType::Directory, folder, mode, &[])?;
    }
    entry(&mut layer, tar::EntryType::Regular, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    entry(&mut layer, tar::EntryType::Regular, "bin/busybox", 0o755, &fs::read(found.trim())?)?;
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    for (path, text) in scripts {
        entry(&mut layer, tar::EntryType::Regular, path.trim_start_matches('/'), 0o755, text.as_bytes())?;
    }
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": debian::architecture()?,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", oci::hex(&Sha256::digest(&layer)))] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(File::create(to)?);
    for (name, content) in
        [("manifest.json", manifest.to_string().into_bytes()), ("config.json", config.to_string().into_bytes()), ("layer.tar", layer)]
    {
        entry(&mut archive, tar::EntryType::Regular, name, 0o644, &content)?;
    }
    archive.into_inner()?.flush()
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size as u64);
    header
}

fn entry<W: Write>(archive: &mut tar::Builder<W>, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, content.len()), path, content)
}
