//! How many connections each client has. A client is an IPv4 address, or the /64 of an IPv6 address.

use crate::limit::whole;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those of all clients that are here.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection. `None` for one more than `most`.
    pub fn enter(self: &Arc<Self>, client: IpAddr, most: Option<usize>) -> Option<Place> {
        let client = whole(client);
        let mut all = self.lock();
        let count = all.entry(client).or_default();
        if most.is_some_and(|most| *count >= most) {
            if *count == 0 {
                all.remove(&client);
            }
            return None;
        }
        *count += 1;
        drop(all);
        Some(Place { clients: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.clients.lock();
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_places() {
        let clients = Arc::new(Clients::default());
        let enter = |client: &str, most| clients.enter(client.parse().unwrap(), most);
        let held = [enter("192.0.2.1", Some(2)), enter("::ffff:192.0.2.1", Some(2))];
        assert!(held.iter().all(Option::is_some));
        assert!(enter("192.0.2.1", Some(2)).is_none() && enter("192.0.2.1", None).is_some() && enter("192.0.2.2", Some(1)).is_some());
        let six = enter("2001:db8::1", Some(1));
        assert!(six.is_some() && enter("2001:db8::2", Some(1)).is_none() && enter("2001:db8:0:1::2", Some(1)).is_some());
        assert!(enter("192.0.2.3", Some(0)).is_none());
        drop(held);
        assert!(enter("192.0.2.1", Some(1)).is_some());
        drop(six);
        assert!(clients.lock().is_empty(), "who is gone is forgotten");
    }
}
