//! One process, as the daemon sees it: configured with each change, told to drain or to stop, seen to end.

use super::start::{Handle, Met};
use super::{News, Tell, Told};
use crate::channel::Channel;
use crate::message::{Measures, Order, PROTOCOL, Report};
use crate::{CertificateSet, Config, Stamp};
use moat_ingress::LogFormat;
use serde::de::IgnoredAny;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long a process that was told to stop may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(3);

/// What is known of a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The configuration it serves by.
    pub applied: Option<Stamp>,
    /// It has a newer one than was offered, this one.
    pub refused: Option<Stamp>,
    /// Folders of sites that it has open.
    pub holds: BTreeSet<PathBuf>,
    /// It is gone.
    pub ended: bool,
}

impl Known {
    fn note(&mut self, report: Report) {
        match report {
            Report::Applied { stamp, holds } => {
                self.applied = Some(stamp);
                self.holds = holds;
            }
            Report::Refused { have } => self.refused = Some(have),
            Report::Holds { holds } => self.holds = holds,
            // Told to who asked, and to who keeps the processes.
            Report::Measured(_) | Report::Wanted { .. } => {}
        }
    }
}

/// What a process is to serve by, as it changes; what is not known yet leaves it as it is.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub certificates: watch::Receiver<Option<Arc<CertificateSet>>>,
    pub log: watch::Receiver<Option<Arc<LogTo>>>,
    pub config: watch::Receiver<Option<Arc<Config>>>,
}

/// How the access log is written, and to which files: the one that is written, and the one for what was before.
pub(super) type LogTo = Option<(LogFormat, [OwnedFd; 2])>;

/// What a process is asked for beside.
#[derive(Debug)]
enum Ask {
    Do(Order),
    Measure(oneshot::Sender<Measures>),
}

/// One process.
#[derive(Debug)]
pub(super) struct Link {
    pub pid: u32,
    handle: Handle,
    orders: mpsc::UnboundedSender<Ask>,
    known: watch::Receiver<Known>,
}

impl Link {
    /// Goes on with a process: it gets each configuration from now on, if it speaks this version of the protocol. `pulse` is
    /// touched with whatever becomes known of it, and what it applied is told at once while it is the one that accepts.
    pub fn new(met: Met, wanted: Wanted, pulse: watch::Sender<()>, telling: watch::Sender<Told>, told_of: Tell) -> Self {
        let Met { hello, channel, handle, .. } = met;
        let known = watch::Sender::new(Known { applied: hello.stamp, holds: hello.holds, ..Known::default() });
        let (orders, given) = mpsc::unbounded_channel();
        let link = Self { pid: hello.pid, handle, orders, known: known.subscribe() };
        tokio::spawn(async move {
            let learn = |report: Report| {
                if let Report::Wanted { services } = &report {
                    told_of(News::Wanted(services.clone()));
                    return;
                }
                known.send_modify(|known| known.note(report));
                let applied = known.borrow().applied;
                telling.send_if_modified(|told| {
                    let news = told.pid == Some(hello.pid) && told.applied != applied;
                    if news {
                        told.applied = applied;
                    }
                    news
                });
                pulse.send_replace(());
            };
            let result =
                if hello.protocol == PROTOCOL { converse(channel, wanted, given, learn).await } else { dismiss(channel, given).await };
            if let Err(error) = result {
                tracing::debug!(pid = hello.pid, %error, "a conversation with the data plane ended");
            }
            known.send_modify(|known| known.ended = true);
            pulse.send_replace(());
        });
        link
    }

    /// What is known of it now.
    pub fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// What is known of it, as it changes.
    pub fn watch(&self) -> watch::Receiver<Known> {
        self.known.clone()
    }

    /// Has it tell what it counted; one that can't drops the channel.
    pub fn measure(&self, reply: oneshot::Sender<Measures>) {
        let _ = self.orders.send(Ask::Measure(reply));
    }

    /// Has it end with the connections that it has.
    pub fn drain(&self) {
        // One that is gone has drained.
        let _ = self.orders.send(Ask::Do(Order::Drain));
    }

    /// Ends it, by force if need be, and waits until it is gone.
    pub async fn stop(mut self) {
        let _ = self.orders.send(Ask::Do(Order::Stop));
        let gone = async { self.known.wait_for(|known| known.ended).await.map(|_| ()) };
        if timeout(STOPPED_WITHIN, gone).await.is_err() {
            self.handle.kill();
            let _ = timeout(STOPPED_WITHIN, self.known.wait_for(|known| known.ended)).await;
        }
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.handle.kill();
    }
}

async fn converse(
    mut channel: Channel,
    Wanted { mut certificates, mut log, mut config }: Wanted,
    mut orders: mpsc::UnboundedReceiver<Ask>,
    learn: impl Fn(Report),
) -> io::Result<()> {
    certificates.mark_changed();
    log.mark_changed();
    config.mark_changed();
    let mut measuring = VecDeque::new();
    loop {
        tokio::select! {
            // A host that is served has its certificate before.
            biased;
            changed = certificates.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = certificates.borrow_and_update().clone();
                if let Some(now) = now {
                    channel.send(&Order::Certificates(now), &[]).await?;
                }
            }
            changed = log.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = log.borrow_and_update().clone();
                if let Some(now) = now {
                    let format = now.as_ref().as_ref().map(|(format, _)| *format);
                    let files: Vec<_> = now.iter().flat_map(|(_, files)| files).map(OwnedFd::as_fd).collect();
                    channel.send(&Order::Log { format }, &files).await?;
                }
            }
            changed = config.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = config.borrow_and_update().clone();
                if let Some(now) = now {
                    channel.send(&Order::Configure(Box::new(Config::clone(&now))), &[]).await?;
                }
            }
            order = orders.recv() => match order {
                Some(Ask::Do(order)) => channel.send(&order, &[]).await?,
                Some(Ask::Measure(reply)) => {
                    channel.send(&Order::Measure, &[]).await?;
                    measuring.push_back(reply);
                }
                // Whoever kept it leaves it to the next one.
                None => return Ok(()),
            },
            report = channel.receive::<Report>() => match report? {
                Some((Report::Measured(measures), _)) => {
                    if let Some(reply) = measuring.pop_front() {
                        // Who asked may have given up.
                        let _: Result<(), Measures> = reply.send(*measures);
                    }
                }
                Some((report, _)) => learn(report),
                None => return Ok(()),
            },
        }
    }
}

/// The conversation with a process of another version: all it is told is to end.
async fn dismiss(mut channel: Channel, mut orders: mpsc::UnboundedReceiver<Ask>) -> io::Result<()> {
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Ask::Do(order @ (Order::Drain | Order::Stop))) => channel.send(&order, &[]).await?,
                Some(Ask::Do(_) | Ask::Measure(_)) => {}
                None => return Ok(()),
            },
            report = channel.receive::<IgnoredAny>() => if report?.is_none() {
                return Ok(());
            },
        }
    }
}
