//! Addresses told of a moment ago, so that a thousand fetches of one machine are one message to the DHCP thread.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Machines that fetch at the same time; two that share a place are told of more often, and nothing else.
const PLACES: usize = 4096;
/// Seconds; many times shorter than an offer is held.
const INTERVAL_SECS: u64 = 10;

/// Each place holds the address (high half) and the second (low half, from 1) it was last told of.
pub(super) struct Recently(Box<[AtomicU64]>);

impl Default for Recently {
    fn default() -> Self {
        Recently((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Recently {
    /// Whether the address is worth telling of at this second.
    pub(super) fn is_news(&self, address: Ipv4Addr, second: u64) -> bool {
        let number = u32::from(address);
        // Neighbours are spread by their last bits.
        let Some(place) = self.0.get(number as usize % PLACES) else { return true };
        let stamp = (second + 1) & u64::from(u32::MAX);
        let before = place.load(Ordering::Relaxed);
        let fresh = stamp.saturating_sub(before & u64::from(u32::MAX)) < INTERVAL_SECS;
        if before >> 32 == u64::from(number) && before != 0 && fresh {
            return false;
        }
        place.store(u64::from(number) << 32 | stamp, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_news_once_per_interval() {
        let recently = Recently::default();
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        assert!(recently.is_news(one, 0));
        assert!(recently.is_news(other, 0));
        assert!(!recently.is_news(one, 0));
        assert!(!recently.is_news(one, INTERVAL_SECS - 1));
        assert!(recently.is_news(one, INTERVAL_SECS));
        let same_place = Ipv4Addr::from(u32::from(one) + PLACES as u32);
        assert!(recently.is_news(same_place, INTERVAL_SECS));
        assert!(recently.is_news(one, INTERVAL_SECS));
    }
}
