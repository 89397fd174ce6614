//! Layers that mean harm, each as one row: refused with a reason, or contained.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use moat_image::Limits;
use tar::EntryType;

use crate::fixture::{Item, Packed, chain, file, folder, hard_link, header, is_root, link, load_layer, special, tar};
use crate::registry::names;

fn unpack(items: &[Item]) -> Result<(tempfile::TempDir, std::path::PathBuf, moat_image::LeftOut), String> {
    unpack_tar(&tar(items), Packed::Plain, Limits::default())
}

fn unpack_tar(tar: &[u8], packed: Packed, limits: Limits) -> Result<(tempfile::TempDir, std::path::PathBuf, moat_image::LeftOut), String> {
    let folder = tempfile::tempdir().unwrap();
    let result = load_layer(folder.path(), tar, packed, limits);
    let store = folder.path().join("store");
    for left in ["leases", "tmp"] {
        assert_eq!(names(&store.join(left)), Vec::<String>::new(), "{left} after {:?}", result.as_ref().err());
    }
    match result {
        Ok((store, id)) => {
            let image = store.image(&id).unwrap();
            Ok((folder, image.layers[0].clone(), image.left_out))
        }
        Err(error) => {
            assert_eq!(names(&store.join("layers")), Vec::<String>::new(), "nothing of a refused layer is seen");
            Err(chain(&error))
        }
    }
}

#[test]
fn what_leads_out_or_misleads_is_refused_with_a_reason() {
    if !is_root("this test") {
        return;
    }
    let long = "x/".repeat(2100);
    let rows: Vec<(Vec<Item>, &str)> = vec![
        (vec![file("../escape", "x")], "has a `..`"),
        (vec![file("a/../../escape", "x")], "has a `..`"),
        (vec![folder("..", 0o755)], "has a `..`"),
        (vec![link("out", "/etc"), file("out/passwd", "x")], "lies under `out`"),
        (vec![link("out", "../.."), folder("out/x", 0o755)], "lies under `out`"),
        (vec![link("a", "b"), folder("b", 0o755), file("a/c/d", "x")], "lies under `a`"),
        (vec![folder("a", 0o755), link("a/b", ".."), file("a/b/c", "x")], "lies under `a/b`"),
        (vec![file("a", "x"), file("a/b", "x")], "lies under `a`"),
        (vec![link("out", "/etc"), hard_link("x", "out/passwd")], "not a file of this layer"),
        (vec![hard_link("x", "/etc/passwd")], "not a file of this layer"),
        (vec![hard_link("x", "../../../../etc/passwd")], "has a `..`"),
        (vec![hard_link("x", "missing")], "not a file of this layer"),
        (vec![folder("d", 0o755), hard_link("x", "d")], "not a file of this layer"),
        (vec![file("x", "x"), hard_link("x", "x")], "to itself"),
        (vec![hard_link("x", "/")], "to the root"),
        (vec![file(".wh.x", ""), hard_link("y", "x")], "not a file of this layer"),
        (vec![link("dev", "/x")], "`/dev` must be a folder"),
        (vec![link("proc", "x"), folder("x", 0o755)], "`/proc` must be a folder"),
        (vec![file("sys", "x")], "`/sys` must be a folder"),
        (vec![link("./", "/etc")], "the root can only be a folder"),
        (vec![file(".wh.", "")], "no file can have"),
        (vec![file(".wh...", "")], "no file can have"),
        (vec![link("x", "")], "empty or too long"),
        (vec![file(&long, "x")], "more than 4095 bytes"),
        (vec![file(&"x".repeat(300), "x")], "more than 255 bytes"),
        (vec![special("x", EntryType::GNUSparse)], "sparse"),
        (vec![special("x", EntryType::new(b'Z'))], "unknown kind 'Z'"),
        (vec![file("a", "x"), file("b/c\0d", "x").xattr("user.long", vec![b'x'; 10])], ""),
    ];
    for (items, says) in rows {
        let shown: Vec<_> = items.iter().map(|item| String::from_utf8_lossy(&item.path).chars().take(40).collect::<String>()).collect();
        match unpack(&items) {
            Err(error) => assert!(!says.is_empty() && error.contains(says), "{shown:?}: {error}"),
            Ok(_) => assert_eq!(says, "", "{shown:?} was taken"),
        }
    }
}

