//! Source that git brings: a repository's branch or one commit of it, without its history, in `STATE/sources/NAME`.
//!
//! git itself fetches, as root and with root's credentials; nothing that the repository holds is run by that. A folder that a killed
//! fetch left is put right by the next one. Invariant: while a [`Checkout`] is held, its folder does not change.

use crate::engine::{Inner, LinuxEngine};
use crate::{toolchain, tree};
use moat_engine::EngineError;
use moat_model::ServiceId;
use moat_model::state::Source;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of what git says that are passed on.
const WORDS: usize = 2000;
/// Settings of every git that runs here: nothing of a repository is run, and whoever owns it does not matter.
/// A server that says nothing more is given up after a minute.
const SETTINGS: [&str; 14] = [
    "-c",
    "http.lowSpeedLimit=1000",
    "-c",
    "http.lowSpeedTime=60",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "safe.directory=*",
    "-c",
    "advice.detachedHead=false",
    "-c",
    "gc.auto=0",
];

/// A folder with source.
pub struct Checkout {
    /// The folder.
    pub folder: PathBuf,
    /// The commit that is in it; none for a folder of the machine's owner.
    pub commit: Option<String>,
    /// Nobody else fetches meanwhile; none for a folder of the machine's owner.
    _lock: Option<Flock<File>>,
}

impl LinuxEngine {
    /// The files that differ between each of some commits of a repository of this machine and another commit, as paths from its root.
    /// A commit that is not there any more is left out.
    pub async fn changed_files(
        &self,
        repository: PathBuf,
        from: BTreeSet<String>,
        to: String,
    ) -> Result<BTreeMap<String, Vec<String>>, EngineError> {
        self.blocking(move |_| {
            let git = program("compare commits")?;
            let mut found = BTreeMap::new();
            for commit in from {
                let output = Command::new(&git)
                    .args(SETTINGS)
                    .arg("-C")
                    .arg(&repository)
                    .args(["diff", "--name-only", "--no-renames", "-z", "--end-of-options", &commit, &to, "--"])
                    .stdin(Stdio::null())
                    .output()
                    .map_err(|error| EngineError::new("compare commits", error.to_string()).caused_by(error))?;
                if output.status.success() {
                    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                    found.insert(commit, names.map(|name| String::from_utf8_lossy(name).into_owned()).collect());
                }
            }
            Ok(found)
        })
        .await
    }

