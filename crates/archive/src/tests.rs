use super::*;
use moat_store::Key;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

const KEY: [u8; 32] = [7; 32];

/// Takes the parts that it is told to.
struct Into {
    folder: PathBuf,
    only: Option<&'static str>,
    contents: Vec<u8>,
}

impl Into {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), only: None, contents: Vec::new() }
    }
}

impl Visitor for Into {
    fn contents(&mut self, text: &[u8]) -> Result<(), String> {
        self.contents = text.to_vec();
        if text == b"refuse" { Err("not this one".to_owned()) } else { Ok(()) }
    }
    fn part(&mut self, name: &str) -> Result<Option<Destination>, String> {
        let wanted = self.only.is_none_or(|only| only == name);
        Ok(wanted.then(|| Destination { folder: self.folder.join(name.replace('/', "-")), first_id: rustix::process::getuid().as_raw() }))
    }
}

fn head() -> Head {
    Head {
        id: "one".to_owned(),
        created: "2026-11-21T12:00:00Z".to_owned(),
        moat: "0".to_owned(),
        machine: "m".to_owned(),
        whole: false,
        services: vec!["kv".to_owned()],
        key: None,
    }
}

/// A tree with one of everything that a disk may hold.
fn tree(folder: &Path) {
    fs::create_dir_all(folder.join("sub/empty")).unwrap();
    fs::write(folder.join("sub/text"), "words").unwrap();
    fs::write(folder.join("large"), vec![5; 700 << 10]).unwrap();
    fs::File::create(folder.join("hole")).unwrap().set_len(8 << 20).unwrap();
    fs::write(folder.join("n".repeat(180)), "long name").unwrap();
    fs::hard_link(folder.join("sub/text"), folder.join("same")).unwrap();
    symlink("/etc/passwd", folder.join("out")).unwrap();
    symlink("sub//text", folder.join("in")).unwrap();
    fs::set_permissions(folder.join("sub/text"), fs::Permissions::from_mode(0o640)).unwrap();
    let _ = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
}

fn write(folder: &Path, contents: &[u8]) -> PathBuf {
    let (from, to) = (folder.join("from"), folder.join("a.backup"));
    tree(&from);
    let mut writer = Writer::create(&to, &head(), &Key::from_bytes(&KEY), contents).unwrap();
    let own = |_| 0;
    writer.part("disks/srv-a/data");
    writer.tree(&from, Path::new(""), &own).unwrap();
    writer.part("data/srv-b");
    writer.folder(Path::new(""), 0o755, 0).unwrap();
    writer.file(Path::new("dump.rdb"), 0o600, 0, &mut &b"REDIS"[..], 5).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!(written.bytes, fs::metadata(&to).unwrap().len());
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    to
}

fn open(path: &Path, into: &mut Into) -> Result<Head, ArchiveError> {
    read(path, &Key::from_bytes(&KEY), into)
}

#[test]
fn what_is_read_is_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let archive = write(folder.path(), b"what is in it");
    assert_eq!(read_head(&archive).unwrap(), head());
    fs::create_dir(folder.path().join("to")).unwrap();
    let mut into = Into::new(&folder.path().join("to"));
    assert_eq!(open(&archive, &mut into).unwrap(), head());
    assert_eq!(into.contents, b"what is in it");

    let (from, to) = (folder.path().join("from"), folder.path().join("to/disks-srv-a-data"));
    for name in ["sub/text", "large", "hole", "same", &"n".repeat(180)] {
        assert!(fs::read(from.join(name)).unwrap() == fs::read(to.join(name)).unwrap(), "{name}");
    }
    let about = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
    assert!(about("hole").blocks() < 64, "zeros are a hole");
    assert_eq!(about("same").ino(), about("sub/text").ino());
    assert_eq!(about("sub/text").permissions().mode() & 0o777, 0o640);
    assert_eq!(about("large").mtime(), fs::metadata(from.join("large")).unwrap().mtime());
    assert_eq!(fs::read_link(to.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(to.join("in")).unwrap(), Path::new("sub/text"));
    assert!(about("sub/empty").is_dir() && !to.join("socket").exists());
    assert_eq!(fs::read(folder.path().join("to/data-srv-b/dump.rdb")).unwrap(), b"REDIS");

    // One part alone; the others are verified all the same.
    fs::create_dir(folder.path().join("one")).unwrap();
    let mut into = Into { only: Some("data/srv-b"), ..Into::new(&folder.path().join("one")) };
    open(&archive, &mut into).unwrap();
    assert_eq!(fs::read_dir(folder.path().join("one")).unwrap().count(), 1);
}

