//! A registry made of a table, for what Debian's does not do: tokens, redirects, schema 1, servers that misbehave.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use moat_image::{Credentials, DockerConfig, ImageError, Reference};
use serde_json::json;

use crate::fixture::{Layer, MANIFEST, Made, Packed, chain, file, is_root, options, store};
use crate::registry::text;

/// An answer: a status, headers, a body.
type Answer = (u16, Vec<(String, String)>, Vec<u8>);
type Handler = dyn Fn(&str, &str, Option<&str>, &str) -> Answer + Send + Sync;

/// Serves a handler of (method, path, authorization, body), one request for each connection, until the process ends.
fn serve(handler: Arc<Handler>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let handler = Arc::clone(&handler);
            std::thread::spawn(move || answer(stream, &*handler));
        }
    });
    address
}

fn answer(mut stream: TcpStream, handler: &Handler) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()))
    };
    let mut body = vec![0; field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    let mut first = head.split(' ');
    let (method, path) = (first.next()?, first.next()?);
    let (status, headers, content) = handler(method, path, field("authorization").as_deref(), &String::from_utf8_lossy(&body));
    let headers = headers.iter().fold(String::new(), |all, (name, value)| format!("{all}{name}: {value}\r\n"));
    let start = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", content.len());
    stream.write_all(start.as_bytes()).ok()?;
    stream.write_all(&content).ok()
}

fn made() -> Made {
    Made::new(vec![Layer::new(&[file("a", "a")], Packed::Gzip)], &json!({}))
}

/// What a registry has, by path.
fn contents(image: &Made) -> BTreeMap<String, Answer> {
    let mut all = BTreeMap::new();
    let kind = |kind: &str| vec![("Content-Type".to_owned(), kind.to_owned())];
    all.insert("/v2/app/manifests/1".to_owned(), (200, kind(MANIFEST), image.manifest.clone()));
    for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
        let path = format!("/v2/app/blobs/{}", moat_image::Digest::of(blob));
        all.insert(path, (200, kind("application/octet-stream"), blob.clone()));
    }
    all
}

fn reference(address: SocketAddr) -> Reference {
    format!("{address}/app:1").parse().unwrap()
}

