//! A whole list of nodes at once: all of it, or nothing.
//!
//! Each entry is a new node, or one that has some of its ports already: that one takes over the name and addresses
//! the list has, and keeps what the list does not speak of. Every entry is held against the registry before the
//! first is applied, and all of them are one batch of the store.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::labels::Labels;
use crate::node::registry::Registry;
use crate::node::registry::book::{Book, NODES_MAX};
use crate::node::registry::edit::{NodeEdit, apply, check_edit};
use crate::node::registry::entry::{Effects, Entry, new_node};
use crate::node::registry::operator::{NewNode, check, take_over};
use crate::node::roster::{RosterEntry, RosterError, RosterPort};
use crate::node::{Node, NodeId, Origin};
use crate::store::{Change, CommitError};

/// What an entry of a list comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Register,
    Update,
    Unchanged,
}

/// One entry: what is there, and what is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub line: usize,
    pub action: Action,
    pub before: Option<RosterEntry>,
    pub after: RosterEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Entry(#[from] RosterError),
    #[error("{new} new nodes are too many: {known} are known already, and the registry holds {NODES_MAX}")]
    Full { new: usize, known: usize },
    #[error("the kernel gave no random bytes for the nodes' ids")]
    NoRandomness,
    #[error("nothing was imported")]
    Store(#[from] CommitError),
}

/// How a planned entry is done.
enum Step {
    Register(NewNode, Option<NodeId>, Labels),
    Update(NodeId, NodeEdit),
    Nothing,
}

impl Registry {
    /// What an import of these entries would do.
    pub fn plan_import(&self, entries: &[RosterEntry], now: Timestamp) -> Result<Vec<Planned>, ImportError> {
        let steps = plan(&self.lock_at(now), entries)?;
        Ok(steps.into_iter().map(|(planned, _)| planned).collect())
    }

    /// Does it; durable before it returns, and undone if it cannot be.
    pub fn import(&self, entries: &[RosterEntry], now: Timestamp) -> Result<Vec<Planned>, ImportError> {
        let mut book = self.lock_at(now);
        let steps = plan(&book, entries)?;
        // Before anything is changed: this is all that could fail in the middle.
        let new = steps.iter().filter(|(_, step)| matches!(step, Step::Register(_, None, _)));
        let fresh = new.map(|_| new_node(Origin::Registered, now).ok_or(ImportError::NoRandomness));
        let mut fresh = fresh.collect::<Result<Vec<Node>, _>>()?;
        let mut undo: Vec<(NodeId, Option<Node>)> = Vec::new();
        let mut all = Effects::default();
        let mut planned = Vec::with_capacity(steps.len());
        for (plan, step) in steps {
            planned.push(plan);
            let Some((id, before, effects)) = perform(&mut book, step, &mut fresh, now) else { continue };
            undo.push((id, before));
            all.changes.extend(effects.changes);
            all.events.extend(effects.events);
        }
        book.look_at_configuration_again();
        let pending = self.submit_all(all.changes);
        drop(book);
        if let Err(error) = pending.wait() {
            self.take_back(undo, now);
            return Err(error.into());
        }
        self.announce(all.events);
        Ok(planned)
    }

    fn submit_all(&self, changes: Vec<Change>) -> super::Pending {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let told = move |result| {
            let _ = sender.send(result);
        };
        self.store.submit(changes, Box::new(told));
        super::Pending(receiver)
    }

    fn take_back(&self, undo: Vec<(NodeId, Option<Node>)>, now: Timestamp) {
        for (id, before) in undo.into_iter().rev() {
            match before {
                Some(before) => self.undo(id, now, |node| *node = before),
                None => drop(self.lock().remove(id)),
            }
        }
    }
}

/// Applies one step; `None` if there is nothing to do.
fn perform(
    book: &mut Book,
    step: Step,
    fresh: &mut Vec<Node>,
    now: Timestamp,
) -> Option<(NodeId, Option<Node>, Effects)> {
    let (id, before) = match &step {
        Step::Nothing => return None,
        Step::Register(_, None, _) => (book.insert(Entry::new(fresh.pop()?)), None),
        Step::Register(_, Some(id), _) | Step::Update(id, _) => {
            (*id, book.get(*id).map(|entry| entry.node.clone()))
        }
    };
    let ((), effects) = book.change(id, now, |act| match step {
        Step::Register(new, _, labels) => {
            take_over(act, new);
            act.entry.node.labels = labels;
        }
        Step::Update(_, edit) => apply(act, edit),
        Step::Nothing => {}
    })?;
    Some((id, before, effects))
}

fn plan(book: &Book, entries: &[RosterEntry]) -> Result<Vec<(Planned, Step)>, ImportError> {
    let mut steps = Vec::with_capacity(entries.len());
    let mut new = 0;
    for entry in entries {
        let step = plan_entry(book, entry).map_err(|reason| RosterError::at(entry.line, reason))?;
        new += usize::from(matches!(step.1, Step::Register(_, None, _)));
        steps.push(step);
    }
    match book.room() {
        room if new > room => Err(ImportError::Full { new, known: NODES_MAX - room }),
        _ => Ok(steps),
    }
}

fn plan_entry(book: &Book, entry: &RosterEntry) -> Result<(Planned, Step), String> {
    let mut owners: Vec<NodeId> = entry.ports.iter().filter_map(|port| book.owner_of(port.mac)).collect();
    owners.sort_unstable();
    owners.dedup();
    let told = |id: &NodeId| {
        let name = book.get(*id).and_then(|entry| entry.node.name.as_ref());
        name.map_or_else(|| id.to_string(), ToString::to_string)
    };
    if let [first, second, ..] = owners.as_slice() {
        let (first, second) = (told(first), told(second));
        return Err(format!("its MACs belong to two nodes, {first} and {second}: remove one of them first"));
    }
    let name_owner = entry.name.as_ref().and_then(|name| book.owner_of_name(name));
    if let (Some(name), Some(id)) = (&entry.name, name_owner.filter(|id| owners.first() != Some(id))) {
        let macs = book.get(id).into_iter().flat_map(|entry| &entry.node.ports);
        let macs: Vec<String> = macs.map(|port| port.mac.to_string()).collect();
        return Err(format!(
            "the name {name} belongs to a node with {}: choose another, or remove that node first",
            macs.join(", ")
        ));
    }
    let Some(before) = owners.first().and_then(|id| book.view(*id)) else {
        let new = as_new(entry);
        check(book, &new).map_err(|error| error.to_string())?;
        let planned =
            Planned { line: entry.line, action: Action::Register, before: None, after: entry.clone() };
        return Ok((planned, Step::Register(new, None, bounded(&Labels::default(), entry)?)));
    };
    plan_known(book, entry, &before)
}

/// An entry for a node that is known, or was seen and is known by nothing but its MAC.
fn plan_known(book: &Book, entry: &RosterEntry, before: &Node) -> Result<(Planned, Step), String> {
    let mut ports: Vec<(MacAddr, Option<Ipv4Addr>)> =
        before.ports.iter().map(|port| (port.mac, port.reserved)).collect();
    for port in &entry.ports {
        match ports.iter_mut().find(|(mac, _)| *mac == port.mac) {
            Some((_, address)) => *address = port.address.or(*address),
            None => ports.push((port.mac, port.address)),
        }
    }
    let name = entry.name.clone().or_else(|| before.name.clone());
    let after_ports = ports.iter().map(|(mac, address)| RosterPort { mac: *mac, address: *address });
    let labels = bounded(&before.labels, entry)?;
    let after = RosterEntry {
        line: entry.line,
        name: name.clone(),
        ports: after_ports.collect(),
        labels: labels.clone(),
    };
    let shown = RosterEntry { line: entry.line, ..RosterEntry::from(before) };
    let planned =
        |action| Planned { line: entry.line, action, before: Some(shown.clone()), after: after.clone() };
    if before.origin == Origin::Seen && before.name.is_none() {
        let new = NewNode { name, macs: ports, quirks: None };
        let adopted = check(book, &new).map_err(|error| error.to_string())?;
        return Ok((planned(Action::Register), Step::Register(new, adopted, labels)));
    }
    if shown == after && before.approved {
        return Ok((planned(Action::Unchanged), Step::Nothing));
    }
    let edit = NodeEdit {
        name: Some(name),
        ports: Some(ports),
        approved: Some(true),
        labels: entry.labels.as_edit(),
        ..NodeEdit::default()
    };
    check_edit(book, before, &edit).map_err(|error| error.to_string())?;
    Ok((planned(Action::Update), Step::Update(before.id, edit)))
}

/// The labels a node has, and those of the list over them.
fn bounded(before: &Labels, entry: &RosterEntry) -> Result<Labels, String> {
    before.edited(&entry.labels.as_edit()).map_err(|error| error.to_string())
}

fn as_new(entry: &RosterEntry) -> NewNode {
    let macs = entry.ports.iter().map(|port| (port.mac, port.address)).collect();
    NewNode { name: entry.name.clone(), macs, quirks: None }
}