#[test]
fn what_has_no_place_in_a_sandbox_is_left_out_or_contained() {
    if !is_root("this test") {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let items = [
        folder("dev", 0o755),
        link("dev/null", "/proc/sysrq-trigger"),
        link("dev/console", "/etc/passwd"),
        file("dev/shm/x", "x"),
        hard_link("stolen", "dev/null"),
        link("proc/self", "/x"),
        special("node", EntryType::Char),
        special("block", EntryType::Block),
        special("pipe", EntryType::Fifo),
        file("sudo", "x").mode(0o4755),
        file("/absolute", "x"),
        link("out", "/etc/shadow"),
        file("huge", "x").owner(1_000_210_000, 5),
        file("ping", "x")
            .xattr("security.capability", capability)
            .xattr("security.selinux", "label")
            .xattr("trusted.overlay.opaque", "y")
            .xattr("trusted.overlay.redirect", "/x")
            .xattr("user.overlay.opaque", "y")
            .xattr("user.mine", "kept")
            .xattr("system.posix_acl_access", [2, 0, 0, 0]),
        file("rooted", "x").xattr("security.capability", [[1, 0, 0, 3].as_slice(), &[0; 20]].concat()),
    ];
    let (_folder, root, left_out) = unpack(&items).unwrap();
    assert_eq!(names(&root), ["absolute", "dev", "huge", "out", "ping", "pipe", "rooted", "sudo"]);
    assert_eq!(names(&root.join("dev")), Vec::<String>::new());
    assert_eq!((left_out.devices, left_out.kernel_places, left_out.owners, left_out.xattrs), (2, 5, 1, 6));
    let data = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(data("sudo").mode() & 0o7777, 0o4755);
    assert_eq!((data("huge").uid(), data("huge").gid()), (65534, 5));
    assert!(data("pipe").file_type().is_fifo());
    let mut names = vec![0; 1000];
    let length = rustix::fs::listxattr(root.join("ping"), &mut names).unwrap();
    let mut names: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(String::from_utf8_lossy).collect();
    names.sort();
    assert_eq!(names, ["security.capability", "user.mine"]);
    assert_eq!(rustix::fs::listxattr(root.join("rooted"), &mut [0; 100]).unwrap(), 0);
}

#[test]
fn archives_that_lie_or_bomb_end_early() {
    if !is_root("this test") {
        return;
    }
    let zeros = tar(&[file("zeros", vec![0; 8 << 20])]);
    let small = Limits { ratio: 50, ratio_from_bytes: 1 << 20, ..Limits::default() };
    let lying = [&header(b"x", b"", EntryType::Regular, 0o644, (0, 0), 1 << 33)[..], b"little"].concat();
    let long_name = [&header(b"x", b"", EntryType::GNULongName, 0o644, (0, 0), 1 << 33)[..], &[0; 2048]].concat();
    let mut huge = header(b"x", b"", EntryType::Regular, 0o644, (0, 0), 0);
    huge[124..136].copy_from_slice(b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff");
    let sum: u64 = huge.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bad_sum = tar(&[file("x", "x")]);
    bad_sum[0] = b'y';
    let many: Vec<Item> = (0..20).map(|index| file(&format!("f{index}"), "")).collect();
    let cut_header = tar(&[file("x", "x")])[..700].to_vec();
    for (what, tar, packed, limits, says) in [
        ("a gzip bomb", zeros.clone(), Packed::Gzip, small.clone(), "50 unpacked bytes for each packed one"),
        ("a zstd bomb", zeros.clone(), Packed::Zstd, small, "50 unpacked bytes for each packed one"),
        ("a large layer", zeros, Packed::Plain, Limits { layer_bytes: 4 << 20, ..Limits::default() }, "unpacked bytes"),
        ("a size over the limit", lying.clone(), Packed::Plain, Limits { layer_bytes: 1 << 30, ..Limits::default() }, "unpacked bytes"),
        ("a lying size", lying, Packed::Gzip, Limits::default(), "before the end of an entry"),
        ("a greatest size", huge.to_vec(), Packed::Plain, Limits::default(), "an entry says that it has"),
        ("an endless name", long_name, Packed::Plain, Limits::default(), "more than the 1048576 allowed"),
        ("a wrong checksum", bad_sum, Packed::Zstd, Limits::default(), "checksum"),
        ("a cut header", cut_header, Packed::Plain, Limits::default(), ""),
        ("many entries", tar(&many), Packed::Plain, Limits { layer_entries: 10, ..Limits::default() }, "10 entries"),
        ("no archive", b"#!/bin/sh\n".repeat(100), Packed::Plain, Limits::default(), "checksum"),
        ("nothing", Vec::new(), Packed::Plain, Limits::default(), "taken"),
    ] {
        match unpack_tar(&tar, packed, limits) {
            Ok(_) => assert_eq!(says, "taken", "{what}"),
            Err(error) => assert!(error.contains(says), "{what}: {error}"),
        }
    }
}

#[test]
fn the_order_of_entries_means_what_it_says() {
    if !is_root("this test") {
        return;
    }
    let opaque = |path: &Path| rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut [0; 4]).is_ok();
    let (_folder, root, _) = unpack(&[
        file("twice", "old"),
        file("twice", "new"),
        file("was-file", "x"),
        folder("was-file", 0o700),
        folder("was-folder", 0o755),
        file("was-folder/x", "x"),
        link("was-folder", "twice"),
        file(".wh.hidden", ""),
        file(".wh.back", ""),
        file("back", "x"),
        file(".wh.replaced", ""),
        file("replaced/x", "x"),
        file("mine/x", "x"),
        file(".wh.mine", ""),
        file("stays", "x"),
        file(".wh.stays", ""),
        file("opaque/.wh..wh..opq", ""),
        file(".wh..wh.plnk", ""),
        file("one", "same"),
        hard_link("deep/two", "/one"),
        link("dangling", "/nowhere"),
        hard_link("dangling-too", "dangling"),
    ])
    .unwrap();
    let data = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("twice")).unwrap(), "new");
    assert_eq!(data("was-file").mode() & 0o7777, 0o700);
    assert!(data("was-folder").is_symlink());
    assert!(data("hidden").file_type().is_char_device() && data("hidden").rdev() == 0);
    assert!(data("back").is_file() && data("stays").is_file());
    assert!(opaque(&root.join("replaced")) && opaque(&root.join("mine")) && opaque(&root.join("opaque")));
    assert_eq!((data("one").ino(), data("one").nlink()), (data("deep/two").ino(), 2));
    assert_eq!(data("dangling").ino(), data("dangling-too").ino());
    assert_eq!(data("one").mtime(), 1_500_000_000);
    assert_eq!(data("was-file").mtime(), 1_500_000_000);
    assert!(!names(&root).iter().any(|name| name.starts_with(".wh.")));
}
