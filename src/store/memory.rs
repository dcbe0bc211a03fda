//! The reference model: what a store means, in maps. Tests use it as a store that can be told to fail or to wait.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::boot::profile::runs::Record as ProfileRecord;
use crate::bridge_log::event::BridgeEvent;
use crate::clock::Timestamp;
use crate::dhcp::lease::Binding;
use crate::node::install::first_boot::FirstBoot;
use crate::node::timeline::TimelineEvent;
use crate::node::{Node, NodeId};
use crate::operator::access::tokens::{Token, TokenId};
use crate::operator::audit::AuditRecord;
use crate::operator::idempotency::{KeptAnswer, RequestKey};
use crate::store::{Change, CommitError, LoadError, Snapshot, Store, WhenDurable};

#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bindings: BTreeMap<Ipv4Addr, Binding>,
    /// By creation, then id: the order nodes are loaded in.
    nodes: BTreeMap<NodeId, Node>,
    events: BTreeMap<(NodeId, u32, u32), TimelineEvent>,
    secrets: BTreeMap<String, Vec<u8>>,
    tokens: BTreeMap<TokenId, Token>,
    audit: BTreeMap<u64, AuditRecord>,
    answers: BTreeMap<RequestKey, KeptAnswer>,
    bridge_events: BTreeMap<u64, BridgeEvent>,
    profile_records: BTreeMap<String, ProfileRecord>,
    first_boots: BTreeMap<NodeId, FirstBoot>,
    failures: u32,
    held: Option<Vec<(Vec<Change>, WhenDurable)>>,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    pub fn with(snapshot: Snapshot) -> MemoryStore {
        let state = State {
            bindings: snapshot.bindings.into_iter().map(|binding| (binding.address, binding)).collect(),
            nodes: snapshot.nodes.into_iter().map(|node| (node.id, node)).collect(),
            events: snapshot
                .events
                .into_iter()
                .map(|event| ((event.node, event.boot, event.sequence), event))
                .collect(),
            secrets: snapshot.secrets.into_iter().collect(),
            tokens: snapshot.tokens.into_iter().map(|token| (token.id, token)).collect(),
            audit: snapshot.audit.into_iter().map(|record| (record.sequence, record)).collect(),
            answers: snapshot.answers.into_iter().map(|answer| (answer.key.clone(), answer)).collect(),
            first_boots: snapshot.first_boots.into_iter().map(|it| (it.node, it)).collect(),
            bridge_events: snapshot.bridge_events.into_iter().map(|event| (event.sequence, event)).collect(),
            profile_records: snapshot
                .profile_records
                .into_iter()
                .map(|record| (record.key(), record))
                .collect(),
            failures: 0,
            held: None,
        };
        MemoryStore { state: Mutex::new(state) }
    }

    /// The next `count` batches fail and change nothing.
    pub fn fail_next_commits(&self, count: u32) {
        self.lock().failures = count;
    }

    /// From now on batches wait, as they would for a slow disk.
    pub fn hold(&self) {
        self.lock().held.get_or_insert_default();
    }

    /// Commits what waits, in order, and stops holding.
    pub fn release(&self) {
        let waiting = self.lock().held.take().unwrap_or_default();
        for (changes, when_durable) in waiting {
            self.submit(changes, when_durable);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&self) -> Result<Snapshot, LoadError> {
        let state = self.lock();
        let mut nodes: Vec<Node> = state.nodes.values().cloned().collect();
        nodes.sort_by_key(|node| -> (Timestamp, NodeId) { (node.created_at, node.id) });
        let mut answers: Vec<KeptAnswer> = state.answers.values().cloned().collect();
        answers.sort_by_key(|answer| answer.kept_until);
        Ok(Snapshot {
            bindings: state.bindings.values().cloned().collect(),
            nodes,
            events: state.events.values().cloned().collect(),
            secrets: state.secrets.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            tokens: state.tokens.values().cloned().collect(),
            audit: state.audit.values().cloned().collect(),
            answers,
            bridge_events: state.bridge_events.values().cloned().collect(),
            profile_records: state.profile_records.values().cloned().collect(),
            first_boots: state.first_boots.values().cloned().collect(),
            damage: Vec::new(),
        })
    }

    fn submit(&self, changes: Vec<Change>, when_durable: WhenDurable) {
        let result = {
            let mut state = self.lock();
            if let Some(held) = &mut state.held {
                held.push((changes, when_durable));
                return;
            }
            if state.failures > 0 {
                state.failures -= 1;
                Err(CommitError::Write { reason: "told to fail".to_owned() })
            } else {
                for change in changes {
                    state.apply(change);
                }
                Ok(())
            }
        };
        when_durable(result);
    }
}

impl State {
    fn apply(&mut self, change: Change) {
        match change {
            Change::PutBinding(binding) => {
                self.bindings.insert(binding.address, binding);
            }
            Change::DropBinding { address } => {
                self.bindings.remove(&address);
            }
            Change::PutNode(node) => {
                self.nodes.insert(node.id, *node);
            }
            Change::DropNode(id) => {
                self.nodes.remove(&id);
                self.first_boots.remove(&id);
                self.events.retain(|(node, _, _), _| *node != id);
            }
            Change::PutEvent(event) => {
                self.events.insert((event.node, event.boot, event.sequence), *event);
            }
            Change::DropBoot { node, boot } => {
                self.events.retain(|(owner, number, _), _| (*owner, *number) != (node, boot));
            }
            Change::PutSecret { name, value } => {
                self.secrets.insert(name.to_owned(), value);
            }
            Change::PutToken(token) => {
                self.tokens.insert(token.id, *token);
            }
            Change::DropToken(id) => {
                self.tokens.remove(&id);
            }
            Change::PutAudit(record) => {
                self.audit.insert(record.sequence, record);
            }
            Change::DropAuditBelow { sequence } => {
                self.audit = self.audit.split_off(&sequence);
            }
            Change::PutAnswer(answer) => {
                self.answers.insert(answer.key.clone(), *answer);
            }
            Change::DropAnswer(key) => {
                self.answers.remove(&key);
            }
            Change::PutFirstBoot(first_boot) => {
                self.first_boots.insert(first_boot.node, *first_boot);
            }
            Change::DropFirstBoot(node) => {
                self.first_boots.remove(&node);
            }
            Change::PutBridgeEvent(event) => {
                self.bridge_events.insert(event.sequence, *event);
            }
            Change::DropBridgeEventsBelow { sequence } => {
                self.bridge_events = self.bridge_events.split_off(&sequence);
            }
            Change::ProfileRecord { key, record } => match record {
                Some(record) => drop(self.profile_records.insert(key, *record)),
                None => drop(self.profile_records.remove(&key)),
            },
        }
    }
}
