//! One node in memory, and one change to it under way.

use std::sync::Arc;

use crate::boot::client::{Client, ClientClass};
use crate::boot::decision::NextBoot;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::install::first_boot::FirstBoot;
use crate::node::registry::install::Work;
use crate::node::registry::record::LoaderFetches;
use crate::node::registry::waiting::WAITING_LIFETIME;
use crate::node::state::ProvisionState;
use crate::node::timeline::history::{Bounds, History};
use crate::node::timeline::{Happening, Stage, TimelineEvent};
use crate::node::transition::{self, Event, Refusal};
use crate::node::{Node, NodeId, Origin};
use crate::store::Change;

pub(super) struct Entry {
    pub(super) node: Node,
    pub(super) history: History,
    pub(super) loaders: LoaderFetches,
    /// Since when its inventory is awaited; counted anew after a restart.
    pub(super) awaited_since: Option<Timestamp>,
    /// Until when the newest boot token issued to it is good; not kept over a restart.
    pub(super) token_until: Option<Timestamp>,
    /// Behind which port of the bridge the machine was that has it, and which of its own ports that is.
    pub(super) token_port: Option<(MacAddr, u32)>,
    /// What the operator gave for the installed system.
    pub(super) first_boot: Option<FirstBoot>,
    /// How the task on its disks is going.
    pub(super) work: Work,
    /// `last_seen_at` as last stored.
    pub(super) seen_stored_at: Option<Timestamp>,
}

impl Entry {
    pub(super) fn new(node: Node) -> Entry {
        Entry::with_history(node, History::default())
    }

    pub(super) fn with_history(node: Node, history: History) -> Entry {
        let seen_stored_at = node.last_seen_at;
        Entry {
            node,
            history,
            loaders: Default::default(),
            awaited_since: None,
            token_until: None,
            token_port: None,
            first_boot: None,
            work: Work::default(),
            seen_stored_at,
        }
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

    /// Who it was to DHCP, if it was here a moment ago.
    pub(super) fn as_client(&self, now: Timestamp) -> Option<Client> {
        let mac = self.node.ports.first()?.mac;
        let firmware = self.node.firmware?;
        let recent = now.since(self.node.last_seen_at?) <= WAITING_LIFETIME;
        let class = ClientClass::Firmware { firmware };
        recent.then_some(Client { mac, class, uuid: self.node.uuid })
    }

    /// Which unproven node has to go first: the least of these.
    pub(super) fn worth(&self) -> Worth {
        Worth {
            boots_now: self.token_until.is_some() || self.node.state == ProvisionState::Inspecting,
            stage: self.history.current_stage(),
            created_at: self.node.created_at,
            id: self.node.id,
        }
    }
}

/// What is lost with an unproven node, in order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth {
    /// It holds a boot token, or its ramdisk was served: without its node its agent would be turned away.
    boots_now: bool,
    /// How far its current boot has come.
    stage: Option<Stage>,
    /// The older goes first.
    created_at: Timestamp,
    pub(super) id: NodeId,
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
        self.note_at(happening, self.now);
    }

    /// What happened before the node was one.
    pub(super) fn note_at(&mut self, happening: Happening, at: Timestamp) {
        let noted = self.entry.history.note(self.entry.node.id, happening.bounded(), at, self.bounds);
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
        quirks: Quirks::default(),
        firmware: None,
        created_at: now,
        last_seen_at: None,
        enrolled_at: None,
        inventory: None,
        order: None,
        redeemed_token_at: None,
        redeemed_by: None,
        labels: Default::default(),
        intent: None,
        failure: None,
        version: 0,
    })
}
