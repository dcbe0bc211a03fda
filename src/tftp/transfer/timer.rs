//! The retransmission timer: RFC 6298's estimator with TFTP's bounds (RFC 1123 §4.2.3.2: it must adapt).

use std::time::Duration;

/// Until an answer was timed. On one bridge answers take milliseconds; a ROM may still be slow to the first.
pub const RTO_INITIAL: Duration = Duration::from_millis(500);
/// Below this a client's scheduling would look like loss.
pub const RTO_MIN: Duration = Duration::from_millis(50);
/// Longer than the 5 s most clients wait before they repeat their ACK. Some (atftp 0.8) answer a repeated block once and
/// then leave it to their own timer, which every datagram restarts: were we always quicker, they would never speak.
pub const RTO_MAX: Duration = Duration::from_secs(6);
/// G of RFC 6298: the granularity of the loop that calls us.
const GRANULARITY: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
pub struct RetransmissionTimer {
    smoothed: Option<Duration>,
    variation: Duration,
    current: Duration,
    ceiling: Duration,
}

impl RetransmissionTimer {
    /// `ceiling`: the client's `timeout` option, if it gave one.
    pub fn new(ceiling: Option<Duration>) -> Self {
        let ceiling = ceiling.map_or(RTO_MAX, |asked| asked.clamp(RTO_MIN, RTO_MAX));
        Self { smoothed: None, variation: Duration::ZERO, current: RTO_INITIAL.min(ceiling), ceiling }
    }

    pub fn current(&self) -> Duration {
        self.current
    }

    /// The smoothed round-trip time, once one was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.smoothed
    }

    /// True once backing off no longer helps.
    pub fn is_at_ceiling(&self) -> bool {
        self.current >= self.ceiling
    }

    /// A round trip of something sent exactly once (Karn); ends backing off.
    pub fn sample(&mut self, round_trip: Duration) {
        // RFC 6298 §2.2 and §2.3, α = 1/8, β = 1/4.
        let smoothed = match self.smoothed {
            None => {
                self.variation = round_trip / 2;
                round_trip
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(round_trip)) / 4;
                (smoothed * 7 + round_trip) / 8
            }
        };
        self.smoothed = Some(smoothed);
        self.current = self.rto(smoothed);
    }

    /// Nothing came back. Kept until the next sample, or an estimate that is too low would never recover.
    pub fn back_off(&mut self) {
        self.current = (self.current * 2).min(self.ceiling);
    }

    /// What was sent again has been answered, so it was lost: returns to the estimate, if there is one.
    pub fn trust_estimate(&mut self) {
        self.current = match self.smoothed {
            Some(smoothed) => self.rto(smoothed),
            None => RTO_INITIAL.min(self.ceiling),
        };
    }

    /// What was sent again had arrived the first time: `waited` was too short.
    pub fn distrust_estimate(&mut self, waited: Duration) {
        self.current = self.current.max(waited).min(self.ceiling);
    }

    fn rto(&self, smoothed: Duration) -> Duration {
        (smoothed + (self.variation * 4).max(GRANULARITY)).clamp(RTO_MIN, self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn starts_at_half_a_second_and_doubles_to_the_ceiling() {
        let mut timer = RetransmissionTimer::new(None);
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(timer.current());
            timer.back_off();
        }
        assert_eq!(seen, [ms(500), ms(1000), ms(2000), ms(4000), ms(6000)]);
        assert!(timer.is_at_ceiling());
    }

    #[test]
    fn the_clients_timeout_bounds_it_from_above() {
        let mut timer = RetransmissionTimer::new(Some(Duration::from_secs(1)));
        timer.back_off();
        timer.back_off();
        assert_eq!(timer.current(), Duration::from_secs(1));
        assert_eq!(RetransmissionTimer::new(Some(Duration::from_secs(255))).ceiling, RTO_MAX);
    }

    #[test]
    fn a_fast_client_brings_it_to_the_floor_and_a_slow_one_up() {
        let mut timer = RetransmissionTimer::new(None);
        timer.sample(ms(1));
        assert_eq!(timer.current(), RTO_MIN);
        timer.back_off();
        assert_eq!(timer.current(), RTO_MIN * 2);
        for _ in 0..50 {
            timer.sample(ms(200));
        }
        assert!(timer.current() >= ms(200) && timer.current() < ms(300), "{timer:?}");
    }
}
