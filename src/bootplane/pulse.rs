//! How a connection is doing, and when that is too slow: the timers of one HTTP connection as one value.
//!
//! hyper's own header timeout starts when a keep-alive connection falls idle, so it cannot be both 10 s for a slow
//! head and 120 s for a patient client; and it knows nothing of a client that stops reading. This knows the four
//! situations a connection can be in, from the bytes that pass:
//!
//! ```text
//!  head began ──head complete──> exchange ──answer's last frame taken──> idle ──first byte──> head began
//!  limit: head                   limit: progress per window              limit: idle
//!  any ──we close──> lingering (limit: linger)
//! ```

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::bootplane::head::{HeadFault, HeadReader, Verdict};
use crate::bootplane::limits::Limits;

/// Shared by a connection's stream (bytes), its service (exchanges) and its task (deadlines). Never contended: all
/// three run on the task that drives the connection.
#[derive(Debug)]
pub struct Pulse {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    heads: HeadReader,
    /// One per request head read and not yet answered; requests sent ahead fit hyper's read buffer, which bounds it.
    verdicts: VecDeque<Verdict>,
    situation: Situation,
    /// Last byte in either direction.
    active_at: Instant,
    /// Bytes in both directions.
    moved: u64,
    /// Judged too slow in the middle of an answer: whoever gives the answer up tells why.
    too_slow: bool,
}

#[derive(Clone, Copy, Debug)]
enum Situation {
    Head { since: Instant },
    Exchange { window_start: Instant, moved_before: u64 },
    Idle,
    Lingering { since: Instant },
}

/// What the connection's task is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing is due before this time, as far as is known now.
    Wait(Instant),
    Close(Overdue),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    Head,
    Progress,
    Idle,
    Linger,
}

impl Overdue {
    /// The same word in log and counter.
    pub fn as_str(self) -> &'static str {
        match self {
            Overdue::Head => "head-timeout",
            Overdue::Progress => "too-slow",
            Overdue::Idle => "idle-closed",
            Overdue::Linger => "lingered",
        }
    }
}

impl Pulse {
    /// A connection just accepted: its first head is due.
    pub fn new(now: Instant) -> Pulse {
        Pulse {
            state: Mutex::new(State {
                heads: HeadReader::default(),
                verdicts: VecDeque::new(),
                situation: Situation::Head { since: now },
                active_at: now,
                moved: 0,
                too_slow: false,
            }),
        }
    }

    pub fn received(&self, bytes: &[u8], now: Instant) {
        let mut state = self.lock();
        state.active_at = now;
        state.moved += bytes.len() as u64;
        let State { heads, verdicts, .. } = &mut *state;
        heads.feed(bytes, |verdict| verdicts.push_back(verdict));
        state.settle(now);
    }

    pub fn sent(&self, count: usize, now: Instant) {
        let mut state = self.lock();
        state.active_at = now;
        state.moved += count as u64;
    }

    /// A request is about to be answered; tells whether its head was one. hyper answering a head that was never
    /// seen complete here is itself a disagreement on where requests begin.
    pub fn exchange_began(&self, now: Instant) -> Verdict {
        let mut state = self.lock();
        let moved_before = state.moved;
        state.situation = Situation::Exchange { window_start: now, moved_before };
        state.verdicts.pop_front().unwrap_or(Err(HeadFault::BareLineEnd))
    }

    /// The answer has been handed over to the last byte, or given up.
    pub fn exchange_ended(&self, now: Instant) {
        let mut state = self.lock();
        if matches!(state.situation, Situation::Exchange { .. }) {
            state.situation = Situation::Idle;
            state.settle(now);
        }
    }

    pub fn lingering_began(&self, now: Instant) {
        self.lock().situation = Situation::Lingering { since: now };
    }

