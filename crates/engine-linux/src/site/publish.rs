//! From what a build left to what is served: a copy, file by file, that nothing leads out of.
//!
//! The folder is looked up below the release's own (`openat2` with `RESOLVE_BENEATH`), since its build may have put
//! symbolic links wherever it likes. Hidden files stay behind but those of `.well-known` (RFC 8615). Each copy is marked with
//! the digest of its content ([`ETAG`]), so that an unchanged file keeps its entity tag from release to release.

use super::Published;
use crate::source::hex;
use moat_engine::EngineError;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// Where a copy's digest is written; the ingress reads it.
const ETAG: &str = "user.moat.etag";
/// The one hidden name that is published.
const WELL_KNOWN: &[u8] = b".well-known";
/// Folders within folders; more are taken for a mistake.
const DEEPEST: usize = 128;
/// Names that an error lists.
const NAMED: usize = 8;
/// Folders that sites are usually built into.
const USUAL: [&str; 8] = ["dist", "build", "out", "public", "_site", "site", "www", "docs"];

/// Why nothing was published.
pub(super) enum Problem {
    /// There is no such folder; these are there instead.
    Missing { built: bool, there: Vec<String>, usual: Option<String> },
    /// It leads out of the source.
    Outside,
    /// Nothing in it can be published.
    Empty,
    /// Folders within folders without end.
    Deep(PathBuf),
    /// Reading or writing failed.
    Io(PathBuf, io::Error),
}

impl Problem {
    pub(super) fn into_error(self, doing: String) -> EngineError {
        match self {
            Self::Missing { built, there, usual } => {
                let who = if built { "the build made no such folder" } else { "the source has no such folder" };
                let there = if there.is_empty() { "nothing else either".to_owned() } else { format!("there are {}", there.join(", ")) };
                let hint = match usual {
                    Some(usual) => format!("did you mean `staticPublishPath: {usual}`?"),
                    None if built => "`staticPublishPath` is relative to `rootDir`; is it where the build command writes to?".to_owned(),
                    None => "`staticPublishPath` is relative to `rootDir`; is a `buildCommand` missing?".to_owned(),
                };
                EngineError::new(doing, format!("{who}; {there}")).hint(hint)
            }
            Self::Outside => {
                EngineError::new(doing, "it leads out of the source").hint("name a folder of the source or of the build's result")
            }
            Self::Empty => {
                EngineError::new(doing, "the folder has no files to publish").hint("files whose names begin with `.` are not published")
            }
            Self::Deep(path) => EngineError::new(doing, format!("`{}` lies more than {DEEPEST} folders deep", path.display())),
            Self::Io(path, error) => {
                let full = error.kind() == io::ErrorKind::StorageFull;
                let made = EngineError::new(doing, format!("`{}`: {error}", path.display())).caused_by(error);
                if full { made.hint("free some space on the disk of the state folder") } else { made }
            }
        }
    }
}

/// Copies `ROOT_DIR/PUBLISH` of the source in `release` to the new folder `to`.
pub(super) fn publish(release: &Path, root_dir: &Path, publish: &Path, to: &Path, built: bool) -> Result<Published, Problem> {
    let io = |path: &Path, error: Errno| Problem::Io(path.to_owned(), error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(release, flags, Mode::empty()).map_err(|error| io(release, error))?;
    // Whoever builds may replace this folder too.
    let real = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let source = rustix::fs::openat2(&base, "project/src", flags, Mode::empty(), real).map_err(|_| Problem::Outside)?;
    let below = |path: &Path| {
        let clean: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir)).collect();
        if clean.as_os_str().is_empty() { PathBuf::from(".") } else { clean }
    };
    let wanted = below(&root_dir.join(below(publish)));
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let folder = match rustix::fs::openat2(&source, &wanted, flags, Mode::empty(), beneath) {
        Ok(folder) => folder,
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing(&source, &below(root_dir), built)),
        Err(Errno::XDEV | Errno::LOOP) => return Err(Problem::Outside),
        Err(error) => return Err(io(publish, error)),
    };
    rustix::fs::mkdir(to, Mode::from_raw_mode(0o755)).map_err(|error| io(to, error))?;
    let target = rustix::fs::open(to, flags, Mode::empty()).map_err(|error| io(to, error))?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(0o755)).map_err(|error| io(to, error))?;
    let mut copy = Copy { root: folder.as_fd(), published: Published::default(), buffer: vec![0; 128 * 1024] };
    copy.folder(folder.as_fd(), target.as_fd(), Path::new(""), 0)?;
    let Copy { mut published, .. } = copy;
    if published.files == 0 {
        return Err(Problem::Empty);
    }
    published.index = rustix::fs::statat(&target, "index.html", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    Ok(published)
}

