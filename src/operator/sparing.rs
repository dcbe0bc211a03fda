//! Something dear to ask for, asked for sparingly: what was answered serves everybody for a while.
//!
//! A copy of ten thousand leases costs the DHCP thread a millisecond. Each copy is used for [`SHARE`] times what it
//! cost, so that however many operators look, they take at most a two-hundredth of that thread; and with few leases
//! everybody sees the truth of this moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One part in this many of the answerer's time.
const SHARE: u32 = 200;
/// Nobody is shown anything older, whatever it costs.
const AGE_MAX: Duration = Duration::from_millis(1000);

#[derive(Debug)]
pub struct Sparing<T>(Mutex<Option<(Arc<T>, Instant)>>);

impl<T> Default for Sparing<T> {
    fn default() -> Self {
        Sparing(Mutex::new(None))
    }
}

impl<T> Sparing<T> {
    /// The answer of a moment ago if it is still good, else a new one. Who comes in between waits for the same one.
    pub fn get(&self, ask: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_at = Instant::now();
        if let Some((answer, good_until)) = kept.as_ref()
            && asked_at < *good_until
        {
            return Arc::clone(answer);
        }
        let answer = Arc::new(ask());
        let answered_at = Instant::now();
        let good_for = answered_at.duration_since(asked_at).saturating_mul(SHARE).min(AGE_MAX);
        *kept = Some((Arc::clone(&answer), answered_at + good_for));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheap_is_asked_each_time_and_what_is_dear_is_not() {
        let (cheap, dear) = (Sparing::default(), Sparing::default());
        let mut asked = 0;
        let mut slow = || {
            asked += 1;
            let end = Instant::now() + Duration::from_millis(20);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            asked
        };
        assert_eq!((*dear.get(&mut slow), *dear.get(&mut slow)), (1, 1));
        let first = cheap.get(|| 1);
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        assert_eq!((*first, *cheap.get(|| 2)), (1, 2));
    }
}
