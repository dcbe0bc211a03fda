//! Nodes in memory, and the indexes that find them.
//!
//! Everything here is quick and waits for nothing. A change to a node goes through [`Book::change`], which gathers
//! the timeline events and store changes that come of it and keeps the indexes true.
//!
//! A node is *unproven* while nobody vouches for it: seen on the wire, never approved, never called home. Anyone on
//! the bridge can make those up, so they are bounded, keep a short timeline, and make room for the next: first those
//! whose boot has come least far, then the oldest, and one in the middle of its boot only if all are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use crate::boot::decision::{KnownNode, Standing, UnknownPolicy};
use crate::clock::Timestamp;
use crate::config::Reservation;
use crate::net::MacAddr;
use crate::node::install::first_boot::FirstBoot;
use crate::node::registry::entry::{Act, Effects, Entry, Worth, new_node};
use crate::node::registry::pages::NodeCursor;
use crate::node::registry::profiles::Profiles;
use crate::node::registry::waiting::WaitingRoom;
use crate::node::registry::{Census, NodeRef, OperatorError, RegistrySettings, ReservationConflict};
use crate::node::state::ProvisionState;
use crate::node::timeline::history::{Bounds, History};
use crate::node::timeline::{Boot, Happening, TimelineEvent};
use crate::node::{Node, NodeId, NodeName, Origin, PORTS_MAX, Port};
use crate::store::{Change, Snapshot};

/// Nodes known at once: however many unproven ones there are, as many others fit, which is more than one appliance is
/// built for.
pub const NODES_MAX: usize = 2 * UNPROVEN_MAX;
/// Unproven nodes known at once. 10 000 new machines that are switched on together are all unproven until their agents
/// call, and none of them may push out another; 16 384 take about 115 MB (7 KB each with the shortest timeline).
pub const UNPROVEN_MAX: usize = 16_384;
/// Events in memory at which everybody's timeline is kept short: about 60 MB.
pub const TIMELINE_EVENTS_MAX: usize = 262_144;

pub(super) struct Book {
    settings: RegistrySettings,
    nodes: BTreeMap<NodeId, Entry>,
    by_mac: BTreeMap<MacAddr, NodeId>,
    by_name: BTreeMap<NodeName, NodeId>,
    /// Addresses operators fixed when they registered a node.
    by_address: BTreeMap<Ipv4Addr, MacAddr>,
    /// Addresses the configuration fixes, where no operator has: see [`Book::conflicts`].
    configured: BTreeMap<MacAddr, Ipv4Addr>,
    configured_by_address: BTreeMap<Ipv4Addr, MacAddr>,
    /// Reservations of the configuration whose node is not looked at yet.
    unregistered: bool,
    /// In the order in which they have to go.
    unproven: BTreeSet<Worth>,
    /// Unproven nodes by the end of their boot token.
    tokens: BTreeSet<(Timestamp, NodeId)>,
    waiting: WaitingRoom,
    /// In the order in which they became known, which is the order of lists.
    by_age: BTreeSet<(Timestamp, NodeId)>,
    events: usize,
    profiles: Option<Box<dyn Profiles>>,
}

