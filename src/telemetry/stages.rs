//! How long each stage of a boot takes us, and how many transfers are under way: counters without a lock.
//!
//! A time falls into one of a few fixed buckets, as Prometheus wants them; noting one is two additions to memory that
//! nobody waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the buckets, in microseconds: from a reply out of memory to an image over a slow line.
pub const BOUNDS_MICROS: [u64; 18] = [
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    15_000_000,
    60_000_000,
    300_000_000,
];

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// From the decision on a DHCP message to its reply on the wire, the commit included.
    DhcpReply,
    /// From a read request to its last acknowledgement.
    TftpTransfer,
    /// From a request for a file or script to its last byte.
    HttpRequest,
    /// Deciding on and writing one script.
    ScriptRender,
    /// One transaction, synced to disk.
    StoreCommit,
}

impl Timed {
    pub const ALL: [Timed; 5] =
        [Timed::DhcpReply, Timed::TftpTransfer, Timed::HttpRequest, Timed::ScriptRender, Timed::StoreCommit];

    pub fn as_str(self) -> &'static str {
        match self {
            Timed::DhcpReply => "dhcp-reply",
            Timed::TftpTransfer => "tftp-transfer",
            Timed::HttpRequest => "http-request",
            Timed::ScriptRender => "script-render",
            Timed::StoreCommit => "store-commit",
        }
    }

    fn index(self) -> usize {
        match self {
            Timed::DhcpReply => 0,
            Timed::TftpTransfer => 1,
            Timed::HttpRequest => 2,
            Timed::ScriptRender => 3,
            Timed::StoreCommit => 4,
        }
    }
}

#[derive(Debug, Default)]
pub struct Histogram {
    /// One more than bounds: the last one has no end.
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

/// A histogram at one moment; the counts are of each bucket alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    pub counts: Vec<u64>,
    pub sum_micros: u64,
}

impl Histogram {
    pub fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn read(&self) -> Distribution {
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Distribution { counts, sum_micros: self.sum_micros.load(Ordering::Relaxed) }
    }
}

#[derive(Debug, Default)]
pub struct Stages([Histogram; Timed::ALL.len()]);

impl Stages {
    pub fn of(&self, timed: Timed) -> &Histogram {
        &self.0[timed.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_bucket_that_ends_with_it() {
        let stages = Stages::default();
        let times = [0, 50, 51, 300_000_000, 300_000_001];
        for micros in times {
            stages.of(Timed::DhcpReply).note(Duration::from_micros(micros));
        }
        let read = stages.of(Timed::DhcpReply).read();
        let last = BOUNDS_MICROS.len();
        assert_eq!((read.counts[0], read.counts[1], read.counts[last - 1], read.counts[last]), (2, 1, 1, 1));
        assert_eq!((read.counts.iter().sum::<u64>(), read.sum_micros), (5, times.iter().sum()));
        assert_eq!(stages.of(Timed::StoreCommit).read().sum_micros, 0);
    }

    #[test]
    fn every_stage_has_its_own_place() {
        for (place, timed) in Timed::ALL.into_iter().enumerate() {
            assert_eq!(timed.index(), place);
        }
    }
}
