//! Damage, full disks, and others that have the state open.

use crate::{read, texts, write};
use moat_store::{Store, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn filled(folder: &Path) -> (crate::Texts, crate::Texts) {
    let mut store = Store::open(folder).unwrap().store;
    let copied: crate::Texts = (0..200).map(|n| (format!("service-{n}"), "value ".repeat(40))).collect();
    write(&mut store, 1, &BTreeMap::new(), &copied).unwrap();
    store.keep_copy().unwrap();
    assert!(!store.copy_is_due());
    let mut now = copied.clone();
    now.insert("later".to_owned(), "x".to_owned());
    write(&mut store, 2, &copied, &now).unwrap();
    assert!(store.copy_is_due());
    (copied, now)
}

type Damage = fn(&Path);

#[test]
fn a_damaged_state_is_replaced_by_its_last_good_copy_and_kept_aside() {
    let rows: [(&str, Damage); 4] = [
        ("overwritten", |path| fs::write(path, "x".repeat(9_000)).unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("cut", |path| fs::write(path, &fs::read(path).unwrap()[..20_000]).unwrap()),
    ];
    for (what, damage) in rows {
        let folder = tempfile::tempdir().unwrap();
        let (copied, _) = filled(folder.path());
        let path = folder.path().join("moat.db");
        damage(&path);
        let left = fs::read(&path).ok().filter(|bytes| !bytes.is_empty());
        let opened = Store::open(folder.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let restored = opened.restored.unwrap_or_else(|| panic!("{what}: it is said"));
        assert!(!restored.why.is_empty());
        if let Some(left) = left {
            assert_eq!(fs::read(&restored.damaged).unwrap(), left, "{what}");
        }
        assert_eq!(read(opened.documents), copied, "{what}");
        drop(opened.store);
        let again = Store::open(folder.path()).unwrap();
        assert_eq!((again.restored, read(again.documents)), (None, copied), "{what}");
    }
}

#[test]
fn without_a_whole_copy_damage_is_refused_and_left_as_it_is() {
    for copy in [None, Some("no database either")] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let good = folder.path().join("moat.db.good");
        match copy {
            None => fs::remove_file(&good).unwrap(),
            Some(text) => fs::write(&good, text).unwrap(),
        }
        let path = folder.path().join("moat.db");
        let damaged = "damaged ".repeat(2_000);
        fs::write(&path, &damaged).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("start anew"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
}

#[test]
fn a_state_that_another_has_open_is_refused_and_free_when_that_one_ends() {
    let folder = tempfile::tempdir().unwrap();
    let first = Store::open(folder.path()).unwrap();
    let error = Store::open_within(folder.path(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)) && error.to_string().contains("another process"), "{error}");
    drop(first);
    Store::open_within(folder.path(), Duration::from_millis(50)).unwrap();
}

#[test]
fn a_full_disk_refuses_a_change_whole_and_takes_it_later() {
    if !nix_is_root() {
        println!("skipped: needs root to mount a small disk");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| assert!(Command::new(args[0]).args(&args[1..]).arg(folder.path()).status().unwrap().success(), "{args:?}");
    mount(&["mount", "-t", "tmpfs", "-o", "size=400k", "none"]);
    let result = std::panic::catch_unwind(|| {
        let mut store = Store::open(folder.path()).unwrap().store;
        let small = texts(&[("a", "1")]);
        write(&mut store, 1, &BTreeMap::new(), &small).unwrap();
        fs::write(folder.path().join("filler"), vec![1; 250_000]).unwrap();
        let large: crate::Texts = (0..200).map(|n| (n.to_string(), "x".repeat(2_000))).collect();
        for _ in 0..3 {
            let error = write(&mut store, 2, &small, &large).unwrap_err();
            assert!(matches!(error, StoreError::Full(_)) && error.to_string().contains("no space left"), "{error}");
        }
        assert!(matches!(store.keep_copy(), Ok(()) | Err(StoreError::Full(_))));
        fs::remove_file(folder.path().join("filler")).unwrap();
        let fits = texts(&[("a", "2"), ("b", "3")]);
        write(&mut store, 2, &small, &fits).unwrap();
        drop(store);
        assert_eq!(read(Store::open(folder.path()).unwrap().documents), fits);
    });
    mount(&["umount"]);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_key_that_does_not_fit_on_the_disk_leaves_none() {
    if !nix_is_root() {
        println!("skipped: needs root to mount a small disk");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(folder.path()).status().unwrap().success();
    assert!(run(&["mount", "-t", "tmpfs", "-o", "size=4k", "none"]));
    fs::write(folder.path().join("filler"), vec![1; 4096]).unwrap();
    let error = Store::open(folder.path()).map(|_| ()).unwrap_err();
    let key = folder.path().join("key").exists();
    assert!(run(&["umount"]));
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(!key);
}

fn nix_is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Whatever byte changes: the state, the copy's state, or a refusal; never another text, never a panic.
    #[test]
    fn any_changed_byte_is_noticed_or_harmless(at in any::<prop::sample::Index>(), to in any::<u8>(), in_log in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let store = {
            let mut store = Store::open(folder.path()).unwrap().store;
            write(&mut store, 1, &BTreeMap::new(), &texts(&[("a", "old")])).unwrap();
            store.keep_copy().unwrap();
            write(&mut store, 2, &texts(&[("a", "old")]), &texts(&[("a", "new")])).unwrap();
            store
        };
        // As a kill leaves it: with its log.
        let dead = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dead.path().join(entry.file_name())).unwrap();
        }
        drop(store);
        let path = dead.path().join(if in_log { "moat.db-wal" } else { "moat.db" });
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len().max(1));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        fs::write(&path, bytes).unwrap();
        match Store::open(dead.path()) {
            Ok(opened) => {
                let found = read(opened.documents);
                // A log that is cut off at a damaged frame tells of an earlier moment.
                prop_assert!([texts(&[("a", "new")]), texts(&[("a", "old")]), texts(&[])].contains(&found), "{found:?}");
            }
            Err(error) => prop_assert!(matches!(error, StoreError::Damaged { .. } | StoreError::KeyWrong { .. } | StoreError::Database { .. } | StoreError::Newer { .. }), "{error:?}"),
        }
    }
}
