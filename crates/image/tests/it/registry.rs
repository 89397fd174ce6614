//! A real registry on a free loopback port, ended with its test.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use moat_image::{Digest, Reference};

use crate::fixture::{MANIFEST, Made};

pub struct Registry {
    child: Child,
    pub address: SocketAddr,
    authorization: Option<String>,
    folder: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts one; none, with a word, where it is not installed.
    pub fn start() -> Option<Self> {
        Self::with("127.0.0.1", "", None)
    }

    /// One that wants the user `ann` and the password `s3cret:x`.
    pub fn with_password() -> Option<Self> {
        // By bcrypt, cost 5.
        let line = "ann:$2b$05$abcdefghijklmnopqrstuuWrm/5AoaKADYlqOe34LrWvaAncFaCxG\n";
        let (user, password) = ("ann", "s3cret:x");
        // The path is in the registry's folder.
        let auth = "auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n";
        let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")));
        Self::with("127.0.0.1", auth, Some(&(authorization, line.as_bytes().to_vec())))
    }

    /// One at an address that is not loopback, over TLS. Nothing can be pushed to it by this fixture, so it serves another one's folder.
    pub fn with_tls(host: &str, certificate: &Path, key: &Path, of: &Self) -> Option<Self> {
        let extra = format!(
            "  tls:\n    certificate: {}\n    key: {}\nOF: {}\n",
            certificate.display(),
            key.display(),
            of.folder.path().join("data").display()
        );
        Self::with(host, &extra, None)
    }

    fn with(host: &str, extra: &str, password: Option<&(String, Vec<u8>)>) -> Option<Self> {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            // The registry can't tell which port 0 became, so one that was free a moment ago is tried.
            let address = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
            let config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{extra}",
                folder.path().join("data").display()
            );
            let config = config.replace("FOLDER", &folder.path().display().to_string());
            let config = match config.split_once("OF: ") {
                Some((start, of)) => start.replace(&folder.path().join("data").display().to_string(), of.trim()),
                None => config,
            };
            let path = folder.path().join("config.yml");
            std::fs::write(&path, config).unwrap();
            if let Some((_, hashed)) = password {
                std::fs::write(folder.path().join("htpasswd"), hashed).unwrap();
            }
            let child = Command::new("docker-registry").arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let Ok(child) = child else {
                eprintln!("skipped: `docker-registry` is not installed");
                return None;
            };
            let mut registry = Self { child, address, authorization: password.map(|(value, _)| value.clone()), folder };
            if registry.wait() {
                return Some(registry);
            }
        }
        panic!("no registry could be started");
    }

    /// Waits until it answers or ends.
    fn wait(&mut self) -> bool {
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok() {
                // A registry with TLS tells a request without it so.
                return matches!(self.request("GET", "/v2/", "", &[]).0, 200 | 400 | 401);
            }
            std::thread::yield_now();
        }
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    /// Uploads the layers, the config and the manifest under a tag; returns the manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, image: &Made) -> Digest {
        for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, MANIFEST, &image.manifest)
    }

    pub fn push_blob(&self, repository: &str, blob: &[u8]) {
        let (status, headers) = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        assert_eq!(status, 202);
        let location = headers.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
        let path = location.split_once("/v2/").map(|(_, rest)| format!("/v2/{rest}")).unwrap();
        let separator = if path.contains('?') { '&' } else { '?' };
        let (status, headers) =
            self.request("PUT", &format!("{path}{separator}digest={}", Digest::of(blob)), "application/octet-stream", blob);
        assert_eq!(status, 201, "{headers}");
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &[u8]) -> Digest {
        let (status, answer) = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, manifest);
        assert_eq!(status, 201, "{answer}");
        Digest::of(manifest)
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let authorization = self.authorization.as_ref().map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let kind = if media_type.is_empty() { String::new() } else { format!("Content-Type: {media_type}\r\n") };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{authorization}{kind}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut rest = String::new();
        let _ = reader.read_to_string(&mut rest);
        let headers = rest.split("\r\n\r\n").next().unwrap_or_default();
        let headers = headers.lines().map(|line| match line.split_once(':') {
            Some((name, value)) => format!("{}:{value}\n", name.to_lowercase()),
            None => String::new(),
        });
        (status, headers.collect::<String>() + &rest)
    }
}

/// What `path` of a store's image holds.
pub fn text(store: &moat_image::Store, id: &moat_image::ImageId, path: &str) -> Option<String> {
    store.image(id).unwrap().read(path, 1 << 20).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
