//! Pulls from a real registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use moat_image::{CollectOptions, Credentials, Digest, ImageError, ImageId, LoadOptions, Progress};
use serde_json::json;

use crate::fixture::{
    DOCKER_LIST, DOCKER_MANIFEST, INDEX, Item, Layer, MANIFEST, Made, Packed, file, folder, is_root, layout, link, options, store,
};
use crate::registry::{Registry, names, text};

fn three_layers() -> Made {
    let passwd = "root:x:0:0::/root:/bin/sh\nredis:x:999:998::/data:/bin/false\n";
    let base: Vec<Item> = vec![
        folder("etc", 0o755),
        file("etc/passwd", passwd),
        file("etc/group", "redis:x:998:\ntls:x:100:redis\n"),
        folder("tmp", 0o1777),
        file("old", "old"),
        folder("gone", 0o755),
        file("gone/a", "a"),
        link("lib", "usr/lib"),
    ];
    let middle = [file("tmp/x", "x"), file(".wh.old", ""), file("gone/.wh..wh..opq", ""), file("gone/b", "b")];
    let top = [file("etc/conf", "conf").owner(999, 998).mode(0o4750)];
    Made::new(
        vec![Layer::new(&base, Packed::Gzip), Layer::new(&middle, Packed::Zstd), Layer::new(&top, Packed::Plain)],
        &json!({"User": "redis", "Env": ["A=b"], "Entrypoint": ["/start"], "Cmd": ["x"], "WorkingDir": "/data", "ExposedPorts": {"6379/tcp": {}}}),
    )
}

#[test]
fn a_pulled_image_has_its_config_its_layers_and_its_name() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let made = three_layers();
    let digest = registry.push("team/app", "v1", &made);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let reference = registry.reference("team/app:v1");
    assert_eq!(store.resolve(&reference).unwrap(), None);
    let mut steps = Vec::new();
    let id = store.pull(&reference, &options(), &mut |step| steps.push(step)).unwrap();
    assert_eq!(id.digest(), made.id());
    assert_eq!(store.resolve(&reference).unwrap(), Some(id));
    assert!(matches!(&steps[0], Progress::Resolved { layers, .. } if layers.len() == 3 && layers.iter().all(|layer| !layer.present)));
    assert_eq!(steps.iter().filter(|step| matches!(step, Progress::Ready { .. })).count(), 3);

    let image = store.image(&id).unwrap();
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("redis", "/data"));
    let user = image.user(&image.config.user).unwrap();
    assert_eq!((user.uid, user.gid, user.groups, user.home.as_str()), (999, 998, vec![100], "/data"));
    assert_eq!(text(&store, &id, "/etc/conf").as_deref(), Some("conf"));
    assert_eq!(text(&store, &id, "/old"), None);
    assert_eq!(text(&store, &id, "/gone/a"), None);
    assert_eq!(text(&store, &id, "/gone/b").as_deref(), Some("b"));
    // `tmp` has no entry in the middle layer: a layer on top gives it back its sticky bit.
    assert_eq!(image.layers.len(), 4);
    let listed = store.list().unwrap();
    assert_eq!((listed.len(), listed[0].names.as_slice(), listed[0].id), (1, &[reference.clone()][..], id));
    for left in ["downloads", "leases", "tmp"] {
        assert_eq!(names(&store.root().join(left)), Vec::<String>::new(), "{left}");
    }

    // Pinned: no network is needed any more.
    drop(registry);
    assert_eq!(store.pull(&reference.pinned(digest), &options(), &mut |_| {}).unwrap(), id);
    let error = store.pull(&reference.pinned(made.id()), &options(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");

    let collected = store.collect(&BTreeSet::from([id])).unwrap();
    assert_eq!((collected.images.len(), collected.layers), (0, 0));
    assert!(store.image(&id).is_ok());
    let collected = store.collect(&BTreeSet::new()).unwrap();
    assert_eq!((collected.images, collected.layers), (vec![id], 3));
    assert!(matches!(store.image(&id), Err(ImageError::Unknown(_))));
    for left in ["blobs/sha256", "layers", "folders", "images", "names", "downloads", "leases", "tmp"] {
        assert_eq!(names(&store.root().join(left)), Vec::<String>::new(), "{left}");
    }
}

#[test]
fn a_shared_layer_is_there_once_and_a_second_pull_downloads_nothing() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let base = Layer::new(&[file("base", "base")], Packed::Gzip);
    let other = Layer::new(&[file("base", "base")], Packed::Zstd);
    let a = Made::new(vec![base, Layer::new(&[file("a", "a")], Packed::Gzip)], &json!({}));
    // Packed in another way, it is still the same layer.
    let b = Made::new(vec![other, Layer::new(&[file("b", "b")], Packed::Gzip)], &json!({}));
    registry.push("a", "1", &a);
    registry.push("b", "1", &b);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let a = store.pull(&registry.reference("a:1"), &options(), &mut |_| {}).unwrap();
    let mut present = Vec::new();
    let mut note = |step| {
        if let Progress::Resolved { layers, .. } = step {
            present = layers.iter().map(|layer| layer.present).collect();
        }
    };
    let b = store.pull(&registry.reference("b:1"), &options(), &mut note).unwrap();
    assert_eq!(present, [true, false]);
    assert_eq!(store.image(&a).unwrap().layers.last(), store.image(&b).unwrap().layers.last());
    let collected = store.collect(&BTreeSet::from([b])).unwrap();
    assert_eq!((collected.images, collected.layers), (vec![a], 1));
    assert_eq!(text(&store, &b, "base").as_deref(), Some("base"));
    assert_eq!(store.resolve(&registry.reference("a:1")).unwrap(), None);
}

