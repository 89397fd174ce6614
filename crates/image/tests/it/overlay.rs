//! The same image, by overlayfs over our layers and by `umoci unpack`: names, kinds, modes, owners, links, times, content, xattrs.

use std::path::Path;
use std::process::Command;

use moat_image::LoadOptions;
use serde_json::json;

use crate::fixture::{Item, Layer, MTIME, Made, Packed, file, folder, hard_link, is_root, layout, link, special, store};

/// Every entry of a tree, in order, as `find` sees it. Its times are those of the entries, so a folder changed by hand shows.
const LIST: &str = r#"cd "$0" && find . -mindepth 1 -printf '%P|%y|%m|%U|%G|%n|%l|%Ts' \( -type f -printf '|%s' -o -true \) -printf '\n' | sed 's/|d\([^|]*|[^|]*|[^|]*|[^|]*\)|[0-9]*|/|d\1|-|/' | LC_ALL=C sort
find . -type f | LC_ALL=C sort | xargs -r -d '\n' sha256sum
getfattr -R -h -m '^(user|security)\.' -d ."#;

fn listing(tree: &Path) -> String {
    let output = Command::new("sh").args(["-e", "-c", LIST]).arg(tree).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What overlayfs shows, mounted in a mount namespace of its own.
fn mounted(layers: &[std::path::PathBuf], at: &Path) -> Option<String> {
    let lower: Vec<_> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let script = format!("mount -t overlay overlay -o lowerdir=\"$1:$2\" \"$0\" && set -- && {LIST}");
    let empty = at.join("empty");
    let point = at.join("point");
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&point).unwrap();
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).arg(&point).arg(lower.join(":")).arg(&empty).output().unwrap();
    if !output.status.success() {
        eprintln!("skipped: overlayfs can't be mounted here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(String::from_utf8(output.stdout).unwrap())
}

fn layers() -> Vec<Vec<Item>> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(120));
    vec![
        vec![
            folder("./", 0o755),
            folder("bin", 0o755),
            file("bin/sudo", "sudo").mode(0o4755),
            file("bin/ping", "ping").xattr("security.capability", capability),
            file("bin/noted", "x").xattr("user.note", "a note"),
            folder("tmp", 0o1777),
            folder("data", 0o2770).owner(999, 998),
            file("data/old", "old").owner(999, 998).mode(0o600),
            folder("usr", 0o755),
            folder("usr/lib", 0o755),
            file("usr/lib/x", "x"),
            link("lib", "usr/lib"),
            link("abs", "/bin/sudo"),
            file("one", "linked"),
            hard_link("two", "one"),
            file("gone", "gone"),
            folder("emptied", 0o750),
            file("emptied/a", "a"),
            folder("emptied/sub", 0o700),
            folder("swap", 0o755),
            file("swap/x", "x"),
            file("swap-too", "x"),
            special("pipe", tar::EntryType::Fifo),
            folder("long", 0o711),
            folder(&format!("long/{}", "d".repeat(120)), 0o755),
            file(&long, "long"),
            folder("weird name\n", 0o755),
            folder("nested", 0o701).owner(5, 6),
            folder("nested/deep", 0o702).owner(7, 8),
            file("nested/deep/a", "a"),
        ],
        vec![
            file(".wh.gone", ""),
            folder("emptied", 0o755),
            file("emptied/.wh..wh..opq", ""),
            file("emptied/b", "b"),
            file(".wh.swap", ""),
            file("swap", "now a file"),
            folder("swap-too", 0o755),
            file("swap-too/y", "y"),
            folder("data", 0o2775).owner(999, 998),
            file("data/.wh.old", ""),
            file("data/new", "new").owner(999, 65534),
            // No entries for these folders: theirs are below.
            file("tmp/late", "late"),
            file("nested/deep/b", "b"),
        ],
        vec![folder("nested", 0o705).owner(5, 6), file("nested/deep/.wh.a", ""), file("nested/deep/c", "c"), file("brand/new/x", "x")],
    ]
}

#[test]
fn overlayfs_over_our_layers_shows_what_umoci_unpacks() {
    if !is_root("this test") {
        return;
    }
    let packed = [Packed::Gzip, Packed::Gzip, Packed::Plain];
    let made = Made::new(layers().iter().zip(packed).map(|(items, packed)| Layer::new(items, packed)).collect(), &json!({}));
    let at = tempfile::tempdir().unwrap();
    let source = at.path().join("layout");
    layout(&source, &made, Some("v1"));
    let theirs = at.path().join("theirs");
    let image = format!("{}:v1", source.display());
    let unpacked = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&theirs).output();
    let Ok(unpacked) = unpacked else {
        eprintln!("skipped: `umoci` is not installed (`cargo xtask test` installs it)");
        return;
    };
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let theirs = listing(&theirs);
    let store = store(at.path());
    let loaded = store.load(&source, &LoadOptions::default(), &mut |_| {}).unwrap();
    let image = store.image(&loaded[0].1).unwrap();
    let Some(ours) = mounted(&image.layers, at.path()) else { return };
    // Folders without an entry have the time at which they were made.
    let times = |text: &str| text.lines().filter(|line| !line.starts_with("brand")).map(ToOwned::to_owned).collect::<Vec<_>>();
    let (ours, theirs) = (times(&ours), times(&theirs));
    assert!(ours.len() > 40, "{ours:#?}");
    assert!(ours.iter().any(|line| line.contains(&MTIME.to_string())));
    for attribute in ["security.capability=", "user.note="] {
        assert!(ours.iter().any(|line| line.starts_with(attribute)), "no `{attribute}`: {ours:#?}");
    }
    assert_eq!(ours, theirs);
}