impl Book {
    /// The book, and changes that bring the store in line with its bounds.
    pub(super) fn from_snapshot(snapshot: Snapshot, settings: RegistrySettings) -> (Book, Vec<Change>) {
        let mut book = Book {
            settings: RegistrySettings { reservations: Vec::new(), ..settings.clone() },
            nodes: BTreeMap::new(),
            by_mac: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            configured: BTreeMap::new(),
            configured_by_address: BTreeMap::new(),
            unregistered: false,
            unproven: BTreeSet::new(),
            tokens: BTreeSet::new(),
            waiting: WaitingRoom::default(),
            by_age: BTreeSet::new(),
            events: 0,
            profiles: None,
        };
        let mut changes = Vec::new();
        let mut first_boots: BTreeMap<NodeId, FirstBoot> =
            snapshot.first_boots.into_iter().map(|first_boot| (first_boot.node, first_boot)).collect();
        let mut timelines: BTreeMap<NodeId, Vec<TimelineEvent>> = BTreeMap::new();
        for event in snapshot.events {
            timelines.entry(event.node).or_default().push(event);
        }
        for mut node in snapshot.nodes {
            let mut history = History::from_events(timelines.remove(&node.id).unwrap_or_default());
            history.trim_boots(node.id, Bounds::USUAL, &mut changes);
            // Ids are unique in the store; MACs and names are by our own doing, unless somebody edited the file.
            node.ports.retain(|port| !book.by_mac.contains_key(&port.mac));
            node.name = node.name.filter(|name| !book.by_name.contains_key(name));
            let first_boot = first_boots.remove(&node.id);
            book.insert(Entry { first_boot, ..Entry::with_history(node, history) });
        }
        // Timelines of nodes that are gone or could not be read.
        changes.extend(timelines.into_keys().map(Change::DropNode));
        book.configure(settings);
        (book, changes)
    }

    pub(super) fn configure(&mut self, settings: RegistrySettings) {
        self.configured = settings.reservations.iter().map(|entry| (entry.mac, entry.address)).collect();
        self.configured_by_address =
            settings.reservations.iter().map(|entry| (entry.address, entry.mac)).collect();
        self.unregistered = !settings.reservations.is_empty();
        self.settings = settings;
    }

    pub(super) fn follow_profiles(&mut self, profiles: Box<dyn Profiles>) {
        self.profiles = Some(profiles);
    }

    pub(super) fn settings(&self) -> &RegistrySettings {
        &self.settings
    }

    /// Makes every MAC the configuration reserves an address for a registered node; done once per configuration.
    pub(super) fn register_configured(&mut self, now: Timestamp) -> Vec<(NodeId, Effects)> {
        let mut done = Vec::new();
        if !std::mem::take(&mut self.unregistered) {
            return done;
        }
        for reservation in self.settings.reservations.clone() {
            if self.by_address.get(&reservation.address).is_some_and(|owner| *owner != reservation.mac) {
                continue;
            }
            let name = reservation.name.filter(|name| !self.by_name.contains_key(name));
            let id = match self.by_mac.get(&reservation.mac) {
                Some(id) => *id,
                None => {
                    let Some(node) = new_node(Origin::Registered, now) else { continue };
                    let ports = vec![Port { mac: reservation.mac, reserved: None }];
                    self.insert(Entry::new(Node { ports, ..node }))
                }
            };
            let outcome = self.change(id, now, |act| {
                let node = &mut act.entry.node;
                let is_new = node.version == 0;
                act.node_changed = is_new || !node.approved || (node.name.is_none() && name.is_some());
                node.approved = true;
                if node.name.is_none() {
                    node.name = name;
                }
                if is_new {
                    act.note(Happening::Registered);
                }
            });
            done.extend(outcome.map(|((), effects)| (id, effects)));
        }
        done
    }

    pub(super) fn look_at_configuration_again(&mut self) {
        self.unregistered |= !self.settings.reservations.is_empty();
    }

    pub(super) fn waiting(&mut self) -> &mut WaitingRoom {
        &mut self.waiting
    }

    /// The reservations of the configuration that contradict an operator's, which stays as it is.
    pub(super) fn conflicts(&self) -> Vec<ReservationConflict> {
        let conflict = |reservation: &Reservation| {
            let (mac, address) = (reservation.mac, reservation.address);
            let elsewhere = self.by_address.get(&address).filter(|owner| **owner != mac);
            let otherwise = || {
                let entry = self.nodes.get(self.by_mac.get(&mac)?)?;
                let port = entry.node.ports.iter().find(|port| port.mac == mac)?;
                port.reserved.filter(|fixed| *fixed != address).map(|fixed| (mac, fixed))
            };
            let (owner, fixed) = elsewhere.map(|owner| (*owner, address)).or_else(otherwise)?;
            let node = self.by_mac.get(&owner).and_then(|id| self.nodes.get(id));
            let name = node.and_then(|entry| entry.node.name.as_ref());
            Some(ReservationConflict {
                mac,
                name: reservation
                    .name
                    .as_ref()
                    .map_or_else(|| "without a name".to_owned(), NodeName::to_string),
                address,
                owner,
                owner_name: name.map_or_else(|| owner.to_string(), NodeName::to_string),
                fixed,
            })
        };
        self.settings.reservations.iter().filter_map(conflict).collect()
    }