#[test]
fn the_platform_of_an_index_is_chosen() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let host = moat_image::Platform::host().arch;
    let mut entries = Vec::new();
    for arch in ["s390x", host.as_str()] {
        let made = Made::of(vec![Layer::new(&[file("arch", arch)], Packed::Gzip)], &json!({}), arch);
        let digest = registry.push("multi", arch, &made);
        entries.push(json!({"mediaType": MANIFEST, "digest": digest, "size": made.manifest.len(), "platform": {"os": "linux", "architecture": arch}}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    registry.push_manifest("multi", "latest", INDEX, index.as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let id = store.pull(&registry.reference("multi"), &options(), &mut |_| {}).unwrap();
    assert_eq!(text(&store, &id, "arch").as_deref(), Some(host.as_str()));
    let error = store.pull(&registry.reference("multi:s390x"), &options(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("only for `linux/s390x`"), "{error}");
    let mut other = options();
    other.platform = moat_image::Platform::linux("riscv64", None);
    let error = store.pull(&registry.reference("multi"), &other, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("is not made for `linux/riscv64`, only for `linux/s390x`"), "{error}");
}

#[test]
fn images_in_docker_s_own_media_types_are_the_same_images() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let made = Made::new(vec![Layer::new(&[file("a", "of docker")], Packed::Gzip)], &json!({}));
    registry.push("app", "oci", &made);
    let dockers = made.dockers();
    let digest = registry.push_manifest("app", "docker", DOCKER_MANIFEST, &dockers);
    let platform = json!({"os": "linux", "architecture": moat_image::Platform::host().arch});
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [
        {"mediaType": DOCKER_MANIFEST, "digest": digest, "size": dockers.len(), "platform": platform},
    ]});
    registry.push_manifest("app", "list", DOCKER_LIST, list.to_string().as_bytes());
    for tag in ["docker", "list", "oci"] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let id = store.pull(&registry.reference(&format!("app:{tag}")), &options(), &mut |_| {}).unwrap();
        assert_eq!(id.digest(), made.id(), "{tag}");
        assert_eq!(text(&store, &id, "a").as_deref(), Some("of docker"), "{tag}");
    }
}

