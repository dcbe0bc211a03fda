//! Nodes as the pages see them: each in one condition that a person can act on.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use maud::{Markup, html};

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::state::ProvisionState;
use crate::node::timeline::Stage;
use crate::operator::api::NodeSummary;
use crate::operator::views::Leases;
use crate::page::{PageParts, source};

/// A machine that fetched something this short a time ago is on the wire now, to the eye.
const MOVING_FOR: Duration = Duration::from_secs(20);

/// What a node is doing, in an operator's words. In order of how much it wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Condition {
    Failed,
    /// It began to boot and stands still.
    Stuck,
    /// Somebody has to approve it.
    Waiting,
    Booting,
    Inspecting,
    /// Something is done to its disks, or will be at its next netboot.
    Installing,
    Enrolled,
    /// An installed system runs.
    Active,
    /// Registered, and never seen.
    New,
}

impl Condition {
    pub(super) const ALL: [Condition; 9] = [
        Condition::Failed,
        Condition::Stuck,
        Condition::Waiting,
        Condition::Booting,
        Condition::Inspecting,
        Condition::Installing,
        Condition::Enrolled,
        Condition::Active,
        Condition::New,
    ];

    pub(super) fn of(node: &NodeSummary, now: Timestamp, deadline: Duration) -> Condition {
        let moved_at = node.boot.as_ref().map(|boot| boot.stage_at.unwrap_or(boot.started_at));
        let in_time = |moved: Timestamp| now.since(moved) <= deadline;
        if node.state.is_failed() {
            return Condition::Failed;
        }
        if !node.approved {
            return Condition::Waiting;
        }
        match (node.state, moved_at) {
            (ProvisionState::Manageable | ProvisionState::Available, _) => Condition::Enrolled,
            (ProvisionState::Active, _) => Condition::Active,
            (
                ProvisionState::WaitCallBack
                | ProvisionState::Deploying
                | ProvisionState::CleanWait
                | ProvisionState::Cleaning
                | ProvisionState::Rescuing
                | ProvisionState::Rescue,
                _,
            ) => Condition::Installing,
            (
                ProvisionState::DeployFailed | ProvisionState::CleanFailed | ProvisionState::RescueFailed,
                _,
            ) => Condition::Failed,
            (ProvisionState::Inspecting, Some(moved)) if !in_time(moved) => Condition::Stuck,
            (ProvisionState::Inspecting | ProvisionState::InspectFailed, _) => Condition::Inspecting,
            (ProvisionState::Enroll, None) => Condition::New,
            (ProvisionState::Enroll, Some(moved)) if in_time(moved) => Condition::Booting,
            (ProvisionState::Enroll, Some(_)) => Condition::Stuck,
        }
    }

    /// Names its style and its filter.
    pub(super) fn key(self) -> &'static str {
        match self {
            Condition::Failed => "failed",
            Condition::Stuck => "stuck",
            Condition::Waiting => "waiting",
            Condition::Booting => "booting",
            Condition::Inspecting => "inspecting",
            Condition::Installing => "installing",
            Condition::Enrolled => "enrolled",
            Condition::Active => "active",
            Condition::New => "new",
        }
    }

    pub(super) fn from_key(key: &str) -> Option<Condition> {
        Condition::ALL.into_iter().find(|condition| condition.key() == key)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Condition::Failed => "failed",
            Condition::Stuck => "stuck",
            Condition::Waiting => "waiting for approval",
            Condition::Booting => "booting",
            Condition::Inspecting => "inspecting",
            Condition::Installing => "installing",
            Condition::Enrolled => "enrolled",
            Condition::Active => "active",
            Condition::New => "never booted",
        }
    }

    /// The shape that says the same as the colour, in a square of 16.
    fn shape(self) -> &'static str {
        match self {
            // A cross.
            Condition::Failed => "M3 5 5 3l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
            // A triangle, point up.
            Condition::Stuck => "M8 2 15 14H1z",
            // A diamond.
            Condition::Waiting => "M8 1 15 8 8 15 1 8z",
            // An arrow to the right.
            Condition::Booting => "M3 2 14 8 3 14z",
            // A ring.
            Condition::Inspecting => "M8 1a7 7 0 1 0 0 14A7 7 0 1 0 8 1zm0 4a3 3 0 1 1 0 6 3 3 0 1 1 0-6z",
            // An arrow down, onto a line.
            Condition::Installing => "M6 1h4v6h4l-6 6-6-6h4zM2 13.500h12v2H2z",
            // A disc.
            Condition::Enrolled => "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 1 0 0-13z",
            // A check mark.
            Condition::Active => "M6.200 14 1 8.500 3 6.500l3.200 3.200L13 3l2 2z",
            // A frame.
            Condition::New => "M2 2h12v12H2zm2.500 2.500v7h7v-7z",
        }
    }

    /// The shape alone; the word stands beside it.
    pub(super) fn glyph(self) -> Markup {
        html! {
            svg class={ "glyph is-" (self.key()) } viewBox="0 0 16 16" width="14" height="14" aria-hidden="true" {
                path fill-rule="evenodd" d=(self.shape()) {}
            }
        }
    }

    /// Shape and word.
    pub(super) fn badge(self) -> Markup {
        html! { span class={ "badge is-" (self.key()) } { (self.glyph()) (self.word()) } }
    }
}