#[test]
fn a_change_anywhere_a_cut_and_a_wrong_key_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let archive = write(folder.path(), b"contents");
    let whole = fs::read(&archive).unwrap();
    let spoilt = folder.path().join("spoilt");
    let mut count = 0;
    let mut opens = |bytes: &[u8]| {
        fs::write(&spoilt, bytes).unwrap();
        count += 1;
        let to = folder.path().join(format!("to-{count}"));
        fs::create_dir(&to).unwrap();
        open(&spoilt, &mut Into::new(&to))
    };
    opens(&whole).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60).chain([MAGIC.len(), whole.len() - 1]) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(opens(&changed).is_err(), "byte {at}");
        assert!(opens(&whole[..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(opens(&[&whole[..], b"x"].concat()), Err(ArchiveError::Damaged(_))));
    assert!(matches!(opens(b"PK\x03\x04 something else"), Err(ArchiveError::NotAnArchive)));
    assert!(matches!(opens(b"moat-backup 2\n"), Err(ArchiveError::Newer)));
    let wrong = read(&archive, &Key::from_bytes(&[8; 32]), &mut Into::new(folder.path()));
    assert!(matches!(wrong, Err(ArchiveError::WrongKey)));
    assert!(!whole.windows(5).any(|bytes| bytes == b"words"), "nothing is in clear");
}

#[test]
fn a_half_written_archive_leaves_nothing_and_none_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a.backup");
    let create = || Writer::create(&place, &head(), &Key::from_bytes(&KEY), b"contents");
    drop(create().unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let mut late = create().unwrap();
    late.part("data/srv-b");
    fs::write(&place, "somebody's").unwrap();
    assert!(create().is_err());
    assert!(late.finish().is_err());
    assert_eq!(fs::read(&place).unwrap(), b"somebody's");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn nothing_is_made_outside_of_the_folder_of_a_part() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for (name, first) in [("../evil", None), ("link/evil", Some(&outside)), ("nowhere/evil", None)] {
        let place = folder.path().join(format!("{}.backup", name.replace(['/', '.'], "-")));
        let mut writer = Writer::create(&place, &head(), &Key::from_bytes(&KEY), b"contents").unwrap();
        writer.part("data/x");
        writer.folder(Path::new(""), 0o755, 0).unwrap();
        if let Some(target) = first {
            let holder = folder.path().join("holder");
            fs::create_dir(&holder).unwrap();
            symlink(target, holder.join("link")).unwrap();
            writer.tree(&holder.join("link"), Path::new("link"), &|_| 0).unwrap();
        }
        let written = writer.file(Path::new(name), 0o600, 0, &mut &b"x"[..], 1);
        if name.starts_with("..") {
            assert!(written.is_err(), "not even written");
            continue;
        }
        written.unwrap();
        writer.finish().unwrap();
        let to = folder.path().join(format!("to-{}", name.replace('/', "-")));
        fs::create_dir(&to).unwrap();
        assert!(matches!(open(&place, &mut Into::new(&to)), Err(ArchiveError::Damaged(_))), "{name}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn who_reads_it_may_refuse_and_a_key_may_be_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let archive = write(folder.path(), b"refuse");
    let refused = open(&archive, &mut Into::new(folder.path()));
    assert!(matches!(refused, Err(ArchiveError::Refused(why)) if why == "not this one"));
    let mut with = head();
    assert_eq!(with.included_key(), None);
    with.include_key(&KEY);
    assert_eq!(with.included_key(), Some(KEY));
}

#[test]
fn another_tar_becomes_a_part() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a.backup");
    let mut inner = tar::Builder::new(Vec::new());
    for (name, text) in [("base/", ""), ("base/1", "rows"), ("backup_label", "begin")] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(0o700);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(0);
        header.set_size(text.len() as u64);
        inner.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    let inner = inner.into_inner().unwrap();
    let mut writer = Writer::create(&place, &head(), &Key::from_bytes(&KEY), b"contents").unwrap();
    writer.part("data/db");
    writer.folder(Path::new(""), 0o755, 0).unwrap();
    writer.folder(Path::new("data"), 0o700, 0).unwrap();
    assert!(writer.stream(Path::new("data"), &inner[..700]).is_err(), "a cut stream is no backup");
    assert!(writer.stream(Path::new("data"), &b""[..]).is_err());
    drop(writer);
    let mut writer = Writer::create(&place, &head(), &Key::from_bytes(&KEY), b"contents").unwrap();
    writer.part("data/db");
    writer.folder(Path::new(""), 0o755, 0).unwrap();
    writer.folder(Path::new("data"), 0o700, 0).unwrap();
    writer.stream(Path::new("data"), &inner[..]).unwrap();
    writer.finish().unwrap();
    open(&place, &mut Into::new(folder.path())).unwrap();
    assert_eq!(fs::read(folder.path().join("data-db/data/base/1")).unwrap(), b"rows");
}
