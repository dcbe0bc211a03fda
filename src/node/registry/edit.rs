//! Edits: a node's name, ports, reservations and quirks as an operator wants them, if it still is what the operator saw.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::MutexGuard;

use crate::boot::decision::NextBoot;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::labels::LabelEdit;
use crate::node::registry::book::Book;
use crate::node::registry::entry::Act;
use crate::node::registry::operator::{NewNode, OperatorError, RegisterError, locate_expected, set_quirks};
use crate::node::registry::{NodeRef, Registry};
use crate::node::timeline::{Happening, edited};
use crate::node::transition::Event;
use crate::node::{Node, NodeId, NodeName, Origin, PORTS_MAX, Port};
use crate::store::CommitError;

/// What is to be different; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEdit {
    /// `Some(None)` takes the name away.
    pub name: Option<Option<NodeName>>,
    /// All ports it is to have.
    pub ports: Option<Vec<(MacAddr, Option<Ipv4Addr>)>>,
    pub approved: Option<bool>,
    pub next_boot: Option<NextBoot>,
    pub quirks: Option<Quirks>,
    pub labels: LabelEdit,
}

/// What a node must be for an edit to be made: one of these versions of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever is there, or nothing.
    Anything,
    /// It must be there (`If-Match: *`).
    Something,
    /// It must not be there yet (`If-None-Match: *`).
    Nothing,
    Versions(Vec<u64>),
}

impl Expected {
    pub(super) fn allows(&self, node: Option<&Node>) -> Result<(), OperatorError> {
        let holds = match (self, node) {
            (Expected::Anything, _) | (Expected::Something, Some(_)) | (Expected::Nothing, None) => true,
            (Expected::Something, None) | (Expected::Nothing, Some(_)) | (Expected::Versions(_), None) => {
                false
            }
            (Expected::Versions(versions), Some(node)) => versions.contains(&node.version),
        };
        if holds { Ok(()) } else { Err(OperatorError::Changed { version: node.map(|node| node.version) }) }
    }
}

/// What an edit came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Edited {
    /// Absent if the node was made by it.
    pub before: Option<Node>,
    pub node: Node,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Rule(#[from] RegisterError),
}

impl From<CommitError> for EditError {
    fn from(error: CommitError) -> EditError {
        EditError::Operator(error.into())
    }
}

impl Registry {
    /// Changes a node's record; durable before it returns. An edit that changes nothing is no change.
    pub fn edit(
        &self,
        reference: &NodeRef,
        edit: NodeEdit,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Edited, EditError> {
        let book = self.lock_at(now);
        let id = locate_expected(&book, reference, expected)?;
        self.edit_in(book, id, edit, expected, now)
    }

    /// Makes the node of this name what the request says: new, or changed to it.
    pub fn put(&self, new: NewNode, expected: &Expected, now: Timestamp) -> Result<Edited, EditError> {
        let book = self.lock_at(now);
        let known = new.name.as_ref().and_then(|name| book.owner_of_name(name));
        if let Some(id) = known {
            let edit = NodeEdit {
                ports: Some(new.macs),
                approved: Some(true),
                quirks: new.quirks,
                ..NodeEdit::default()
            };
            return self.edit_in(book, id, edit, expected, now);
        }
        expected.allows(None)?;
        drop(book);
        Ok(Edited { before: None, node: self.register(new, now)? })
    }

    fn edit_in(
        &self,
        mut book: MutexGuard<'_, Book>,
        id: NodeId,
        edit: NodeEdit,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Edited, EditError> {
        let gone = || OperatorError::NotFound { reference: id.to_string() };
        let recorded = book.get(id).map(|entry| entry.node.clone()).ok_or_else(gone)?;
        let before = book.view(id).ok_or_else(gone)?;
        expected.allows(Some(&before))?;
        check_edit(&book, &recorded, &edit)?;
        let ((), effects) = book.change(id, now, |act| apply(act, edit)).ok_or_else(gone)?;
        let node = book.view(id).ok_or_else(gone)?;
        if effects.changes.is_empty() {
            return Ok(Edited { before: Some(before), node });
        }
        // An address that has become free may be one the configuration could not have until now.
        book.look_at_configuration_again();
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| {
                node.name = recorded.name;
                node.ports = recorded.ports;
                node.approved = recorded.approved;
                node.next_boot = recorded.next_boot;
                node.quirks = recorded.quirks;
                node.origin = recorded.origin;
                node.labels = recorded.labels;
            });
            return Err(error.into());
        }
        Ok(Edited { before: Some(before), node })
    }
}

