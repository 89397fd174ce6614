//! The daemon's process: one instance by a lock, the socket, the loop.

use crate::core::{Core, Msg};
use crate::handed::Handed;
use crate::protocol::{Event, Failure, GREETING, Request};
use crate::{Paths, access, client};
use moat_engine_linux::{Config, LinuxEngine, Mirror, ServerImages};
use moat_net_linux::outside::Outside;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another one runs with the same folders.
    #[error("another Moat runs with `{0}`")]
    Locked(PathBuf),
    /// A folder, the lock or the socket can't be made.
    #[error("can't use `{path}`: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another one that serves.
    #[error("`moat serve` runs with `{0}` already")]
    Serves(PathBuf),
    /// A setting of the environment that is on or off can't be read.
    #[error("`{name}` holds `{held}`: write `on` or `off`")]
    Switch {
        /// The variable.
        name: &'static str,
        /// Its value.
        held: String,
    },
    /// `MOAT_REGISTRY_MIRRORS` can't be read.
    #[error("`MOAT_REGISTRY_MIRRORS` holds `{0}`: write `REGISTRY=HOST[:PORT][/PATH]`, several with commas between")]
    Mirrors(String),
    /// Without root, and the process outside is gone.
    #[error("the process outside of this user namespace does not answer: {0}; say it again")]
    Outside(#[source] io::Error),
    /// Sockets were handed in that can't be used.
    #[error(transparent)]
    Handed(#[from] crate::handed::HandedError),
    /// The engine can't start.
    #[error(transparent)]
    Engine(#[from] moat_engine::EngineError),
    /// What runs can't be seen: it might be started a second time.
    #[error("can't see what runs, and so nothing is done: {0}")]
    Blind(#[source] moat_engine::EngineError),
    /// The durable state can't be read.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

/// How a daemon ends that found no room on the disk: its log has none either, so that nothing else can say so (ENOSPC).
pub const FULL: u8 = 28;

impl DaemonError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::State(crate::state::StateError::Store(moat_store::StoreError::Full(_))) => FULL,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => FULL,
            Self::Locked(_)
            | Self::Serves(_)
            | Self::Io { .. }
            | Self::Switch { .. }
            | Self::Mirrors(_)
            | Self::Outside(_)
            | Self::Handed(_)
            | Self::Engine(_)
            | Self::Blind(_)
            | Self::State(_) => 3,
        }
    }
}

/// A daemon that ends (after `down`) lets the next one in within this time.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Who may not ask is heard out for so long.
const HEARD_OUT: Duration = Duration::from_secs(5);
/// Requests longer than this are refused (a blueprint has at most 4 MiB).
const LONGEST_REQUEST: u64 = 16 << 20;

/// How long the daemon goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the background, until everything is down.
    WhileNeeded,
    /// In the foreground of a service manager, until it is told to leave. It takes the place of one in the background.
    Serve,
}

