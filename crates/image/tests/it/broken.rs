//! Registries and networks that fail: cut connections, damaged bytes, redirects, mirrors.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use moat_image::{ImageError, Mirror, Progress, Reference};
use serde_json::json;

use crate::fixture::{Layer, Made, Packed, chain, file, is_root, noise, options, store};
use crate::registry::{Registry, text};

/// What a proxy does with the bytes that a registry sends for a blob.
#[derive(Clone, Copy)]
enum Harm {
    /// The connection ends after so many bytes.
    Cut(u64),
    /// One byte is changed, in the first answers of this number.
    Damage(usize),
}

/// A proxy in front of a registry. Its thread ends with the test's process.
struct Proxy {
    address: SocketAddr,
    /// The `Range` of each request for a blob.
    ranges: Arc<Mutex<Vec<String>>>,
}

fn proxy(to: SocketAddr, harm: Harm) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let harmed = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&ranges);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (noted, harmed) = (Arc::clone(&noted), Arc::clone(&harmed));
            std::thread::spawn(move || pass(client, to, harm, &noted, &harmed));
        }
    });
    Proxy { address, ranges }
}

/// One request for each connection.
fn pass(mut client: TcpStream, to: SocketAddr, harm: Harm, ranges: &Mutex<Vec<String>>, harmed: &AtomicUsize) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let range = head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(ToOwned::to_owned));
    let is_blob = head.contains("/blobs/");
    let mut server = TcpStream::connect(to).ok()?;
    server.write_all(head.as_bytes()).ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok()?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    // A config is small.
    if is_blob && answer.len() - body > 10_000 {
        ranges.lock().unwrap().push(range.unwrap_or_default());
        match harm {
            Harm::Cut(after) => answer.truncate(body + usize::try_from(after).unwrap()),
            Harm::Damage(times) if harmed.fetch_add(1, Ordering::SeqCst) < times => answer[body + 5000] ^= 1,
            Harm::Damage(_) => {}
        }
    }
    client.write_all(&answer).ok()
}

fn image() -> Made {
    Made::new(vec![Layer::new(&[file("noise", noise(500_000, 1)), file("end", "end")], Packed::Gzip)], &json!({}))
}

fn through(proxy: &Proxy) -> Reference {
    format!("{}/app:1", proxy.address).parse().unwrap()
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let proxy = proxy(registry.address, Harm::Cut(100_000));
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let retries = AtomicU64::new(0);
    let id = store
        .pull(&through(&proxy), &options(), &mut |step| {
            retries.fetch_add(u64::from(matches!(step, Progress::Retrying { .. })), Ordering::SeqCst);
        })
        .unwrap();
    assert_eq!(text(&store, &id, "end").as_deref(), Some("end"));
    assert_eq!(retries.load(Ordering::SeqCst), 5);
    let ranges = proxy.ranges.lock().unwrap().clone();
    let want: Vec<_> = (0..6).map(|part| if part == 0 { String::new() } else { format!("bytes={}-", part * 100_000) }).collect();
    assert_eq!(ranges, want);
}

#[test]
fn a_download_that_failed_is_continued_by_the_next_pull() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let made = image();
    registry.push("app", "1", &made);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    // An earlier pull was killed here.
    let blob = &made.layers[0].blob;
    let path = store.root().join("downloads").join(moat_image::Digest::of(blob).hex());
    std::fs::write(&path, &blob[..300_000]).unwrap();
    let mut first = None;
    let mut note = |step| {
        if let Progress::Downloading { done, .. } = step {
            first.get_or_insert(done);
        }
    };
    store.pull(&registry.reference("app:1"), &options(), &mut note).unwrap();
    assert_eq!(first, Some(300_000));
    // And one left damaged bytes: found by the digest, and loaded anew.
    store.collect(&std::collections::BTreeSet::new()).unwrap();
    std::fs::write(&path, noise(300_000, 5)).unwrap();
    let id = store.pull(&registry.reference("app:1"), &options(), &mut |_| {}).unwrap();
    assert_eq!(text(&store, &id, "end").as_deref(), Some("end"));
}

#[test]
fn damaged_bytes_are_found_and_never_unpacked_into_view() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let once = proxy(registry.address, Harm::Damage(1));
    let id = store.pull(&through(&once), &options(), &mut |_| {}).unwrap();
    assert_eq!(text(&store, &id, "end").as_deref(), Some("end"));
    store.collect(&std::collections::BTreeSet::new()).unwrap();
    let always = proxy(registry.address, Harm::Damage(usize::MAX));
    let error = store.pull(&through(&always), &options(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{}", chain(&error));
    assert!(store.list().unwrap().is_empty());
    assert!(crate::registry::names(&store.root().join("layers")).is_empty());
    assert_eq!(always.ranges.lock().unwrap().len(), 2);
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    if !is_root("this test") {
        return;
    }
    let (Some(origin), Some(mirror)) = (Registry::start(), Registry::start()) else { return };
    let made = image();
    origin.push("team/app", "1", &made);
    let folder = tempfile::tempdir().unwrap();
    let reference = origin.reference("team/app:1");
    let with = |location: String| {
        let mut options = options();
        options.mirrors = vec![Mirror { registry: origin.address.to_string(), location }];
        options
    };
    let empty = store(&folder.path().join("a"));
    empty.pull(&reference, &with(mirror.address.to_string()), &mut |_| {}).unwrap();
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    store(&folder.path().join("b")).pull(&reference, &with(gone.to_string()), &mut |_| {}).unwrap();
    mirror.push("hub/team/app", "1", &made);
    let options = with(format!("{}/hub", mirror.address));
    drop(origin);
    let from_mirror = store(&folder.path().join("c"));
    let id = from_mirror.pull(&reference, &options, &mut |_| {}).unwrap();
    assert_eq!(from_mirror.resolve(&reference).unwrap(), Some(id));
}

#[test]
fn a_pull_can_be_cancelled_and_a_hostile_layer_ends_it() {
    if !is_root("this test") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let bad = Made::new(vec![Layer::new(&[file("../x", "x"), file("noise", noise(3_000_000, 2))], Packed::Gzip)], &json!({}));
    registry.push("bad", "1", &bad);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let options = options();
    let cancel = options.cancel.clone();
    let error = store.pull(&registry.reference("app:1"), &options, &mut |_| cancel.set()).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    let error = store.pull(&registry.reference("bad:1"), &crate::fixture::options(), &mut |_| {}).unwrap_err();
    assert!(chain(&error).contains("`../x` is refused: its path has a `..`"), "{}", chain(&error));
    assert!(crate::registry::names(&store.root().join("tmp")).is_empty());
}
