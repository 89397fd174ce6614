//! What is written down: the durable state, and the events of the log.
//!
//! Invariant: nothing here waits for the disk but the durable state; a state that can't be written is tried again until it is.

use super::Core;
use super::requests::{Reply, end};
use crate::protocol::{Event, Failure};
use crate::state::Durable;
use moat_model::state::InstancePhase;
use moat_model::{InstanceId, Purpose, Slug};
use moat_store::{EventFilter, EventKind, EventLog, NewEvent, Recorded, StoreError};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two tries to write the durable state.
const AGAIN: Duration = Duration::from_secs(1);
/// How long events that were recorded are waited for.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
/// Between two copies of the durable state.
const COPY_EVERY: Duration = Duration::from_hours(1);

/// What an instance runs for, in words.
pub(super) const fn purpose_word(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Serve => "serving",
        Purpose::Build => "build",
        Purpose::PreDeploy => "pre-deploy command",
        Purpose::Cron => "cron run",
        Purpose::Job => "job",
    }
}

/// What is to be written, and when.
pub(crate) struct Writing {
    pub(crate) log: EventLog,
    /// How many of the recorded events are written.
    pub(crate) written: watch::Receiver<u64>,
    /// When the durable state is tried again, and why it could not be written.
    unsaved: Option<(Instant, String)>,
    /// When a copy is made again.
    copy_due: Instant,
}

impl Writing {
    pub(super) fn new(log: EventLog, written: watch::Receiver<u64>) -> Self {
        Self { log, written, unsaved: None, copy_due: Instant::now() }
    }
}

impl Core {
    /// Writes what changed of the durable state. A failure is said once, and tried again until it is written.
    pub(crate) fn save(&mut self) {
        match self.state.save(&self.durable) {
            Ok(()) => {
                if self.writing.unsaved.take().is_some() {
                    self.notice(None, "the durable state is written again");
                }
            }
            Err(error) => {
                let why = format!("the durable state can't be written: {}", crate::chain(&error));
                let before = self.writing.unsaved.replace((Instant::now() + AGAIN, why.clone()));
                if before.is_none_or(|(_, before)| before != why) {
                    self.problem(None, why);
                }
                self.wake_in(AGAIN);
            }
        }
    }

    /// Makes a changed durable state the one that is worked with, once it is on disk; refused where it can't be written.
    pub(super) fn commit(&mut self, next: Durable) -> Result<(), StoreError> {
        self.state.save(&next)?;
        self.durable = next;
        self.writing.unsaved = None;
        Ok(())
    }

    /// Tries again to write what could not be written, and keeps a copy now and then.
    pub(super) fn go_on_writing(&mut self) {
        let now = Instant::now();
        if self.writing.unsaved.as_ref().is_some_and(|(due, _)| *due <= now) {
            self.save();
        }
        if self.writing.copy_due <= now && self.writing.unsaved.is_none() {
            self.writing.copy_due = now + COPY_EVERY;
            if let Err(error) = self.state.keep_copy() {
                self.problem(None, format!("the durable state can't be copied: {}", crate::chain(&error)));
            }
        }
    }

    /// Records an event.
    pub(crate) fn record(&self, kind: EventKind, service: Option<&Slug>, message: impl Into<String>, details: Value) {
        self.record_of(kind, service, None, message, details);
    }

    /// Records an event of an instance.
    pub(crate) fn record_of(
        &self,
        kind: EventKind,
        service: Option<&Slug>,
        instance: Option<&InstanceId>,
        message: impl Into<String>,
        details: Value,
    ) {
        self.writing.log.record(NewEvent {
            time: self.engine.now().as_millisecond(),
            kind,
            service: service.map(ToString::to_string),
            instance: instance.map(ToString::to_string),
            message: message.into(),
            details,
        });
    }

    /// Says and records that something could not be done.
    pub(crate) fn problem(&mut self, service: Option<&Slug>, text: impl Into<String>) {
        self.tell(EventKind::Problem, service, text.into());
    }

    /// Says and records something that people should know.
    pub(crate) fn notice(&mut self, service: Option<&Slug>, text: impl Into<String>) {
        self.tell(EventKind::Notice, service, text.into());
    }

    /// Says and records.
    pub(super) fn tell(&mut self, kind: EventKind, service: Option<&Slug>, text: String) {
        tracing::info!(service = service.map(Slug::as_str), "{text}");
        self.record(kind, service, text.clone(), json!({}));
        self.say(Event::Notice { service: service.cloned(), text });
    }

    /// Records how a program ended.
    pub(super) fn record_end(&self, id: &InstanceId, slug: &Slug, purpose: Purpose, phase: &InstancePhase, why: &str, asked: bool) {
        let how = match phase {
            InstancePhase::Exited(report) => {
                json!({ "code": report.code, "signal": report.signal, "oom": report.oom, "error": report.error })
            }
            InstancePhase::Lost => json!({ "lost": true }),
            InstancePhase::Preparing | InstancePhase::Running => json!({}),
        };
        let details = json!({ "purpose": purpose, "asked": asked, "exit": how });
        let message = if asked { format!("it was stopped and {why}") } else { format!("it {why}") };
        self.record_of(EventKind::InstanceExited, Some(slug), Some(id), message, details);
    }

    /// Answers with events of the log; with `follow`, goes on until the connection ends.
    pub(super) fn answer_events(&self, filter: EventFilter, follow: bool, reply: Reply) {
        let path = EventLog::path(&self.paths.state);
        let (mut written, recorded) = (self.writing.written.clone(), self.writing.log.taken());
        tokio::spawn(async move {
            // What happened before the question is in the answer; a log that can't be written is answered as it is.
            let _ = tokio::time::timeout(WRITTEN_WITHIN, written.wait_for(|count| *count >= recorded)).await;
            let mut filter = filter;
            loop {
                written.mark_unchanged();
                let (path, asked) = (path.clone(), filter.clone());
                let found = tokio::task::spawn_blocking(move || EventLog::read(&path, &asked)).await;
                let found: Vec<Recorded> = match found {
                    Ok(Ok(found)) => found,
                    Ok(Err(error)) => return end(&reply, Some(Failure { message: crate::chain(&error), hint: None, exit_code: 3 })),
                    Err(_) => return,
                };
                // What follows is never less than all: the last ones were asked for to begin with.
                filter = EventFilter { after: found.last().map(|event| event.id).or(filter.after).or(Some(0)), last: None, ..filter };
                for event in found {
                    if reply.send(Event::Recorded(event)).is_err() {
                        return;
                    }
                }
                if !follow {
                    return end(&reply, None);
                }
                tokio::select! {
                    changed = written.changed() => if changed.is_err() { return end(&reply, None) },
                    () = reply.closed() => return,
                }
            }
        });
    }
}
