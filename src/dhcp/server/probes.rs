//! Addresses asked for on the wire before a client that never had them is offered one.
//!
//! Who uses an address of the pool without a lease is not in our records; it answers ARP. An address that is *fresh*
//! to a client is therefore asked for before it is offered, and one that answers is set aside for [`QUARANTINE`].
//!
//! ```text
//!   unknown ── ask ──> asked ── nobody answers within the wait ──> silent, for SILENT_FOR
//!                        └────── somebody answers ──────────────> quarantined
//! ```
//!
//! Few exchanges wait for it: with each address asked for, the next ones in line are asked for as well, so that the
//! clients after the first find theirs silent already. A flood is not asked for beyond [`ASKED_PER_SECOND`]: what is
//! lost then is the check, not the boot.
//!
//! [`QUARANTINE`]: crate::dhcp::lease::QUARANTINE

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::dhcp::lease::ClientKey;
use crate::net::MacAddr;

/// How long the shell listens for an answer. Stations answer ARP from their interrupt handler, busy virtual machines
/// within tens of milliseconds; the first retry of any firmware comes after a second.
pub const PROBE_WAIT: Duration = Duration::from_millis(150);
/// Nobody answered: good for so long. What comes up later is found by its own check, or by the client's.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// Addresses kept asked for beyond the one that is needed: a shelf of a rack switched on.
pub(super) const AHEAD: usize = 32;
/// The line is looked at again after so many of its addresses were offered.
const LOOK_AFTER: usize = 16;
/// Each question is a broadcast to every port; a thousand machines switched on at once are within this.
const ASKED_PER_SECOND: u32 = 1024;
/// A question whose answer the shell never reported is forgotten with its result's time.
const REMEMBERED_MAX: usize = ASKED_PER_SECOND as usize * 31;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// For this client, if one waits for it.
    Asked(Option<(ClientKey, MacAddr)>),
    Silent,
}

/// Whether an address may be offered as far as the wire is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clearance {
    /// Nobody answers there.
    Clear,
    /// The answer is awaited.
    Awaited,
    /// It has to be asked for.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Off until the shell says that it can ask.
    enabled: bool,
    known: HashMap<Ipv4Addr, (State, Timestamp)>,
    /// `known` by the time at which each is forgotten; entries that were renewed are found twice.
    in_order: VecDeque<(Timestamp, Ipv4Addr)>,
    /// Questions of the second that began then.
    second: (Timestamp, u32),
    /// Addresses offered without a question since the line was last looked at.
    offered: usize,
}

impl Probes {
    pub(super) fn enable(&mut self) {
        self.enabled = true;
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn clearance(&self, address: Ipv4Addr, now: Timestamp) -> Clearance {
        match self.state(address, now) {
            Some(State::Silent) => Clearance::Clear,
            Some(State::Asked(_)) => Clearance::Awaited,
            None => Clearance::Unknown,
        }
    }

    /// An address known to be silent is offered: whether it is time to look at those that come next.
    pub(super) fn uses_one(&mut self) -> bool {
        self.offered = (self.offered + 1) % LOOK_AFTER;
        self.offered == 0
    }

    fn state(&self, address: Ipv4Addr, now: Timestamp) -> Option<&State> {
        self.known.get(&address).filter(|(_, until)| *until > now).map(|(state, _)| state)
    }

    /// Takes note of a question; false if too many were asked lately.
    pub(super) fn ask(
        &mut self,
        address: Ipv4Addr,
        whom: Option<(ClientKey, MacAddr)>,
        now: Timestamp,
    ) -> bool {
        if now.since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        if self.second.1 >= ASKED_PER_SECOND || self.known.len() >= REMEMBERED_MAX {
            return false;
        }
        self.second.1 += 1;
        self.put(address, State::Asked(whom), now);
        true
    }

    /// A client waits for an answer that somebody else's question will bring.
    pub(super) fn wait_for(&mut self, address: Ipv4Addr, key: ClientKey, mac: MacAddr) {
        if let Some((state @ State::Asked(_), _)) = self.known.get_mut(&address) {
            *state = State::Asked(Some((key, mac)));
        }
    }

    pub(super) fn silent(&mut self, address: Ipv4Addr, now: Timestamp) {
        if self.is_asked(address) {
            self.put(address, State::Silent, now);
        }
    }

    /// Whether an answer for this address means something; and who waits for it. The question is settled.
    pub(super) fn answered(&mut self, address: Ipv4Addr) -> Option<Option<(ClientKey, MacAddr)>> {
        if !self.is_asked(address) {
            return None;
        }
        match self.known.remove(&address) {
            Some((State::Asked(whom), _)) => Some(whom),
            Some((State::Silent, _)) | None => None,
        }
    }

    /// The address may be offered, whatever was or was not answered.
    pub(super) fn settle(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.put(address, State::Silent, now);
    }

    fn is_asked(&self, address: Ipv4Addr) -> bool {
        matches!(self.known.get(&address), Some((State::Asked(_), _)))
    }

    fn put(&mut self, address: Ipv4Addr, state: State, now: Timestamp) {
        let until = now.plus(SILENT_FOR);
        self.known.insert(address, (state, until));
        self.in_order.push_back((until, address));
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(&(until, address)) = self.in_order.front()
            && until <= now
        {
            self.in_order.pop_front();
            if self.known.get(&address).is_some_and(|(_, until)| *until <= now) {
                self.known.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    #[test]
    fn what_is_known_is_forgotten_and_questions_have_a_budget() {
        let mut probes = Probes::default();
        let one = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(probes.clearance(one, NOW), Clearance::Unknown);
        assert!(probes.ask(one, None, NOW));
        assert_eq!(probes.clearance(one, NOW), Clearance::Awaited);
        probes.silent(one, NOW.plus(PROBE_WAIT));
        assert_eq!(probes.clearance(one, NOW.plus(SILENT_FOR)), Clearance::Clear);
        assert_eq!(probes.answered(one), None, "too late: it is settled");
        let later = NOW.plus(SILENT_FOR).plus(PROBE_WAIT);
        assert_eq!(probes.clearance(one, later), Clearance::Unknown);
        for number in 0..ASKED_PER_SECOND {
            assert!(probes.ask(Ipv4Addr::from(number), None, later));
        }
        assert!(!probes.ask(one, None, later));
        assert!(probes.ask(one, None, later.plus(Duration::from_secs(1))));
        probes.expire(later.plus(SILENT_FOR).plus(Duration::from_secs(1)));
        assert!(probes.known.is_empty() && probes.in_order.is_empty());
    }
}
