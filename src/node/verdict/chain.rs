//! One boot attempt as a chain of stages: what was reached, when, and by which events.
//!
//! What belongs together is told by what it carries: DHCP messages by transaction and address, files by the address
//! they were fetched from (the registry has put them under the port that address was given to), the agent's first
//! call by the issue time of its token, which the script it came from names as well.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::{NothingToBoot, ScriptPlan};
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::timeline::{ADDRESS_ELSEWHERE, AgentCall, FileOutcome, Happening, Stage, TimelineEvent};
use crate::node::verdict::{Case, Outcome, StageMark, StageState, words};

pub(super) const STAGES: [Stage; 7] =
    [Stage::Dhcp, Stage::Loader, Stage::Script, Stage::Kernel, Stage::Ramdisk, Stage::Agent, Stage::Enrolled];

/// The events of one attempt up to now, and what they come to.
pub(super) struct Chain<'a> {
    pub(super) events: Vec<&'a TimelineEvent>,
    pub(super) reached: Option<Stage>,
    pub(super) overtaken: bool,
    pub(super) approved: bool,
}

impl<'a> Chain<'a> {
    pub(super) fn new(events: &'a [TimelineEvent], case: &Case<'_>, now: Timestamp) -> Chain<'a> {
        let events: Vec<&TimelineEvent> = events.iter().filter(|event| event.at <= now).collect();
        Chain {
            reached: events.iter().filter_map(|event| event.happening.stage()).max(),
            overtaken: case.overtaken_at.is_some_and(|at| at <= now),
            approved: case.node.is_none_or(|node| node.approved),
            events,
        }
    }

    pub(super) fn last_at(&self) -> Option<Timestamp> {
        self.events.iter().map(|event| event.at).max()
    }

    /// The newest event that is the machine's own doing, or the appliance's start.
    pub(super) fn last_news(&self) -> Option<&'a TimelineEvent> {
        self.last(is_news)
    }

    /// The port that boots: whose DHCP message came first.
    pub(super) fn port(&self) -> Option<MacAddr> {
        self.events.iter().find_map(|event| {
            let Happening::Dhcp { port, .. } = &event.happening else { return None };
            Some(*port)
        })
    }

    /// The firmware of the machine, by its own word; iPXE's word only where nothing else asked.
    pub(super) fn firmware(&self) -> Option<Firmware> {
        let mut by_ipxe = None;
        for event in &self.events {
            let Happening::Dhcp { class, .. } = &event.happening else { continue };
            match class {
                ClientClass::Firmware { firmware } => return Some(*firmware),
                ClientClass::Ipxe { firmware, .. } => by_ipxe = by_ipxe.or(Some(*firmware)),
                ClientClass::UnknownFirmware { .. } | ClientClass::Ramdisk | ClientClass::OperatingSystem => {
                }
            }
        }
        by_ipxe
    }

    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.events.iter().rev().find_map(|event| {
            let Happening::Dhcp { answer, address, .. } = &event.happening else { return None };
            (*address).filter(|_| answer.is_ok() || gives_address(&event.happening))
        })
    }

    /// What happened after the boot got as far as it did.
    pub(super) fn since_last_step(&self) -> &[&'a TimelineEvent] {
        let step = self.events.iter().rposition(|event| {
            event.happening.stage().is_some_and(|stage| Some(stage) == self.reached)
                && !is_problem(&event.happening)
        });
        &self.events[step.map_or(0, |index| index + 1)..]
    }

    /// The newest event that satisfies.
    pub(super) fn last(&self, wanted: impl Fn(&Happening) -> bool) -> Option<&'a TimelineEvent> {
        self.events.iter().rev().find(|event| wanted(&event.happening)).copied()
    }

    /// The newest completed file of a stage.
    pub(super) fn file_of(&self, wanted: Stage) -> Option<&'a TimelineEvent> {
        self.last(|happening| {
            matches!(happening, Happening::File { stage: Some(stage), outcome: FileOutcome::Complete | FileOutcome::Range, .. } if *stage == wanted)
        })
    }

    pub(super) fn script_plan(&self) -> Option<(&'a TimelineEvent, ScriptPlan)> {
        self.events.iter().rev().find_map(|event| {
            let Happening::Script { plan, .. } = &event.happening else { return None };
            Some((*event, *plan))
        })
    }

    /// The newest answer of DHCP to somebody of this kind.
    pub(super) fn last_dhcp(&self, by: impl Fn(ClientClass) -> bool) -> Option<&'a TimelineEvent> {
        self.last(|happening| matches!(happening, Happening::Dhcp { class, .. } if by(*class)))
    }

    /// Every stage with its time, and how it stands given what was found.
    pub(super) fn marks(&self, outcome: Outcome, at_stage: Stage) -> Vec<StageMark> {
        let mut times: BTreeMap<Stage, Timestamp> = BTreeMap::new();
        for event in self.events.iter().filter(|event| !is_problem(&event.happening)) {
            if let Some(stage) = event.happening.stage() {
                times.entry(stage).or_insert(event.at);
            }
        }
        let mark = |stage: Stage| {
            let tried =
                self.events.iter().rev().find(|event| words::stage_tried(&event.happening) == Some(stage));
            let at = times.get(&stage).copied().or_else(|| tried.map(|event| event.at));
            let passed = times.contains_key(&stage);
            let state = match (stage.cmp(&at_stage), outcome) {
                (Ordering::Greater, Outcome::Succeeded) => StageState::Skipped,
                (Ordering::Greater, Outcome::Stopped | Outcome::UnderWay | Outcome::Waiting) => {
                    StageState::Ahead
                }
                (Ordering::Equal, Outcome::Succeeded) => StageState::Passed,
                (Ordering::Equal, Outcome::Stopped) if !self.events.is_empty() => StageState::Stopped,
                (Ordering::Equal, Outcome::UnderWay | Outcome::Waiting) => StageState::Awaited,
                (Ordering::Equal, Outcome::Stopped) => StageState::Ahead,
                (Ordering::Less, _) if passed => StageState::Passed,
                (Ordering::Less, _) => StageState::Skipped,
            };
            let shown = matches!(state, StageState::Passed | StageState::Stopped | StageState::Awaited);
            let text = if shown { self.stage_text(stage) } else { String::new() };
            StageMark { stage, state, at: at.filter(|_| shown), text }
        };
        STAGES.map(mark).into()
    }

    fn stage_text(&self, stage: Stage) -> String {
        let newest =
            self.events.iter().rev().find(|event| words::stage_tried(&event.happening) == Some(stage));
        match (stage, newest) {
            (_, None) => String::new(),
            (Stage::Dhcp, Some(event)) => match self.address() {
                Some(address) if !is_problem(&event.happening) => self.dhcp_text(address),
                Some(_) | None => words::tell(&event.happening),
            },
            (_, Some(event)) => words::tell(&event.happening),
        }
    }

    /// The address and the exchanges that led to it: one of the ROM, one of iPXE, one of the ramdisk.
    fn dhcp_text(&self, address: Ipv4Addr) -> String {
        let mut exchanges: Vec<u32> = Vec::new();
        for event in &self.events {
            if let Happening::Dhcp { xid, answer: Ok(_), .. } = &event.happening
                && !exchanges.contains(xid)
            {
                exchanges.push(*xid);
            }
        }
        let ids: Vec<String> = exchanges.iter().map(|xid| format!("{xid:08x}")).collect();
        format!("{address}, transaction {}", ids.join(", "))
    }

    /// How long nothing has happened.
    pub(super) fn quiet_for(&self, now: Timestamp) -> Duration {
        self.last_at().map_or(Duration::ZERO, |at| now.since(at))
    }
}

