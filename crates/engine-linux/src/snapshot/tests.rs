use super::*;

#[test]
fn what_is_kept_is_found_and_names_in_the_making_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["disks/srv-a/data", "disks/srv-a/more", "data/srv-b", "data/no id!", "logs/x"] {
        fs::create_dir_all(folder.path().join(path)).unwrap();
    }
    let mut found: Vec<_> = below(folder.path()).iter().map(|kept| kept.path().display().to_string()).collect();
    found.sort();
    assert_eq!(found, ["data/srv-b", "disks/srv-a/data", "disks/srv-a/more"]);
    for (name, expect) in [("20261121T120000Z-daily", false), ("x.part", true), (NEW, true), (READY, true)] {
        assert_eq!(is_in_the_making(name), expect, "{name}");
    }
}
