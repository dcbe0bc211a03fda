//! What ACKs tell about the round trip and about loss, and going back to what was lost.

use super::{HINT_DELAY, Transfer};

impl Transfer {
    /// Learns the round trip from an ACK that moved `base`, if it tells.
    pub(super) fn measure(&mut self) {
        let Some(timed) = self.timed.take_if(|timed| timed.block < self.base) else { return };
        if !timed.repeated {
            self.timer.sample(self.now.saturating_duration_since(timed.sent_at));
            self.backed_off_to = None;
        } else if self.windowsize == 1 && !std::mem::take(&mut self.too_early) {
            // Karn would stay backed off until a sample. Under loss those are rare and each wait twice as long; a wait
            // that was too short shows in the answer to what was sent before, see `handle_repeated_ack`.
            self.backed_off_to = Some(self.timer.current());
            self.timer.trust_estimate();
        }
    }

    /// ACK inside the window: the client misses `base`.
    pub(super) fn handle_gap(&mut self) {
        // So it is loss, not a slow client, that made the timer back off.
        self.timer.trust_estimate();
        // The ACK answers a later block of this flight: a round trip, and under loss often the only one to be had.
        if let Some(timed) = self.timed.take_if(|timed| !timed.repeated) {
            self.timer.sample(self.now.saturating_duration_since(timed.sent_at));
        }
        if self.base >= self.recovery_until {
            self.go_back();
        } else {
            // Within what was already sent twice: wait for the answer to the second sending.
            self.hint();
        }
    }

    pub(super) fn handle_repeated_ack(&mut self) {
        if self.windowsize > 1 {
            if self.fresh > self.base {
                self.hint();
            }
        } else if let Some(waited) = self.backed_off_to.take() {
            self.too_early = true;
            self.timer.distrust_estimate(waited);
            self.deadline = self.flight_at + self.timer.current();
        }
    }

    fn hint(&mut self) {
        if self.hint_at.is_none() {
            let round_trip = self.timer.round_trip().unwrap_or(self.timer.current());
            self.hint_at = Some(self.flight_at + round_trip * 2 + HINT_DELAY);
        }
    }

    pub(super) fn go_back(&mut self) {
        self.next = self.base;
        self.recovery_until = self.fresh;
        self.timed = None;
        self.hint_at = None;
    }
}