/// An address was given: by us, or by another server where that is its part.
pub(super) fn gives_address(happening: &Happening) -> bool {
    match happening {
        Happening::Dhcp { answer: Ok(kind), address, .. } => kind == "ack" && address.is_some(),
        Happening::Dhcp { answer: Err(reason), address, .. } => {
            reason == ADDRESS_ELSEWHERE && address.is_some()
        }
        _ => false,
    }
}

/// What happened, not what it came to: no changes of state.
pub(super) fn is_news(happening: &Happening) -> bool {
    words::stage_tried(happening).is_some() || *happening == Happening::ApplianceStarted
}

/// A step that was tried and did not succeed; it carries its stage all the same.
pub(super) fn is_problem(happening: &Happening) -> bool {
    match happening {
        Happening::Agent { call: AgentCall::Failure { .. } } => true,
        Happening::Dhcp { answer: Err(reason), .. } => reason != ADDRESS_ELSEWHERE,
        Happening::Dhcp { answer: Ok(kind), boot_file, nothing_to_boot, .. } => {
            let nothing = nothing_to_boot.is_some_and(|reason| reason != NothingToBoot::NotABootClient);
            kind == "nak" || (boot_file.is_none() && nothing)
        }
        Happening::Agent { .. }
        | Happening::OtherServer { .. }
        | Happening::File { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => false,
    }
}