/// Runs the daemon until everything is down or it is told to leave (SIGTERM: workloads go on).
pub async fn run(paths: Paths, own_exe: PathBuf, mode: Mode) -> Result<(), DaemonError> {
    let io_error = |path: &PathBuf| {
        let path = path.clone();
        move |source| DaemonError::Io { path, source }
    };
    let handed = if mode == Mode::Serve { crate::handed::take()? } else { Handed::default() };
    let outside = Outside::of_process();
    // Others pass to the socket of a machine's Moat, and nobody to that of a user's.
    let others = if outside.is_some() { 0o700 } else { 0o711 };
    for folder in [&paths.state, &paths.run] {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(others)).map_err(io_error(folder))?;
    }
    if let Some(outside) = &outside {
        for lack in outside.about().map_err(DaemonError::Outside)?.lacks {
            tracing::warn!("without root: {lack}");
        }
    }
    if mode == Mode::Serve {
        relieve(&paths).await?;
    }
    let lock_path = paths.lock();
    let mut lock_file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io_error(&lock_path))?;
    let began = Instant::now();
    let _lock = loop {
        match Flock::lock(lock_file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((file, _)) if began.elapsed() < LOCK_PATIENCE => lock_file = file,
            Err(_) => return Err(DaemonError::Locked(paths.run.clone())),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    raise_open_files();
    crate::core::upgrade::adopt_children();
    let engine = LinuxEngine::open(Config {
        state_dir: paths.state.clone(),
        run_dir: paths.run.clone(),
        oci_runtime: std::env::var_os("MOAT_OCI_RUNTIME").map(PathBuf::from),
        pass_env: Vec::new(),
        mirrors: mirrors(&std::env::var("MOAT_REGISTRY_MIRRORS").unwrap_or_default())?,
        server_images: ServerImages::from_env(),
        shortcut: is_on("MOAT_SHORTCUT")?,
        own_exe,
    })?;
    let (tx, rx) = mpsc::unbounded_channel();
    let mends = is_on("MOAT_REPAIR")?;
    let mut core = Core::load(paths.clone(), engine, tx.clone(), handed, mode == Mode::Serve).await?;
    core.mends = mends;

    let socket = paths.socket();
    // The lock is held, so a socket that lies there is a dead daemon's.
    let _ = fs::remove_file(&socket);
    let listener = access::listen(&socket).map_err(io_error(&socket))?;
    let scraped = paths.metrics_socket();
    let _ = fs::remove_file(&scraped);
    let metrics = access::listen(&scraped).map_err(io_error(&scraped))?;
    if mode == Mode::Serve {
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    let asked = tx.clone();
    let accept = tokio::spawn(access::serve(listener, move |stream| converse(stream, asked.clone())));
    let asked = tx.clone();
    let metrics = tokio::spawn(access::serve(metrics, move |stream| crate::scrape::converse(stream, asked.clone())));
    let signals = tokio::spawn(signals(tx));
    core.run(rx).await;
    if mode == Mode::Serve {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    }
    accept.abort();
    metrics.abort();
    signals.abort();
    if let Some(outside) = outside.filter(|_| !paths.run.join("netns").exists())
        && let Err(error) = outside.end()
    {
        tracing::warn!(%error, "the process outside could not be told to end");
    }
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_file(&scraped);
    // The last answers leave through tasks of their own.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// Asks one that runs in the background to end; what it runs goes on.
async fn relieve(paths: &Paths) -> Result<(), DaemonError> {
    let Ok(mut talk) = client::ask(paths, &Request::Leave).await else { return Ok(()) };
    match talk.next().await {
        Ok(Some(Event::End { error: Some(_) })) => Err(DaemonError::Serves(paths.run.clone())),
        // Otherwise the lock tells whether it went.
        _ => Ok(()),
    }
}

/// A setting of the environment that is on unless told otherwise.
fn is_on(name: &'static str) -> Result<bool, DaemonError> {
    match std::env::var(name).unwrap_or_default() {
        text if text.is_empty() || text == "on" => Ok(true),
        text if text == "off" => Ok(false),
        held => Err(DaemonError::Switch { name, held }),
    }
}

/// Copies of registries, `REGISTRY=LOCATION` with commas between.
fn mirrors(text: &str) -> Result<Vec<Mirror>, DaemonError> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let parse = |entry: &str| {
        let (registry, location) = entry.split_once('=').filter(|(a, b)| !a.is_empty() && !b.is_empty())?;
        Some(Mirror { registry: registry.to_owned(), location: location.to_owned() })
    };
    entries.map(|entry| parse(entry).ok_or_else(|| DaemonError::Mirrors(entry.to_owned()))).collect()
}

/// The probes and the ingress use many sockets: as many as may be opened without privileges. A failure leaves the usual number.
fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

async fn signals(tx: mpsc::UnboundedSender<Msg>) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    let _ = tx.send(Msg::Leave);
}

/// One request, then its events.
async fn converse(stream: UnixStream, tx: mpsc::UnboundedSender<Msg>) {
    let allowed = access::may_ask(&stream).await;
    let (read, mut write) = stream.into_split();
    let (reply, mut events) = crate::reply::channel();
    if write.write_all(format!("{GREETING}\n").as_bytes()).await.is_err() {
        return;
    }
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(read, LONGEST_REQUEST));
    let mut line = String::new();
    if !allowed {
        // Heard out and not listened to: a connection that is closed with something unread loses its answer.
        let _ = tokio::time::timeout(HEARD_OUT, skip_line(&mut reader)).await;
        let _ = reply.send(refusal(access::REFUSAL));
    } else if reader.read_line(&mut line).await.is_err() {
        return;
    } else {
        match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                let _ = tx.send(Msg::Request(Box::new(request), reply));
            }
            Err(error) => {
                let _ = reply.send(refusal(&format!("this request is not understood: {error}")));
            }
        }
    }
    let mut rest = [0_u8; 64];
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // The asker hung up: nothing to answer any more.
            read = tokio::io::AsyncReadExt::read(&mut reader, &mut rest) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            },
        };
        let Some(event) = event else { return };
        let last = matches!(event, Event::End { .. });
        let Ok(mut text) = serde_json::to_vec(&event) else { return };
        text.push(b'\n');
        if write.write_all(&text).await.is_err() || last {
            return;
        }
    }
}

/// Reads to the end of a line and keeps nothing of it.
async fn skip_line(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<()> {
    loop {
        let read = reader.fill_buf().await?;
        let (length, end) = match read.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (read.len(), read.is_empty()),
        };
        reader.consume(length);
        if end {
            return Ok(());
        }
    }
}

fn refusal(message: &str) -> Event {
    Event::End { error: Some(Failure::refused(message, None)) }
}
