//! Forgetting the flows of addresses whose link is gone, beside the work that removed it.
//!
//! A walk through the kernel's table of flows takes milliseconds for its empty buckets alone and grows with every known
//! flow, so one walk serves all the links that were removed meanwhile. Nothing is open until then: the link is gone, and
//! the filter lets nothing of these addresses pass. Invariant: [`Forgetting::wait_for`] returns only when no flow of the
//! address is known, so an address that is given again inherits none.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is yet to be forgotten.
#[derive(Debug, Default)]
pub struct Forgetting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Asked for since the present walk began.
    waiting: BTreeSet<IpAddr>,
    /// What the present walk forgets; it runs while this is not empty.
    walking: BTreeSet<IpAddr>,
}

impl Forgetting {
    /// Adds addresses; whether no walk is under way, so that the caller must see to it that [`Forgetting::work`] runs.
    pub fn ask(&self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let mut state = self.lock();
        state.waiting.extend(addresses);
        state.walking.is_empty() && !state.waiting.is_empty()
    }

    /// Walks until nothing waits. A walk that fails is tried again by the next one that asks or waits.
    pub fn work(&self, walk: impl Fn(&BTreeSet<IpAddr>) -> io::Result<()>) -> io::Result<()> {
        loop {
            let addresses = {
                let mut state = self.lock();
                if !state.walking.is_empty() || state.waiting.is_empty() {
                    return Ok(());
                }
                state.walking = std::mem::take(&mut state.waiting);
                state.walking.clone()
            };
            let result = walk(&addresses);
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

    /// Returns when no flow of these addresses is left; walks by itself where nobody does.
    pub fn wait_for(&self, addresses: &[IpAddr], walk: impl Fn(&BTreeSet<IpAddr>) -> io::Result<()>) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            while addresses.iter().any(|address| state.walking.contains(address)) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !addresses.iter().any(|address| state.waiting.contains(address)) {
                return Ok(());
            }
            // A walk for others must end before the next one begins.
            while !state.walking.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 64, 0, n).into()
    }

    #[test]
    fn one_walk_serves_all_who_asked_before_it() {
        let forgetting = Forgetting::default();
        assert!(!forgetting.ask([]));
        assert!(forgetting.ask([address(1)]));
        assert!(forgetting.ask([address(2)]));
        let walks = AtomicUsize::new(0);
        forgetting
            .work(|addresses| {
                // One more comes while it walks.
                if walks.fetch_add(1, Ordering::SeqCst) == 0 {
                    assert_eq!(*addresses, BTreeSet::from([address(1), address(2)]));
                    assert!(!forgetting.ask([address(3)]));
                } else {
                    assert_eq!(*addresses, BTreeSet::from([address(3)]));
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(walks.load(Ordering::SeqCst), 2);
        forgetting.wait_for(&[address(1), address(3)], |_| unreachable!("nothing is left")).unwrap();
    }

    #[test]
    fn whoever_waits_sees_the_walk_done_even_after_one_that_failed() {
        let forgetting = Forgetting::default();
        assert!(forgetting.ask([address(1)]));
        forgetting.work(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
        forgetting.wait_for(&[address(2)], |_| unreachable!("it never had a link")).unwrap();
        let walked = AtomicUsize::new(0);
        forgetting
            .wait_for(&[address(1)], |addresses| {
                walked.fetch_add(addresses.len(), Ordering::SeqCst);
                Ok(())
            })
            .unwrap();
        assert_eq!(walked.load(Ordering::SeqCst), 1);
        // Two threads: the second waits for the first one's walk.
        assert!(forgetting.ask([address(4)]));
        let (entered, seen) = (std::sync::Barrier::new(2), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                forgetting.work(|_| {
                    entered.wait();
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    seen.store(1, Ordering::SeqCst);
                    Ok(())
                })
            });
            entered.wait();
            forgetting.wait_for(&[address(4)], |_| unreachable!("the other walks")).unwrap();
            assert_eq!(seen.load(Ordering::SeqCst), 1);
        });
    }
}
