//! The daemon's side: one process serves, whatever happens to it.
//!
//! A task looks after the process. When it dies, another is started at once with the listening sockets that are held here, so
//! that clients wait and are not refused. When it is of another program or has to be replaced, the new one serves before the old
//! one stops accepting.

mod link;
mod start;

pub use start::{KeepError, Place};

use crate::chain;
use crate::message::Measures;
use crate::{CertificateSet, Config, Sockets, Stamp, folder};
use link::{Known, Link, LogTo, Wanted};
use moat_ingress::LogFormat;
use moat_model::Slug;
use start::Met;
use std::collections::BTreeSet;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a new process may take until it serves.
const SERVES_WITHIN: Duration = Duration::from_secs(20);
/// Pauses between tries to start a process: the first after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long a process may take to tell what it counted.
const MEASURED_WITHIN: Duration = Duration::from_secs(2);
/// The program of this process, also when another lies at its path by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What the task is asked for.
enum Command {
    /// Serve with these sockets from now on, by a new process if one serves with others.
    Serve(Sockets, oneshot::Sender<Result<(), KeepError>>),
    /// Replace the process by one of this program.
    Replace(PathBuf, oneshot::Sender<Result<(), KeepError>>),
    /// Tell what the process that accepts connections counted.
    Measure(oneshot::Sender<Measures>),
    /// End every process.
    Stop(oneshot::Sender<()>),
}

/// What comes up while processes serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Something that people should know.
    Said(String),
    /// Somebody asks for these services, which sleep.
    Wanted(BTreeSet<Slug>),
}

/// Takes what comes up.
type Tell = Arc<dyn Fn(News) + Send + Sync>;

/// What is known of all processes.
#[derive(Debug, Clone, Default)]
struct Told {
    /// The configuration that the process which accepts connections serves by.
    applied: Option<Stamp>,
    /// Folders of sites that any process has open.
    holds: BTreeSet<PathBuf>,
    /// The process that accepts connections.
    pid: Option<u32>,
}

/// Keeps the data plane running. Dropping it leaves the process to the next daemon.
#[derive(Debug)]
pub struct Keeper {
    commands: mpsc::UnboundedSender<Command>,
    config: watch::Sender<Option<Arc<Config>>>,
    certificates: watch::Sender<Option<Arc<CertificateSet>>>,
    log: watch::Sender<Option<Arc<LogTo>>>,
    told: watch::Receiver<Told>,
    /// Of the last configuration, here or before.
    stamp: Option<Stamp>,
}

impl Keeper {
    /// Finds the process that an earlier daemon left, if any; gives its sockets too. `told_of` gets what comes up.
    pub async fn find(place: Place, told_of: impl Fn(News) + Send + Sync + 'static) -> (Self, Option<Sockets>) {
        let (commands, asked) = mpsc::unbounded_channel();
        let (config, configured) = watch::channel(None);
        let (certificates, shown) = watch::channel(None);
        let (log, logged) = watch::channel(None);
        let (telling, told) = watch::channel(Told::default());
        let (pulse, news) = watch::channel(());
        let mut met = start::find(&place.run).await;
        // The newest first: what a take-over that was interrupted left behind it drains.
        met.sort_by_key(|met| std::cmp::Reverse((!met.hello.draining && met.sockets.is_some(), met.hello.stamp)));
        let mut sockets = None;
        let stamp = met.iter().filter_map(|met| met.hello.stamp).max();
        let mut task = Task {
            place,
            sockets: None,
            current: None,
            outdated: false,
            draining: Vec::new(),
            wanted: Wanted { certificates: shown, log: logged, config: configured },
            telling,
            pulse,
            told_of: Arc::new(told_of),
            retry: None,
        };
        for mut met in met {
            let serves = !met.hello.draining;
            if let Some(found) = met.sockets.take().filter(|_| serves && sockets.is_none()) {
                task.outdated = met.foreign;
                sockets = found.duplicate().ok();
                task.sockets = Some(found);
                task.current = Some(task.link(met));
            } else {
                let link = task.link(met);
                if serves {
                    link.drain();
                }
                task.draining.push(link);
            }
        }
        task.tell();
        tokio::spawn(task.run(asked, news));
        (Self { commands, config, certificates, log, told, stamp }, sockets)
    }

