//! Damaged archives: whatever a layer says, nothing is written beside its own folder, and the store stays usable.

use moat_image::Limits;
use proptest::prelude::*;
use tar::EntryType;

use crate::fixture::{Item, Packed, file, folder, hard_link, is_root, link, load_layer, special, tar};
use crate::registry::names;

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop_oneof![Just("a"), Just("b"), Just("c")],
        1 => prop_oneof![Just(".."), Just("."), Just(""), Just("dev"), Just(".wh.a"), Just(".wh..wh..opq"), Just(".wh..")],
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn entry() -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (path(), 0..2000usize).prop_map(|(path, length)| file(&path, vec![7; length])),
        2 => (path(), 0..0o7777u32).prop_map(|(path, mode)| folder(&path, mode)),
        2 => (path(), prop_oneof![path(), Just("/etc".to_owned()), Just("../../../../../canary".to_owned())]).prop_map(|(path, to)| link(&path, &to)),
        2 => (path(), prop_oneof![path(), Just("/etc/passwd".to_owned())]).prop_map(|(path, to)| hard_link(&path, &to)),
        1 => path().prop_map(|path| special(&path, EntryType::Char)),
        1 => path().prop_map(|path| special(&path, EntryType::Fifo)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_entries_leaves_its_folder(
        items in prop::collection::vec(entry(), 0..24),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        if !is_root("this test") {
            return Ok(());
        }
        let mut archive = tar(&items);
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if let Some(cut) = cut {
            archive.truncate(cut.index(archive.len()));
        }
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("canary"), "sings").unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let result = load_layer(&inner, &archive, Packed::Plain, Limits { layer_bytes: 1 << 20, ..Limits::default() });
        prop_assert_eq!(names(outer.path()), ["canary", "inner"]);
        prop_assert_eq!(names(&inner), ["layout", "store"]);
        prop_assert_eq!(std::fs::read_to_string(outer.path().join("canary")).unwrap(), "sings");
        let store = inner.join("store");
        prop_assert_eq!(names(&store.join("tmp")), Vec::<String>::new());
        let layers = names(&store.join("layers"));
        prop_assert_eq!(layers.len(), if result.is_ok() { 2 } else { 0 }, "{:?}", layers);
        if let Ok((store, id)) = result {
            prop_assert!(store.image(&id).is_ok());
            prop_assert!(store.collect(&std::collections::BTreeSet::new()).is_ok());
        }
    }
}
