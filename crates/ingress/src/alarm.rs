//! A timer for what mostly comes in time: it is set anew only when it rings, not for each thing that is waited for.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep, sleep_until};

/// Waits for one thing after another.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Resolves when it is as late as `due` says, which may change meanwhile, but to later times only.
    pub fn poll(&mut self, context: &mut Context<'_>, due: impl Fn() -> Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due())));
        loop {
            ready!(sleep.as_mut().poll(context));
            // It may have been set for something earlier, which came.
            let due = due();
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_the_last_thing_is_late() {
        let (mut alarm, began) = (Alarm::default(), Instant::now());
        let first = began + Duration::from_secs(5);
        assert!(poll_fn(|context| Poll::Ready(alarm.poll(context, || first))).await.is_pending());
        // The first came; the next may take longer.
        let next = began + Duration::from_secs(9);
        poll_fn(|context| alarm.poll(context, || next)).await;
        assert_eq!(Instant::now(), next);
    }
}
