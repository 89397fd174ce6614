//! Removing links and the flows of their addresses, beside the work that asked for it.
//!
//! The kernel waits some twenty milliseconds before a link is gone, and a walk through its table of flows takes ten for the
//! empty buckets alone; so one walk serves all the links that were given up meanwhile. Nothing is open until then: the
//! filter lets nothing of these addresses pass any more. Invariant: [`Leaving::wait_for`] returns only when neither the link
//! nor a flow of it is left, so an address that is given again inherits none.

use moat_model::LinkName;
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The links that are leaving.
#[derive(Debug, Default)]
pub struct Leaving {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Given up since the present walk began, or left over by one that failed.
    waiting: BTreeSet<LinkName>,
    /// What the present walk removes; it runs while this is not empty.
    walking: BTreeSet<LinkName>,
}

impl Leaving {
    /// Adds a link; whether no walk is under way, so that the caller must see to it that [`Leaving::work`] runs.
    pub fn add(&self, link: &LinkName) -> bool {
        let mut state = self.lock();
        state.waiting.insert(link.clone());
        state.walking.is_empty()
    }

    /// Whether a link was given up and may still be there.
    pub fn has(&self, link: &LinkName) -> bool {
        let state = self.lock();
        state.waiting.contains(link) || state.walking.contains(link)
    }

    /// Walks until nothing waits. What a failed walk left is tried by the next one that works or waits.
    pub fn work<E>(&self, walk: impl Fn(&BTreeSet<LinkName>) -> Result<(), E>) -> Result<(), E> {
        loop {
            let links = {
                let mut state = self.lock();
                if !state.walking.is_empty() || state.waiting.is_empty() {
                    return Ok(());
                }
                state.walking = std::mem::take(&mut state.waiting);
                state.walking.clone()
            };
            let result = walk(&links);
            let mut state = self.lock();
            let walked = std::mem::take(&mut state.walking);
            if result.is_err() {
                state.waiting.extend(walked);
            }
            self.changed.notify_all();
            drop(state);
            result?;
        }
    }

    /// Returns when this link, or every link where none is named, has left; walks by itself where nobody does.
    pub fn wait_for<E>(&self, link: Option<&LinkName>, walk: impl Fn(&BTreeSet<LinkName>) -> Result<(), E>) -> Result<(), E> {
        let among = |links: &BTreeSet<LinkName>| link.map_or(!links.is_empty(), |link| links.contains(link));
        loop {
            let mut state = self.lock();
            // A walk for others must end before the next one begins.
            while !state.walking.is_empty() && (among(&state.walking) || among(&state.waiting)) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !among(&state.waiting) {
                return Ok(());
            }
            drop(state);
            self.work(&walk)?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn link(n: u8) -> LinkName {
        LinkName::of(Ipv4Addr::new(10, 64, 0, n))
    }

    fn never(_: &BTreeSet<LinkName>) -> Result<(), ()> {
        unreachable!("there is nothing to walk for")
    }

    #[test]
    fn one_walk_serves_all_that_came_before_it() {
        let leaving = Leaving::default();
        leaving.wait_for(None, never).unwrap();
        assert!(leaving.add(&link(1)) && !leaving.has(&link(2)));
        assert!(leaving.add(&link(2)) && leaving.has(&link(2)));
        let walks = AtomicUsize::new(0);
        let walk = |links: &BTreeSet<LinkName>| {
            // One more comes while it walks.
            if walks.fetch_add(1, Ordering::SeqCst) == 0 {
                assert_eq!(*links, BTreeSet::from([link(1), link(2)]));
                assert!(leaving.has(&link(2)) && !leaving.add(&link(3)));
            } else {
                assert_eq!(*links, BTreeSet::from([link(3)]));
            }
            Ok::<_, ()>(())
        };
        leaving.work(walk).unwrap();
        assert_eq!(walks.load(Ordering::SeqCst), 2);
        leaving.wait_for(Some(&link(3)), never).unwrap();
        assert!(!leaving.has(&link(3)));
    }

    #[test]
    fn whoever_waits_sees_the_walk_done_even_after_one_that_failed() {
        let leaving = Leaving::default();
        assert!(leaving.add(&link(1)));
        leaving.work(|_| Err(())).unwrap_err();
        leaving.wait_for(Some(&link(2)), never).unwrap();
        let walked = AtomicUsize::new(0);
        let walk = |links: &BTreeSet<LinkName>| {
            walked.fetch_add(links.len(), Ordering::SeqCst);
            Ok::<_, ()>(())
        };
        leaving.wait_for(Some(&link(1)), walk).unwrap();
        assert_eq!(walked.load(Ordering::SeqCst), 1);
        // Two threads: the second waits for the first one's walk.
        assert!(leaving.add(&link(4)));
        let (entered, seen) = (std::sync::Barrier::new(2), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                leaving.work(|_| {
                    entered.wait();
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    seen.store(1, Ordering::SeqCst);
                    Ok::<_, ()>(())
                })
            });
            entered.wait();
            leaving.wait_for(None, never).unwrap();
            assert_eq!(seen.load(Ordering::SeqCst), 1);
        });
    }
}