    /// Whether a node may be added.
    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many nodes may be added.
    pub(super) fn room(&self) -> usize {
        NODES_MAX.saturating_sub(self.nodes.len())
    }

    /// The unproven node that has to go before another unproven one comes.
    pub(super) fn evict_for_newcomer(&mut self, now: Timestamp) -> Option<Entry> {
        if self.unproven.len() < UNPROVEN_MAX && self.has_room() {
            return None;
        }
        self.expire_tokens(now);
        let id = self.unproven.first()?.id;
        self.remove(id)
    }

    /// A token that has lapsed protects nobody.
    fn expire_tokens(&mut self, now: Timestamp) {
        while let Some((_, id)) = self.tokens.first().copied().filter(|(until, _)| *until < now) {
            self.unindex(id);
            if let Some(entry) = self.nodes.get_mut(&id) {
                entry.token_until = None;
            }
            self.index(id);
        }
    }

    pub(super) fn insert(&mut self, entry: Entry) -> NodeId {
        let id = entry.node.id;
        self.events += entry.history.event_count();
        self.by_age.insert((entry.node.created_at, id));
        self.nodes.insert(id, entry);
        self.index(id);
        id
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Entry> {
        self.unindex(id);
        let entry = self.nodes.remove(&id)?;
        self.by_age.remove(&(entry.node.created_at, id));
        self.events -= entry.history.event_count();
        // An address that has become free may be one the configuration could not have until now.
        let freed = entry.node.ports.iter().any(|port| port.reserved.is_some());
        self.unregistered |= freed && !self.settings.reservations.is_empty();
        Some(entry)
    }

    /// Changes one node; indexes follow, its version grows if its record changed.
    pub(super) fn change<R>(
        &mut self,
        id: NodeId,
        now: Timestamp,
        change: impl FnOnce(&mut Act<'_>) -> R,
    ) -> Option<(R, Effects)> {
        self.unindex(id);
        let outcome = self.nodes.get_mut(&id).map(|entry| {
            let before = entry.history.event_count();
            let bounds = match (self.events > TIMELINE_EVENTS_MAX, entry.is_unproven()) {
                (true, true) => Bounds::TIGHTEST,
                (true, false) | (false, true) => Bounds::TIGHT,
                (false, false) => Bounds::USUAL,
            };
            let approved = entry.node.approved || self.settings.unknown == UnknownPolicy::Enroll;
            let mut act =
                Act { entry, now, approved, bounds, effects: Effects::default(), node_changed: false };
            let result = change(&mut act);
            let Act { entry, mut effects, node_changed, .. } = act;
            if node_changed {
                entry.node.version += 1;
                entry.seen_stored_at = entry.node.last_seen_at;
                effects.changes.push(Change::PutNode(Box::new(entry.node.clone())));
            }
            self.events = self.events + entry.history.event_count() - before;
            (result, effects)
        });
        self.index(id);
        outcome
    }

    /// Everything known of a node, to write again what may not have reached the disk; and nothing else of it, for what
    /// was dropped may not have been dropped there.
    pub(super) fn whole(&self, id: NodeId) -> Vec<Change> {
        let mut changes = vec![Change::DropNode(id)];
        let Some(entry) = self.nodes.get(&id) else { return changes };
        let events = entry.history.all_events().map(|event| Change::PutEvent(Box::new((**event).clone())));
        changes.push(Change::PutNode(Box::new(entry.node.clone())));
        changes.extend(entry.first_boot.iter().map(|it| Change::PutFirstBoot(Box::new(it.clone()))));
        changes.extend(events);
        changes
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Entry> {
        self.nodes.get(&id)
    }

    pub(super) fn ids_in(&self, state: ProvisionState) -> Vec<NodeId> {
        let entries = self.nodes.iter();
        entries.filter(|(_, entry)| entry.node.state == state).map(|(id, _)| *id).collect()
    }

    /// Nodes with a task that may still come to something.
    pub(super) fn ids_with_open_intent(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, entry)| entry.node.has_open_task()).map(|(id, _)| *id).collect()
    }

    /// Nodes in the middle of a boot.
    pub(super) fn ids_under_way(&self, now: Timestamp) -> Vec<NodeId> {
        let entries = self.nodes.iter();
        entries.filter(|(_, entry)| entry.history.is_under_way(now)).map(|(id, _)| *id).collect()
    }

    pub(super) fn owner_of(&self, mac: MacAddr) -> Option<NodeId> {
        self.by_mac.get(&mac).copied()
    }

    pub(super) fn owner_of_name(&self, name: &NodeName) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn is_configured(&self, mac: MacAddr) -> bool {
        self.configured.contains_key(&mac)
    }

    /// Sorts NICs an agent reports into new ports of its node and those that belong to another.
    pub(super) fn sort_nics(
        &self,
        id: NodeId,
        macs: impl Iterator<Item = MacAddr>,
    ) -> (Vec<MacAddr>, Vec<(MacAddr, NodeId)>) {
        let room = self.nodes.get(&id).map_or(0, |entry| PORTS_MAX.saturating_sub(entry.node.ports.len()));
        let (mut new, mut taken) = (Vec::new(), Vec::new());
        for mac in macs {
            match self.owner_of(mac) {
                Some(owner) if owner == id => {}
                Some(owner) => taken.push((mac, owner)),
                // The operator promised this address to somebody; only that machine's own DISCOVER may claim it.
                None if self.is_configured(mac) => {}
                None if new.len() < room => new.push(mac),
                None => {}
            }
        }
        (new, taken)
    }

    pub(super) fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing {
        let Some(entry) = self.owner_of(mac).and_then(|id| self.nodes.get(&id)) else {
            return Standing::Stranger;
        };
        Standing::Known(KnownNode {
            id: entry.node.id,
            approved: self.lets_in(entry),
            proven: entry.node.approved,
            next_boot: entry.node.boots_next(),
            task_open: entry.node.has_open_task(),
            installer: entry.node.installer().cloned(),
            profile: self
                .profiles
                .as_ref()
                .and_then(|profiles| profiles.assigned(&entry.node, entry.history.newest_number())),
            reserved: self.reserved(entry, mac),
            fruitless_loaders: entry.loaders.fruitless(mac, now),
            quirks: entry.node.quirks.effective(),
        })
    }

    pub(super) fn lets_in(&self, entry: &Entry) -> bool {
        entry.node.approved || self.settings.unknown == UnknownPolicy::Enroll
    }

    pub(super) fn reserved(&self, entry: &Entry, mac: MacAddr) -> Option<Ipv4Addr> {
        let port = entry.node.ports.iter().find(|port| port.mac == mac)?;
        let address = port.reserved.or_else(|| self.configured.get(&mac).copied());
        address.filter(|address| self.reserved_for(*address) == Some(mac))
    }

    pub(super) fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.by_address.get(&address).or_else(|| self.configured_by_address.get(&address)).copied()
    }