    /// Has a process serve with these sockets: the one that does, or a new one.
    ///
    /// # Errors
    /// When none can be started; it is tried again then, beside.
    pub async fn serve(&self, sockets: Sockets) -> Result<(), KeepError> {
        self.ask(|reply| Command::Serve(sockets, reply)).await
    }

    /// Replaces the process by one of this program; without one, of this process' own. No connection is refused or cut: the
    /// old one ends with those that it has, an hour later at the latest.
    ///
    /// # Errors
    /// When the new one does not serve; the old one goes on then.
    pub async fn replace(&self, program: Option<&Path>) -> Result<(), KeepError> {
        let program = program.map_or_else(|| PathBuf::from(OWN_PROGRAM), Path::to_owned);
        self.ask(|reply| Command::Replace(program, reply)).await
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Result<(), KeepError>>) -> Command) -> Result<(), KeepError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| KeepError::Over)?;
        answer.await.map_err(|_| KeepError::Over)?
    }

    /// Has everything served by this configuration (its revision is set here), and waits until it is, at most `patience`.
    /// A process that is started meanwhile gets it too.
    pub async fn set(&mut self, mut config: Config, patience: Duration) -> bool {
        let generation = config.stamp.generation;
        let before = self.stamp.filter(|before| before.generation == generation);
        config.stamp.revision = before.map_or(0, |before| before.revision + 1);
        let stamp = config.stamp;
        self.stamp = Some(stamp);
        self.config.send_replace(Some(Arc::new(config)));
        let mut told = self.told.clone();
        let applied = async { told.wait_for(|told| told.applied.is_some_and(|applied| applied >= stamp)).await.is_ok() };
        timeout(patience, applied).await.unwrap_or(false)
    }

    /// Whether the process that accepts connections serves by the last configuration.
    pub fn is_applied(&self) -> bool {
        let applied = self.told.borrow().applied;
        applied.is_some() && applied >= self.stamp
    }

    /// Has these certificates shown from now on, by whatever process serves.
    pub fn show(&self, certificates: CertificateSet) {
        self.certificates.send_if_modified(|shown| {
            let changed = shown.as_deref() != Some(&certificates);
            if changed {
                *shown = Some(Arc::new(certificates));
            }
            changed
        });
    }

    /// Has the access log written so from now on, to the first of two files; what was before goes to the second. `None`: not at all.
    pub fn log(&self, to: Option<(LogFormat, [OwnedFd; 2])>) {
        self.log.send_replace(Some(Arc::new(to)));
    }

    /// What the process that accepts connections counted since it began; `None` where none answers.
    pub fn measure(&self) -> impl Future<Output = Option<Measures>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(Command::Measure(reply)).is_ok();
        async move { if asked { timeout(MEASURED_WITHIN, answer).await.ok()?.ok() } else { None } }
    }

    /// The last configuration that was set here.
    pub fn config(&self) -> Option<Arc<Config>> {
        self.config.borrow().clone()
    }

    /// Folders of sites that some process may still read.
    pub fn holds(&self) -> BTreeSet<PathBuf> {
        let mut holds = self.told.borrow().holds.clone();
        if let Some(config) = self.config.borrow().as_ref() {
            holds.extend(config.hosts.values().filter_map(|host| match &host.state {
                crate::HostState::Site(files) => Some(files.folder.clone()),
                crate::HostState::Live
                | crate::HostState::Moved { .. }
                | crate::HostState::Held { .. }
                | crate::HostState::NoInstance { .. }
                | crate::HostState::Asleep
                | crate::HostState::Suspended
                | crate::HostState::Maintenance { .. } => None,
            }));
        }
        holds
    }

    /// The process that accepts connections.
    pub fn pid(&self) -> Option<u32> {
        self.told.borrow().pid
    }

    /// Ends every process, and lets the sockets go.
    pub async fn stop(self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).is_ok() {
            // An error means that the task is over: so are the processes.
            let _ = done.await;
        }
    }
}