/// What there is below the working folder instead.
fn missing(source: &OwnedFd, root_dir: &Path, built: bool) -> Problem {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(source, root_dir, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS);
    let entries = folder.and_then(Dir::new).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let mut folders: Vec<String> = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type() == FileType::Directory && !entry.file_name().to_bytes().starts_with(b"."))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    let usual = USUAL.iter().find(|usual| folders.iter().any(|folder| folder == *usual)).map(|&usual| usual.to_owned());
    let more = folders.len().saturating_sub(NAMED);
    let mut there: Vec<String> = folders.into_iter().take(NAMED).map(|folder| format!("`{folder}`")).collect();
    if more > 0 {
        there.push(format!("{more} more"));
    }
    Problem::Missing { built, there, usual }
}

struct Copy<'f> {
    /// The folder that is published.
    root: BorrowedFd<'f>,
    published: Published,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, below: &Path, depth: usize) -> Result<(), Problem> {
        if depth > DEEPEST {
            return Err(Problem::Deep(below.to_owned()));
        }
        let io = |path: &Path, error: Errno| Problem::Io(path.to_owned(), error.into());
        for entry in Dir::read_from(from).map_err(|error| io(below, error))? {
            let entry = entry.map_err(|error| io(below, error))?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") && name.to_bytes() != WELL_KNOWN {
                continue;
            }
            let path = below.join(OsStr::from_bytes(name.to_bytes()));
            let about = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| io(&path, error))?;
            match FileType::from_raw_mode(about.st_mode) {
                FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let inner = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(|error| io(&path, error))?;
                    rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o755)).map_err(|error| io(&path, error))?;
                    let copy = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(|error| io(&path, error))?;
                    // Whoever serves it is not who publishes it.
                    rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o755)).map_err(|error| io(&path, error))?;
                    self.folder(inner.as_fd(), copy.as_fd(), &path, depth + 1)?;
                }
                FileType::RegularFile => {
                    let bytes = self.file(from, to, name).map_err(|error| Problem::Io(path, error))?;
                    self.published.files += 1;
                    self.published.bytes += bytes;
                }
                FileType::Symlink => self.link(from, to, name, &path).map_err(|error| io(&path, error))?,
                FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {}
            }
        }
        Ok(())
    }

    /// Copies one file and marks it with its digest.
    fn file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<u64> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut copy = File::from(rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o644))?);
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o644))?;
        let (mut digest, mut bytes) = (Sha256::new(), 0);
        loop {
            let length = source.read(&mut self.buffer)?;
            if length == 0 {
                break;
            }
            digest.update(&self.buffer[..length]);
            copy.write_all(&self.buffer[..length])?;
            bytes += u64::try_from(length).unwrap_or_default();
        }
        let tag = hex(&digest.finalize()[..16]);
        // A file system without such attributes: the ingress makes a tag of size and time, good for this release.
        let _ = rustix::fs::fsetxattr(&copy, ETAG, tag.as_bytes(), XattrFlags::empty());
        Ok(bytes)
    }

    /// A link that stays in the folder is kept as it is; any other is left out.
    fn link(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Errno> {
        let target = rustix::fs::readlinkat(from, name, Vec::new())?;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if rustix::fs::openat2(self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath).is_ok() {
            return rustix::fs::symlinkat(&target, to, name);
        }
        self.published.left_out.push(path.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A release whose source has these files; `a -> b` is a link.
    fn release(files: &[&str]) -> tempfile::TempDir {
        let release = tempfile::tempdir().unwrap();
        let source = release.path().join("project/src");
        fs::create_dir_all(&source).unwrap();
        for file in files {
            let (name, target) = file.split_once(" -> ").map_or((*file, None), |(name, target)| (name, Some(target)));
            let path = source.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match target {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, format!("content of {name}")).unwrap(),
            }
        }
        release
    }

    fn published(release: &Path, root_dir: &str, folder: &str) -> Result<Published, String> {
        let done = publish(release, Path::new(root_dir), Path::new(folder), &release.join("site"), true);
        done.map_err(|problem| {
            let error = problem.into_error("publish".to_owned());
            format!("{error} / {}", error.hint.as_deref().unwrap_or_default())
        })
    }

    fn files(folder: &Path) -> Vec<String> {
        fn walk(at: &Path, below: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(at.join(below)).unwrap().flatten() {
                let path = below.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() { walk(at, &path, found) } else { found.push(path.display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(folder, Path::new(""), &mut found);
        found.sort();
        found
    }

    #[test]
    fn the_folder_is_copied_without_what_is_hidden_or_leads_out() {
        let release = release(&[
            "web/dist/index.html",
            "web/dist/a/b.css",
            "web/dist/.env",
            "web/dist/.git/config",
            "web/dist/.well-known/security.txt",
            "web/dist/latest -> a",
            "web/dist/again.css -> latest/b.css",
            "web/dist/secret -> ../../../../sealed",
            "web/dist/passwd -> /etc/passwd",
            "web/dist/a/up -> ../../../main.rs",
            "main.rs",
        ]);
        let got = published(release.path(), "web", "./dist/").unwrap();
        assert_eq!((got.files, got.index), (3, true));
        let mut left_out = got.left_out.clone();
        left_out.sort();
        assert_eq!(left_out, ["a/up", "passwd", "secret"].map(PathBuf::from));
        let site = release.path().join("site");
        assert_eq!(files(&site), [".well-known/security.txt", "a/b.css", "again.css", "index.html", "latest"]);
        assert_eq!(fs::read_to_string(site.join("again.css")).unwrap(), "content of web/dist/a/b.css");
    }

    #[test]
    fn paths_may_go_up_to_the_source_and_no_further() {
        for (root_dir, folder, want) in [
            ("", ".", Ok(2)),
            ("", "/", Ok(2)),
            ("", "dist", Ok(1)),
            ("", "/dist", Ok(1)),
            ("api", "../dist", Ok(1)),
            ("api", "../../src/dist", Err("leads out")),
            ("", "..", Err("leads out")),
            ("", "elsewhere", Err("leads out")),
            ("", "dist/index.html", Err("made no such folder")),
            ("", "build", Err("there are `api`, `dist`, `empty` / did you mean `staticPublishPath: dist`?")),
            ("api", "dist", Err("nothing else either")),
            ("", "empty", Err("no files to publish")),
        ] {
            let release = release(&["dist/index.html", "api/main.py", "empty/.keep", "elsewhere -> /usr/share"]);
            match (published(release.path(), root_dir, folder), want) {
                (Ok(got), Ok(count)) => assert_eq!(got.files, count, "{root_dir} {folder}"),
                (Err(got), Err(words)) => assert!(got.contains(words), "{root_dir} {folder}: {got}"),
                (got, want) => panic!("{root_dir} {folder}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn a_source_that_the_build_replaced_by_a_link_is_refused() {
        let release = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("index.html"), "x").unwrap();
        fs::create_dir(release.path().join("project")).unwrap();
        symlink(elsewhere.path(), release.path().join("project/src")).unwrap();
        assert!(published(release.path(), "", ".").unwrap_err().contains("leads out"));
    }

    #[test]
    fn equal_content_has_an_equal_tag() {
        let tag = |release: &Path| {
            published(release, "", "dist").unwrap();
            let mut value = [0; 64];
            rustix::fs::getxattr(release.join("site/index.html"), ETAG, &mut value).ok().map(|length| value[..length].to_vec())
        };
        let (a, b) = (release(&["dist/index.html"]), release(&["dist/index.html", "dist/other.html"]));
        let (a, b) = (tag(a.path()), tag(b.path()));
        assert_eq!(a, b);
        if a.is_none() {
            println!("not proved: the file system of the temporary folder has no user attributes");
        }
    }
}
