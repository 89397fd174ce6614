//! A container registry on loopback: Debian's `docker-registry`, one for each test that wants one.

use super::debian::run;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

/// Passes the server's pid on, waits until its own standard input ends (as it does however this process ends), then ends the server.
const WATCHED: &str = r#"
docker-registry serve "$1" 2>&1 </dev/null &
server=$!
read -r _
kill "$server" 2>/dev/null
wait "$server"
"#;

/// A registry that runs until it is dropped, or until its process ends in any way.
#[derive(Debug)]
pub struct Registry {
    /// Where it listens, such as `127.0.0.1:41234`. It speaks plain HTTP.
    pub address: String,
    login: Option<(&'static str, &'static str)>,
    shell: Child,
    /// Closed to end the server.
    alive: Option<ChildStdin>,
}

impl Registry {
    /// The name and the password that a registry of [`Registry::start_with_login`] asks for.
    pub const LOGIN: (&'static str, &'static str) = ("tester", "correct horse");

    /// Starts a registry that keeps its blobs below `folder` and lets everyone read and write.
    ///
    /// # Errors
    /// `docker-registry` is not installed or does not start, with what it says.
    pub fn start(folder: &Path) -> io::Result<Self> {
        Self::serve(folder, None)
    }

    /// Starts a registry that asks everyone for [`Registry::LOGIN`] (HTTP basic).
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_with_login(folder: &Path) -> io::Result<Self> {
        Self::serve(folder, Some(Self::LOGIN))
    }

    fn serve(folder: &Path, login: Option<(&'static str, &'static str)>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut auth = String::new();
        if login.is_some() {
            // The bcrypt of LOGIN's password.
            let users = folder.join("users");
            fs::write(&users, "tester:$2b$04$JXq/YmgC11AOgdnJ2B7NbuP19DBpOjb6rkddfdsbhx78LiGzDxnMm\n")?;
            auth = format!("auth:\n  htpasswd: {{realm: tests, path: '{}'}}\n", users.display());
        }
        let blobs = folder.join("blobs");
        let config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage:\n  filesystem: {{rootdirectory: '{}'}}\n  delete: {{enabled: true}}\n{auth}",
            blobs.display()
        );
        let file = folder.join("config.yml");
        fs::write(&file, config)?;
        let (out, into) = io::pipe()?;
        let mut shell = Command::new("sh")
            .args(["-c", WATCHED, "registry"])
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::piped())
            .stdout(into)
            .stderr(Stdio::null())
            .spawn()?;
        let alive = shell.stdin.take();
        let started = address(BufReader::new(out));
        let mut registry = Self { address: String::new(), login, shell, alive };
        registry.address = started?;
        Ok(registry)
    }

    /// Pushes a layout's image, digests unchanged, under a name such as `library/redis:7`.
    ///
    /// # Errors
    /// What `skopeo` says.
    pub fn push(&self, layout: &Path, name: &str) -> io::Result<()> {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--insecure-policy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]);
        if let Some((user, password)) = self.login {
            skopeo.args(["--dest-creds", &format!("{user}:{password}")]);
        }
        skopeo.arg(format!("oci:{}", layout.display())).arg(format!("docker://{}", self.reference(name)));
        run(&mut skopeo).map(drop)
    }

    /// A name in this registry as a blueprint's `image.url` says it.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(mut alive) = self.alive.take() {
            // The line ends the shell's waiting; it may have ended by itself.
            let _ = alive.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}

/// What the server says it listens on. A thread reads on, so that the pipe never fills.
fn address(mut log: BufReader<PipeReader>) -> io::Result<String> {
    let mut said = String::new();
    loop {
        let before = said.len();
        if log.read_line(&mut said)? == 0 {
            return Err(io::Error::other(format!("`docker-registry` does not start: {}", said.trim())));
        }
        if let Some(address) = listens_on(&said[before..]) {
            let address = address.to_owned();
            thread::spawn(move || io::copy(&mut log, &mut io::sink()));
            return Ok(address);
        }
    }
}

fn listens_on(line: &str) -> Option<&str> {
    line.split_once("listening on ")?.1.split(['"', ',', ' ', '\n']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_log() {
        let line = "time=\"2026-01-01T00:00:00Z\" level=info msg=\"listening on 127.0.0.1:35671\" go.version=go1.19.8\n";
        assert_eq!(listens_on(line), Some("127.0.0.1:35671"));
        assert_eq!(listens_on("level=warning msg=\"No HTTP secret provided\"\n"), None);
    }
}
