//! Wakers for parts of a task: they say which part is to be run, and wake the task only while it sleeps.
//!
//! Parts of one task have much to say to each other. By the task's own waker each word would have the whole task run once more.
//! Invariant: a bell that rang is looked at before its task sleeps.

use atomic_waker::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Wake, Waker};

/// Nothing to do.
const QUIET: u8 = 0;
/// The task is about it.
const BUSY: u8 = 1;
/// There is something to do.
const RUNG: u8 = 2;

/// The waker of one part. It has rung from the beginning.
#[derive(Debug)]
pub(crate) struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == QUIET {
            self.task.wake();
        }
    }
}

impl Bell {
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(RUNG), task: AtomicWaker::new() }
    }

    /// The task that is woken.
    pub fn wakes(&self, task: &Waker) {
        self.task.register(task);
    }

    /// No task is woken.
    pub fn wakes_nobody(&self) {
        drop(self.task.take());
    }

    /// Whether there is something to do.
    pub fn has_rung(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNG
    }

    /// Begins to be about it; whether there is something to do.
    pub fn enter(&self) -> bool {
        self.state.swap(BUSY, Ordering::AcqRel) == RUNG
    }

    /// Whether the task may sleep: nothing rang since [`Self::enter`].
    pub fn leave(&self) -> bool {
        self.state.compare_exchange(BUSY, QUIET, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_wakes_who_sleeps_and_tells_who_does_not() {
        let (bell, task) = (Arc::new(Bell::new()), Arc::new(Count(AtomicUsize::new(0))));
        let (waker, woken) = (Waker::from(Arc::clone(&bell)), || task.0.load(Ordering::SeqCst));
        bell.wakes(&Arc::clone(&task).into());
        assert!(bell.enter(), "it has rung from the beginning");
        waker.wake_by_ref();
        assert_eq!(woken(), 0, "the task is awake");
        assert!(!bell.leave() && bell.has_rung(), "and must not sleep");
        assert!(bell.enter() && bell.leave() && !bell.has_rung());
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1, "the second has nothing to add");
        assert!(bell.enter() && bell.leave());
        bell.wakes_nobody();
        waker.wake_by_ref();
        assert_eq!((woken(), bell.has_rung()), (1, true));
    }
}
