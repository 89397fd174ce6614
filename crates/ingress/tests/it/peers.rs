//! Programs that nobody here wrote: HTTP servers, and Python's packages for tests.

use crate::support::PATIENCE;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Duration, sleep, timeout};

/// A program of the Python packages that `cargo xtask test` installs; says that it skips without.
pub fn python_tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin").join(name);
    if !path.exists() {
        eprintln!("skipped: there is no {}; `cargo xtask test` installs it", path.display());
        return None;
    }
    Some(path)
}

/// nginx's program; says that it skips without.
pub fn nginx() -> Option<&'static str> {
    let found = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        eprintln!("skipped: there is no nginx; `cargo xtask test` installs it");
    }
    found
}

/// A file beside this one.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers").join(name)
}

/// Servers that say of each request `[METHOD TARGET BODY]`. What each starts besides ends when it does.
pub struct Peers {
    pub all: Vec<(&'static str, PathBuf)>,
    _running: Vec<Child>,
    _folder: tempfile::TempDir,
}

impl Peers {
    /// Starts them; none when one is not installed.
    pub async fn start() -> Option<Self> {
        let gunicorn = python_tool("gunicorn")?;
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| folder.path().join(name);
        let mut running = Vec::new();
        let mut run = |command: &mut Command| {
            let child = command
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn();
            running.push(child.unwrap());
        };
        run(Command::new("node").arg(script("node.js")).arg(socket("node")));
        run(Command::new(gunicorn)
            .args(["--worker-class", "gthread", "--threads", "4", "--no-control-socket", "--log-level", "critical", "--bind"])
            .arg(format!("unix:{}", socket("gunicorn").display()))
            .args(["--chdir", script("").to_str().unwrap(), "peer:app"]));
        // nginx frames each request anew; what it took it for, the server behind it says.
        let config = format!(
            "daemon off; master_process off; user root; pid {0}/nginx.pid; error_log stderr crit; events {{}}
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
               large_client_header_buffers 4 64k; merge_slashes off; keepalive_timeout 60;
               server {{ listen unix:{0}/nginx; location / {{ proxy_pass http://unix:{0}/node:; proxy_http_version 1.1; }} }} }}",
            folder.path().display()
        );
        std::fs::write(socket("nginx.conf"), config).unwrap();
        run(Command::new(nginx().unwrap_or("nginx")).arg("-c").arg(socket("nginx.conf")));
        hyper_peer(&socket("hyper"));
        let names = ["node", "gunicorn", "nginx", "hyper"];
        let peers = Self { all: names.map(|name| (name, socket(name))).to_vec(), _running: running, _folder: folder };
        for (name, path) in &peers.all {
            let up = async {
                while UnixStream::connect(path).await.is_err() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, up).await.unwrap_or_else(|_| panic!("{name} does not start"));
        }
        Some(peers)
    }
}

fn hyper_peer(path: &Path) {
    use http_body_util::{BodyExt as _, Full};
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok::<_, hyper::Error>(http::Response::new(Full::new(hyper::body::Bytes::from(seen(
                    head.method.as_str(),
                    &head.uri.to_string(),
                    &body,
                )))))
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
}

/// What a peer says of a request.
pub fn seen(method: &str, target: &str, body: &[u8]) -> String {
    use std::fmt::Write as _;
    let hex = body.iter().fold(String::new(), |mut all, byte| {
        write!(all, "{byte:02x}").unwrap();
        all
    });
    format!("[{method} {target} {hex}]")
}

/// What a peer takes bytes for, the last of which end the connection: its words for each request, or its refusal.
pub async fn taken_for(path: &Path, bytes: &[u8]) -> Vec<String> {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // It may refuse and close before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap_or_else(|_| panic!("{} does not end", path.display()));
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut words = Vec::new();
    for answer in said.split("HTTP/1.").skip(1) {
        let word = answer.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| format!("[{word}]"));
        words.push(word.unwrap_or_else(|| answer.get(2..5).unwrap_or_default().to_owned()));
    }
    words
}
