//! Bytes a second, from the counters of bytes sent: a sample whenever somebody looks, so that nobody pays for it else.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// Looks closer together than this tell nothing of a rate.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Four minutes at the pace at which an open page asks.
const SAMPLES_MAX: usize = 48;
/// A rate is of the last half minute.
const WINDOW: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Throughput {
    samples: Mutex<VecDeque<(Timestamp, u64)>>,
}

/// The rate now, and the rates before it, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) now: Option<f64>,
    pub(super) course: Vec<f64>,
}

impl Throughput {
    pub(super) fn note(&self, at: Timestamp, total: u64) -> Rates {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.back().is_none_or(|(last, _)| at.since(*last) >= SAMPLE_EVERY) {
            if samples.len() == SAMPLES_MAX {
                samples.pop_front();
            }
            samples.push_back((at, total));
        }
        let rate = |(from, first): &(Timestamp, u64), (until, last): &(Timestamp, u64)| {
            let passed = until.since(*from).as_secs_f64();
            (passed > 0.0).then(|| last.saturating_sub(*first) as f64 / passed)
        };
        let within = samples.iter().find(|(then, _)| at.since(*then) <= WINDOW);
        let now = within.zip(samples.back()).and_then(|(first, last)| rate(first, last));
        let course = samples.iter().zip(samples.iter().skip(1)).filter_map(|(a, b)| rate(a, b)).collect();
        Rates { now, course }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_sent_in_the_last_half_minute() {
        let throughput = Throughput::default();
        let at = Timestamp::from_millis;
        assert_eq!(throughput.note(at(0), 500), Rates::default());
        assert_eq!(throughput.note(at(10), 900), Rates::default(), "too close together");
        assert_eq!(throughput.note(at(2000), 2500), Rates { now: Some(1000.0), course: vec![1000.0] });
        let idle = throughput.note(at(60_000), 2500);
        assert_eq!((idle.now, idle.course.len()), (None, 2), "the one sample of that time tells no rate");
        assert_eq!(throughput.note(at(62_000), 2500).now, Some(0.0));
    }

    #[test]
    fn samples_are_bounded() {
        let throughput = Throughput::default();
        for second in 0..1000 {
            throughput.note(Timestamp::from_millis(second * 1000), second);
        }
        assert_eq!(throughput.samples.lock().unwrap().len(), SAMPLES_MAX);
    }
}