    /// Removes what was fetched for services that are not there any more: every source but those in `sources` and those that a
    /// deploy is reading, and the base images of every service's Dockerfile but of those in `services`, which may be building.
    pub async fn collect_fetched(&self, sources: Vec<Source>, services: BTreeSet<ServiceId>) -> Result<(), EngineError> {
        self.blocking(move |inner| {
            let fail = |path: &Path, error: io::Error| {
                EngineError::new("remove old sources", format!("`{}`: {error}", path.display())).caused_by(error)
            };
            let keep: BTreeSet<String> = sources.iter().filter_map(name_of).collect();
            let folder = inner.paths.sources();
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let name = name.strip_suffix(LOCK).unwrap_or(&name);
                if keep.contains(name) {
                    continue;
                }
                let lock = folder.join(format!("{name}{LOCK}"));
                if let Some(_held) = lock_file(&lock, FlockArg::LockExclusiveNonblock).map_err(|error| fail(&lock, error))? {
                    tree::remove(&folder.join(name)).map_err(|error| fail(&folder.join(name), error))?;
                    // Last: who waits for it sees that it is gone, and makes another.
                    fs::remove_file(&lock).map_err(|error| fail(&lock, error))?;
                }
            }
            for entry in fs::read_dir(inner.paths.builds()).into_iter().flatten().flatten() {
                let kept = ServiceId::new(entry.file_name().to_string_lossy()).is_ok_and(|id| services.contains(&id));
                if !kept {
                    let bases = entry.path().join("bases");
                    tree::remove(&bases).map_err(|error| fail(&bases, error))?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// End of the name of a source's lock.
const LOCK: &str = ".lock";

/// Brings the source to a folder of this machine, and says so first where that takes the network.
pub fn checkout(inner: &Inner, slug: &str, source: &Source) -> Result<Checkout, EngineError> {
    match source {
        Source::Folder(folder) => Ok(Checkout { folder: folder.clone(), commit: None, _lock: None }),
        Source::Repository { url, branch, commit } => fetch(inner, slug, source, url, branch.as_deref(), commit.as_deref()),
    }
}

/// What a repository's folder is called: the same for each commit of it.
fn name_of(source: &Source) -> Option<String> {
    let Source::Repository { url, branch, .. } = source else { return None };
    let mut digest = Sha256::new();
    for part in [url.as_str(), branch.as_deref().unwrap_or_default()] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    Some(crate::source::hex(&digest.finalize()[..10]))
}

/// Takes the lock that is at this path; none where somebody else has it and `how` does not wait. One that was removed while it was
/// waited for is no lock any more.
fn lock_file(path: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    loop {
        let lock = match Flock::lock(File::create(path)?, how) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
        };
        if fs::metadata(path).is_ok_and(|now| lock.metadata().is_ok_and(|ours| now.ino() == ours.ino())) {
            return Ok(Some(lock));
        }
    }
}

fn program(doing: &str) -> Result<PathBuf, EngineError> {
    toolchain::program("git").ok_or_else(|| EngineError::new(doing, "`git` is not installed").hint("apt-get install git"))
}

fn fetch(
    inner: &Inner,
    slug: &str,
    source: &Source,
    url: &str,
    branch: Option<&str>,
    commit: Option<&str>,
) -> Result<Checkout, EngineError> {
    let doing = format!("fetch the source of `{slug}`");
    let io_error = |path: &Path| {
        let (doing, path) = (doing.clone(), path.display().to_string());
        move |error: io::Error| EngineError::new(doing, format!("`{path}`: {error}")).caused_by(error)
    };
    let refuse = |message: String| EngineError::new(&doing, message);
    let is_option = |text: Option<&str>| text.is_some_and(|text| text.starts_with('-'));
    if url.starts_with('-') || url.contains("::") || is_option(branch) || is_option(commit) {
        return Err(
            refuse(format!("`{url}` is not the URL of a repository")).hint("write `https://HOST/OWNER/NAME` or `git@HOST:OWNER/NAME`")
        );
    }
    let git = program(&doing)?;
    let sources = inner.paths.sources();
    let name = name_of(source).unwrap_or_default();
    let (folder, lock_path) = (sources.join(&name), sources.join(format!("{name}{LOCK}")));
    fs::create_dir_all(&sources).map_err(io_error(&sources))?;
    let lock = lock_file(&lock_path, FlockArg::LockExclusive).map_err(io_error(&lock_path))?;

    // The lock is ours: a lock file in there is a killed git's.
    for left in ["index.lock", "shallow.lock", "HEAD.lock"] {
        let left = folder.join(".git").join(left);
        if left.exists() {
            fs::remove_file(&left).map_err(io_error(&left))?;
        }
    }
    let pushed = Path::new(url).starts_with(inner.paths.state());
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&git);
        if pushed {
            // A push brings pointers only: there is nowhere to take their files from.
            command.env("GIT_LFS_SKIP_SMUDGE", "1");
        }
        command
            .args(SETTINGS)
            .arg("-C")
            .arg(&folder)
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4")
            .stdin(Stdio::null())
            .output()
            .map_err(io_error(&git))
    };
    let run = |arguments: &[&str]| {
        let output = ask(arguments)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String =
            said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ").chars().take(WORDS).collect();
        let what = match (commit, branch) {
            (Some(commit), _) => format!("commit `{commit}` of `{url}`"),
            (None, Some(branch)) => format!("branch `{branch}` of `{url}`"),
            (None, None) => format!("`{url}`"),
        };
        Err(refuse(format!("{what}: {said}")).hint("root's git must be able to fetch it: try `sudo git ls-remote URL`"))
    };
    if !folder.join(".git/HEAD").exists() {
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        run(&["init", "--quiet"])?;
    }
    let wanted = commit.unwrap_or("FETCH_HEAD");
    let here = match commit {
        Some(commit) => ask(&["cat-file", "-e", &format!("{commit}^{{commit}}")])?.status.success(),
        None => false,
    };
    if !here {
        let what = commit.or(branch).unwrap_or("HEAD");
        run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--no-recurse-submodules", "--", url, what])?;
    }
    run(&["checkout", "--quiet", "--force", "--detach", wanted])?;
    run(&["clean", "--quiet", "-ffdx"])?;
    if folder.join(".gitmodules").exists() {
        run(&["submodule", "--quiet", "sync", "--recursive"])?;
        run(&["submodule", "--quiet", "update", "--init", "--recursive", "--force", "--depth=1"])?;
    }
    let head = String::from_utf8_lossy(&run(&["rev-parse", "HEAD"])?).trim().to_owned();
    Ok(Checkout { folder, commit: Some(head), _lock: lock })
}
