//! When to try again: doubling waits up to a cap, half of each at random, so that a rack of machines does not call a
//! restarted appliance in step.

use std::time::Duration;

/// A restarted appliance is back within a second; the first retry should find it.
pub const FIRST: Duration = Duration::from_millis(250);
/// A person who repaired something waits no longer than this for the machine to notice.
pub const LONGEST: Duration = Duration::from_secs(15);

/// Lets time pass between two attempts; there is nothing to be woken by.
#[expect(clippy::disallowed_methods, reason = "the pause of a retry waits for time itself")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    /// `seed` should differ between machines, e.g. be made from the MAC.
    pub fn new(seed: u64) -> Self {
        Backoff { next: FIRST, random: seed | 1 }
    }

    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The next wait: between half and all of the current step. `at_least` is the appliance's `Retry-After`, itself
    /// capped so that no answer can silence a machine for hours.
    pub fn wait(&mut self, at_least: Option<Duration>) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LONGEST);
        // xorshift64: spreads machines, guards nothing.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = step / 2;
        let spread = half.mul_f64((self.random >> 11) as f64 / (1_u64 << 53) as f64);
        let asked = at_least.unwrap_or_default().min(4 * LONGEST);
        // The random part comes on top of what was asked, or all would return in the same instant.
        (half + spread).max(asked + spread.min(Duration::from_secs(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_capped_and_differ_between_machines() {
        let (mut one, mut other) = (Backoff::new(1), Backoff::new(2));
        let mut same = 0;
        for attempt in 0..40 {
            let step = (FIRST * 2_u32.saturating_pow(attempt)).min(LONGEST);
            let wait = one.wait(None);
            assert!(wait >= step / 2 && wait <= step, "attempt {attempt}: {wait:?}");
            same += u32::from(wait == other.wait(None));
        }
        assert!(same < 5);
        one.reset();
        assert!(one.wait(None) <= FIRST);
    }

    #[test]
    fn the_appliance_may_ask_for_more_but_not_for_hours() {
        let mut backoff = Backoff::new(7);
        assert!(backoff.wait(Some(Duration::from_secs(3))) >= Duration::from_secs(3));
        assert!(backoff.wait(Some(Duration::from_secs(86_400))) <= 4 * LONGEST + Duration::from_secs(1));
    }
}
