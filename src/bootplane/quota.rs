//! How often something is done on behalf of one machine: a client that asks without pause must neither push a boot's
//! real events off the timeline, nor fill the log, nor keep the DHCP thread busy. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// Machines remembered. Beyond it everything is forgotten, which lets some do more; what they do has its own bound.
const MACHINES_MAX: usize = 4096;

/// So many times per window, for each `K`.
#[derive(Debug)]
pub struct Quota<K> {
    per_window: u32,
    window: Duration,
    windows: Mutex<HashMap<K, (Timestamp, u32)>>,
}

impl<K: Eq + Hash> Quota<K> {
    pub fn new(per_window: u32, window: Duration) -> Quota<K> {
        Quota { per_window, window, windows: Mutex::default() }
    }

    /// Whether this is still within the quota; counts it.
    pub fn allows(&self, machine: K, now: Timestamp) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MACHINES_MAX && !windows.contains_key(&machine) {
            windows.clear();
        }
        let (since, count) = windows.entry(machine).or_insert((now, 0));
        if now.since(*since) >= self.window {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.per_window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_is_allowed_to_each_and_a_flood_is_not() {
        let quota = Quota::new(40, Duration::from_secs(60));
        let start = Timestamp::from_millis(1_000_000);
        let allowed = (0..1000).filter(|_| quota.allows("one", start)).count();
        assert_eq!(allowed, 40);
        assert!(quota.allows("other", start));
        assert!(quota.allows("one", start.plus(Duration::from_secs(60))));
    }

    #[test]
    fn more_machines_than_it_remembers_are_all_allowed() {
        let quota = Quota::new(1, Duration::from_secs(60));
        let start = Timestamp::from_millis(1_000_000);
        assert!((0..3 * MACHINES_MAX).all(|machine| quota.allows(machine, start)));
        assert!(quota.windows.lock().unwrap().len() <= MACHINES_MAX);
    }
}
