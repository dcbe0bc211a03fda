//! Counters: what every service answered, and why it did not.
//!
//! A counter is named by a service and an outcome, both words from the code (`dhcp`/`offer`, `dhcp`/`relayed`,
//! `tftp`/`not-found`), never text from the wire: the set is as small as the source that names it. The same words
//! stand in the log and on the timeline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

#[derive(Debug, Default)]
pub struct Tally {
    counters: RwLock<BTreeMap<(&'static str, &'static str), AtomicU64>>,
}

impl Tally {
    pub fn count(&self, service: &'static str, outcome: &'static str) {
        self.add(service, outcome, 1);
    }

    pub fn add(&self, service: &'static str, outcome: &'static str, amount: u64) {
        let key = (service, outcome);
        if let Some(counter) = self.counters.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            counter.fetch_add(amount, Ordering::Relaxed);
            return;
        }
        let mut counters = self.counters.write().unwrap_or_else(PoisonError::into_inner);
        counters.entry(key).or_default().fetch_add(amount, Ordering::Relaxed);
    }

    pub fn value(&self, service: &'static str, outcome: &'static str) -> u64 {
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        counters.get(&(service, outcome)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Every counter that ever counted, in order of service and outcome.
    pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        counters
            .iter()
            .map(|((service, outcome), counter)| (*service, *outcome, counter.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_come_sorted() {
        let tally = Tally::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| tally.count("tftp", "complete")));
            }
        });
        tally.add("dhcp", "offer", 2);
        assert_eq!(tally.snapshot(), [("dhcp", "offer", 2), ("tftp", "complete", 400)]);
        assert_eq!(tally.value("dhcp", "ack"), 0);
    }
}
