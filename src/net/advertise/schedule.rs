//! When to advertise to everybody (RFC 4861 §6.2.4, §6.2.6); pure.

use std::time::{Duration, Instant};

/// Advertisements in quick succession when we begin: one may be lost, or come before a machine listens.
const INITIAL: u32 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(4);
/// Between all later ones. Nobody keeps state from ours, so the only purpose is to be seen in a capture.
const INTERVAL: Duration = Duration::from_secs(200);
/// `MIN_DELAY_BETWEEN_RAS`: however many solicitations ask for it.
const PAUSE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Schedule {
    initial_left: u32,
    last_at: Option<Instant>,
    next_at: Instant,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { initial_left: INITIAL, last_at: None, next_at: Instant::now() }
    }
}

impl Schedule {
    /// The bridge has become able to send: begin again.
    pub(super) fn restart(&mut self, now: Instant) {
        *self = Schedule { initial_left: INITIAL, last_at: None, next_at: now };
    }

    /// Somebody asked whom only a multicast reaches.
    pub(super) fn solicited(&mut self, now: Instant) {
        let earliest = self.last_at.map_or(now, |last| now.max(last + PAUSE));
        self.next_at = self.next_at.min(earliest);
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        now >= self.next_at
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.initial_left = self.initial_left.saturating_sub(1);
        self.last_at = Some(now);
        self.next_at = now + if self.initial_left > 0 { INITIAL_INTERVAL } else { INTERVAL };
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.next_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quick_ones_then_one_every_200_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.restart(start);
        let mut at = Vec::new();
        for _ in 0..5 {
            let now = schedule.next_deadline();
            assert!(schedule.due(now));
            schedule.sent(now);
            at.push(now.duration_since(start).as_secs());
        }
        assert_eq!(at, [0, 4, 8, 208, 408]);
    }

    #[test]
    fn solicited_multicasts_keep_their_distance() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.restart(start);
        for _ in 0..3 {
            schedule.sent(start);
        }
        schedule.solicited(start + Duration::from_secs(1));
        assert_eq!(schedule.next_deadline(), start + Duration::from_secs(3));
        schedule.sent(start + Duration::from_secs(3));
        schedule.solicited(start + Duration::from_secs(60));
        assert!(schedule.due(start + Duration::from_secs(60)));
    }
}