#[test]
fn a_collection_spares_what_came_just_now_and_takes_downloads_when_told() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let of = |content: &str| Made::new(vec![Layer::new(&[file("a", content)], Packed::Gzip)], &json!({}));
    let (pulled, loaded) = (of("pulled"), of("loaded"));
    registry.push("app", "1", &pulled);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let archive = folder.path().join("archive");
    layout(&archive, &loaded, Some("example.com/ours:1"));
    let pulled = store.pull(&registry.reference("app:1"), &options(), &mut |_| {}).unwrap();
    let loaded = store.load(&archive, &LoadOptions::default(), &mut |_| {}).unwrap()[0].1;
    let is_loaded: BTreeMap<ImageId, bool> = store.list().unwrap().into_iter().map(|listed| (listed.id, listed.loaded)).collect();
    assert_eq!(is_loaded, BTreeMap::from([(pulled, false), (loaded, true)]));

    let spare = CollectOptions { spare: Duration::from_hours(1), ..CollectOptions::default() };
    assert_eq!(store.collect_with(&BTreeSet::new(), &spare).unwrap().images, []);
    // As if all were done hours ago; then the one is pulled again, by its digest: nothing but its name is new.
    let long_ago = SystemTime::now() - Duration::from_hours(3);
    let age = || {
        for part in ["images", "names"] {
            for name in names(&store.root().join(part)) {
                File::options().write(true).open(store.root().join(part).join(name)).unwrap().set_modified(long_ago).unwrap();
            }
        }
    };
    age();
    store.pull(&registry.reference("app:1").pinned(Digest::of(&of("pulled").manifest)), &options(), &mut |_| {}).unwrap();
    assert_eq!(store.collect_with(&BTreeSet::new(), &spare).unwrap().images, [loaded]);
    age();
    assert_eq!(store.collect_with(&BTreeSet::new(), &spare).unwrap().images, [pulled]);

    // A download that stopped is kept for the next pull, and goes at once when that is asked for; not one that goes on.
    let [stopped, running] = ["a", "b"].map(|letter| store.root().join("downloads").join(letter.repeat(64)));
    std::fs::write(&stopped, "1234").unwrap();
    let held = File::create(&running).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(store.collect(&BTreeSet::new()).unwrap().downloads, 0);
    let all = CollectOptions { all_downloads: true, ..CollectOptions::default() };
    let collected = store.collect_with(&BTreeSet::new(), &all).unwrap();
    assert_eq!((collected.downloads, collected.bytes, stopped.exists(), running.exists()), (1, 4, false, true));
}

#[test]
fn a_registry_with_passwords() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::with_password() else { return };
    registry.push("private", "1", &Made::new(vec![Layer::new(&[file("a", "a")], Packed::Gzip)], &json!({})));
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let reference = registry.reference("private:1");
    let error = store.pull(&reference, &options(), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, ImageError::Denied { reason, .. } if reason.contains("no credentials")), "{error}");
    let mut with = options();
    with.credentials = Some(Credentials::basic("ann", "wrong"));
    let error = store.pull(&reference, &with, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, ImageError::Denied { reason, .. } if reason.contains("not accepted")), "{error}");
    assert!(!format!("{error:?}{error}{with:?}").contains("wrong"), "{with:?}");
    with.credentials = Some(Credentials::basic("ann", "s3cret:x"));
    store.pull(&reference, &with, &mut |_| {}).unwrap();

    let auth = base64::engine::general_purpose::STANDARD.encode("ann:s3cret:x");
    let file = folder.path().join("config.json");
    std::fs::write(&file, json!({"auths": {registry.address.to_string(): {"auth": auth}}}).to_string()).unwrap();
    with.credentials = None;
    with.docker_config = moat_image::DockerConfig::File(file);
    let id: ImageId = store.pull(&reference, &with, &mut |_| {}).unwrap();
    assert_eq!(store.resolve(&reference).unwrap(), Some(id));
}

#[test]
fn what_is_missing_is_said() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let error = store.pull(&registry.reference("nothing:1"), &options(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn pulls_and_collections_at_the_same_time_do_not_hurt_each_other() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let shared = Layer::new(&[file("shared", crate::fixture::noise(200_000, 9))], Packed::Gzip);
    for index in 0..3 {
        let own = Layer::new(&[file("own", index.to_string())], Packed::Zstd);
        registry.push("app", &index.to_string(), &Made::new(vec![shared.clone(), own], &json!({})));
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6)
            .map(|index| {
                let (store, registry) = (&store, &registry);
                scope.spawn(move || {
                    for _ in 0..4 {
                        store.pull(&registry.reference(&format!("app:{}", index % 3)), &options(), &mut |_| {}).unwrap();
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                store.collect(&BTreeSet::new()).unwrap();
                // Whatever is listed is whole, unless it is collected by the next round, which is this thread's.
                for listed in store.list().unwrap() {
                    store.image(&listed.id).unwrap();
                }
                rounds += 1;
            }
            rounds
        });
        for pull in pulls {
            pull.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(collector.join().unwrap() > 0);
    });
    store.collect(&BTreeSet::new()).unwrap();
    for left in ["blobs/sha256", "layers", "folders", "images", "names", "downloads", "leases", "tmp"] {
        assert_eq!(names(&store.root().join(left)), Vec::<String>::new(), "{left}");
    }
}
