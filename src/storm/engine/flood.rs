//! Strangers: DISCOVERs at a fixed rate from MACs that never come again, and the newcomers that follow them.

use std::time::{Duration, Instant};

use crate::net::MacAddr;
use crate::storm::firmware::OVMF;
use crate::storm::message::{self, Ask, Identity};
use crate::storm::random::Stream;
use crate::storm::schedule::Flood;
use crate::storm::wire::dhcp_frame;

/// Strangers come in small groups, not one by one.
pub const EVERY: Duration = Duration::from_millis(2);
/// A storm that could not run for a while does not make up for it in one burst longer than this.
const ARREARS: Duration = Duration::from_millis(50);

pub struct Strangers {
    flood: Flood,
    random: Stream,
    began: Instant,
    sent: u64,
    /// Not sent, for want of time on our side.
    left_out: u64,
}

impl Strangers {
    pub fn new(flood: Flood, random: Stream) -> Strangers {
        Strangers { flood, random, began: Instant::now(), sent: 0, left_out: 0 }
    }

    pub fn begin(&mut self, now: Instant) {
        self.began = now;
    }

    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.began + self.flood.lasts
    }

    /// DISCOVERs made so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Those that are due.
    pub fn send(&mut self, now: Instant, frames: &mut Vec<(MacAddr, Vec<u8>)>) {
        if now < self.began {
            return;
        }
        let elapsed = now.duration_since(self.began).min(self.flood.lasts).as_secs_f64();
        let due = (elapsed * f64::from(self.flood.per_second)) as u64;
        let burst_max = (ARREARS.as_secs_f64() * f64::from(self.flood.per_second)) as u64 + 1;
        let mut wanted = due.saturating_sub(self.sent + self.left_out);
        self.left_out += wanted.saturating_sub(burst_max);
        wanted = wanted.min(burst_max);
        for _ in 0..wanted {
            self.sent += 1;
            let bytes = self.random.next_u64().to_be_bytes();
            let mac = MacAddr([0x06, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]);
            let who = Identity { mac, uuid: [0; 16] };
            let message = message::emit(&OVMF.dhcp, &who, Ask::Discover, self.random.next_u32(), 0);
            frames.push(dhcp_frame(mac, &message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_bursts_are_bounded_and_the_end_is_the_end() {
        let began = Instant::now();
        let flood = Flood { per_second: 1000, lasts: Duration::from_secs(2) };
        let mut strangers = Strangers::new(flood, Stream::new(1, 1));
        strangers.begin(began);
        let mut frames = Vec::new();
        strangers.send(began + Duration::from_millis(40), &mut frames);
        assert_eq!(frames.len(), 40);
        strangers.send(began + Duration::from_millis(1040), &mut frames);
        assert_eq!(frames.len(), 40 + 51, "a second's arrears are not made up for");
        strangers.send(began + Duration::from_millis(1050), &mut frames);
        assert_eq!(frames.len(), 91 + 10);
        assert!(!strangers.is_over(began + Duration::from_millis(1999)));
        for millis in (1060..9000).step_by(20) {
            strangers.send(began + Duration::from_millis(millis), &mut frames);
        }
        assert_eq!(frames.len() as u64, strangers.sent());
        assert_eq!(strangers.sent(), 101 + 950);
        assert!(strangers.is_over(began + Duration::from_secs(2)));
    }
}
