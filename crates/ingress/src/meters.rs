//! Whose numbers are whose: the [`Counters`] of each service and instance, over every change of the routes.

use crate::counters::{Counted, Counters};
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The numbers of an instance that is gone are kept so long, for whoever asks every few minutes.
const KEEP: Duration = Duration::from_mins(5);

/// A service and one of its instances; without an instance, what the ingress answers itself; without a service, for hosts that
/// are nobody's.
type Key = (Option<Slug>, Option<Arc<str>>);

/// The numbers of one instance of a service, as they are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// The service; none for hosts that are nobody's.
    pub service: Option<Slug>,
    /// The instance; none for what the ingress answers itself: pages, redirects, files of sites.
    pub instance: Option<Arc<str>>,
    /// The numbers.
    pub counted: Counted,
}

/// All numbers.
#[derive(Debug)]
pub struct Meters {
    all: Mutex<BTreeMap<Key, Entry>>,
    nobody: Arc<Counters>,
    http: AtomicU64,
    https: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    counters: Arc<Counters>,
    /// Since when no route leads there.
    gone: Option<Instant>,
}

impl Default for Meters {
    fn default() -> Self {
        let nobody = Arc::new(Counters::default());
        let entry = Entry { counters: Arc::clone(&nobody), gone: None };
        Self { all: Mutex::new(BTreeMap::from([((None, None), entry)])), nobody, http: AtomicU64::new(0), https: AtomicU64::new(0) }
    }
}

impl Meters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of a service and of its instances, those of before where there are some.
    pub fn of(&self, service: &Slug, instances: impl IntoIterator<Item = (SocketAddr, Arc<str>)>) -> Meter {
        let mut all = self.lock();
        let mut counters = |instance: Option<Arc<str>>| {
            let entry = all.entry((Some(service.clone()), instance)).or_insert_with(|| Entry { counters: Arc::default(), gone: None });
            entry.gone = None;
            Arc::clone(&entry.counters)
        };
        let own = counters(None);
        let instances = instances.into_iter().map(|(address, id)| (address, Known { counters: counters(Some(Arc::clone(&id))), id }));
        Meter(Arc::new(Inner { own, instances: instances.collect() }))
    }

    /// The numbers for hosts that are nobody's.
    pub(crate) fn nobody(&self) -> &Arc<Counters> {
        &self.nobody
    }

    /// Forgets the numbers of what is gone for a while.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, entry| {
            // A route, a request or a tunnel has it too.
            if Arc::strong_count(&entry.counters) > 1 {
                entry.gone = None;
            }
            Arc::strong_count(&entry.counters) > 1 || now.saturating_duration_since(*entry.gone.get_or_insert(now)) < KEEP
        });
    }

    /// All numbers.
    pub fn read(&self) -> Vec<Series> {
        let all = self.lock();
        let series = all.iter().map(|((service, instance), entry)| Series {
            service: service.clone(),
            instance: instance.clone(),
            counted: entry.counters.read(),
        });
        series.collect()
    }

    /// Connections of clients that are open now, without and with TLS.
    pub fn connections(&self) -> (u64, u64) {
        (self.http.load(Ordering::Relaxed), self.https.load(Ordering::Relaxed))
    }

    /// Counts a connection of a client until what is given is dropped.
    pub(crate) fn connected(self: &Arc<Self>, secure: bool) -> Connected {
        let connected = Connected { meters: Arc::clone(self), secure };
        connected.number().fetch_add(1, Ordering::Relaxed);
        connected
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connected {
    meters: Arc<Meters>,
    secure: bool,
}

impl Connected {
    fn number(&self) -> &AtomicU64 {
        if self.secure { &self.meters.https } else { &self.meters.http }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.number().fetch_sub(1, Ordering::Relaxed);
    }
}

/// The numbers of one service. What is counted is no part of where a route leads: any two are equal.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    own: Arc<Counters>,
    /// A few; in no order.
    instances: Vec<(SocketAddr, Known)>,
}

/// An instance and its numbers.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub counters: Arc<Counters>,
    pub id: Arc<str>,
}

impl PartialEq for Meter {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}
impl Eq for Meter {}

impl Meter {
    /// Of what is answered without an instance.
    pub(crate) fn own(&self) -> &Arc<Counters> {
        &self.0.own
    }

    /// Of the instance at an address, where one is known there.
    pub(crate) fn instance(&self, address: SocketAddr) -> Option<&Known> {
        self.0.instances.iter().find(|(at, _)| *at == address).map(|(_, known)| known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outlive_changes_of_the_routes() {
        let meters = Arc::new(Meters::default());
        let shop = Slug::new("shop").unwrap();
        let (a, b): (SocketAddr, SocketAddr) = ("10.64.0.1:1".parse().unwrap(), "10.64.0.2:1".parse().unwrap());
        let first = meters.of(&shop, [(a, "shop-a".into())]);
        first.instance(a).unwrap().counters.sent(7);
        assert!(first.instance(b).is_none());
        let second = meters.of(&shop, [(b, "shop-b".into()), (a, "shop-a".into())]);
        second.instance(a).unwrap().counters.sent(1);
        drop((first, second));
        let found: Vec<_> = meters.read().into_iter().map(|series| (series.service, series.instance, series.counted.sent)).collect();
        let of = |instance: Option<&str>, sent| (Some(shop.clone()), instance.map(Into::into), sent);
        assert_eq!(found, [(None, None, 0), of(None, 0), of(Some("shop-a"), 8), of(Some("shop-b"), 0)]);

        let (plain, secure) = (meters.connected(false), meters.connected(true));
        assert_eq!(meters.connections(), (1, 1));
        drop(plain);
        assert_eq!(meters.connections(), (0, 1));
        drop(secure);
    }
}
