//! How many misses of one machine go on its timeline: a search for configuration files is worth seeing, a client
//! that asks for nothing else must not push a boot's real events out of it. Pure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::net::MacAddr;

/// GRUB's whole search has 12 names, shim's 4, PXELINUX' 11.
const MISSES_PER_WINDOW: u32 = 40;
/// Shorter than the time between two boots of one machine.
const WINDOW: Duration = Duration::from_secs(60);
/// Machines remembered. Beyond it everything is forgotten, which lets some record more; the registry has its own bound.
const MACHINES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct Misses {
    windows: Mutex<HashMap<MacAddr, (Timestamp, u32)>>,
}

impl Misses {
    /// Whether this miss is still one to record; counts it.
    pub fn may_record(&self, mac: MacAddr, now: Timestamp) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MACHINES_MAX && !windows.contains_key(&mac) {
            windows.clear();
        }
        let (since, count) = windows.entry(mac).or_insert((now, 0));
        if now.since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= MISSES_PER_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_recorded_and_a_flood_is_not() {
        let misses = Misses::default();
        let start = Timestamp::from_millis(1_000_000);
        let (one, other) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let recorded = (0..1000).filter(|_| misses.may_record(one, start)).count();
        assert_eq!(recorded, MISSES_PER_WINDOW as usize);
        assert!(misses.may_record(other, start));
        assert!(misses.may_record(one, start.plus(WINDOW)));
    }
}
