//! A pull, a load or a collection that is killed at any moment leaves a store that the next one completes.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use moat_image::{LoadOptions, Store};
use serde_json::json;

use crate::fixture::{Layer, Made, Packed, file, is_root, layout, noise, options};
use crate::registry::{Registry, names, text};

const CHILD: &str = "MOAT_IMAGE_TEST_PULL";

const LOADING: &str = "MOAT_IMAGE_TEST_LOAD";

/// Not a test of its own: a process that loads an archive and removes it again until it is killed. It prints a line for each step.
#[test]
fn loading_child() {
    let Ok(order) = std::env::var(LOADING) else { return };
    let (root, archive) = order.split_once(' ').unwrap();
    let store = Store::open(Path::new(root)).unwrap();
    loop {
        println!("step loads");
        store.load(Path::new(archive), &LoadOptions::default(), &mut |_| println!("step")).unwrap();
        println!("step collects");
        store.collect(&BTreeSet::new()).unwrap();
    }
}

#[test]
fn killed_while_it_loads_or_collects_the_next_load_completes_and_the_next_collection_leaves_nothing() {
    if !is_root("this test") {
        return;
    }
    let made = image();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    layout(&archive, &made, Some("example.com/app:1"));
    let root = folder.path().join("store");
    for steps in 1..30 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::loading_child", "--nocapture"])
            .env(LOADING, format!("{} {}", root.display(), archive.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        // After some steps, and then somewhere within the next.
        let seen = lines.map_while(Result::ok).filter(|line| line.contains("step")).take(steps).count();
        child.kill().unwrap();
        assert_eq!((child.wait().unwrap().signal(), seen), (Some(9), steps));
        let store = Store::open(&root).unwrap();
        for listed in store.list().unwrap() {
            check(&store, &listed.id);
        }
        if steps % 5 == 0 {
            let id = store.load(&archive, &LoadOptions::default(), &mut |_| {}).unwrap()[0].1;
            check(&store, &id);
            store.collect(&BTreeSet::new()).unwrap();
            for left in ["blobs/sha256", "layers", "folders", "images", "names", "downloads", "leases", "tmp"] {
                assert_eq!(names(&root.join(left)), Vec::<String>::new(), "{left}");
            }
        }
    }
}

/// Four layers of twenty files.
fn image() -> Made {
    let layer = |index: u64| {
        let files: Vec<_> =
            (0..20).map(|file_index| file(&format!("l{index}/f{file_index}"), noise(150_000, index * 100 + file_index))).collect();
        Layer::new(&files, if index.is_multiple_of(2) { Packed::Gzip } else { Packed::Zstd })
    };
    Made::new((0..4).map(layer).collect(), &json!({}))
}

/// Not a test of its own: the process that is killed. It prints a line for each step.
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (root, reference) = order.split_once(' ').unwrap();
    let store = Store::open(Path::new(root)).unwrap();
    println!("step open");
    store.pull(&reference.parse().unwrap(), &options(), &mut |_| println!("step")).unwrap();
    println!("step done");
}

#[test]
fn killed_at_any_step_the_next_pull_completes() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let reference = registry.reference("app:1");
    let folder = tempfile::tempdir().unwrap();
    let mut killed = 0;
    let mut completed = false;
    for steps in 1..60 {
        let root = folder.path().join(format!("store-{}", steps % 3));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--nocapture"])
            .env(CHILD, format!("{} {reference}", root.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        // After some steps, and then somewhere within the next.
        let mut seen = lines.map_while(Result::ok).filter(|line| line.contains("step")).take(steps);
        let last = seen.by_ref().last();
        completed |= last.is_some_and(|line| line.contains("done"));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        // What is seen is whole.
        let store = Store::open(&root).unwrap();
        for listed in store.list().unwrap() {
            check(&store, &listed.id);
        }
        for layer in names(&root.join("layers")).iter().filter(|name| !name.contains('.')) {
            let seen = std::fs::read_dir(root.join("layers").join(layer)).unwrap().next().unwrap().unwrap().path();
            assert_eq!(names(&seen).len(), 20, "a layer that is seen is whole");
        }
        if steps % 5 == 0 {
            let id = store.pull(&reference, &options(), &mut |_| {}).unwrap();
            check(&store, &id);
            assert_eq!(names(&root.join("downloads")), Vec::<String>::new());
            store.collect(&std::iter::once(id).collect()).unwrap();
            assert_eq!(names(&root.join("tmp")), Vec::<String>::new());
            assert_eq!(names(&root.join("leases")), Vec::<String>::new());
            check(&store, &id);
            std::fs::remove_dir_all(&root).unwrap();
        }
        if completed && killed > 20 {
            break;
        }
    }
    assert!(killed > 10, "only {killed} were killed in the middle");
}

fn check(store: &Store, id: &moat_image::ImageId) {
    assert_eq!(store.image(id).unwrap().layers.len(), 4);
    for index in 0..4 {
        for file_index in [0, 19] {
            let want = noise(150_000, index * 100 + file_index);
            let path = format!("/l{index}/f{file_index}");
            let read = store.image(id).unwrap().read(&path, 1 << 20).unwrap().unwrap();
            assert!(read == want, "{path}");
        }
    }
    assert_eq!(text(store, id, "/l0/none"), None);
}
