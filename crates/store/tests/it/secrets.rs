//! Secrets and their key.

use crate::{read, texts, write};
use moat_store::{Store, StoreError};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const SECRET: &str = "correct-horse-battery-staple";

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(folder).unwrap().map(|e| entry(e.unwrap())).collect()
}

#[test]
fn no_file_holds_a_secret_in_clear_and_nobody_else_reads_any() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap().store;
    let now = texts(&[("web", SECRET), ("other", "x")]);
    write(&mut store, 1, &BTreeMap::new(), &now).unwrap();
    store.keep_copy().unwrap();
    let look = |needed: &[&str]| {
        let found = files(folder.path());
        assert!(needed.iter().all(|name| found.contains_key(*name)), "{:?}", found.keys());
        for (name, bytes) in &found {
            let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            assert!(!has(SECRET), "{name}");
            assert_eq!(has("texts"), needed.contains(&name.as_str()) && name != "key", "the search finds what is there in clear: {name}");
            assert_eq!(fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    };
    look(&["key", "moat.db-wal", "moat.db.good"]);
    drop(store);
    look(&["key", "moat.db", "moat.db.good"]);
    assert_eq!(read(Store::open(folder.path()).unwrap().documents), now);
}

#[test]
fn a_lost_or_wrong_key_is_refused_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    for with_copy in [false, true] {
        let mut store = Store::open(folder.path()).unwrap().store;
        write(&mut store, u64::from(with_copy), &BTreeMap::new(), &texts(&[("web", SECRET)])).unwrap();
        if with_copy {
            store.keep_copy().unwrap();
        }
        drop(store);
        let right = fs::read(&key).unwrap();
        let before = files(folder.path());

        fs::remove_file(&key).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::KeyLost { .. }), "{error}");
        assert!(!key.exists(), "no other key is made");

        fs::write(&key, [7; 32]).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::KeyWrong { .. }), "{error}");
        assert!(error.to_string().contains("put the right one back"), "{error}");

        fs::write(&key, right).unwrap();
        assert_eq!(files(folder.path()), before);
        assert_eq!(read(Store::open(folder.path()).unwrap().documents), texts(&[("web", SECRET)]));
    }
}