/// A registry with a token service, which hands `good` to those it trusts.
fn with_tokens(asked: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let contents = contents(&made());
    let basic = base64::engine::general_purpose::STANDARD.encode("ann:pw");
    let myself: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let known = Arc::clone(&myself);
    let address = serve(Arc::new(move |method, path, authorization, body| {
        if path.starts_with("/token") {
            asked.lock().unwrap().push(format!("{method} {path} {body}"));
            let trusted = authorization == Some(&format!("Basic {basic}")) || body.contains("refresh_token=r%2Ft");
            return if trusted {
                (200, vec![], br#"{"token":"good"}"#.to_vec())
            } else {
                (401, vec![], br#"{"errors":[{"message":"who are you?"}]}"#.to_vec())
            };
        }
        if authorization != Some("Bearer good") {
            let realm = known.lock().unwrap().unwrap();
            let challenge = format!(r#"Bearer realm="http://{realm}/token",service="the registry",scope="repository:app:pull""#);
            return (401, vec![("WWW-Authenticate".to_owned(), challenge)], vec![]);
        }
        contents.get(path).cloned().unwrap_or((404, vec![], vec![]))
    }));
    *myself.lock().unwrap() = Some(address);
    address
}

#[test]
fn tokens_are_fetched_with_a_password_or_a_refresh_token() {
    if !is_root("this test") {
        return;
    }
    let asked = Arc::default();
    let address = with_tokens(Arc::clone(&asked));
    for (credentials, says) in [
        (None, "there are no credentials for it: who are you?"),
        (Some(Credentials::basic("ann", "wrong")), "the credentials are not accepted: who are you?"),
        (Some(Credentials::basic("ann", "pw")), ""),
        (Some(Credentials::Refresh("r/t".into())), ""),
        (Some(Credentials::Bearer("good".into())), ""),
        (Some(Credentials::Bearer("bad".into())), "not accepted"),
    ] {
        asked.lock().unwrap().clear();
        let folder = tempfile::tempdir().unwrap();
        let mut options = options();
        options.credentials.clone_from(&credentials);
        match store(folder.path()).pull(&reference(address), &options, &mut |_| {}) {
            Ok(_) => assert_eq!(says, "", "{credentials:?}"),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{credentials:?}: {error}"),
        }
        let asked = asked.lock().unwrap();
        let all: Vec<_> = asked.iter().map(String::as_str).collect();
        // One token is enough for the manifest, the config and the layer.
        let query = "service=the%20registry&scope=repository%3Aapp%3Apull";
        match credentials {
            Some(Credentials::Bearer(_)) => assert!(all.is_empty()),
            Some(Credentials::Refresh(_)) => {
                assert_eq!(all, [format!("POST /token grant_type=refresh_token&client_id=moat&{query}&refresh_token=r%2Ft")]);
            }
            _ => assert_eq!(all, [format!("GET /token?{query} ")]),
        }
    }
}

#[test]
fn credentials_do_not_follow_a_redirect() {
    if !is_root("this test") {
        return;
    }
    let leaked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, storage) = (Arc::clone(&leaked), contents(&made()));
    let other = serve(Arc::new(move |_, path, authorization, _| {
        seen.lock().unwrap().extend(authorization.map(ToOwned::to_owned));
        storage.get(path).cloned().unwrap_or((404, vec![], vec![]))
    }));
    let contents = contents(&made());
    let address = serve(Arc::new(move |_, path, authorization, _| {
        if authorization.is_none() {
            return (401, vec![("WWW-Authenticate".to_owned(), "Basic realm=x".to_owned())], vec![]);
        }
        if path.contains("/blobs/") {
            // Another host name of the same machine.
            return (307, vec![("Location".to_owned(), format!("http://localhost:{}{path}", other.port()))], vec![]);
        }
        contents.get(path).cloned().unwrap_or((404, vec![], vec![]))
    }));
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.credentials = Some(Credentials::basic("ann", "pw"));
    let store = store(folder.path());
    let id = store.pull(&reference(address), &options, &mut |_| {}).unwrap();
    assert_eq!(text(&store, &id, "a").as_deref(), Some("a"));
    assert_eq!(*leaked.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn a_credential_helper_is_asked() {
    if !is_root("this test") {
        return;
    }
    let address = with_tokens(Arc::default());
    let folder = tempfile::tempdir().unwrap();
    // The helper is found along the path, so the pull is made by a process with another one.
    if std::env::var_os("MOAT_IMAGE_TEST_HELPER").is_none() {
        use std::os::unix::fs::PermissionsExt as _;
        let helper = folder.path().join("docker-credential-moat-test");
        let script = "#!/bin/sh\nread -r server\ncase $1:$server in get:127.0.0.1:*) echo '{\"ServerURL\":\"x\",\"Username\":\"ann\",\"Secret\":\"pw\"}' ;; *) echo 'credentials not found in native keychain'; exit 1 ;; esac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fake::a_credential_helper_is_asked"])
            .env("PATH", path)
            .env("MOAT_IMAGE_TEST_HELPER", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    for config in [json!({"credsStore": "moat-test"}), json!({"credHelpers": {address.to_string(): "moat-test"}})] {
        let path = folder.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let config = DockerConfig::File(path);
        assert_eq!(config.credentials(&address.to_string(), "app").unwrap(), Some(Credentials::basic("ann", "pw")));
        assert_eq!(config.credentials("elsewhere.example.com", "app").unwrap(), None);
        let mut options = options();
        options.docker_config = config;
        let into = tempfile::tempdir().unwrap();
        store(into.path()).pull(&reference(address), &options, &mut |_| {}).unwrap();
    }
}

#[test]
fn servers_that_misbehave_are_refused_with_a_reason() {
    let made = made();
    let html = || vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let old = vec![("Content-Type".to_owned(), "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned())];
    let oci = || vec![("Content-Type".to_owned(), MANIFEST.to_owned())];
    let layer = made.layers[0].blob.clone();
    let lying_config =
        String::from_utf8(made.manifest.clone()).unwrap().replace(&made.id().to_string(), &moat_image::Digest::of(b"other").to_string());
    let negative = json!({"schemaVersion": 2, "config": {"digest": made.id(), "size": 1}, "layers": "x"}).to_string();
    let huge_config =
        String::from_utf8(made.manifest.clone()).unwrap().replace(&format!("\"size\":{}", made.config.len()), "\"size\":99999999999");
    let rows: Vec<(&str, Answer, &str)> = vec![
        ("schema 1", (200, old, br#"{"schemaVersion":1,"name":"app","fsLayers":[]}"#.to_vec()), "schema 1"),
        ("a login page", (200, html(), b"<html>please log in</html>".to_vec()), "can't be read"),
        ("a huge manifest", (200, oci(), vec![b' '; 5 << 20]), "longer than the 4194304 bytes"),
        ("a huge config", (200, oci(), huge_config.into_bytes()), "its config has 99999999999"),
        ("a wrong type", (200, oci(), negative.into_bytes()), "can't be read"),
        ("another config", (200, oci(), lying_config.into_bytes()), "no image"),
        (
            "a refusal",
            (403, vec![], br#"{"errors":[{"code":"DENIED","message":"requested access\nis denied"}]}"#.to_vec()),
            "requested accessis denied",
        ),
        ("a teapot", (418, vec![], vec![]), "it says 418"),
        ("an unknown challenge", (401, vec![("WWW-Authenticate".to_owned(), "Negotiate".to_owned())], vec![]), "does not know"),
        ("a loop", (302, vec![("Location".to_owned(), "/v2/app/manifests/1".to_owned())], vec![]), "redirect"),
    ];
    for (what, answer, says) in rows {
        let mut contents = contents(&made);
        contents.insert("/v2/app/manifests/1".to_owned(), answer);
        contents.insert(format!("/v2/app/blobs/{}", moat_image::Digest::of(&layer)), (200, vec![], layer.clone()));
        let address = serve(Arc::new(move |_, path, _, _| contents.get(path).cloned().unwrap_or((404, vec![], vec![]))));
        let folder = tempfile::tempdir().unwrap();
        let error = store(folder.path()).pull(&reference(address), &options(), &mut |_| {}).unwrap_err();
        assert!(chain(&error).to_lowercase().contains(says), "{what}: {}", chain(&error));
    }
}

#[test]
fn a_pinned_manifest_is_compared_with_its_digest() {
    let contents = contents(&made());
    let other = moat_image::Digest::of(b"other");
    let manifest = contents["/v2/app/manifests/1"].clone();
    let address = serve(Arc::new(move |_, path, _, _| {
        if path.starts_with("/v2/app/manifests/sha256:") {
            manifest.clone()
        } else {
            contents.get(path).cloned().unwrap_or((404, vec![], vec![]))
        }
    }));
    let folder = tempfile::tempdir().unwrap();
    let error = store(folder.path()).pull(&reference(address).pinned(other), &options(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }) && error.to_string().contains(&format!("for `{other}`")), "{error}");
}

#[test]
fn a_layer_that_is_longer_than_it_says_is_refused() {
    if !is_root("this test") {
        return;
    }
    let made = made();
    let mut contents = contents(&made);
    let path = format!("/v2/app/blobs/{}", moat_image::Digest::of(&made.layers[0].blob));
    contents.get_mut(&path).unwrap().2.extend([0; 1000]);
    let address = serve(Arc::new(move |_, path, _, _| contents.get(path).cloned().unwrap_or((404, vec![], vec![]))));
    let folder = tempfile::tempdir().unwrap();
    let error = store(folder.path()).pull(&reference(address), &options(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("sends more than the"), "{error}");
}
