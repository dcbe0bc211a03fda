//! How often somebody may fail to get in before it is not even looked at.
//!
//! Secrets have 160 random bits, so nobody guesses one; the limit keeps a guesser from costing time and from filling
//! the log. Failures count per address, and where a token is named that exists, per address and token: a stranger on
//! the same host, with made-up tokens, does not lock out those who have real ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tokens::TokenId;
use crate::clock::Timestamp;

/// More than a person mistypes; a scraper with an expired token stays below at one try in 15 s.
pub const FAILURES_MAX: u32 = 10;
pub const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and tokens remembered. Beyond it all is forgotten: guessers gain some tries, of 2^160.
const KEYS_MAX: usize = 4096;

/// Who fails: an address alone, or with the token it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trier {
    network: IpAddr,
    token: Option<TokenId>,
}

impl Trier {
    pub fn new(address: IpAddr, token: Option<TokenId>) -> Trier {
        let network = match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            // One host has a whole /64 to come from.
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        };
        Trier { network, token }
    }
}

#[derive(Debug, Default)]
pub struct Attempts {
    failures: Mutex<HashMap<Trier, (Timestamp, u32)>>,
}

impl Attempts {
    pub fn may_try(&self, trier: Trier, now: Timestamp) -> bool {
        let failures = self.lock();
        failures.get(&trier).is_none_or(|(since, count)| now.since(*since) >= WINDOW || *count < FAILURES_MAX)
    }

    pub fn failed(&self, trier: Trier, now: Timestamp) {
        let mut failures = self.lock();
        if failures.len() >= KEYS_MAX && !failures.contains_key(&trier) {
            failures.clear();
        }
        let (since, count) = failures.entry(trier).or_insert((now, 0));
        if now.since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Trier, (Timestamp, u32)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn from(address: &str, token: Option<u8>) -> Trier {
        Trier::new(address.parse().unwrap(), token.map(|byte| TokenId([byte; 4])))
    }

    #[test]
    fn the_eleventh_failure_within_a_minute_is_not_looked_at() {
        let attempts = Attempts::default();
        for _ in 0..FAILURES_MAX {
            assert!(attempts.may_try(from("10.0.0.1", None), NOW));
            attempts.failed(from("10.0.0.1", None), NOW);
        }
        assert!(!attempts.may_try(from("10.0.0.1", None), NOW));
        assert!(!attempts.may_try(from("::ffff:10.0.0.1", None), NOW));
        assert!(attempts.may_try(from("10.0.0.2", None), NOW));
        assert!(attempts.may_try(from("10.0.0.1", Some(1)), NOW), "a real token's owner is not locked out");
        assert!(attempts.may_try(from("10.0.0.1", None), NOW.plus(WINDOW)));
    }

    #[test]
    fn one_network_of_version_6_is_one_trier() {
        assert_eq!(from("2001:db8:0:1::1", None), from("2001:db8:0:1:ffff::2", None));
        assert_ne!(from("2001:db8:0:1::1", None), from("2001:db8:0:2::1", None));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let attempts = Attempts::default();
        for number in 0..2 * KEYS_MAX as u32 {
            attempts.failed(Trier::new(IpAddr::V4(number.into()), None), NOW);
        }
        assert!(attempts.lock().len() <= KEYS_MAX);
    }
}
