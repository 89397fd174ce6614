//! Where the answer to a request goes.
//!
//! ```text
//! loop ──send──────────────┐ never waits: an answer is small
//!                          ├─▶ queue ─▶ socket
//! task ──send_in_turn──────┘ waits while so many of these are in the queue: as slow as whoever reads
//! ```

use crate::protocol::Event;
use std::sync::Arc;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Events that are sent in turn and not yet written.
const AHEAD: usize = 256;

/// Who asked has hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("who asked has hung up")]
pub struct HungUp;

type Item = (Event, Option<OwnedSemaphorePermit>);

/// The end where events go in.
#[derive(Debug, Clone)]
pub struct Reply {
    events: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
}

/// The end where they come out.
#[derive(Debug)]
pub struct Answers(mpsc::UnboundedReceiver<Item>);

/// A new pair.
pub fn channel() -> (Reply, Answers) {
    let (events, answers) = mpsc::unbounded_channel();
    (Reply { events, room: Arc::new(Semaphore::new(AHEAD)) }, Answers(answers))
}

impl Reply {
    /// Sends an event, at once.
    pub fn send(&self, event: Event) -> Result<(), HungUp> {
        self.events.send((event, None)).map_err(|_| HungUp)
    }

    /// Sends an event once those before it were taken, but for a few. What may be more than anybody reads goes this way.
    pub async fn send_in_turn(&self, event: Event) -> Result<(), HungUp> {
        tokio::select! {
            // The semaphore is never closed.
            permit = Arc::clone(&self.room).acquire_owned() => self.events.send((event, permit.ok())).map_err(|_| HungUp),
            () = self.events.closed() => Err(HungUp),
        }
    }

    /// Whether nobody hears any more.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Comes back when nobody hears any more.
    pub async fn closed(&self) {
        self.events.closed().await;
    }
}

impl Answers {
    /// The next event; none when there will be no more. Nothing is lost where this is given up.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await.map(|(event, _)| event)
    }

    /// The next event, if it is here.
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        self.0.try_recv().map(|(event, _)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(n: usize) -> Event {
        Event::AccessLines { text: n.to_string() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_in_turn_waits_for_who_reads() {
        let (reply, mut answers) = channel();
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (sender, count) = (reply.clone(), sent.clone());
        let task = tokio::spawn(async move {
            loop {
                let n = count.load(std::sync::atomic::Ordering::SeqCst);
                if sender.send_in_turn(event(n)).await.is_err() {
                    return;
                }
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        let sent = || sent.load(std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sent(), AHEAD);
        // The loop's own words never wait.
        for n in 0..3 * AHEAD {
            reply.send(event(n)).unwrap();
        }
        for n in 0..10 {
            assert!(matches!(answers.recv().await, Some(Event::AccessLines { text }) if text == n.to_string()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sent(), AHEAD + 10);
        // Whoever waits is let go when nobody reads any more.
        drop(answers);
        task.await.unwrap();
        assert_eq!(reply.send(event(0)), Err(HungUp));
    }
}
