//! Durable state: synced to disk before anybody is told of it.
//!
//! The store knows DHCP bindings, nodes and what their installed systems are given, timeline events, the bridge's events, operators' tokens, the audit log, answers that
//! may be asked for again, who boots which profile, and a few secrets. It is read whole at start ([`Store::load`]) and afterwards only written: every part keeps what it owns in memory, and hands the
//! store batches of [`Change`]s. A batch is atomic and applied in order of submission. [`Store::submit`] returns at
//! once; the store groups what is queued into one transaction, syncs it to disk, and only then calls each batch's
//! `when_durable` — which is where a DHCPACK is sent from. If the commit fails the same call carries the error and
//! nothing is acknowledged.
//!
//! - `memory`: the reference model, used by tests
//! - `sqlite`: one file, WAL, `synchronous=FULL`, one writer thread

use std::net::Ipv4Addr;

use crate::boot::profile::runs::Record as ProfileRecord;
use crate::bridge_log::event::BridgeEvent;
use crate::dhcp::lease::Binding;
use crate::node::install::first_boot::FirstBoot;
use crate::node::timeline::TimelineEvent;
use crate::node::{Node, NodeId};
use crate::operator::access::tokens::{Token, TokenId};
use crate::operator::audit::AuditRecord;
use crate::operator::idempotency::{KeptAnswer, RequestKey};

pub mod memory;
pub mod place;
pub mod sqlite;
#[cfg(test)]
mod tests;

/// One durable change. Keys: a binding by address, a node by id, an event by (node, boot, sequence), a secret by name,
/// a token by id, an audit entry or an event of the bridge by sequence, an answer by its request's key,
/// a record of boot profiles by its own key.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    PutBinding(Binding),
    DropBinding {
        address: Ipv4Addr,
    },
    PutNode(Box<Node>),
    /// Drops the node, its whole timeline, and what its installed system was to be given.
    DropNode(NodeId),
    PutEvent(Box<TimelineEvent>),
    /// Drops one boot of the timeline.
    DropBoot {
        node: NodeId,
        boot: u32,
    },
    PutSecret {
        name: &'static str,
        value: Vec<u8>,
    },
    PutToken(Box<Token>),
    DropToken(TokenId),
    PutAudit(AuditRecord),
    /// Drops every audit entry with a lower sequence number.
    DropAuditBelow {
        sequence: u64,
    },
    PutAnswer(Box<KeptAnswer>),
    DropAnswer(RequestKey),
    /// What an operator gave for a node's installed system; one a node.
    PutFirstBoot(Box<FirstBoot>),
    DropFirstBoot(NodeId),
    PutBridgeEvent(Box<BridgeEvent>),
    /// Drops every event of the bridge with a lower sequence number.
    DropBridgeEventsBelow {
        sequence: u64,
    },
    /// `None` drops it.
    ProfileRecord {
        key: String,
        record: Option<Box<ProfileRecord>>,
    },
}

/// What a change does to a lease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LeaseChange<'a> {
    Put(&'a Binding),
    Drop(Ipv4Addr),
}

impl Change {
    /// `None` for what is no business of DHCP's.
    pub fn of_lease(&self) -> Option<LeaseChange<'_>> {
        match self {
            Change::PutBinding(binding) => Some(LeaseChange::Put(binding)),
            Change::DropBinding { address } => Some(LeaseChange::Drop(*address)),
            Change::PutNode(_)
            | Change::DropNode(_)
            | Change::PutEvent(_)
            | Change::DropBoot { .. }
            | Change::PutSecret { .. }
            | Change::PutToken(_)
            | Change::DropToken(_)
            | Change::PutAudit(_)
            | Change::DropAuditBelow { .. }
            | Change::PutAnswer(_)
            | Change::DropAnswer(_)
            | Change::PutFirstBoot(_)
            | Change::DropFirstBoot(_)
            | Change::PutBridgeEvent(_)
            | Change::DropBridgeEventsBelow { .. }
            | Change::ProfileRecord { .. } => None,
        }
    }
}

/// Everything the store held at start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub bindings: Vec<Binding>,
    pub nodes: Vec<Node>,
    /// In order of (node, boot, sequence).
    pub events: Vec<TimelineEvent>,
    pub secrets: Vec<(String, Vec<u8>)>,
    pub tokens: Vec<Token>,
    /// In order of sequence.
    pub audit: Vec<AuditRecord>,
    /// Those kept longest from now on last.
    pub answers: Vec<KeptAnswer>,
    /// In order of sequence.
    pub bridge_events: Vec<BridgeEvent>,
    /// By key.
    pub profile_records: Vec<ProfileRecord>,
    pub first_boots: Vec<FirstBoot>,
    /// Records that could not be read and were set aside, a line each; the appliance reports them.
    pub damage: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("the store could not be written: {reason}")]
    Write { reason: String },
    #[error("the disk does not keep up: {waiting} batches wait already")]
    QueueFull { waiting: usize },
    #[error("the store is closed")]
    Closed,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error(
        "{path} was written by a newer farrier (schema {found}, this one knows {known}): install that version, or restore a backup"
    )]
    TooNew { path: String, found: i64, known: i64 },
    #[error("{path} is in use by another farrier: stop that one, or give this one a [store] path of its own")]
    InUse { path: String },
}

pub type WhenDurable = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

pub trait Store: Send + Sync {
    fn load(&self) -> Result<Snapshot, LoadError>;

    /// Queues a batch; `when_durable` runs on the store's thread once the batch is on disk, or cannot be.
    /// If the queue is full or the store is closed it runs at once, on the caller's: take no lock in it that a
    /// submitter holds.
    fn submit(&self, changes: Vec<Change>, when_durable: WhenDurable);

    /// The same for what nobody waits for: it may take some milliseconds longer, to share a sync with what comes after it.
    fn submit_in_background(&self, changes: Vec<Change>, when_durable: WhenDurable) {
        self.submit(changes, when_durable);
    }

    /// Submits and waits. Not for threads that serve the wire.
    fn commit(&self, changes: Vec<Change>) -> Result<(), CommitError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.submit(
            changes,
            Box::new(move |result| {
                let _ = sender.send(result);
            }),
        );
        receiver.recv().unwrap_or(Err(CommitError::Closed))
    }
}
