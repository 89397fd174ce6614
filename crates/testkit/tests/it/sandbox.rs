//! An image's root file system, unpacked and run in namespaces of its own, with the plainest tools: `tar`, `unshare`, `chroot`.

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Whether images can be made and run here; where not, says why.
pub fn can_run(what: &str) -> bool {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: {what}: not root");
        return false;
    }
    let missing = ["apt-get", "dpkg-deb", "docker-registry", "skopeo", "zstd"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err());
    if let Some(tool) = missing {
        println!("skipped: {what}: no `{tool}`");
    }
    missing.is_none()
}

/// A running server. It ends with this.
pub struct Sandbox {
    folder: tempfile::TempDir,
    program: Mutex<Child>,
    env: Vec<(String, String)>,
}

impl Sandbox {
    /// Unpacks an image and runs what its configuration says. This thread leaves its network namespace for a new one, which has loopback
    /// and one address more, 192.0.2.1.
    pub fn start(layout: &Path, env: &[(&str, &str)]) -> Self {
        let blob = |descriptor: &Value| layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"));
        let read = |file: PathBuf| -> Value { serde_json::from_slice(&fs::read(file).unwrap()).unwrap() };
        let manifest = read(blob(&read(layout.join("index.json"))["manifests"][0]));
        let config = &read(blob(&manifest["config"]))["config"];

        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            let program = if layer["mediaType"].as_str().unwrap().ends_with("zstd") { "zstd" } else { "gzip" };
            let mut tar = Command::new("tar");
            tar.args(["--extract", "--numeric-owner", "--same-permissions", "--use-compress-program", program, "--directory"]);
            assert!(tar.arg(&root).arg("--file").arg(blob(layer)).status().unwrap().success());
        }
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n").unwrap();

        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for change in [&["link", "set", "lo", "up"][..], &["address", "add", "192.0.2.1/32", "dev", "lo"]] {
            assert!(Command::new("ip").args(change).status().unwrap().success());
        }
        let words =
            |key: &str| config[key].as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let env: Vec<(String, String)> = words("Env")
            .iter()
            .map(|line| line.split_once('=').unwrap())
            .chain(env.iter().copied())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let script = r#"mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && cd / || exit 1
            root=$1 user=$2 folder=$3; shift 3
            chroot --userspec="$user" "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@" &
            wait "$!""#;
        let program = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--", "sh", "-c", script, "sh"])
            .arg(&root)
            .arg(config["User"].as_str().unwrap_or("0:0"))
            .arg(config["WorkingDir"].as_str().unwrap_or("/"))
            .args(words("Entrypoint"))
            .args(words("Cmd"))
            .env_clear()
            .envs(env.clone())
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        Self { folder, program: Mutex::new(program), env }
    }

    /// Sends to a port until the answer has some bytes in it; waits while nothing listens there, as long as the server runs.
    pub fn ask(&self, port: u16, send: &[u8], expected: &[u8]) {
        self.until(expected, || exchange(port, send, expected).unwrap_or_default());
    }

    /// Runs a command inside until its output has some text in it, as long as the server runs.
    pub fn inside_until(&self, command: &[&str], expected: &str) {
        self.until(expected.as_bytes(), || self.inside(command).into_bytes());
    }

    fn until(&self, expected: &[u8], ask: impl Fn() -> Vec<u8>) {
        let until = Instant::now() + Duration::from_mins(1);
        let mut last = Vec::new();
        while Instant::now() < until {
            last = ask();
            if contains(&last, expected) {
                return;
            }
            if let Some(status) = self.program.lock().unwrap().try_wait().unwrap() {
                panic!("the server ended ({status}):\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the answer is {:?}\n{}", String::from_utf8_lossy(&last), self.log());
    }

    /// All that a port answers until it closes the connection.
    #[expect(clippy::unused_self, reason = "there is an answer only while the server runs")]
    pub fn answer(&self, port: u16, send: &[u8]) -> String {
        String::from_utf8_lossy(&exchange(port, send, b"\0never\0").unwrap()).into_owned()
    }

    /// What a command inside writes to both its outputs.
    pub fn inside(&self, command: &[&str]) -> String {
        let out = Command::new("chroot").arg(self.root()).args(command).env_clear().envs(self.env.clone()).output().unwrap();
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    }

    /// Ends the server as dropping does, and waits until nothing listens any more: nothing of it is left.
    pub fn ends_with_its_sandbox(&self) {
        self.program.lock().unwrap().kill().unwrap();
        let until = Instant::now() + Duration::from_mins(1);
        while fs::read_to_string("/proc/thread-self/net/tcp").unwrap().lines().any(|line| line.split_whitespace().nth(3) == Some("0A")) {
            assert!(Instant::now() < until, "the server is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Who owns a file of the root.
    pub fn owner(&self, path: &str) -> u32 {
        fs::metadata(self.root().join(path)).unwrap().uid()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `unshare --kill-child` takes the shell with it, the first process of the pid namespace, and with that go all others. The server
        // itself could not be that process: its parent's death tells it nothing once it is another user.
        let program = self.program.get_mut().unwrap();
        let _ = program.kill();
        let _ = program.wait();
    }
}

/// What comes back until it has `until` in it, the other side closes, or nothing comes for some time.
fn exchange(port: u16, send: &[u8], until: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(send)?;
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(all),
            Ok(count) => all.extend(&buffer[..count]),
        }
        if contains(&all, until) {
            return Ok(all);
        }
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