/// Waits until there is a configuration.
async fn is_set(mut config: watch::Receiver<Option<Arc<Config>>>) {
    if config.wait_for(Option::is_some).await.is_err() {
        // Its keeper is gone, and ends the task.
        std::future::pending::<()>().await;
    }
}

/// Looks after the processes.
struct Task {
    place: Place,
    sockets: Option<Sockets>,
    current: Option<Link>,
    /// The current one is of another program.
    outdated: bool,
    draining: Vec<Link>,
    wanted: Wanted,
    telling: watch::Sender<Told>,
    /// Given to each link, which tells by it that it knows something new.
    pulse: watch::Sender<()>,
    told_of: Tell,
    /// When another start is tried, and the pause after it.
    retry: Option<(Instant, Duration)>,
}

impl Task {
    fn link(&self, met: Met) -> Link {
        Link::new(met, self.wanted.clone(), self.pulse.clone(), self.telling.clone(), Arc::clone(&self.told_of))
    }

    fn say(&self, text: String) {
        (self.told_of)(News::Said(text));
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, mut news: watch::Receiver<()>) {
        loop {
            let retry = self.retry.map(|(at, _)| at);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Serve(sockets, reply)) => {
                        let _ = reply.send(self.serve(sockets).await);
                    }
                    Some(Command::Replace(program, reply)) => {
                        let _ = reply.send(self.replace(&program).await);
                    }
                    Some(Command::Measure(reply)) => {
                        if let Some(link) = &self.current {
                            link.measure(reply);
                        }
                    }
                    Some(Command::Stop(reply)) => {
                        self.stop().await;
                        let _ = reply.send(());
                        return;
                    }
                    None => return,
                },
                // An error can't be: a sender is kept here.
                _ = news.changed() => self.look().await,
                () = is_set(self.wanted.config.clone()), if self.outdated && self.current.is_some() => {
                    tracing::info!("the data plane's process is replaced: it runs another program");
                    self.replace_or_end().await;
                }
                () = at(retry) => self.start_again().await,
            }
            self.tell();
        }
    }

    /// Tells what is known.
    fn tell(&self) {
        let all: Vec<Known> = self.current.iter().chain(&self.draining).map(Link::known).collect();
        let told = Told {
            applied: self.current.as_ref().and_then(|link| link.known().applied),
            holds: all.into_iter().flat_map(|known| known.holds).collect(),
            pid: self.current.as_ref().map(|link| link.pid),
        };
        self.telling.send_replace(told);
    }

    /// What became of the processes.
    async fn look(&mut self) {
        let run = &self.place.run;
        self.draining.retain(|link| {
            let ended = link.known().ended;
            if ended {
                forget(run, link.pid);
            }
            !ended
        });
        let Some(known) = self.current.as_ref().map(Link::known) else { return };
        if known.ended {
            self.say("the data plane's process ended: starting another".to_owned());
            if let Some(link) = self.current.take() {
                forget(&self.place.run, link.pid);
            }
            self.tell();
            self.start_again().await;
        } else if let Some(have) = known.refused {
            self.say(format!(
                "the data plane serves by generation {}, which is newer than what is known here: replacing it",
                have.generation.0
            ));
            self.replace_or_end().await;
        }
    }

    async fn serve(&mut self, sockets: Sockets) -> Result<(), KeepError> {
        let same = self.sockets.as_ref().is_some_and(|ours| ours.are_as(&sockets).unwrap_or(false));
        self.sockets = Some(sockets);
        if self.current.is_none() {
            let started = self.start(Path::new(OWN_PROGRAM)).await;
            return match started {
                Ok(link) => {
                    self.current = Some(link);
                    self.retry = None;
                    Ok(())
                }
                Err(error) => {
                    self.retry_after(RETRY.0);
                    Err(error)
                }
            };
        }
        // One of another program goes on until there is something that its successor can serve by.
        if same && (!self.outdated || self.wanted.config.borrow().is_none()) {
            return Ok(());
        }
        let why = if self.outdated { "it runs another program" } else { "it has other sockets to serve with" };
        tracing::info!("the data plane's process is replaced: {why}");
        self.replace(Path::new(OWN_PROGRAM)).await
    }

    /// Starts one; it gets the configuration there is.
    async fn start(&self, program: &Path) -> Result<Link, KeepError> {
        let Some(sockets) = &self.sockets else { return Err(KeepError::Over) };
        start::start(program, &self.place, sockets).await.map(|met| self.link(met))
    }

    /// Replaces a process that can't go on.
    async fn replace_or_end(&mut self) {
        if let Err(error) = self.replace(Path::new(OWN_PROGRAM)).await {
            self.say(format!("the data plane could not be replaced: {}", chain(&error)));
            self.outdated = false;
            // It would be asked again at once: it ends, and another is started as for any that ends.
            if let Some(link) = &self.current {
                link.kill();
            }
        }
    }

    async fn start_again(&mut self) {
        let pause = self.retry.take().map_or(RETRY.0, |(_, pause)| pause);
        if self.sockets.is_none() || self.current.is_some() {
            return;
        }
        match self.start(Path::new(OWN_PROGRAM)).await {
            Ok(link) => self.current = Some(link),
            Err(error) => {
                self.say(format!("the data plane could not be started: {}", chain(&error)));
                self.retry_after(pause);
            }
        }
    }

    fn retry_after(&mut self, pause: Duration) {
        self.retry = Some((Instant::now() + pause, (pause * 2).min(RETRY.1)));
    }

    /// Has a new process serve before the old one stops to accept.
    async fn replace(&mut self, program: &Path) -> Result<(), KeepError> {
        let new = self.start(program).await?;
        // Without a configuration it waits, as the old one does.
        let wanted = self.wanted.config.borrow().as_ref().map(|config| config.stamp);
        let mut known = new.watch();
        let serves = known.wait_for(|known| known.ended || known.applied >= wanted);
        match timeout(SERVES_WITHIN, serves).await {
            Ok(Ok(known)) if !known.ended => {}
            Ok(_) => return Err(KeepError::Talk(std::io::ErrorKind::UnexpectedEof.into())),
            Err(_) => {
                new.kill();
                return Err(KeepError::Silent);
            }
        }
        self.outdated = false;
        self.retry = None;
        if let Some(old) = self.current.replace(new) {
            old.drain();
            self.draining.push(old);
        }
        Ok(())
    }

    async fn stop(&mut self) {
        self.sockets = None;
        let all: Vec<Link> = self.current.take().into_iter().chain(self.draining.drain(..)).collect();
        let ends: Vec<_> = all.into_iter().map(|link| tokio::spawn(link.stop())).collect();
        for end in ends {
            // A panic there is none of this task's.
            let _ = end.await;
        }
        // Whoever was started and never known: by a daemon that was killed meanwhile.
        for met in start::find(&self.place.run).await {
            self.link(met).stop().await;
        }
        if let Err(error) = std::fs::remove_dir_all(folder(&self.place.run)) {
            tracing::debug!(%error, "the data plane's folder stays");
        }
    }
}

/// Removes the socket of a process that has ended.
fn forget(run: &Path, pid: u32) {
    // What stays is removed by whoever looks for processes next.
    let _ = std::fs::remove_file(folder(run).join(format!("{pid}.sock")));
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}
