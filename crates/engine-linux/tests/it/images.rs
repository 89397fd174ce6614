//! What becomes of images: pulls that nobody waits for, what a prune takes, what people are told.

use moat_engine_linux::{LinuxEngine, Prune, PullRequest};
use moat_image::Digest;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// An engine that starts nothing; none without root, which unpacking needs.
fn engine(folder: &Path) -> Option<LinuxEngine> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to unpack layers");
        return None;
    }
    Some(LinuxEngine::open(crate::bed::config(&folder.join("state"), &folder.join("run"))).unwrap())
}

/// An image of one empty layer: its layer, its config, its manifest.
fn image(inner: &serde_json::Value, layer_size: usize) -> [Vec<u8>; 3] {
    let layer = vec![0; 1024];
    let arch = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let rootfs = json!({"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]});
    let config = json!({"architecture": arch, "os": "linux", "config": inner, "rootfs": rootfs}).to_string().into_bytes();
    let describe = |kind: &str, blob: &[u8], size: usize| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(blob).to_string(), "size": size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", &config, config.len()),
        "layers": [describe("layer.v1.tar", &layer, layer_size)],
    });
    [layer, config, manifest.to_string().into_bytes()]
}

/// What a registry has, by path.
type Contents = BTreeMap<String, Vec<u8>>;

fn add(contents: &mut Contents, tag: &str, [layer, config, manifest]: [Vec<u8>; 3]) {
    for blob in [layer, config] {
        contents.insert(format!("/v2/app/blobs/{}", Digest::of(&blob)), blob);
    }
    contents.insert(format!("/v2/app/manifests/{tag}"), manifest);
}

/// Serves that until the process ends. Of what is missing it sends a byte now and then, and tells when the client hangs up.
fn serve(contents: Contents) -> (SocketAddr, Arc<Mutex<Option<Sender<()>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (contents, hung_up): (_, Arc<Mutex<Option<Sender<()>>>>) = (Arc::new(contents), Arc::default());
    let told = Arc::clone(&hung_up);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (contents, told) = (Arc::clone(&contents), Arc::clone(&told));
            std::thread::spawn(move || answer(stream, &contents, &told));
        }
    });
    (address, hung_up)
}

fn answer(mut stream: TcpStream, contents: &Contents, hung_up: &Mutex<Option<Sender<()>>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    let kind = if path.contains("/manifests/") { "application/vnd.oci.image.manifest.v1+json" } else { "application/octet-stream" };
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    if let Some(content) = contents.get(path) {
        stream.write_all(&head(content.len()))?;
        return stream.write_all(content);
    }
    stream.write_all(&head(SLOW))?;
    while stream.write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(tell) = &*hung_up.lock().unwrap() {
        let _ = tell.send(());
    }
    Ok(())
}

/// Bytes of a layer that never comes to its end.
const SLOW: usize = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_pull_that_nobody_waits_for_ends() {
    let folder = tempfile::tempdir().unwrap();
    let Some(engine) = engine(folder.path()) else { return };
    let mut contents = Contents::new();
    let made = image(&json!({}), SLOW);
    let layer = format!("/v2/app/blobs/{}", Digest::of(&made[0]));
    add(&mut contents, "1", made);
    contents.remove(&layer);
    let (address, hung_up) = serve(contents);
    let (tell, told) = channel();
    *hung_up.lock().unwrap() = Some(tell);
    let (said, heard) = channel();
    let runtime = runtime();
    runtime.block_on(async {
        let request = PullRequest { image: format!("{address}/app:1"), credential: None };
        let pull = tokio::spawn(async move { engine.pull_image(request, move |_| said.send(()).unwrap_or_default()).await.map(drop) });
        // It downloads by now: that is what it said.
        while heard.try_recv().is_err() {
            assert!(!pull.is_finished(), "it is over");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // As a deploy does that is cancelled, took too long, or ends with its daemon.
        pull.abort();
        assert!(pull.await.is_err_and(|error| error.is_cancelled()));
    });
    told.recv_timeout(Duration::from_secs(20)).expect("the download goes on");
    // Nothing else holds the process up: it would wait for the whole layer.
    drop(runtime);
}

#[test]
fn what_no_deploy_needs_goes_and_what_was_loaded_stays() {
    let folder = tempfile::tempdir().unwrap();
    let Some(engine) = engine(folder.path()) else { return };
    let mut contents = Contents::new();
    for tag in ["1", "2"] {
        add(&mut contents, tag, image(&json!({"Env": [format!("RELEASE={tag}")], "Volumes": {"/data": {}}}), 1024));
    }
    let (address, _) = serve(contents);
    let [layer, config, manifest] = image(&json!({"Env": ["RELEASE=loaded"]}), 1024);
    let layout = folder.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for blob in [&layer, &config, &manifest] {
        fs::write(layout.join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
    }
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&manifest).to_string(), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "example.com/ours:1"},
    });
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();

    runtime().block_on(async {
        let mut ids = Vec::new();
        for tag in ["1", "2"] {
            let request = PullRequest { image: format!("{address}/app:{tag}"), credential: None };
            ids.push(engine.pull_image(request, |_| ()).await.unwrap().0.name);
        }
        let loaded = engine.load_images(layout, |_| ()).await.unwrap();
        assert_eq!(loaded[0].0.as_deref(), Some("example.com/ours:1"));
        let there = async || engine.images().await.unwrap().iter().map(|image| image.id.to_string()).collect::<BTreeSet<_>>();
        let of = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();

        // What people are told of the images that are about to run.
        let said = engine.image_notices(&ids[0], None).await;
        assert!(said.len() == 1 && said[0].contains("`/data`"), "{said:?}");
        assert!(engine.image_notices(&ids[0], Some(PathBuf::from("/data"))).await.is_empty());
        assert!(engine.image_notices(&loaded[0].1, None).await.is_empty());

        // After a deploy of the second, the first is nobody's. For a day it may be tried again; then its name keeps it no longer.
        assert_eq!(engine.prune_images(&of(&[&ids[1]]), Prune::Left).await.unwrap().0, 0);
        let long_ago = SystemTime::now() - Duration::from_hours(25);
        for name in fs::read_dir(folder.path().join("state/images/names")).unwrap() {
            fs::File::options().write(true).open(name.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
        }
        assert_eq!(engine.prune_images(&of(&[&ids[1]]), Prune::Left).await.unwrap().0, 1);
        assert_eq!(there().await, of(&[&ids[1], &loaded[0].1]));
        // By a person's word all goes, but what a deploy under way may just have brought.
        assert_eq!(engine.prune_images(&BTreeSet::new(), Prune::All { under_way: true }).await.unwrap().0, 0);
        assert_eq!(engine.prune_images(&BTreeSet::new(), Prune::All { under_way: false }).await.unwrap().0, 2);
        assert_eq!(there().await, BTreeSet::new());
    });
}
