//! How often a minute somebody is noted before only counters go on. Pure.
//!
//! A machine's search for configuration files is worth its lines, on the timeline and in the log; a client that asks for
//! nothing else must neither push a boot's real events out of the one nor fill the other.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// Shorter than the time between two boots of one machine.
const WINDOW: Duration = Duration::from_secs(60);
/// Keys remembered. Beyond it everything is forgotten, which lets some note more; what they note has bounds of its own.
const KEYS_MAX: usize = 4096;

#[derive(Debug)]
pub struct PerMinute<K> {
    most: u32,
    windows: Mutex<HashMap<K, (Timestamp, u32)>>,
}

impl<K: Copy + Eq + Hash> PerMinute<K> {
    pub fn new(most: u32) -> Self {
        PerMinute { most, windows: Mutex::default() }
    }

    /// Whether this one is still to be noted; counts it.
    pub fn may_note(&self, key: K, now: Timestamp) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= KEYS_MAX && !windows.contains_key(&key) {
            windows.clear();
        }
        let (since, count) = windows.entry(key).or_insert((now, 0));
        if now.since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_noted_and_a_flood_is_not() {
        let noted = PerMinute::new(40);
        let start = Timestamp::from_millis(1_000_000);
        assert_eq!((0..1000).filter(|_| noted.may_note("one", start)).count(), 40);
        assert!(noted.may_note("other", start));
        assert!(noted.may_note("one", start.plus(WINDOW)));
    }
}
