//! One node in memory, and one change to it under way.

use std::sync::Arc;

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::node::registry::record::LoaderFetches;
use crate::node::state::ProvisionState;
use crate::node::timeline::history::{Bounds, History};
use crate::node::timeline::{Happening, TimelineEvent};
use crate::node::transition::{self, Event, Refusal};
use crate::node::{Node, NodeId, Origin};
use crate::store::Change;

pub(super) struct Entry {
    pub(super) node: Node,
    pub(super) history: History,
    pub(super) loaders: LoaderFetches,
    /// Since when its inventory is awaited; counted anew after a restart.
    pub(super) awaited_since: Option<Timestamp>,
    /// `last_seen_at` as last stored.
    pub(super) seen_stored_at: Option<Timestamp>,
}

impl Entry {
    pub(super) fn new(node: Node) -> Entry {
        Entry::with_history(node, History::default())
    }

    pub(super) fn with_history(node: Node, history: History) -> Entry {
        let seen_stored_at = node.last_seen_at;
        Entry { node, history, loaders: Default::default(), awaited_since: None, seen_stored_at }
    }

    /// What watchers are told when the node is gone.
    pub(super) fn farewell(&self, now: Timestamp) -> Arc<TimelineEvent> {
        let port = self.node.ports.first().map(|port| port.mac);
        let happening = Happening::Removed { name: self.node.name.clone(), port };
        Arc::new(TimelineEvent { node: self.node.id, boot: 0, sequence: 0, at: now, happening })
    }

    pub(super) fn is_unproven(&self) -> bool {
        self.node.origin == Origin::Seen && !self.node.approved
    }
}

/// One change to one node under way.
pub(super) struct Act<'a> {
    pub(super) entry: &'a mut Entry,
    pub(super) now: Timestamp,
    /// Operators approved it, or policy lets everybody in.
    pub(super) approved: bool,
    pub(super) bounds: Bounds,
    pub(super) effects: Effects,
    /// The durable record differs from what is stored.
    pub(super) node_changed: bool,
}

/// What a change asks of the shell.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) events: Vec<Arc<TimelineEvent>>,
    pub(super) changes: Vec<Change>,
}

impl Act<'_> {
    pub(super) fn note(&mut self, happening: Happening) {
        let noted = self.entry.history.note(self.entry.node.id, happening.bounded(), self.now, self.bounds);
        self.effects.changes.extend(noted.changes);
        self.effects.events.extend(noted.event);
    }

    /// Lets state follow an event; a change of state is an event of its own.
    pub(super) fn step(&mut self, event: Event) -> Result<(), Refusal> {
        let from = self.entry.node.state;
        let to = transition::apply(from, self.approved, event)?;
        if to == ProvisionState::Inspecting {
            self.entry.awaited_since = Some(self.now);
        }
        if from != to {
            self.entry.node.state = to;
            if to != ProvisionState::InspectFailed {
                self.entry.node.failure = None;
            }
            self.node_changed = true;
            self.note(Happening::State { from, to, cause: event.as_str().to_owned() });
        }
        Ok(())
    }
}

/// A node nobody knows anything of; `None` only if the kernel has no random bytes for its id.
pub(super) fn new_node(origin: Origin, now: Timestamp) -> Option<Node> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    let id = uuid::Builder::from_random_bytes(random).into_uuid();
    Some(Node {
        id: NodeId(id),
        name: None,
        uuid: None,
        ports: Vec::new(),
        origin,
        approved: origin == Origin::Registered,
        state: ProvisionState::Enroll,
        next_boot: NextBoot::Ramdisk,
        firmware: None,
        created_at: now,
        last_seen_at: None,
        enrolled_at: None,
        inventory: None,
        order: None,
        redeemed_token_at: None,
        redeemed_by: None,
        failure: None,
        version: 0,
    })
}
