//! What a peer may still ask: so much at once, and so much a second in the long run. Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Peers that are remembered; those with a full allowance are forgotten first.
const PEERS_MAX: usize = 4096;

/// One allowance per peer, refilled with time.
#[derive(Debug)]
pub struct Allowances {
    burst: f64,
    per_second: f64,
    peers: Mutex<HashMap<Ipv4Addr, Allowance>>,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f64,
    as_of: Instant,
}

impl Allowances {
    pub fn new(burst: f64, per_second: f64) -> Allowances {
        Allowances { burst, per_second, peers: Mutex::default() }
    }

    pub fn take(&self, peer: Ipv4Addr, now: Instant) -> bool {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS_MAX && !peers.contains_key(&peer) {
            peers.retain(|_, allowance| self.at(*allowance, now) < self.burst);
            if peers.len() >= PEERS_MAX {
                return false;
            }
        }
        let allowance = peers.entry(peer).or_insert(Allowance { left: self.burst, as_of: now });
        let left = self.at(*allowance, now);
        let granted = left >= 1.0;
        *allowance = Allowance { left: if granted { left - 1.0 } else { left }, as_of: now };
        granted
    }

    fn at(&self, allowance: Allowance, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(allowance.as_of).as_secs_f64() * self.per_second;
        (allowance.left + gained).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_runs_out_and_comes_back() {
        let (start, peer) = (Instant::now(), Ipv4Addr::LOCALHOST);
        let allowances = Allowances::new(20.0, 5.0);
        assert_eq!((0..100).filter(|_| allowances.take(peer, start)).count(), 20);
        assert!(allowances.take(Ipv4Addr::BROADCAST, start), "another peer has its own");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| allowances.take(peer, later)).count(), 5);
    }

    #[test]
    fn peers_are_bounded_and_those_at_rest_make_room() {
        let (start, allowances) = (Instant::now(), Allowances::new(2.0, 1.0));
        let peer = |number: usize| Ipv4Addr::from(number as u32);
        assert!((0..PEERS_MAX).all(|number| allowances.take(peer(number), start)));
        assert!(!allowances.take(peer(PEERS_MAX), start));
        assert!(allowances.take(peer(PEERS_MAX), start + Duration::from_secs(2)));
    }
}