pub(super) fn check_edit(book: &Book, node: &Node, edit: &NodeEdit) -> Result<(), EditError> {
    if let Some(Some(name)) = &edit.name
        && book.owner_of_name(name).is_some_and(|owner| owner != node.id)
    {
        return Err(RegisterError::NameTaken { name: name.clone() }.into());
    }
    node.labels.edited(&edit.labels).map_err(RegisterError::Labels)?;
    match &edit.ports {
        Some(ports) => check_ports(book, node, ports),
        None => Ok(()),
    }
}

fn check_ports(book: &Book, node: &Node, ports: &[(MacAddr, Option<Ipv4Addr>)]) -> Result<(), EditError> {
    if ports.is_empty() {
        return Err(RegisterError::NoPort.into());
    }
    if ports.len() > PORTS_MAX {
        return Err(RegisterError::TooManyPorts { count: ports.len() }.into());
    }
    let (mut named, mut fixed) = (BTreeSet::new(), BTreeSet::new());
    for (mac, address) in ports.iter().copied() {
        if !mac.is_station() {
            return Err(RegisterError::NotAStation { mac }.into());
        }
        if !named.insert(mac) {
            return Err(RegisterError::PortTwice { mac }.into());
        }
        if let Some(owner) = book.owner_of(mac).filter(|owner| *owner != node.id) {
            let name = book.get(owner).and_then(|entry| entry.node.name.clone());
            let owner = name.map_or_else(|| owner.to_string(), |name| name.to_string());
            return Err(RegisterError::PortTaken { mac, owner }.into());
        }
        let Some(address) = address else { continue };
        let ours = |owner: MacAddr| owner == mac || node.ports.iter().any(|port| port.mac == owner);
        if let Some(owner) = book.reserved_for(address).filter(|owner| !ours(*owner)) {
            return Err(RegisterError::AddressTaken { address, owner }.into());
        }
        if !fixed.insert(address) {
            return Err(RegisterError::AddressTaken { address, owner: mac }.into());
        }
    }
    // What the configuration names would come back at once, as a node of its own.
    let dropped = node.ports.iter().find(|port| !named.contains(&port.mac) && book.is_configured(port.mac));
    match dropped {
        Some(port) => Err(OperatorError::InConfiguration { mac: port.mac }.into()),
        None => Ok(()),
    }
}

pub(super) fn apply(act: &mut Act<'_>, edit: NodeEdit) {
    set_quirks(act, edit.quirks);
    let before = act.entry.node.clone();
    let node = &mut act.entry.node;
    if let Some(name) = edit.name {
        node.name = name;
    }
    if let Some(ports) = edit.ports {
        node.ports = ports.into_iter().map(|(mac, reserved)| Port { mac, reserved }).collect();
    }
    if let Some(next_boot) = edit.next_boot {
        node.next_boot = next_boot;
    }
    if let Some(approved) = edit.approved {
        node.approved = approved;
    }
    // What `check_edit` has let pass.
    if let Ok(labels) = node.labels.edited(&edit.labels) {
        node.labels = labels;
    }
    if before == *node {
        return;
    }
    let changes = edited::between(&before, node);
    act.node_changed = true;
    // Whoever names it or lets it in vouches for it.
    if node.approved {
        node.origin = Origin::Registered;
    }
    let newly_approved = node.approved && !before.approved;
    // The order of the same ports is no change worth an event.
    if !changes.is_empty() {
        act.note(Happening::Edited { changes });
    }
    if newly_approved {
        act.entry.loaders.forgive();
        act.approved = true;
        act.note(Happening::Approved);
        let _ = act.step(Event::Approved);
    }
}

#[cfg(test)]
mod tests;
