//! Counters: what every service answered, and why it did not.
//!
//! A counter is named by a service and an outcome, both words from the code (`dhcp`/`offer`, `dhcp`/`relayed`,
//! `tftp`/`not-found`), never text from the wire: the set is as small as the source that names it. The same words
//! stand in the log and on the timeline.
//!
//! A [`Level`] is named the same way. It tells how much of something bounded is in use, and what the bound is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::telemetry::stages::{Distribution, Stages, Timed};

pub mod stages;

#[derive(Debug, Default)]
pub struct Tally {
    counters: RwLock<BTreeMap<(&'static str, &'static str), AtomicU64>>,
    levels: RwLock<BTreeMap<(&'static str, &'static str), Arc<Level>>>,
    stages: Stages,
    /// Under way now.
    tftp_transfers: AtomicU64,
    http_transfers: AtomicU64,
}

/// How much of something bounded is in use.
#[derive(Debug)]
pub struct Level {
    now: AtomicU64,
    most: u64,
}

/// A part of a [`Level`], in use until dropped.
#[derive(Debug)]
pub struct Taken {
    level: Arc<Level>,
    amount: u64,
}

impl Level {
    pub fn new(most: u64) -> Arc<Level> {
        Arc::new(Level { now: AtomicU64::new(0), most })
    }

    /// Counts; who holds the bound is whoever asks.
    pub fn take(self: &Arc<Level>, amount: u64) -> Taken {
        self.now.fetch_add(amount, Ordering::Relaxed);
        Taken { level: Arc::clone(self), amount }
    }

    /// For one that is counted elsewhere.
    pub fn set(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.level.now.fetch_sub(self.amount, Ordering::Relaxed);
    }
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

    /// One more of these is done.
    pub fn took(&self, timed: Timed, took: Duration) {
        self.stages.of(timed).note(took);
    }

    pub fn distribution(&self, timed: Timed) -> Distribution {
        self.stages.of(timed).read()
    }

    /// How many TFTP transfers run now; told by the thread that runs them.
    pub fn tftp_transfers(&self, now: usize) {
        self.tftp_transfers.store(now as u64, Ordering::Relaxed);
    }

    pub fn http_transfer_begins(&self) {
        self.http_transfers.fetch_add(1, Ordering::Relaxed);
    }

    pub fn http_transfer_ends(&self) {
        self.http_transfers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Transfers that run now: by TFTP, by HTTP.
    pub fn transfers(&self) -> (u64, u64) {
        (self.tftp_transfers.load(Ordering::Relaxed), self.http_transfers.load(Ordering::Relaxed))
    }

    pub fn value(&self, service: &'static str, outcome: &'static str) -> u64 {
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        counters.get(&(service, outcome)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// The level of this name. Its bound is what whoever names it first says.
    pub fn level(&self, service: &'static str, what: &'static str, most: u64) -> Arc<Level> {
        let mut levels = self.levels.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(levels.entry((service, what)).or_insert_with(|| Level::new(most)))
    }

    /// `(now, most)` of a level, if it has been named.
    pub fn levels_of(&self, service: &'static str, what: &'static str) -> Option<(u64, u64)> {
        let levels = self.levels.read().unwrap_or_else(PoisonError::into_inner);
        levels.get(&(service, what)).map(|level| (level.now.load(Ordering::Relaxed), level.most))
    }

    /// `(service, what, now, most)` of every level, in order.
    pub fn levels(&self) -> Vec<(&'static str, &'static str, u64, u64)> {
        let levels = self.levels.read().unwrap_or_else(PoisonError::into_inner);
        let told = |((service, what), level): (&(&'static str, &'static str), &Arc<Level>)| {
            (*service, *what, level.now.load(Ordering::Relaxed), level.most)
        };
        levels.iter().map(told).collect()
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

    #[test]
    fn levels_rise_and_fall_and_know_their_bound() {
        let tally = Tally::default();
        let level = tally.level("http", "connections", 8192);
        let (one, two) = (level.take(1), tally.level("http", "connections", 1).take(2));
        assert_eq!(tally.levels(), [("http", "connections", 3, 8192)]);
        drop(two);
        assert_eq!(tally.levels_of("http", "connections"), Some((1, 8192)));
        drop(one);
        level.set(7);
        assert_eq!(tally.levels_of("http", "connections"), Some((7, 8192)));
        assert_eq!(tally.levels_of("tftp", "connections"), None);
    }
}