/// One node, ready to be shown.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) node: NodeSummary,
    pub(super) condition: Condition,
    /// It fetched something a moment ago.
    pub(super) moving: Option<Stage>,
}

impl Row {
    pub(super) fn new(node: NodeSummary, now: Timestamp, deadline: Duration) -> Row {
        let condition = Condition::of(&node, now, deadline);
        let moving = node.boot.as_ref().and_then(|boot| {
            let fresh = boot.stage_at.is_some_and(|at| now.since(at) <= MOVING_FOR);
            (fresh && !boot.enrolled).then_some(boot.stage).flatten()
        });
        Row { node, condition, moving }
    }

    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.node.ports.iter().find_map(|port| port.address.or(port.reserved))
    }

    pub(super) fn mac(&self) -> Option<MacAddr> {
        self.node.ports.first().map(|port| port.mac)
    }

    /// Where its newest boot stands, in a line.
    pub(super) fn progress(&self) -> String {
        match &self.node.boot {
            None => String::new(),
            Some(boot) if boot.enrolled => String::new(),
            Some(boot) => boot.stopped_at.clone().unwrap_or_default(),
        }
    }
}

impl PageParts {
    pub(super) fn now(&self) -> Timestamp {
        self.operator.clock.now()
    }

    /// How long a boot may stand still before it is stuck.
    pub(super) fn deadline(&self) -> Duration {
        self.operator.config.load().boot.call_deadline
    }

    /// Every node.
    pub(super) fn rows(&self) -> Vec<Row> {
        let (now, deadline) = (self.now(), self.deadline());
        let row = |node| self.fetching(Row::new(node, now, deadline));
        source::summaries(&self.operator).into_iter().map(row).collect()
    }

    /// A long download moves also when nothing has been reached for a while.
    fn fetching(&self, row: Row) -> Row {
        let asked = match row.condition {
            Condition::Booting | Condition::Inspecting | Condition::Stuck => row.mac(),
            Condition::Failed
            | Condition::Waiting
            | Condition::Installing
            | Condition::Enrolled
            | Condition::Active
            | Condition::New => None,
        };
        let fetching = asked.and_then(|mac| self.operator.registry.fetching(mac));
        Row { moving: fetching.map(|fetching| fetching.stage).or(row.moving), ..row }
    }

    /// Leases, by address.
    pub(super) fn leases(&self) -> Arc<Leases> {
        self.operator.appliance.leases()
    }

    /// Addresses fixed for a port, and whose they are.
    pub(super) fn reservations(&self, names: &HashMap<MacAddr, String>) -> Vec<(Ipv4Addr, String)> {
        let owner = |mac: MacAddr| names.get(&mac).cloned().unwrap_or_else(|| mac.to_string());
        let kept = self.operator.registry.reservations();
        kept.iter().map(|(address, (mac, _))| (*address, owner(*mac))).collect()
    }

    /// Names of nodes by MAC.
    pub(super) fn names(&self) -> HashMap<MacAddr, String> {
        let named =
            source::summaries(&self.operator).into_iter().filter_map(|node| Some((node.name?, node.ports)));
        named
            .flat_map(|(name, ports)| ports.into_iter().map(move |port| (port.mac, name.to_string())))
            .collect()
    }
}

/// How many rows there are of each condition.
pub(super) fn census(rows: &[Row]) -> Vec<(Condition, u64)> {
    let count = |condition| rows.iter().filter(|row| row.condition == condition).count() as u64;
    Condition::ALL.map(|condition| (condition, count(condition))).to_vec()
}
