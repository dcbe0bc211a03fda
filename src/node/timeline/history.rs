//! One node's boots in memory: where a boot begins, what is kept of it, and the changes that keep the store alike.
//!
//! A boot begins when firmware starts over: with a DISCOVER of a boot ROM after the boot before it got past the ROM.
//! A ROM that repeats itself, or tries HTTP after PXE, is still at the same boot; so is iPXE that we chainloaded.
//! iPXE in ROM is told from it by what came before: no other firmware asked in that boot.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::boot::client::ClientClass;
use crate::boot::decision::ScriptPlan;
use crate::clock::Timestamp;
use crate::node::NodeId;
use crate::node::timeline::{
    BOOTS_MAX, Boot, BootProgress, EVENTS_PER_BOOT_MAX, FileOutcome, Happening, Stage, TimelineEvent, explain,
};
use crate::store::Change;

/// A ROM that was silent this long was switched off: even UEFI's slowest round through its boot options is shorter.
pub const BOOT_GAP: Duration = Duration::from_secs(10 * 60);
/// Events of number 0 kept: registrations and approvals are rare.
pub const OUTSIDE_MAX: usize = 64;
/// Places in every boot that DHCP, files and refusals cannot take, so that a chatty client hides no change of state.
const RESERVED_FOR_STATE: usize = 32;

/// A script that is asked for again tells the same of its profile again: each rule that was passed over, and the choice.
const PROFILE_EVENTS_NEAR: usize = 16;

/// How much is kept of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub boots: usize,
    pub events_per_boot: usize,
}

impl Bounds {
    pub const USUAL: Bounds = Bounds { boots: BOOTS_MAX, events_per_boot: EVENTS_PER_BOOT_MAX };
    /// For MACs nobody vouches for, which may be made up by the thousand; one whole boot still fits.
    pub const TIGHT: Bounds = Bounds { boots: 2, events_per_boot: 64 };
    /// For the same when there are many of them: about 7 KB, since half of the events are kept for changes of state.
    pub const TIGHTEST: Bounds = Bounds { boots: 1, ..Bounds::TIGHT };
}

#[derive(Debug, Default)]
pub struct History {
    /// Number 0 first, if there.
    logs: VecDeque<BootLog>,
    last_number: u32,
    events: usize,
}

#[derive(Debug)]
pub(super) struct BootLog {
    pub(super) number: u32,
    pub(super) started_at: Timestamp,
    last_at: Timestamp,
    pub(super) stage: Option<Stage>,
    /// A boot ROM other than iPXE asked in this boot.
    by_firmware: bool,
    /// The ramdisk or an operating system asked in this boot.
    by_system: bool,
    next_sequence: u32,
    pub(super) events: Vec<Arc<TimelineEvent>>,
    unrecorded: u32,
}

/// What noting a happening came to.
#[derive(Debug, Default)]
pub struct Noted {
    /// Absent if it was only counted.
    pub event: Option<Arc<TimelineEvent>>,
    pub changes: Vec<Change>,
    /// A boot began with it.
    pub opened: bool,
}

impl History {
    /// From one node's events in order of (boot, sequence).
    pub fn from_events(events: impl IntoIterator<Item = TimelineEvent>) -> History {
        let mut history = History::default();
        for event in events {
            if history.logs.back().is_none_or(|log| log.number != event.boot) {
                history.logs.push_back(BootLog::new(event.boot, event.at));
            }
            if let Some(log) = history.logs.back_mut() {
                log.absorb(&event.happening, event.at);
                log.next_sequence = event.sequence.saturating_add(1);
                log.events.push(Arc::new(event));
                history.events += 1;
            }
        }
        history.last_number = history.logs.back().map_or(0, |log| log.number);
        history
    }

    pub fn event_count(&self) -> usize {
        self.events
    }

