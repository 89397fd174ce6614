//! Servers of certificates that keep silent, refuse or put off. Those that give certificates are real ones: see the tests of `moat`.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use moat_certs::{Acme, AcmeError, Again, Directory, Way};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Long enough for a busy machine to answer, and short enough to wait for.
const PATIENCE: Duration = Duration::from_secs(3);

/// An answer: status, headers, body.
type Said = (&'static str, String, String);
/// None is silence for good.
type Answer = Option<Said>;

/// A server and what it was asked: path and payload.
struct Server {
    directory: Directory,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    _folder: tempfile::TempDir,
}

impl Server {
    /// One that knows accounts; what else is asked gets this answer.
    async fn start(answer: fn(path: &str) -> Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://{}", listener.local_addr().unwrap());
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root.pem");
        std::fs::write(&root, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let directory = Directory { url: format!("{base}/dir"), contact: Some("a@example.com".to_owned()), root: Some(root) };
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, base, noted) = (acceptor.clone(), base.clone(), Arc::clone(&noted));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let Some((path, payload)) = request(&mut stream).await else { return };
                    noted.lock().unwrap().push((path.clone(), payload));
                    let known = match path.as_str() {
                        "/dir" => {
                            let urls = json!({
                                "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"), "newOrder": format!("{base}/order"),
                            });
                            Some(("200 OK", String::new(), urls.to_string()))
                        }
                        "/nonce" => Some(("200 OK", String::new(), String::new())),
                        "/account" => Some(("201 Created", format!("Location: {base}/account/1\r\n"), "{}".to_owned())),
                        _ => None,
                    };
                    let Some((status, headers, body)) = known.or_else(|| answer(&path)) else { return std::future::pending().await };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nReplay-Nonce: bm9uY2U\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    // The client may have given up.
                    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { directory, asked, _folder: folder }
    }

    /// What the last request to a path said.
    fn last(&self, path: &str) -> Option<Value> {
        self.asked.lock().unwrap().iter().rev().find(|(asked, _)| asked == path).map(|(_, payload)| payload.clone())
    }
}

/// One request's path and payload (RFC 7515 §7.2.2).
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Value)> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while read.len() < end + length {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    let signed: Value = serde_json::from_slice(&read[end..]).unwrap_or_default();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(signed["payload"].as_str().unwrap_or_default()).unwrap();
    Some((head.split(' ').nth(1).unwrap().to_owned(), serde_json::from_slice(&payload).unwrap_or_default()))
}

async fn order(acme: &Acme) -> AcmeError {
    let (show, _shown) = mpsc::unbounded_channel();
    acme.order("shop.example.com", Way::Http, &show).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/dir", listener.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let patience = Duration::from_secs(1);
    let directory = Directory { url, contact: None, root: None };
    let opened = Acme::open(&directory, None, patience);
    let error = tokio::time::timeout(Duration::from_mins(1), opened).await.expect("it waits for ever").err().unwrap();
    assert_eq!(error.to_string(), "the server of certificates: it did not answer within 1 s");
    held.abort();
}

#[tokio::test]
async fn one_that_falls_silent_in_the_middle_is_given_up_too() {
    let server = Server::start(|_| None).await;
    let (acme, kept) = Acme::open(&server.directory, None, PATIENCE).await.unwrap();
    assert!(kept.is_some());
    let error = tokio::time::timeout(Duration::from_mins(1), order(&acme)).await.expect("it waits for ever");
    assert_eq!(error.to_string(), "the server of certificates: it did not answer within 3 s");
    assert!(server.last("/order").is_some());
}

/// What is known of a refusal with these headers.
async fn refused(answer: fn(path: &str) -> Answer) -> Result<Option<Again>, String> {
    let server = Server::start(answer).await;
    let (acme, _) = Acme::open(&server.directory, None, PATIENCE).await.unwrap();
    let error = order(&acme).await;
    if let AcmeError::TooOften { again, .. } = error { Ok(again) } else { Err(error.to_string()) }
}

fn limited(headers: &str) -> Said {
    let problem = json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many certificates", "status": 429 });
    ("429 Too Many Requests", headers.to_owned(), problem.to_string())
}

/// Of what stands before a server, and speaks no ACME.
fn busy(headers: &str) -> Said {
    ("503 Service Unavailable", headers.to_owned(), "<h1>later</h1>".to_owned())
}

#[tokio::test]
async fn when_to_come_again_is_what_the_server_says() {
    assert_eq!(refused(|_| Some(limited("Retry-After: 7200\r\n"))).await, Ok(Some(Again::In(Duration::from_hours(2)))));
    let at = "2026-11-22T13:00:00Z".parse().unwrap();
    assert_eq!(refused(|_| Some(limited("Retry-After: Sun, 22 Nov 2026 13:00:00 GMT\r\n"))).await, Ok(Some(Again::At(at))));
    assert_eq!(refused(|_| Some(limited(""))).await, Ok(None));
    assert_eq!(refused(|_| Some(busy("Retry-After: 60\r\n"))).await, Ok(Some(Again::In(Duration::from_mins(1)))));
    assert!(refused(|_| Some(busy(""))).await.unwrap_err().starts_with("the server of certificates: "));
    // A refusal for another reason is no limit.
    let malformed = |_: &str| {
        let problem = json!({ "type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "no", "status": 403 });
        Some(("403 Forbidden", "Retry-After: 60\r\n".to_owned(), problem.to_string()))
    };
    assert!(refused(malformed).await.unwrap_err().contains("rejectedIdentifier"));
}

#[tokio::test]
async fn a_contact_is_given_and_changed() {
    let server =
        Server::start(|path| (path == "/account/1").then(|| ("200 OK", String::new(), json!({ "status": "valid" }).to_string()))).await;
    let (_, kept) = Acme::open(&server.directory, None, PATIENCE).await.unwrap();
    assert_eq!(server.last("/account").unwrap()["contact"], json!(["mailto:a@example.com"]));
    let (acme, new) = Acme::open(&server.directory, kept.as_ref(), PATIENCE).await.unwrap();
    assert!(new.is_none(), "the account is the kept one");
    for (contact, want) in [(Some("b@example.com"), json!(["mailto:b@example.com"])), (None, json!([]))] {
        acme.set_contact(contact).await.unwrap();
        assert_eq!(server.last("/account/1").unwrap()["contact"], want);
    }
}

#[tokio::test]
async fn the_authority_of_a_server_is_read_whole_or_not_at_all() {
    let server = Server::start(|_| None).await;
    let with = |root: PathBuf| Directory { root: Some(root), ..server.directory.clone() };
    let own = std::fs::read_to_string(server.directory.root.as_ref().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roots.pem");
    for (text, want) in
        [(None, "No such file"), (Some(String::new()), "no PEM certificate"), (Some("hello".to_owned()), "no PEM certificate")]
    {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let error = Acme::open(&with(file.clone()), None, PATIENCE).await.err().unwrap().to_string();
        assert!(error.contains("roots.pem") && error.contains(want), "{error}");
    }
    // Whichever of several it is.
    let other = rcgen::generate_simple_self_signed(["other.test".to_owned()]).unwrap().cert.pem();
    std::fs::write(&file, other + &own).unwrap();
    assert!(Acme::open(&with(file), None, PATIENCE).await.is_ok());
}