    /// Called when a [`Judgement::Wait`] has passed, and whenever something moved.
    pub fn judge(&self, limits: &Limits, now: Instant) -> Judgement {
        let mut state = self.lock();
        let (due, overdue) = match state.situation {
            Situation::Head { since } => (since + limits.head, Overdue::Head),
            Situation::Idle => (state.active_at + limits.idle, Overdue::Idle),
            Situation::Lingering { since } => (since + limits.linger, Overdue::Linger),
            Situation::Exchange { window_start, moved_before } => {
                let due = window_start + limits.progress_window;
                if now >= due && state.moved - moved_before >= limits.progress_bytes {
                    let moved_before = state.moved;
                    state.situation = Situation::Exchange { window_start: now, moved_before };
                    return Judgement::Wait(now + limits.progress_window);
                }
                (due, Overdue::Progress)
            }
        };
        if now < due {
            return Judgement::Wait(due);
        }
        state.too_slow |= overdue == Overdue::Progress;
        Judgement::Close(overdue)
    }

    /// Whether the connection was given up because nothing moved on it.
    pub fn was_too_slow(&self) -> bool {
        self.lock().too_slow
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Between exchanges the head reader says whether a head has begun.
    fn settle(&mut self, now: Instant) {
        let begun = self.heads.inside_head();
        self.situation = match self.situation {
            Situation::Idle if begun => Situation::Head { since: now },
            Situation::Head { .. } if !begun => Situation::Idle,
            unchanged @ (Situation::Idle
            | Situation::Head { .. }
            | Situation::Exchange { .. }
            | Situation::Lingering { .. }) => unchanged,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn limits() -> Limits {
        Limits::default()
    }

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_head_has_ten_seconds_however_it_trickles() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        for second in 1..10 {
            pulse.received(b"G", seconds(start, second));
            assert_eq!(pulse.judge(&limits(), seconds(start, second)), Judgement::Wait(seconds(start, 10)));
        }
        assert_eq!(pulse.judge(&limits(), seconds(start, 10)), Judgement::Close(Overdue::Head));
    }

    #[test]
    fn between_requests_a_client_may_take_its_time_but_not_within_the_next_head() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        pulse.received(REQUEST, start);
        assert_eq!(pulse.exchange_began(start), Ok(()));
        pulse.exchange_ended(start);
        assert_eq!(pulse.judge(&limits(), seconds(start, 119)), Judgement::Wait(seconds(start, 120)));
        pulse.received(b"GE", seconds(start, 119));
        assert_eq!(pulse.judge(&limits(), seconds(start, 120)), Judgement::Wait(seconds(start, 129)));
        assert_eq!(pulse.judge(&limits(), seconds(start, 129)), Judgement::Close(Overdue::Head));
    }

    #[test]
    fn an_idle_connection_is_closed_after_its_last_byte_not_its_last_request() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        pulse.received(REQUEST, start);
        let _ = pulse.exchange_began(start);
        pulse.exchange_ended(start);
        pulse.sent(100, seconds(start, 60));
        assert_eq!(pulse.judge(&limits(), seconds(start, 179)), Judgement::Wait(seconds(start, 180)));
        assert_eq!(pulse.judge(&limits(), seconds(start, 180)), Judgement::Close(Overdue::Idle));
    }

    #[test]
    fn a_stall_of_thirty_seconds_passes_and_a_standstill_does_not() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        pulse.received(REQUEST, start);
        let _ = pulse.exchange_began(start);
        // 1 KiB/s, with 30 s of nothing in the middle of every minute.
        for second in 0..300 {
            if second % 60 < 30 {
                pulse.sent(1024, seconds(start, second));
            }
            assert!(matches!(pulse.judge(&limits(), seconds(start, second)), Judgement::Wait(_)), "{second}");
        }
        assert_eq!(pulse.judge(&limits(), seconds(start, 360)), Judgement::Close(Overdue::Progress));
    }

    #[test]
    fn requests_sent_ahead_are_judged_one_by_one() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        pulse.received(&[REQUEST, REQUEST, b"GET / HTTP/1.1\n\n", REQUEST].concat(), start);
        assert_eq!(pulse.exchange_began(start), Ok(()));
        assert_eq!(pulse.exchange_began(start), Ok(()));
        assert_eq!(pulse.exchange_began(start), Err(HeadFault::BareLineEnd));
        assert!(pulse.exchange_began(start).is_err(), "nothing after a fault is believed");
    }
}