    pub fn note(&mut self, node: NodeId, happening: Happening, at: Timestamp, bounds: Bounds) -> Noted {
        let mut noted = Noted::default();
        if self.opens_boot(&happening, at) {
            noted.opened = true;
            self.last_number = self.last_number.saturating_add(1);
            self.logs.push_back(BootLog::new(self.last_number, at));
        } else if self.log_for(&happening).is_none() {
            self.logs.push_front(BootLog::new(0, at));
        }
        self.trim_boots(node, bounds, &mut noted.changes);
        let Some(log) = self.log_for(&happening) else {
            return noted;
        };
        log.absorb(&happening, at);
        let limit = if is_chatter(&happening) {
            bounds.events_per_boot.saturating_sub(RESERVED_FOR_STATE)
        } else {
            bounds.events_per_boot
        };
        let full = log.number != 0 && log.events.len() >= limit;
        if full || log.repeats(&happening) {
            log.unrecorded = log.unrecorded.saturating_add(1);
            return noted;
        }
        let shortened = log.number == 0 && log.events.len() >= OUTSIDE_MAX;
        let before = log.events.len();
        if shortened {
            noted.changes.push(Change::DropBoot { node, boot: 0 });
            log.events.drain(..OUTSIDE_MAX / 2);
            noted
                .changes
                .extend(log.events.iter().map(|event| Change::PutEvent(Box::new((**event).clone()))));
        }
        let event =
            Arc::new(TimelineEvent { node, boot: log.number, sequence: log.next_sequence, at, happening });
        log.next_sequence = log.next_sequence.saturating_add(1);
        log.events.push(Arc::clone(&event));
        let after = log.events.len();
        self.events = self.events + after - before;
        noted.changes.push(Change::PutEvent(Box::new((*event).clone())));
        noted.event = Some(event);
        noted
    }

    /// Drops boots beyond the bound, oldest first, never the current one.
    pub fn trim_boots(&mut self, node: NodeId, bounds: Bounds, changes: &mut Vec<Change>) {
        while self.logs.iter().filter(|log| log.number != 0).count() > bounds.boots.max(1) {
            let Some(oldest) = self.logs.iter().position(|log| log.number != 0) else {
                return;
            };
            if let Some(log) = self.logs.remove(oldest) {
                self.events -= log.events.len();
                changes.push(Change::DropBoot { node, boot: log.number });
            }
        }
    }

    /// The whole of it, to write again what may not have reached the disk.
    pub fn all_events(&self) -> impl Iterator<Item = &Arc<TimelineEvent>> {
        self.logs.iter().flat_map(|log| &log.events)
    }

    pub fn boots(&self) -> Vec<Boot> {
        self.logs.iter().map(BootLog::view).collect()
    }

    pub fn boot(&self, number: u32) -> Option<Boot> {
        self.logs.iter().find(|log| log.number == number).map(BootLog::view)
    }

    pub fn newest_boot(&self) -> Option<BootProgress> {
        self.logs.back().filter(|log| log.number != 0).map(BootLog::progress)
    }

    /// The boot that what is fetched now belongs to; the first fetch opens the first.
    pub fn newest_number(&self) -> u32 {
        self.last_number.max(1)
    }

    /// When the newest boot began, if there was one: no other boot of the node began then.
    pub fn current_since(&self) -> Option<Timestamp> {
        self.logs.back().filter(|log| log.number != 0).map(|log| log.started_at)
    }

    /// Whether a boot has begun, is not through, and moved lately.
    pub fn is_under_way(&self, now: Timestamp) -> bool {
        let newest = self.logs.back().filter(|log| log.number != 0);
        newest.is_some_and(|log| log.stage != Some(Stage::Enrolled) && now.since(log.last_at) <= BOOT_GAP)
    }

    /// How far the newest boot has come.
    pub fn current_stage(&self) -> Option<Stage> {
        self.logs.back().filter(|log| log.number != 0).and_then(|log| log.stage)
    }

    /// The log a happening belongs to: number 0 for what has nothing to do with a boot, or comes before the first.
    fn log_for(&mut self, happening: &Happening) -> Option<&mut BootLog> {
        let outside = is_outside(happening);
        let last = self.logs.back().filter(|log| log.number != 0).is_some();
        if outside || !last {
            self.logs.front_mut().filter(|log| log.number == 0)
        } else {
            self.logs.back_mut()
        }
    }

