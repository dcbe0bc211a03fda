//! The one writer of node state.
//!
//! DHCP, TFTP, HTTP and operators tell the registry what happened; it looks the node up, lets
//! [`transition::apply`](crate::node::transition::apply) decide, changes its own memory and hands the store one batch.
//! Lookups never wait for the disk. What follows from the wire is made durable in the background (`submit`); what
//! an operator or an agent is told has happened is on disk before the call returns, so those calls block and belong
//! on threads that may.
//!
//! A batch is queued while the lock is held, so the store sees changes in the order memory saw them; the wait for
//! the disk happens after the lock is let go. If a background batch fails its node is marked unsaved and written
//! again by the next [`Registry::tick`].
//!
//! - `book`: nodes and their indexes, bounded
//! - `entry`: one node, and one change to it under way
//! - `waiting`: boot clients that were answered and are no nodes yet
//! - `traces`: what MACs that are no nodes asked lately, for who asks why they do not boot
//! - `record`: what happens on the wire: enrolment, timeline, boot loops, deadlines
//! - `operator`: register, approve, order, remove; `edit`: rename, ports, reservations, quirks
//! - `pages`: many nodes, read a page at a time
//! - `profiles`: who says which boot profile a node has
//! - `import`: a whole list of nodes at once
//! - `agent`: boot tokens, sessions, inventory, orders obeyed
//! - `install`: tasks on nodes' disks: wanted, begun, reported, called home

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;

use crate::boot::decision::{Standing, UnknownPolicy};
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::config::Reservation;
use crate::net::MacAddr;
use crate::node::registry::book::Book;
use crate::node::registry::entry::Effects;
use crate::node::registry::traces::{Fetches, Traces};
use crate::node::state::ProvisionState;
use crate::node::timeline::{Boot, BootProgress, Stage, TimelineEvent};
use crate::node::token::TokenKey;
use crate::node::verdict::surroundings::Fetching;
use crate::node::{Node, NodeId, NodeName, ParseNameError};
use crate::store::{Change, CommitError, Snapshot, Store};

mod agent;
mod book;
mod edit;
mod entry;
mod import;
mod install;
mod operator;
mod pages;
mod profiles;
mod record;
mod traces;
mod waiting;
mod whereabouts;

pub use agent::{AgentRefusal, AgentSession, Failure, Hello, IssuedToken};
pub use book::{NODES_MAX, TIMELINE_EVENTS_MAX, UNPROVEN_MAX};
pub use edit::{EditError, Edited, Expected, NodeEdit};
pub use import::{Action, ImportError, Planned};
pub use install::{
    AgentCaller, InstallError, InstallRequest, InstallView, InstallerStart, Instructions, Sample,
    SeedMaterial,
};
pub use operator::{NewNode, OperatorError, RegisterError};
pub use pages::{NodeCursor, NodeFilter, NodeView, ParseCursorError};
pub use profiles::Profiles;
pub use record::{BOOT_LOOP_AT, BOOT_LOOP_WINDOW};
pub use traces::{StrangerTrace, TRACE_STEPS_MAX, TRACES_MAX, TraceStep};
pub use waiting::{WAITING_HAPPENINGS_MAX, WAITING_LIFETIME, WAITING_MAX};
pub use whereabouts::Whereabouts;

/// Events a slow watcher may fall behind before it loses the oldest; one busy second of a 64-node rack.
pub const WATCH_BACKLOG: usize = 1024;

/// What the configuration says about nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrySettings {
    pub unknown: UnknownPolicy,
    /// How long after its ramdisk was served a node may take to send its inventory.
    pub call_deadline: Duration,
    /// How long an installed system may take to call for the first time.
    pub first_boot_deadline: Duration,
    /// How long a distribution's installer may take to say that it is done.
    pub installer_deadline: Duration,
    pub reservations: Vec<Reservation>,
}

/// A reservation of the configuration that is not applied, because an operator has fixed addresses otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "dhcp.reservation {mac} ({name}) = {address} is not applied: an operator fixed {fixed} for {owner_name} ({owner}), and what is registered is not overridden by the configuration: give the reservation another address and reload, take it out, or `farrier node remove {owner}` first"
)]
pub struct ReservationConflict {
    pub mac: MacAddr,
    /// The name it was to give, or words for none.
    pub name: String,
    pub address: Ipv4Addr,
    /// The port an operator registered, with the name of its node, if it has one, and its address.
    pub owner: MacAddr,
    pub owner_name: String,
    pub fixed: Ipv4Addr,
}

