//! One-off commands, and cron runs.
//!
//! ```text
//! due ──▶ runs ──▶ ended        due while one runs: once that has ended
//!           └── 12 h: stopped   asked for while one runs: that one is stopped
//! ```
//!
//! When each is due, and which is late, is in the durable state; how long one has run is known of its process: a daemon that ends changes
//! nothing of either.

use super::Core;
use super::requests::{Reply, end};
use crate::logs::Tail;
use crate::protocol::{Event, Failure};
use moat_model::{InstanceId, Purpose, ServiceKind, Slug};
use std::time::Duration;
use tokio::time::Instant;

/// The longest that a cron run may take.
const CRON_LIMIT: Duration = Duration::from_hours(12);
/// Between two looks at what watched runs write.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A run that somebody waits for.
pub struct Watched {
    reply: Reply,
    tail: Tail,
}

impl Core {
    /// Runs a command of a service in an instance of its own, or a cron job now.
    pub(super) async fn run_now(&mut self, slug: Slug, command: Option<String>, detach: bool, reply: Reply) {
        let refuse = |message: String, hint: String| end(&reply, Some(Failure::refused(message, Some(hint))));
        let Some(kind) = self.desired.services.get(&slug).map(|service| service.kind) else { return end(&reply, None) };
        let purpose = match (kind, &command) {
            (ServiceKind::Cron, None) => Purpose::Cron,
            (ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::Cron, Some(_)) => Purpose::Job,
            (ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker, None) => {
                return refuse(format!("what should run in `{slug}`?"), format!("write `moat run {slug} -- COMMAND`"));
            }
            (ServiceKind::KeyValue | ServiceKind::Postgres | ServiceKind::Static, _) => {
                return refuse(
                    format!("`{slug}` is a {}: it has no program of yours", kind.phrase()),
                    "run the command in a service that uses it".to_owned(),
                );
            }
        };
        if self.is_suspended(&slug) {
            return refuse(format!("`{slug}` is suspended"), format!("`moat resume {slug}` first"));
        }
        let Some(deployed) = self.deployed(&slug).filter(|deployed| deployed.good || kind == ServiceKind::Cron).cloned() else {
            return refuse(format!("nothing of `{slug}` is deployed"), "`moat up` deploys it".to_owned());
        };
        if purpose == Purpose::Cron {
            for id in self.cron_runs(&slug) {
                self.notice(Some(&slug), format!("run {id} is stopped: another one was asked for"));
                self.stop_instance(&id, deployed.service.max_shutdown_delay_seconds);
            }
        }
        match self.start_sandbox(&deployed.service, purpose, deployed.release, command).await {
            Err(why) => end(&reply, Some(Failure::refused(why, None))),
            Ok(id) => {
                let _ = reply.send(Event::Run { instance: id.to_string(), code: None, why: None });
                if detach {
                    return end(&reply, None);
                }
                let tail = Tail::new(&self.paths.state.join("logs"), &slug, &id);
                self.runs.insert(id, Watched { reply, tail });
                self.wake_in(LOOK_EVERY);
            }
        }
    }

    fn cron_runs(&self, slug: &Slug) -> Vec<InstanceId> {
        let runs = |live: &super::Live| live.slug == *slug && live.purpose == Purpose::Cron && !live.stopping;
        self.live.iter().filter(|(_, live)| runs(live)).map(|(id, _)| id.clone()).collect()
    }

    /// Hands on what watched runs have written. Who hung up has their run stopped.
    pub(super) fn tell_runs(&mut self) {
        let mut gone = Vec::new();
        for (id, Watched { reply, tail }) in &mut self.runs {
            for line in tail.news() {
                let _ = reply.send(Event::Log(line));
            }
            if reply.is_closed() {
                gone.push(id.clone());
            }
        }
        for id in gone {
            self.runs.remove(&id);
            let service = self.live.get(&id).and_then(|live| self.desired.services.get(&live.slug));
            let grace = service.map_or(30, |service| service.max_shutdown_delay_seconds);
            self.stop_instance(&id, grace);
        }
        if !self.runs.is_empty() && self.runs_due.is_none_or(|due| due <= Instant::now()) {
            self.runs_due = Some(Instant::now() + LOOK_EVERY);
            self.wake_in(LOOK_EVERY + Duration::from_millis(5));
        }
    }

    /// A run has ended: whoever waits for it is told.
    pub(super) fn run_ended(&mut self, id: &InstanceId, code: Option<i32>, why: &str) {
        let Some(Watched { reply, mut tail }) = self.runs.remove(id) else { return };
        for line in tail.news() {
            let _ = reply.send(Event::Log(line));
        }
        let _ = reply.send(Event::Run { instance: id.to_string(), code, why: Some(why.to_owned()) });
        end(&reply, None);
    }

    /// A cron job's time has come.
    pub(super) async fn run_cron(&mut self, slug: &Slug) {
        if !self.cron_runs(slug).is_empty() {
            if !std::mem::replace(&mut self.durable.cron.entry(slug.clone()).or_default().late, true) {
                self.notice(Some(slug), "a run is due, but the one before still runs: it follows when that has ended");
            }
            return;
        }
        let Some(deployed) = self.deployed(slug).cloned() else { return };
        if let Err(why) = self.start_sandbox(&deployed.service, Purpose::Cron, deployed.release, None).await {
            self.notice(Some(slug), why);
        }
    }

    /// Starts cron runs that had to wait, and stops those that take too long.
    pub(super) async fn go_on_with_cron(&mut self) {
        let over = |live: &super::Live| live.purpose == Purpose::Cron && !live.stopping && live.since.elapsed() > CRON_LIMIT;
        for (id, slug) in
            self.live.iter().filter(|(_, live)| over(live)).map(|(id, live)| (id.clone(), live.slug.clone())).collect::<Vec<_>>()
        {
            self.notice(Some(&slug), "the run takes longer than 12 hours and is stopped");
            self.stop_instance(&id, 30);
        }
        let runs = |slug: &Slug| self.live.values().any(|live| live.slug == *slug && live.purpose == Purpose::Cron);
        let late = self.durable.cron.iter_mut().filter(|(slug, cron)| cron.late && !runs(slug));
        let late: Vec<Slug> = late
            .map(|(slug, cron)| {
                cron.late = false;
                slug.clone()
            })
            .collect();
        for slug in late {
            self.run_cron(&slug).await;
        }
    }
}
