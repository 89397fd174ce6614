//! Source of elsewhere: a git repository's branch, fetched without its history into `STATE/sources/NAME`.
//!
//! git itself fetches, as root and with root's credentials; nothing that the repository holds is run by that. A folder that a killed
//! fetch left is put right by the next one. Invariant: while a [`Checkout`] is held, its folder does not change.

use crate::engine::Inner;
use crate::toolchain;
use moat_engine::EngineError;
use moat_model::state::Source;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of what git says that are passed on.
const WORDS: usize = 2000;

/// A folder with source.
pub struct Checkout {
    /// The folder.
    pub folder: PathBuf,
    /// Nobody else fetches meanwhile; none for a folder of the machine's owner.
    _lock: Option<Flock<File>>,
}

/// Brings the source to a folder of this machine, and says so first where that takes the network.
pub fn checkout(inner: &Inner, slug: &str, source: &Source) -> Result<Checkout, EngineError> {
    match source {
        Source::Folder(folder) => Ok(Checkout { folder: folder.clone(), _lock: None }),
        Source::Repository { url, branch } => fetch(inner, slug, url, branch.as_deref()),
    }
}

fn fetch(inner: &Inner, slug: &str, url: &str, branch: Option<&str>) -> Result<Checkout, EngineError> {
    let doing = format!("fetch the source of `{slug}`");
    let io_error = |path: &Path| {
        let (doing, path) = (doing.clone(), path.display().to_string());
        move |error: io::Error| EngineError::new(doing, format!("`{path}`: {error}")).caused_by(error)
    };
    let refuse = |message: String| EngineError::new(&doing, message);
    if url.starts_with('-') || url.contains("::") || branch.is_some_and(|branch| branch.starts_with('-')) {
        return Err(
            refuse(format!("`{url}` is not the URL of a repository")).hint("write `https://HOST/OWNER/NAME` or `git@HOST:OWNER/NAME`")
        );
    }
    let git = toolchain::program("git").ok_or_else(|| refuse("`git` is not installed".to_owned()).hint("apt-get install git"))?;

    let mut digest = Sha256::new();
    for part in [url, branch.unwrap_or_default()] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let sources = inner.paths.sources();
    let name = crate::source::hex(&digest.finalize()[..10]);
    let (folder, lock_path) = (sources.join(&name), sources.join(format!("{name}.lock")));
    fs::create_dir_all(&sources).map_err(io_error(&sources))?;
    let file = File::create(&lock_path).map_err(io_error(&lock_path))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| io_error(&lock_path)(error.into()))?;

    // The lock is ours: a lock file in there is a killed git's.
    for left in ["index.lock", "shallow.lock", "HEAD.lock"] {
        let left = folder.join(".git").join(left);
        if left.exists() {
            fs::remove_file(&left).map_err(io_error(&left))?;
        }
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&git);
        command
            .args([
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "protocol.ext.allow=never",
                "-c",
                "safe.directory=*",
                "-c",
                "advice.detachedHead=false",
            ])
            .args(["-c", "gc.auto=0"])
            .arg("-C")
            .arg(&folder)
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let output = command.output().map_err(io_error(&git))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String =
            said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ").chars().take(WORDS).collect();
        let what = branch.map_or_else(|| format!("`{url}`"), |branch| format!("branch `{branch}` of `{url}`"));
        Err(refuse(format!("{what}: {said}")).hint("root's git must be able to fetch it: try `sudo git ls-remote URL`"))
    };
    if !folder.join(".git/HEAD").exists() {
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        run(&["init", "--quiet"])?;
    }
    run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--no-recurse-submodules", "--", url, branch.unwrap_or("HEAD")])?;
    run(&["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"])?;
    run(&["clean", "--quiet", "-ffdx"])?;
    if folder.join(".gitmodules").exists() {
        run(&["submodule", "--quiet", "sync", "--recursive"])?;
        run(&["submodule", "--quiet", "update", "--init", "--recursive", "--force", "--depth=1"])?;
    }
    Ok(Checkout { folder, _lock: Some(lock) })
}
