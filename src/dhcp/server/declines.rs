//! Who declines addresses, and how often: a client must not be able to drain the pool by refusing what it gets.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::dhcp::lease::QUARANTINE;
use crate::net::MacAddr;

/// This many DECLINEs within [`DECLINE_WINDOW`] and a client gets no new address while its quarantines last.
const DECLINES_MAX: usize = 3;
const DECLINE_WINDOW: Duration = Duration::from_secs(600);
/// Nor does one that declines slowly but keeps this many addresses quarantined.
const QUARANTINES_MAX: usize = 8;

/// Addresses that strangers keep withheld, all of them together: whoever makes up MACs withholds no more than this, from
/// whichever port. Past it a declined address is only put last in the queue of free ones.
const STRANGERS_MAX: usize = 10;

/// DECLINEs of the last hour. Each stands for a quarantined address, so there are never more than the pool has.
#[derive(Debug, Default)]
pub(super) struct Declines {
    by_mac: HashMap<MacAddr, VecDeque<Timestamp>>,
    in_order: VecDeque<(Timestamp, MacAddr, bool)>,
    of_strangers: usize,
}

impl Declines {
    pub(super) fn note(&mut self, mac: MacAddr, stranger: bool, now: Timestamp) {
        self.by_mac.entry(mac).or_default().push_back(now);
        self.in_order.push_back((now, mac, stranger));
        self.of_strangers += usize::from(stranger);
    }

    /// Whether strangers keep as many addresses from others as they may.
    pub(super) fn strangers_are_done(&self) -> bool {
        self.of_strangers >= STRANGERS_MAX
    }

    pub(super) fn too_many(&self, mac: MacAddr) -> bool {
        let Some(times) = self.by_mac.get(&mac) else { return false };
        let burst = (DECLINES_MAX - 1..times.len())
            .any(|last| times[last].since(times[last + 1 - DECLINES_MAX]) <= DECLINE_WINDOW);
        burst || times.len() >= QUARANTINES_MAX
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(&(at, mac, stranger)) = self.in_order.front()
            && at.plus(QUARANTINE) <= now
        {
            self.in_order.pop_front();
            self.of_strangers -= usize::from(stranger);
            if let Some(times) = self.by_mac.get_mut(&mac) {
                times.pop_front();
                if times.is_empty() {
                    self.by_mac.remove(&mac);
                }
            }
        }
    }
}
