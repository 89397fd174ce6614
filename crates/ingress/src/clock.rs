//! How long a client may take for a request's head, without a timer for each request.
//!
//! The timer of the connection's own task is set anew only when it ends: the head that is waited for then may be a later one.

use hyper::rt::{Sleep, Timer};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Waited {
    /// When the head that is waited for is late.
    due: Option<Instant>,
    late: bool,
}

/// Tells hyper that a head is late.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock(Arc<Mutex<Waited>>);

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Waited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether a head is late, and says when to look again; every head may take `wait`, and no client is late that has not
    /// taken the answer before yet. The connection is to be run after it.
    pub fn look(&self, wait: Duration, answering: bool) -> tokio::time::Instant {
        let now = Instant::now();
        let mut waited = self.lock();
        if answering && let Some(due) = &mut waited.due {
            *due = now + wait;
        }
        waited.late = waited.due.is_some_and(|due| due <= now);
        waited.due.filter(|due| *due > now).unwrap_or(now + wait).into()
    }
}

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        *self.lock() = Waited { due: Some(deadline), late: false };
        Box::pin(Wait(self.clone()))
    }

    // The default makes another, and then drops the one before, which would take the new time back.
    fn reset(&self, _: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        *self.lock() = Waited { due: Some(deadline), late: false };
    }
}

/// One head. There is one at a time.
struct Wait(Clock);

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0.lock().late { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.lock().due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_wait_that_is_set_anew_ends() {
        let clock = Clock::default();
        let mut wait = clock.sleep(Duration::from_secs(9));
        clock.look(Duration::ZERO, false);
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        clock.reset(&mut wait, Instant::now());
        clock.look(Duration::ZERO, false);
        assert!(wait.as_mut().poll(&mut context).is_ready());
    }
}
