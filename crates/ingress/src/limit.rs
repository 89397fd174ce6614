//! How many requests one client may send to one service in a time.
//!
//! Tokens come back evenly (GCRA, by the crate `governor`). A client is an IPv4 address, or the /64 of an IPv6 address.

use arc_swap::ArcSwap;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Clients that are remembered of one service; of more, all are forgotten.
const MOST_CLIENTS: usize = 200_000;

/// So many requests in a second or a minute, as many of which may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests.
    pub count: NonZeroU32,
    /// In so many seconds: 1 or 60.
    pub seconds: u32,
}

/// A text is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rate is a number above zero and `/s` or `/m`")]
pub struct NoRate;

impl FromStr for Rate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let (count, unit) = text.split_once('/').ok_or(NoRate)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            _ => return Err(NoRate),
        };
        Ok(Self { count: count.parse().map_err(|_| NoRate)?, seconds })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, if self.seconds == 60 { "m" } else { "s" })
    }
}

impl Rate {
    fn quota(self) -> Quota {
        if self.seconds == 60 { Quota::per_minute(self.count) } else { Quota::per_second(self.count) }
    }
}

/// The clients of one service.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    clients: ArcSwap<DefaultKeyedRateLimiter<IpAddr>>,
}

impl Limiter {
    /// Nobody has asked yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, clients: ArcSwap::from_pointee(RateLimiter::keyed(rate.quota())) }
    }

    /// What holds.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts a request; how long its client should wait before the next when it is one too many.
    pub(crate) fn over(&self, client: IpAddr) -> Option<Duration> {
        let refused = self.clients.load().check_key(&whole(client)).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }

    /// Forgets clients that may ask as if they never had.
    pub fn sweep(&self) {
        let clients = self.clients.load();
        clients.retain_recent();
        clients.shrink_to_fit();
        if clients.len() > MOST_CLIENTS {
            self.clients.store(Arc::new(RateLimiter::keyed(self.rate.quota())));
        }
    }
}

/// Two limiters are equal only when they are one.
impl PartialEq for Limiter {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for Limiter {}

/// Whoever has an address of IPv6 mostly has its /64.
pub(crate) fn whole(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for text in ["1/s", "100/s", "600/m"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "5", "0/s", "-1/s", "5/h", "x/s", "5/", "5 /s"] {
            assert_eq!(text.parse::<Rate>(), Err(NoRate), "{text}");
        }
    }

    #[test]
    fn each_client_has_its_own_count() {
        let limiter = Limiter::new("2/m".parse().unwrap());
        let ask = |client: &str| limiter.over(client.parse().unwrap());
        assert_eq!((ask("192.0.2.1"), ask("192.0.2.1")), (None, None));
        let wait = ask("192.0.2.1").unwrap();
        assert!(wait > Duration::from_secs(20) && wait <= Duration::from_secs(30), "{wait:?}");
        assert_eq!(ask("192.0.2.2"), None);
        assert!(ask("::ffff:192.0.2.1").is_some(), "it is the same address");
        assert_eq!((ask("2001:db8::1"), ask("2001:db8::2")), (None, None));
        assert!(ask("2001:db8::3").is_some() && ask("2001:db8:0:1::3").is_none());
        limiter.sweep();
        assert!(ask("192.0.2.1").is_some(), "it is remembered");
    }
}