/// Nodes by state; a state nobody is in is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub by_state: BTreeMap<ProvisionState, u64>,
    pub waiting_for_approval: u64,
}

/// How an operator names a node. Text that reads as a UUID may be our id or the machine's SMBIOS UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeRef {
    Id(NodeId),
    Name(NodeName),
    Mac(MacAddr),
    Uuid(Uuid),
}

impl FromStr for NodeRef {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(mac) = text.parse() {
            return Ok(NodeRef::Mac(mac));
        }
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(NodeRef::Uuid(uuid));
        }
        text.parse().map(NodeRef::Name)
    }
}

impl fmt::Display for NodeRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeRef::Id(id) => id.fmt(formatter),
            NodeRef::Name(name) => name.fmt(formatter),
            NodeRef::Mac(mac) => mac.fmt(formatter),
            NodeRef::Uuid(uuid) => uuid.fmt(formatter),
        }
    }
}

pub struct Registry {
    store: Arc<dyn Store>,
    tokens: TokenKey,
    watchers: broadcast::Sender<Arc<TimelineEvent>>,
    /// Nodes whose last background batch did not reach the disk. Its own lock: the store's thread takes it.
    unsaved: Arc<Mutex<BTreeSet<NodeId>>>,
    book: Mutex<Book>,
    /// Its own lock: nothing that is kept here has to do with nodes.
    traces: Mutex<Traces>,
    fetches: Mutex<Fetches>,
    whereabouts: OnceLock<Box<dyn Whereabouts>>,
}

/// A batch on its way to the disk.
#[must_use]
struct Pending(std::sync::mpsc::Receiver<Result<(), CommitError>>);

impl Pending {
    fn wait(self) -> Result<(), CommitError> {
        self.0.recv().unwrap_or(Err(CommitError::Closed))
    }
}

impl Registry {
    /// Takes nodes and timelines out of the snapshot: they are most of what a start reads.
    pub fn new(
        store: Arc<dyn Store>,
        snapshot: Snapshot,
        settings: RegistrySettings,
        token_key: TokenKey,
    ) -> Registry {
        let (book, changes) = Book::from_snapshot(snapshot, settings);
        let registry = Registry {
            store,
            tokens: token_key,
            watchers: broadcast::channel(WATCH_BACKLOG).0,
            unsaved: Arc::default(),
            book: Mutex::new(book),
            traces: Mutex::default(),
            fetches: Mutex::default(),
            whereabouts: OnceLock::new(),
        };
        registry.submit_housekeeping(changes);
        registry.report_conflicts();
        registry
    }

    /// Takes over new settings; reservations for MACs nobody knows become registered nodes.
    pub fn reconfigure(&self, settings: RegistrySettings, now: Timestamp) {
        self.lock().configure(settings);
        drop(self.lock_at(now));
        self.report_conflicts();
    }

    /// Reservations of the configuration that contradict an operator's, and wait until they do not.
    pub fn reservation_conflicts(&self) -> Vec<ReservationConflict> {
        self.lock().conflicts()
    }

    fn report_conflicts(&self) {
        for conflict in self.reservation_conflicts() {
            tracing::warn!("{conflict}");
        }
    }

    /// What the boot decision needs to know of this MAC.
    pub fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing {
        self.lock_at(now).standing(mac, now)
    }

