//! Finding or starting the daemon, and talking to it.

use crate::Paths;
use crate::protocol::{Event, GREETING, Request};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A daemon greets at once, on however busy a machine.
const GREETED_WITHIN: Duration = Duration::from_secs(30);

/// Variables by which git tells its hooks which repository they are about (`git rev-parse --local-env-vars`).
const OF_A_REPOSITORY: [&str; 14] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_OBJECT_DIRECTORY",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PUSH_OPTION_COUNT",
    "GIT_QUARANTINE_PATH",
];

/// One request under way.
#[derive(Debug)]
pub struct Conversation {
    lines: Lines<BufReader<OwnedReadHalf>>,
    // Kept open: the daemon ends a followed request when this side closes.
    _write: OwnedWriteHalf,
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error("nothing of Moat runs here")]
    NotRunning,
    /// The daemon did not come up.
    #[error("the background process did not start: {0}")]
    NoStart(String),
    /// The socket exists but this user may not use it.
    #[error("no permission to talk to Moat")]
    Permission(#[source] io::Error),
    /// The connection broke.
    #[error("the background process went away")]
    Broken(#[source] io::Error),
    /// The daemon said something this version does not know.
    #[error("the background process answered something this version does not understand")]
    Foreign(#[source] serde_json::Error),
}

impl Conversation {
    /// The next event; `None` after the connection ended.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        match self.lines.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line).map(Some).map_err(ClientError::Foreign),
            Ok(None) => Ok(None),
            Err(error) => Err(ClientError::Broken(error)),
        }
    }
}

/// Sends a request to a daemon that runs already.
pub async fn ask(paths: &Paths, request: &Request) -> Result<Conversation, ClientError> {
    let (lines, mut write) = connect(paths).await?;
    let mut line = serde_json::to_vec(request).map_err(ClientError::Foreign)?;
    line.push(b'\n');
    write.write_all(&line).await.map_err(ClientError::Broken)?;
    Ok(Conversation { lines, _write: write })
}

/// Fails where no daemon answers, or not to this user.
pub async fn reach(paths: &Paths) -> Result<(), ClientError> {
    connect(paths).await.map(drop)
}

/// Whether a daemon answers.
pub async fn is_running(paths: &Paths) -> bool {
    connect(paths).await.is_ok()
}

/// A connection to a daemon that has greeted.
async fn connect(paths: &Paths) -> Result<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf), ClientError> {
    let stream = UnixStream::connect(paths.socket()).await.map_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied { ClientError::Permission(error) } else { ClientError::NotRunning }
    })?;
    let (read, write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    match tokio::time::timeout(GREETED_WITHIN, lines.next_line()).await {
        Ok(Ok(Some(line))) if line == GREETING => Ok((lines, write)),
        Ok(Ok(Some(_))) => Err(ClientError::NoStart("something else listens at its socket".to_owned())),
        Ok(Ok(None) | Err(_)) => Err(ClientError::NotRunning),
        Err(_) => Err(ClientError::NoStart("it does not answer".to_owned())),
    }
}

/// Settings of glibc's allocator (mallopt(3)) for a process that runs for years and needs much for moments only: what it frees goes
/// back to the system.
pub const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "262144")];

/// Starts the daemon unless one answers. Waits until it listens; what it wrote when it failed becomes the error.
pub async fn ensure(paths: &Paths, own_exe: &Path) -> Result<(), ClientError> {
    if is_running(paths).await {
        return Ok(());
    }
    let no = |what: &str, error: &io::Error| ClientError::NoStart(format!("{what}: {error}"));
    for folder in [&paths.state, &paths.run] {
        std::fs::create_dir_all(folder).map_err(|error| no(&format!("can't make `{}`", folder.display()), &error))?;
    }
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.daemon_log())
        .map_err(|error| no(&format!("can't write `{}`", paths.daemon_log().display()), &error))?;
    let before = log.metadata().map_or(0, |m| m.len());
    let errors = log.try_clone().map_err(|error| no("can't share the log", &error))?;
    let mut command = Command::new(own_exe);
    // A hook of a repository has these, and they would lead every git of the daemon there.
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| OF_A_REPOSITORY.iter().any(|of| name == of)) {
        command.env_remove(name);
    }
    let mut child = command
        .arg("__daemon")
        .envs(ALLOCATOR)
        .env("MOAT_STATE_DIR", &paths.state)
        .env("MOAT_RUN_DIR", &paths.run)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // A process group of its own: the terminal's Ctrl-C goes to the command line only.
        .process_group(0)
        .spawn()
        .map_err(|error| no("can't run myself", &error))?;
    for _ in 0..600 {
        if is_running(paths).await {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Another daemon may have won the race for the lock.
            if is_running(paths).await {
                return Ok(());
            }
            let text = std::fs::read(paths.daemon_log()).unwrap_or_default();
            let said = String::from_utf8_lossy(text.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default()).trim().to_owned();
            return Err(ClientError::NoStart(match (said.is_empty(), status.code()) {
                (false, _) => said,
                (true, Some(code)) if code == i32::from(crate::server::FULL) => {
                    format!("no space left on the disk of `{}`", paths.state.display())
                }
                (true, _) => status.to_string(),
            }));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Err(ClientError::NoStart("it does not answer".to_owned()))
}
