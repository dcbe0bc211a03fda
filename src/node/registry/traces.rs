//! What MACs that are no nodes asked of DHCP lately, and what they got.
//!
//! A stranger that is ignored leaves no record, by design; but "why does this machine not boot?" is asked about
//! strangers more often than about nodes. So the last few messages of each are remembered here: in memory, bounded,
//! without text from the wire. A flood of made-up MACs asks once each, and pushes out its own kind first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use crate::boot::client::ClientClass;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::verdict::surroundings::Fetching;

/// MACs remembered at once: about 3 MB.
pub const TRACES_MAX: usize = 4096;
/// Messages remembered of each: the four DISCOVERs of a PXE ROM, and what comes of the last of them.
pub const TRACE_STEPS_MAX: usize = 6;

/// One DHCP message of a stranger and what came of it, in the words of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceStep {
    pub at: Timestamp,
    pub class: ClientClass,
    pub message: &'static str,
    pub xid: u32,
    /// `offer`, `ack`, `nak`; or the reason of our silence.
    pub answer: Result<&'static str, &'static str>,
    pub address: Option<Ipv4Addr>,
    pub other_server: Option<Ipv4Addr>,
}

/// What is remembered of one stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrangerTrace {
    pub first_at: Timestamp,
    /// Messages so far, remembered or not.
    pub asked: u32,
    /// Oldest first; never empty.
    pub steps: VecDeque<TraceStep>,
}

impl StrangerTrace {
    pub fn last_at(&self) -> Timestamp {
        self.steps.back().map_or(self.first_at, |step| step.at)
    }

    /// Who has to go first: who asked once, then who was heard longest ago.
    fn worth(&self, mac: MacAddr) -> (bool, Timestamp, MacAddr) {
        (self.asked > 1, self.last_at(), mac)
    }
}

/// Who is fetching what at this moment; as many as there are transfers, which are bounded where they are made.
#[derive(Default)]
pub(super) struct Fetches {
    by_mac: BTreeMap<MacAddr, (u32, Fetching)>,
}

impl Fetches {
    pub(super) fn began(&mut self, mac: MacAddr, fetching: Fetching) {
        self.by_mac.entry(mac).or_insert((0, fetching)).0 += 1;
    }

    pub(super) fn ended(&mut self, mac: MacAddr) {
        if let Some((count, _)) = self.by_mac.get_mut(&mac) {
            *count -= 1;
            if *count == 0 {
                self.by_mac.remove(&mac);
            }
        }
    }

    pub(super) fn of(&self, mac: MacAddr) -> Option<Fetching> {
        self.by_mac.get(&mac).map(|(_, fetching)| *fetching)
    }
}

#[derive(Default)]
pub(super) struct Traces {
    by_mac: BTreeMap<MacAddr, StrangerTrace>,
    by_worth: BTreeSet<(bool, Timestamp, MacAddr)>,
}

impl Traces {
    pub(super) fn note(&mut self, mac: MacAddr, step: TraceStep) {
        let mut trace = match self.by_mac.remove(&mac) {
            Some(trace) => {
                self.by_worth.remove(&trace.worth(mac));
                trace
            }
            None => {
                self.make_room();
                StrangerTrace { first_at: step.at, asked: 0, steps: VecDeque::new() }
            }
        };
        if trace.steps.len() >= TRACE_STEPS_MAX {
            trace.steps.pop_front();
        }
        trace.steps.push_back(step);
        trace.asked = trace.asked.saturating_add(1);
        self.by_worth.insert(trace.worth(mac));
        self.by_mac.insert(mac, trace);
    }

    pub(super) fn get(&self, mac: MacAddr) -> Option<StrangerTrace> {
        self.by_mac.get(&mac).cloned()
    }

    fn make_room(&mut self) {
        if self.by_mac.len() >= TRACES_MAX
            && let Some((_, _, least)) = self.by_worth.pop_first()
        {
            self.by_mac.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> MacAddr {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddr([2, 0, a, b, c, d])
    }

    fn step(secs: u64) -> TraceStep {
        TraceStep {
            at: Timestamp::from_millis(secs * 1000),
            class: ClientClass::OperatingSystem,
            message: "discover",
            xid: 7,
            answer: Err("unknown-mac"),
            address: None,
            other_server: None,
        }
    }

    #[test]
    fn the_last_messages_are_kept_and_all_are_counted() {
        let mut traces = Traces::default();
        for secs in 0..10 {
            traces.note(mac(1), step(secs));
        }
        let trace = traces.get(mac(1)).unwrap();
        assert_eq!((trace.asked, trace.steps.len()), (10, TRACE_STEPS_MAX));
        assert_eq!((trace.first_at, trace.last_at()), (step(0).at, step(9).at));
        assert!(traces.get(mac(2)).is_none());
    }

    #[test]
    fn a_flood_pushes_out_its_own_kind_first() {
        let mut traces = Traces::default();
        traces.note(mac(0), step(0));
        traces.note(mac(0), step(1));
        for number in 1..=2 * TRACES_MAX as u32 {
            traces.note(mac(number), step(u64::from(number)));
        }
        assert_eq!(traces.by_mac.len(), TRACES_MAX);
        assert_eq!(traces.by_worth.len(), TRACES_MAX);
        assert!(traces.get(mac(0)).is_some(), "asked twice, so it is no one-time MAC");
        assert!(traces.get(mac(1)).is_none());
    }
}