    fn opens_boot(&self, happening: &Happening, at: Timestamp) -> bool {
        let Some(current) = self.logs.back().filter(|log| log.number != 0) else {
            return match happening {
                Happening::Dhcp { class, .. } => class.wants_boot(),
                Happening::File { .. } | Happening::Script { .. } | Happening::Agent { .. } => true,
                Happening::OtherServer { .. }
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
            };
        };
        let Happening::Dhcp { class, message, .. } = happening else {
            return false;
        };
        if message != "discover" {
            return false;
        }
        let gone = at.since(current.last_at) > BOOT_GAP;
        match class {
            ClientClass::Firmware { .. } | ClientClass::UnknownFirmware { .. } => {
                gone || current.by_system || current.stage > Some(Stage::Dhcp)
            }
            ClientClass::Ipxe { .. } => {
                gone || current.by_system || (!current.by_firmware && current.stage >= Some(Stage::Script))
            }
            ClientClass::Ramdisk | ClientClass::OperatingSystem => false,
        }
    }
}

impl BootLog {
    fn new(number: u32, at: Timestamp) -> BootLog {
        BootLog {
            number,
            started_at: at,
            last_at: at,
            stage: None,
            by_firmware: false,
            by_system: false,
            next_sequence: 0,
            events: Vec::new(),
            unrecorded: 0,
        }
    }

    fn absorb(&mut self, happening: &Happening, at: Timestamp) {
        self.last_at = self.last_at.max(at);
        self.stage = self.stage.max(happening.stage());
        if let Happening::Dhcp { class, .. } = happening {
            match class {
                ClientClass::Firmware { .. } | ClientClass::UnknownFirmware { .. } => self.by_firmware = true,
                ClientClass::Ipxe { .. } => {}
                ClientClass::Ramdisk | ClientClass::OperatingSystem => self.by_system = true,
            }
        }
    }

    /// A node that waits for approval asks for its script again and again; once is enough.
    fn repeats(&self, happening: &Happening) -> bool {
        if matches!(happening, Happening::Profile { .. }) {
            return self
                .events
                .iter()
                .rev()
                .take(PROFILE_EVENTS_NEAR)
                .any(|event| event.happening == *happening);
        }
        let Some(again) = fetched_text(happening) else {
            return false;
        };
        let of_texts =
            self.events.iter().rev().filter(|event| !matches!(event.happening, Happening::Profile { .. }));
        of_texts.take(2).any(|event| fetched_text(&event.happening).as_ref() == Some(&again))
    }

    fn progress(&self) -> BootProgress {
        let enrolled = self.stage == Some(Stage::Enrolled);
        let reached = |event: &&Arc<TimelineEvent>| event.happening.stage() == self.stage;
        BootProgress {
            number: self.number,
            started_at: self.started_at,
            stage: self.stage,
            stage_at: self.stage.and_then(|_| self.events.iter().find(reached)).map(|event| event.at),
            enrolled,
            stopped_at: if self.number == 0 || enrolled { None } else { Some(explain::stopped_at(self)) },
        }
    }

    fn view(&self) -> Boot {
        let mut times = std::collections::BTreeMap::new();
        for event in &self.events {
            if let Some(stage) = event.happening.stage() {
                times.entry(stage).or_insert(event.at);
            }
        }
        let BootProgress { number, started_at, stage, enrolled, stopped_at, .. } = self.progress();
        Boot {
            number,
            started_at,
            stage,
            times,
            enrolled,
            stopped_at,
            events: self.events.iter().map(|event| (**event).clone()).collect(),
            unrecorded: self.unrecorded,
        }
    }
}

/// The text fetched and what came of it, without the times.
fn fetched_text(happening: &Happening) -> Option<(&str, Option<ScriptPlan>, Option<&FileOutcome>)> {
    if let Happening::Script { name, plan, .. } = happening {
        return Some((name, Some(*plan), None));
    }
    if let Happening::File { stage: Some(Stage::Script), name, outcome, .. } = happening {
        return Some((name, None, Some(outcome)));
    }
    None
}

/// What belongs to no boot, even while one is under way.
fn is_outside(happening: &Happening) -> bool {
    match happening {
        Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. } => true,
        Happening::Dhcp { .. }
        | Happening::OtherServer { .. }
        | Happening::File { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => false,
    }
}

/// What anyone on the bridge can cause as often as it likes.
fn is_chatter(happening: &Happening) -> bool {
    match happening {
        Happening::Dhcp { .. }
        | Happening::OtherServer { .. }
        | Happening::File { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::AgentRefused { .. } => true,
        Happening::Agent { .. }
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

#[cfg(test)]
mod tests;
