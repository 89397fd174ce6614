//! Archives and layouts, written here and by `skopeo`.

use std::collections::BTreeSet;
use std::process::Command;

use moat_image::{LoadOptions, Reference};
use serde_json::json;

use crate::fixture::{Layer, Made, Packed, chain, file, is_root, layout, store};
use crate::registry::{Registry, text};

fn made() -> Made {
    let layers = vec![Layer::new(&[file("a", "a"), file("b", "b")], Packed::Gzip), Layer::new(&[file("a", "changed")], Packed::Plain)];
    Made::new(layers, &json!({"Cmd": ["/a"]}))
}

#[test]
fn a_layout_as_folder_tar_and_packed_tar_is_the_same_image() {
    if !is_root("this test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout");
    layout(&source, &made(), Some("example.com/team/app:v1"));
    let tar = folder.path().join("layout.tar");
    let packed = folder.path().join("layout.tar.gz");
    assert!(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&source).arg(".").status().unwrap().success());
    assert!(Command::new("tar").arg("-czf").arg(&packed).arg("-C").arg(&source).arg(".").status().unwrap().success());
    let name: Reference = "example.com/team/app:v1".parse().unwrap();
    for path in [&source, &tar, &packed] {
        let into = tempfile::tempdir().unwrap();
        let store = store(into.path());
        let loaded = store.load(path, &LoadOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(loaded.len(), 1, "{}", path.display());
        assert_eq!((loaded[0].0.as_ref(), loaded[0].1.digest()), (Some(&name), made().id()));
        assert_eq!(store.resolve(&name).unwrap(), Some(loaded[0].1));
        assert_eq!(text(&store, &loaded[0].1, "a").as_deref(), Some("changed"));
        assert_eq!(text(&store, &loaded[0].1, "b").as_deref(), Some("b"));
    }
}

#[test]
fn what_skopeo_writes_is_loaded() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &made());
    let folder = tempfile::tempdir().unwrap();
    for (kind, name) in [("docker-archive", true), ("oci-archive", false), ("oci", false)] {
        let path = folder.path().join(kind);
        let to = if name { format!("{kind}:{}:example.com/app:1", path.display()) } else { format!("{kind}:{}:v1", path.display()) };
        let copy = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--src-tls-verify=false", "--quiet"])
            .args([format!("docker://{}", registry.reference("app:1")), to])
            .status();
        let Ok(status) = copy else {
            eprintln!("skipped: `skopeo` is not installed");
            return;
        };
        assert!(status.success(), "{kind}");
        let into = tempfile::tempdir().unwrap();
        let store = store(into.path());
        let loaded = store.load(&path, &LoadOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(loaded[0].0, name.then(|| "example.com/app:1".parse().unwrap()), "{kind}");
        assert_eq!(text(&store, &loaded[0].1, "a").as_deref(), Some("changed"), "{kind}");
        // A load protects what it makes; a collection without it removes all.
        assert_eq!(store.collect(&BTreeSet::new()).unwrap().layers, 2);
    }
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    if !is_root("this test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "hello, this is no archive".repeat(100)).unwrap();
    let outside = folder.path().join("outside");
    layout(&outside, &made(), None);
    let blob = outside.join("blobs/sha256").join(made().id().hex());
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    let damaged = folder.path().join("damaged");
    layout(&damaged, &made(), None);
    std::fs::write(damaged.join("blobs/sha256").join(made().id().hex()), "{}").unwrap();
    let saved = folder.path().join("saved");
    std::fs::create_dir(&saved).unwrap();
    std::fs::write(saved.join("manifest.json"), r#"[{"Config":"../store/lock","RepoTags":null,"Layers":[]}]"#).unwrap();
    for (path, says) in [
        (empty, "neither the `manifest.json`"),
        (text, "checksum"),
        (outside, "can't open"),
        (damaged, "has the digest"),
        (saved, "can't open"),
        (folder.path().join("missing"), "can't open"),
        ("/dev/zero".into(), "neither a file nor a folder"),
    ] {
        let error = store.load(&path, &LoadOptions::default(), &mut |_| {}).unwrap_err();
        assert!(chain(&error).contains(says), "{}: {}", path.display(), chain(&error));
    }
}
