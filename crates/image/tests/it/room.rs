//! Disks that are too small for an image: refused before where its layers say so, else in the middle, and nothing of it is left.

use std::path::Path;
use std::process::Command;

use moat_image::{LayoutImage, Progress, Reference, Store, pull_layout};
use serde_json::json;

use crate::fixture::{Layer, Made, Packed, chain, file, is_root, noise, options};
use crate::registry::{Registry, names};

const CHILD: &str = "MOAT_IMAGE_TEST_ROOM";

/// Not a test of its own: a process with a disk of 8 MB at the folder that it is told, in a mount namespace of its own.
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (folder, registry) = order.split_once(' ').unwrap();
    let reference = |name: &str| -> Reference { format!("{registry}/{name}:1").parse().unwrap() };
    let store = Store::open(&Path::new(folder).join("store")).unwrap();
    for name in ["great", "swelling"] {
        let mut downloaded = 0;
        let mut note = |step| {
            if let Progress::Downloading { done, .. } = step {
                downloaded = downloaded.max(done);
            }
        };
        let error = store.pull(&reference(name), &options(), &mut note).unwrap_err();
        let left = ["downloads", "tmp", "layers", "images"].map(|part| names(&store.root().join(part)).len());
        println!("result {name}: {} bytes, {left:?} left: {}; {}", downloaded, chain(&error), error.hint().unwrap_or_default());
    }
    let layout = Path::new(folder).join("layout");
    let wanted = LayoutImage { name: "base".into(), reference: reference("great"), options: options() };
    let error = pull_layout(&layout, &[wanted], &mut |_| {}).unwrap_err();
    println!("result layout: {:?} left: {}", names(&layout.join("blobs/sha256")), chain(&error));
    store.pull(&reference("small"), &options(), &mut |_| {}).unwrap();
    // What is here needs no room, however full the disk is.
    std::fs::write(Path::new(folder).join("fill"), vec![1; 7 << 20]).unwrap();
    store.pull(&reference("small"), &options(), &mut |_| {}).unwrap();
    println!("result small: it is here");
}

#[test]
fn what_has_no_room_is_refused_with_what_it_needs_and_leaves_nothing() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let image = |content: Vec<u8>| Made::new(vec![Layer::new(&[file("content", content)], Packed::Gzip)], &json!({}));
    let great = image(noise(9 << 20, 3));
    let needs = format!("at least {} MB", (2 * great.layers[0].blob.len()).div_ceil(1_000_000));
    registry.push("great", "1", &great);
    // Some kilobytes packed.
    registry.push("swelling", "1", &image(vec![0; 40 << 20]));
    registry.push("small", "1", &image(noise(10_000, 4)));
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@" --exact room::child --nocapture"#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, format!("{} {}", folder.path().display(), registry.address))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = |name: &str| {
        let start = format!("result {name}: ");
        let at = text.find(&start).unwrap_or_else(|| panic!("no `{name}`: {text}"));
        text[at + start.len()..].lines().next().unwrap().to_owned()
    };
    let refused = |name: &str| format!("there is no room for the image `{}/{name}:1`: it needs at least ", registry.address);
    let great = line("great");
    assert!(great.starts_with("0 bytes, [0, 0, 0, 0] left: ") && great.contains(&refused("great")), "{great}");
    assert!(great.contains(&needs) && great.contains("moat image prune"), "{great}");
    let swelling = line("swelling");
    assert!(!swelling.starts_with("0 bytes") && swelling.contains(" bytes, [0, 0, 0, 0] left: "), "{swelling}");
    assert!(swelling.contains(&refused("swelling")), "{swelling}");
    let layout = line("layout");
    assert!(layout.starts_with("[] left: ") && layout.contains(&refused("great")), "{layout}");
    assert_eq!(line("small"), "it is here");
}
