//! Images brought into a layout from a real registry.

use std::fs;
use std::path::Path;

use moat_image::{Digest, ImageError, LayoutImage, LoadOptions, Progress, Reference, pull_layout};
use serde_json::json;

use crate::fixture::{Layer, Made, Packed, file, is_root, noise, options, store};
use crate::registry::{Registry, names};

fn made(seed: u64) -> Made {
    let layers =
        vec![Layer::new(&[file("base", noise(3 << 20, 1))], Packed::Gzip), Layer::new(&[file("top", noise(1 << 10, seed))], Packed::Zstd)];
    Made::new(layers, &json!({"Cmd": ["x"]}))
}

fn wanted(name: &str, reference: Reference) -> LayoutImage {
    LayoutImage { name: name.to_owned(), reference, options: options() }
}

/// Layers whose bytes came from the registry.
fn pull(folder: &Path, images: &[LayoutImage]) -> Result<usize, ImageError> {
    let mut ready = 0;
    pull_layout(folder, images, &mut |step| ready += usize::from(matches!(step, Progress::Ready { .. })))?;
    Ok(ready)
}

#[test]
fn a_layout_has_what_was_asked_for_and_nothing_else() {
    let Some(registry) = Registry::start() else { return };
    let (one, two) = (made(1), made(2));
    registry.push("team/one", "v1", &one);
    registry.push("team/two", "v1", &two);
    let images = [wanted("base0", registry.reference("team/one:v1")), wanted("base1", registry.reference("team/two:v1"))];
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs/sha256");

    // Two images that share a layer: two configs, two manifests, three layers.
    assert_eq!(pull(folder.path(), &images).unwrap(), 3);
    assert_eq!(names(&blobs).len(), 7);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let called: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"]["org.opencontainers.image.ref.name"]).collect();
    assert_eq!(called, ["base0", "base1"]);
    if is_root("loading a layout") {
        let other = tempfile::tempdir().unwrap();
        let loaded = store(other.path()).load(folder.path(), &LoadOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(loaded.iter().map(|(_, id)| id.digest()).collect::<Vec<_>>(), [one.id(), two.id()]);
    }

    // Again, nothing is downloaded; what is no longer asked for goes.
    assert_eq!(pull(folder.path(), &images).unwrap(), 0);
    assert_eq!(pull(folder.path(), &images[..1]).unwrap(), 0);
    assert_eq!(names(&blobs).len(), 4);

    // What is not there is an error that names it, and what was there stays.
    let error = pull(folder.path(), &[wanted("base0", registry.reference("team/three:v1"))]).unwrap_err();
    assert!(matches!(&error, ImageError::NotFound { reference, .. } if reference.to_string().contains("team/three")), "{error}");
    assert_eq!(names(&blobs).len(), 4);
}

#[test]
fn a_download_that_was_cut_off_goes_on_and_a_damaged_one_begins_anew() {
    let Some(registry) = Registry::start() else { return };
    let image = made(1);
    registry.push("team/one", "v1", &image);
    let blob = &image.layers[0].blob;
    let cases: [(&str, Vec<u8>); 4] = [
        ("a start", blob[..1 << 20].to_vec()),
        ("all of it", blob.clone()),
        ("other bytes", vec![7; 1 << 20]),
        ("more than it is", vec![7; blob.len() + 1]),
    ];
    for (what, left) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blobs/sha256").join(Digest::of(blob).hex());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("part"), left).unwrap();
        pull(folder.path(), &[wanted("base0", registry.reference("team/one:v1"))]).unwrap();
        assert!(fs::read(&path).unwrap() == *blob, "{what}");
        assert!(!path.with_extension("part").exists(), "{what}");
    }
}