    /// The MAC this address is fixed for.
    pub fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.lock().reserved_for(address)
    }

    /// The name of the node with this port; asked for each script, so the record is not copied.
    pub fn name_of(&self, mac: MacAddr) -> Option<NodeName> {
        let book = self.lock();
        let id = book.owner_of(mac)?;
        book.get(id)?.node.name.clone()
    }

    /// What the node with this port has to be humoured in; asked for each fetch.
    pub fn quirks_of(&self, mac: MacAddr) -> Quirks {
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id));
        entry.map(|entry| entry.node.quirks.effective()).unwrap_or_default()
    }

    pub fn find(&self, reference: &NodeRef) -> Option<Node> {
        let book = self.lock();
        book.locate(reference).ok().and_then(|id| book.view(id))
    }

    /// All nodes, in the order they became known.
    pub fn nodes(&self) -> Vec<Node> {
        self.lock().views()
    }

    /// The node's boots, oldest first; number 0, if there, holds what happened outside any boot.
    pub fn boots(&self, id: NodeId) -> Vec<Boot> {
        self.lock().boots(id)
    }

    /// How far its newest boot has come, if it ever booted; much cheaper than [`Registry::boots`].
    pub fn newest_boot(&self, id: NodeId) -> Option<BootProgress> {
        self.lock().get(id).and_then(|entry| entry.history.newest_boot())
    }

    /// A MAC that is no node sent a DHCP message.
    pub fn stranger(&self, mac: MacAddr, step: TraceStep) {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).note(mac, step);
    }

    /// What is remembered of a MAC that is no node, or was none when it asked.
    pub fn trace(&self, mac: MacAddr) -> Option<StrangerTrace> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).get(mac)
    }

    /// A machine begins to fetch something; [`Registry::fetch_ended`] follows.
    pub fn fetch_began(&self, mac: MacAddr, stage: Stage, now: Timestamp) {
        let fetching = Fetching { stage, since: now };
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).began(mac, fetching);
    }

    pub fn fetch_ended(&self, mac: MacAddr) {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).ended(mac);
    }

    /// What the machine with this port is fetching at this moment, since when.
    pub fn fetching(&self, mac: MacAddr) -> Option<Fetching> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).of(mac)
    }

    /// How many nodes there are, without a copy of any.
    pub fn census(&self) -> Census {
        self.lock().census()
    }

    /// Every timeline event from now on, and the removals that no timeline keeps.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<TimelineEvent>> {
        self.watchers.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // A panic elsewhere must not take DHCP down with it; the book is changed in small complete steps.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The book, with every node in it that the configuration names.
    fn lock_at(&self, now: Timestamp) -> MutexGuard<'_, Book> {
        let mut book = self.lock();
        for (id, effects) in book.register_configured(now) {
            self.settle(id, effects);
        }
        book
    }

    /// Saves in the background and tells watchers. Called with the book locked, so that order is kept.
    fn settle(&self, id: NodeId, effects: Effects) {
        self.submit_for(id, effects.changes);
        self.announce(effects.events);
    }

    /// Queues a batch that somebody will wait for, once the book is let go.
    fn settle_durably(&self, id: NodeId, effects: Effects) -> Pending {
        let pending = self.submit_and_wait_later(id, effects.changes);
        self.announce(effects.events);
        pending
    }

    fn submit_for(&self, id: NodeId, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let unsaved = Arc::clone(&self.unsaved);
        self.store.submit_in_background(
            changes,
            Box::new(move |result| {
                if let Err(error) = result {
                    tracing::warn!(node = %id, reason = %error, "node not saved, will be written again");
                    unsaved.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                }
            }),
        );
    }

    fn mark_unsaved(&self, id: NodeId) {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    fn take_unsaved(&self, most: usize) -> Vec<NodeId> {
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<NodeId> = unsaved.iter().copied().take(most).collect();
        for id in &taken {
            unsaved.remove(id);
        }
        taken
    }

    /// Changes whose loss the next start repeats by itself.
    fn submit_housekeeping(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.store.submit_in_background(
                changes,
                Box::new(|result| {
                    if let Err(error) = result {
                        tracing::warn!(reason = %error, "housekeeping not saved");
                    }
                }),
            );
        }
    }

    fn submit_and_wait_later(&self, id: NodeId, changes: Vec<Change>) -> Pending {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let unsaved = Arc::clone(&self.unsaved);
        self.store.submit(
            changes,
            Box::new(move |result| {
                if result.is_err() {
                    // Memory keeps the events, and whatever the caller does not undo.
                    unsaved.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                }
                let _ = sender.send(result);
            }),
        );
        Pending(receiver)
    }

    fn announce(&self, events: Vec<Arc<TimelineEvent>>) {
        for event in events {
            // No watcher is no mistake.
            let _ = self.watchers.send(event);
        }
    }
}

#[cfg(test)]
mod tests;
