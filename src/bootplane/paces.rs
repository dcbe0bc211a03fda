//! The pace of each machine that has one: shared by whatever it fetches at the same time, and kept between two
//! requests, so that many small ones are no faster than one large one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::boot::quirks::RateMax;
use crate::net::MacAddr;
use crate::net::pace::Pace;

/// Machines with a pace that fetched something lately. As many as there are nodes with the quirk.
#[derive(Debug, Default)]
pub struct Paces {
    known: Mutex<HashMap<MacAddr, Arc<Pace>>>,
}

impl Paces {
    /// What this machine's next fetch shares with its others; a rate that was changed holds from the next fetch on.
    pub fn of(&self, mac: MacAddr, rate: RateMax, now: Instant) -> Arc<Pace> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = known.get(&mac).filter(|pace| pace.mbps() == rate.get()) {
            return Arc::clone(pace);
        }
        known.retain(|_, pace| Arc::strong_count(pace) > 1 || !pace.is_idle(now));
        let pace = Arc::new(Pace::new(rate.get()));
        known.insert(mac, Arc::clone(&pace));
        pace
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_machine_has_one_pace_until_its_rate_is_changed_and_none_that_is_gone_is_kept() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let rate = |mbps: u32| RateMax::try_from(mbps).unwrap();
        let (paces, now) = (Paces::default(), Instant::now());
        let first = paces.of(mac(1), rate(10), now);
        first.sent(1000, now);
        assert!(Arc::ptr_eq(&first, &paces.of(mac(1), rate(10), now)));
        assert!(!Arc::ptr_eq(&first, &paces.of(mac(2), rate(10), now)));
        let changed = paces.of(mac(1), rate(20), now);
        assert_eq!((first.mbps(), changed.mbps()), (10, 20));
        drop(changed);
        let later = now + Duration::from_secs(60);
        paces.of(mac(3), rate(10), later).sent(1, later);
        paces.of(mac(4), rate(10), later);
        assert_eq!(paces.known.lock().unwrap().len(), 2, "those that are idle made room");
    }
}
