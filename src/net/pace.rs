//! A bound on how fast one machine is sent files, whatever it fetches them by: all its transfers and connections
//! share one [`Pace`].
//!
//! What was sent has to be paid for by time passing before more may leave, a few milliseconds' worth at once. Who
//! comes a little late to send, as timers do, loses nothing by it; who has been idle gains nothing. No clock here:
//! time is an argument.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may leave at once, in time: the grain of timers, and less than a network card's queue at any rate.
const TURN: Duration = Duration::from_millis(4);
/// At the lowest rate a turn would be less than a packet.
const TURN_BYTES_MIN: u64 = 1500;
/// Nothing was sent for so long: nobody is in the middle of anything.
const IDLE_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Pace {
    bytes_per_sec: u64,
    /// When all that was sent is paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub fn new(mbps: u16) -> Pace {
        Pace { bytes_per_sec: u64::from(mbps.max(1)) * 1_000_000 / 8, paid_at: Mutex::new(None) }
    }

    pub fn mbps(&self) -> u16 {
        // Made from one.
        (self.bytes_per_sec * 8 / 1_000_000) as u16
    }

    /// How many bytes may leave now, or else when some may.
    pub fn room(&self, now: Instant) -> Result<usize, Instant> {
        match *self.lock() {
            Some(paid_at) if paid_at > now => Err(paid_at),
            Some(_) | None => {
                let turn = self.bytes_per_sec * TURN.as_micros() as u64 / 1_000_000;
                Ok(turn.max(TURN_BYTES_MIN) as usize)
            }
        }
    }

    /// These bytes have left.
    pub fn sent(&self, bytes: usize, now: Instant) {
        let cost = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_sec);
        let mut paid_at = self.lock();
        let late_by_a_turn = now.checked_sub(TURN).unwrap_or(now);
        *paid_at = Some(paid_at.map_or(now, |paid_at| paid_at.max(late_by_a_turn)) + cost);
    }

    pub fn is_idle(&self, now: Instant) -> bool {
        self.lock().is_none_or(|paid_at| paid_at + IDLE_AFTER < now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.paid_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent in a second by who comes `late` after it may.
    fn in_a_second(pace: &Pace, late: Duration) -> usize {
        let start = Instant::now();
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(1) {
            match pace.room(now) {
                Ok(room) => {
                    sent += room;
                    pace.sent(room, now);
                }
                Err(at) => now = at + late,
            }
        }
        sent
    }

    #[test]
    fn a_second_has_a_seconds_worth_however_late_timers_are() {
        for mbps in [1, 8, 100, 10_000] {
            let worth = usize::from(mbps) * 125_000;
            for late in [0, 1, 3] {
                let sent = in_a_second(&Pace::new(mbps), Duration::from_millis(late));
                // A turn more at the start, and what the last turn overshoots.
                assert!(
                    (worth * 99 / 100..worth * 102 / 100 + 3000).contains(&sent),
                    "{mbps}, {late}: {sent}"
                );
            }
        }
    }

    #[test]
    fn who_was_idle_has_saved_up_a_turn_and_no_more() {
        let pace = Pace::new(8);
        let start = Instant::now();
        assert!(pace.is_idle(start));
        pace.sent(1_000_000, start);
        assert_eq!(pace.room(start), Err(start + Duration::from_secs(1)));
        assert!(!pace.is_idle(start + Duration::from_secs(5)));
        let later = start + Duration::from_secs(60);
        assert!(pace.is_idle(later));
        assert_eq!(pace.room(later), Ok(4000));
        pace.sent(4000 + 4000, later);
        assert_eq!(pace.room(later), Err(later + TURN));
        assert_eq!(pace.mbps(), 8);
    }
}