    pub(super) fn reservations(&self) -> BTreeMap<Ipv4Addr, (MacAddr, bool)> {
        let configured = self.configured_by_address.iter().map(|(address, mac)| (*address, (*mac, false)));
        let operators = self.by_address.iter().map(|(address, mac)| (*address, (*mac, true)));
        configured.chain(operators).collect()
    }

    /// Ports from behind this one on, with their nodes.
    pub(super) fn ports_from(&self, after: Option<MacAddr>) -> impl Iterator<Item = (MacAddr, NodeId)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_mac.range((after, Bound::Unbounded)).map(|(mac, id)| (*mac, *id))
    }

    pub(super) fn locate(&self, reference: &NodeRef) -> Result<NodeId, OperatorError> {
        let found = match reference {
            NodeRef::Id(id) => self.nodes.contains_key(id).then_some(*id),
            NodeRef::Name(name) => self.owner_of_name(name),
            NodeRef::Mac(mac) => self.owner_of(*mac),
            NodeRef::Uuid(uuid) if self.nodes.contains_key(&NodeId(*uuid)) => Some(NodeId(*uuid)),
            NodeRef::Uuid(uuid) => {
                let mut claimants = self.nodes.values().filter(|entry| entry.node.uuid == Some(*uuid));
                let first = claimants.next().map(|entry| entry.node.id);
                // Boards come with the same UUID by the batch.
                if claimants.next().is_some() {
                    return Err(OperatorError::Ambiguous { reference: reference.to_string() });
                }
                first
            }
        };
        found.ok_or_else(|| OperatorError::NotFound { reference: reference.to_string() })
    }

    /// The node as others see it: with the configuration's reservations and the policy's approval.
    pub(super) fn view(&self, id: NodeId) -> Option<Node> {
        self.nodes.get(&id).map(|entry| self.view_of(entry))
    }

    pub(super) fn view_of(&self, entry: &Entry) -> Node {
        let mut node = entry.node.clone();
        node.approved = self.lets_in(entry);
        for port in &mut node.ports {
            port.reserved = self.reserved(entry, port.mac);
        }
        node
    }

    pub(super) fn views(&self) -> Vec<Node> {
        self.by_age.iter().filter_map(|(_, id)| self.view(*id)).collect()
    }

    /// Places from behind this one on.
    pub(super) fn from(&self, after: Option<NodeCursor>) -> impl Iterator<Item = NodeCursor> {
        let after = after.map_or(Bound::Unbounded, |after| Bound::Excluded((after.created_at, after.id)));
        let places = self.by_age.range((after, Bound::Unbounded));
        places.map(|(created_at, id)| NodeCursor { created_at: *created_at, id: *id })
    }

    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in self.nodes.values() {
            *census.by_state.entry(entry.node.state).or_default() += 1;
            census.waiting_for_approval += u64::from(!self.lets_in(entry));
        }
        census
    }

    pub(super) fn boots(&self, id: NodeId) -> Vec<Boot> {
        self.nodes.get(&id).map(|entry| entry.history.boots()).unwrap_or_default()
    }

    fn index(&mut self, id: NodeId) {
        let Some(entry) = self.nodes.get(&id) else { return };
        for port in &entry.node.ports {
            self.by_mac.insert(port.mac, id);
            if let Some(address) = port.reserved {
                self.by_address.insert(address, port.mac);
            }
        }
        if let Some(name) = &entry.node.name {
            self.by_name.insert(name.clone(), id);
        }
        if entry.is_unproven() {
            self.unproven.insert(entry.worth());
            self.tokens.extend(entry.token_until.map(|until| (until, id)));
        }
    }

    fn unindex(&mut self, id: NodeId) {
        let Some(entry) = self.nodes.get(&id) else { return };
        for port in &entry.node.ports {
            self.by_mac.remove(&port.mac);
            if let Some(address) = port.reserved.filter(|at| self.by_address.get(at) == Some(&port.mac)) {
                self.by_address.remove(&address);
            }
        }
        if let Some(name) = &entry.node.name {
            self.by_name.remove(name);
        }
        self.unproven.remove(&entry.worth());
        if let Some(until) = entry.token_until {
            self.tokens.remove(&(until, id));
        }
    }
}
