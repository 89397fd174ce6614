//! One layer of an image: the files of packages and of a recipe in a tar archive.
//!
//! Invariants: paths are where a machine with merged `/usr` has them (`bin/x` is `usr/bin/x`), so that a layer never writes through a link
//! of the layer below; no path comes twice (podman and docker refuse such a layer); the same packages and recipe give the same bytes.

use super::{File, Folder, User};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use tar::{Builder, EntryType, Header};

/// Top-level folders that are links into `/usr`.
pub const MERGED: &[&str] = &["bin", "lib", "lib64", "sbin"];

/// What only people read.
const NOT_TAKEN: &[&str] = &[
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
];

/// Writes a layer.
pub struct Layer<'a, W: Write> {
    tar: Builder<W>,
    users: &'a [User],
    folders: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl<'a, W: Write> Layer<'a, W> {
    /// An empty layer. Owners are looked up in `users`. What packages have at the paths of `instead` is left out.
    pub fn new(to: W, users: &'a [User], instead: &[&str]) -> Self {
        let taken: BTreeSet<PathBuf> = instead.iter().map(|path| PathBuf::from(path.trim_start_matches('/'))).collect();
        Self { tar: Builder::new(to), users, folders: taken.clone(), files: taken }
    }

    /// All that a package holds.
    pub fn package(&mut self, deb: &Path) -> io::Result<()> {
        let mut unpack = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
        let Some(mut out) = unpack.stdout.take() else { return Err(io::Error::other("`dpkg-deb` has no output")) };
        let copied = self.archive(&mut out);
        // What follows the end of the archive must be read, or dpkg-deb fails on a closed pipe.
        let drained = io::copy(&mut out, &mut io::sink());
        let ended = unpack.wait()?;
        copied?;
        drained?;
        if ended.success() { Ok(()) } else { Err(io::Error::other(format!("`dpkg-deb --fsys-tarfile {}` failed", deb.display()))) }
    }

    fn archive(&mut self, from: impl Read) -> io::Result<()> {
        for entry in tar::Archive::new(from).entries()? {
            let mut entry = entry?;
            let path = merged(&entry.path()?);
            if path.as_os_str().is_empty() || NOT_TAKEN.iter().any(|not| path.starts_with(not)) || self.is_known(&path, &entry) {
                continue;
            }
            let mut header = entry.header().clone();
            match (header.entry_type(), entry.link_name()?) {
                (EntryType::Link, Some(target)) => self.tar.append_link(&mut header, &path, merged(&target))?,
                (EntryType::Symlink, Some(target)) => self.tar.append_link(&mut header, &path, target)?,
                _ => self.tar.append_data(&mut header, &path, &mut entry)?,
            }
        }
        Ok(())
    }

    /// Whether a path was written before; from now on it counts as written.
    fn is_known(&mut self, path: &Path, entry: &tar::Entry<'_, impl Read>) -> bool {
        let known = if entry.header().entry_type().is_dir() { &mut self.folders } else { &mut self.files };
        !known.insert(path.to_owned())
    }

    /// A folder; its parents are the business of the caller.
    pub fn folder(&mut self, folder: &Folder) -> io::Result<()> {
        let mut header = self.header(EntryType::Directory, folder.mode, folder.owner)?;
        self.tar.append_data(&mut header, relative(folder.path), io::empty())
    }

    /// A file.
    pub fn file(&mut self, file: &File) -> io::Result<()> {
        self.text(file.path, file.mode, file.owner, file.text)
    }

    /// A file whose text is made here.
    pub fn text(&mut self, path: &str, mode: u32, owner: &str, text: &str) -> io::Result<()> {
        self.bytes(path, mode, owner, text.as_bytes())
    }

    /// A file that is not text.
    pub fn bytes(&mut self, path: &str, mode: u32, owner: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = self.header(EntryType::Regular, mode, owner)?;
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, relative(path), bytes)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let mut header = self.header(EntryType::Symlink, 0o777, "root")?;
        self.tar.append_link(&mut header, relative(path), target)
    }

    /// The end of the archive.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    fn header(&self, kind: EntryType, mode: u32, owner: &str) -> io::Result<Header> {
        let id = match self.users.iter().find(|user| user.name == owner) {
            Some(user) => user.id,
            None if owner == "root" => 0,
            None => return Err(io::Error::other(format!("the recipe has no user `{owner}`"))),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id.into());
        header.set_gid(id.into());
        header.set_mtime(0);
        header.set_size(0);
        Ok(header)
    }
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// A path inside an archive, relative to the root, as a machine with merged `/usr` has it.
fn merged(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let aliased = plain.components().next().is_some_and(|first| MERGED.iter().any(|name| first.as_os_str() == *name));
    if aliased { Path::new("usr").join(plain) } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_merged_usr() {
        for (path, expected) in [
            ("./bin/sh", "usr/bin/sh"),
            ("./lib64/", "usr/lib64"),
            ("./usr/bin/redis-server", "usr/bin/redis-server"),
            ("./binary", "binary"),
            ("./", ""),
            ("/etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn a_recipe_s_file_stands_for_a_package_s_and_nothing_comes_twice() {
        let mut package = Builder::new(Vec::new());
        for (path, text) in [("./etc/x.conf", "package"), ("./bin/x", "program"), ("./usr/share/doc/x/copyright", "words")] {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(text.len() as u64);
            package.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        let package = package.into_inner().unwrap();
        let users = [User { name: "x", id: 42, home: "/" }];
        let mut layer = Layer::new(Vec::new(), &users, &["/etc/x.conf"]);
        layer.archive(package.as_slice()).unwrap();
        layer.archive(package.as_slice()).unwrap();
        layer.file(&File { path: "/etc/x.conf", mode: 0o600, owner: "x", text: "recipe" }).unwrap();
        assert!(layer.file(&File { path: "/etc/y", mode: 0o600, owner: "nobody-here", text: "" }).is_err());
        let bytes = layer.finish().unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            seen.push((entry.path().unwrap().display().to_string(), text, entry.header().uid().unwrap()));
        }
        assert_eq!(seen, [("usr/bin/x".into(), "program".into(), 0), ("etc/x.conf".into(), "recipe".into(), 42)]);
    }
}
