//! Operators' verbs. Each is on disk before it returns, and undone in memory if it cannot be.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::boot::decision::NextBoot;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::labels::LabelError;
use crate::node::registry::book::{Book, NODES_MAX};
use crate::node::registry::edit::Expected;
use crate::node::registry::entry::{Act, Entry, new_node};
use crate::node::registry::{NodeRef, NodeView, Registry};
use crate::node::state::Order;
use crate::node::timeline::Happening;
use crate::node::transition::Event;
use crate::node::{Node, NodeId, NodeName, Origin, PORTS_MAX, Port};
use crate::store::{Change, CommitError};

/// A node an operator registers before its first boot; each port may have a fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub name: Option<NodeName>,
    pub macs: Vec<(MacAddr, Option<Ipv4Addr>)>,
    /// `None` leaves those of a node that is adopted.
    pub quirks: Option<Quirks>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("a node needs at least one port: name its MAC address")]
    NoPort,
    #[error("{count} ports are too many: a node has at most {PORTS_MAX}")]
    TooManyPorts { count: usize },
    #[error("{mac} cannot be a port: it is a group address or all zero")]
    NotAStation { mac: MacAddr },
    #[error("{mac} is named twice: a port has one line")]
    PortTwice { mac: MacAddr },
    #[error("{mac} already is a port of {owner}: remove that node first")]
    PortTaken { mac: MacAddr, owner: String },
    #[error("the name {name} is taken: choose another, or remove that node first")]
    NameTaken { name: NodeName },
    #[error("{address} is already fixed for {owner}: choose another address")]
    AddressTaken { address: Ipv4Addr, owner: MacAddr },
    #[error(transparent)]
    Labels(LabelError),
    #[error("the registry is full: {limit} nodes are known; remove some first")]
    Full { limit: usize },
    #[error("the kernel gave no random bytes for the node's id")]
    NoRandomness,
    #[error("the node was not registered")]
    Store(#[from] CommitError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    #[error("no node {reference}: `farrier node list` shows those that are known")]
    NotFound { reference: String },
    #[error(
        "more than one machine reports the UUID {reference}: name the node by its name, id or MAC address"
    )]
    Ambiguous { reference: String },
    #[error(
        "{mac} has a reservation in the configuration: take it out there and reload, then remove the node"
    )]
    InConfiguration { mac: MacAddr },
    #[error("it is not what the request says it is: {}", version.map_or_else(
        || "there is no such node".to_owned(),
        |version| format!("its record is at version {version}")
    ))]
    Changed { version: Option<u64> },
    #[error("nothing was changed")]
    Store(#[from] CommitError),
}

impl Registry {
    /// Registers a node, or adopts one that was seen unregistered; durable before it returns.
    pub fn register(&self, new: NewNode, now: Timestamp) -> Result<Node, RegisterError> {
        self.register_with(new, now, |_| Vec::new())
    }

    /// The same; what `also` makes of the node is written in the same transaction.
    pub fn register_with(
        &self,
        new: NewNode,
        now: Timestamp,
        also: impl FnOnce(&NodeView<'_>) -> Vec<Change>,
    ) -> Result<Node, RegisterError> {
        let mut book = self.lock_at(now);
        let adopted = check(&book, &new)?;
        let before = adopted.and_then(|id| book.get(id)).map(|entry| entry.node.clone());
        let id = match adopted {
            Some(id) => id,
            None if !book.has_room() => return Err(RegisterError::Full { limit: NODES_MAX }),
            None => {
                let node = new_node(Origin::Registered, now).ok_or(RegisterError::NoRandomness)?;
                book.insert(Entry::new(node))
            }
        };
        let Some(((), mut effects)) = book.change(id, now, |act| take_over(act, new)) else {
            return Err(RegisterError::NoRandomness);
        };
        effects
            .changes
            .extend(book.get(id).map(|entry| also(&NodeView::of(&book, entry))).unwrap_or_default());
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            match before {
                Some(before) => self.undo(id, now, |node| *node = before),
                // Watchers have heard of it already.
                None => {
                    let removed = self.lock().remove(id);
                    self.announce(removed.iter().map(|entry| entry.farewell(now)).collect());
                }
            }
            return Err(error.into());
        }
        node.ok_or(RegisterError::NoRandomness)
    }

    /// Lets a seen node boot and call home; also ends a boot loop's pause.
    pub fn approve(&self, reference: &NodeRef, now: Timestamp) -> Result<Node, OperatorError> {
        self.approve_if(reference, &Expected::Anything, now)
    }

    pub fn approve_if(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, OperatorError> {
        let approve = |act: &mut Act<'_>| {
            act.entry.loaders.forgive();
            act.entry.node.approved = true;
            act.approved = true;
            act.node_changed = true;
            act.note(Happening::Approved);
            // Approval itself moves no state; the table says so.
            let _ = act.step(Event::Approved);
        };
        self.change_durably(reference, expected, now, approve, |node, before| node.approved = before.approved)
    }

    /// Leaves an order for the node's agent, which takes it with its next heartbeat. `LocalBoot` holds for later
    /// netboots too; `Reboot` sends the node back to the ramdisk.
    pub fn order(&self, reference: &NodeRef, order: Order, now: Timestamp) -> Result<Node, OperatorError> {
        self.order_if(reference, order, &Expected::Anything, now)
    }

    pub fn order_if(
        &self,
        reference: &NodeRef,
        order: Order,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, OperatorError> {
        let give = |act: &mut Act<'_>| {
            act.entry.loaders.forgive();
            act.entry.node.order = Some(order);
            match order {
                Order::Reboot => act.entry.node.next_boot = NextBoot::Ramdisk,
                Order::LocalBoot => act.entry.node.next_boot = NextBoot::LocalDisk,
                Order::PowerOff => {}
            }
            act.node_changed = true;
            act.note(Happening::OrderGiven { order });
        };
        self.change_durably(reference, expected, now, give, |node, before| {
            node.order = before.order;
            node.next_boot = before.next_boot;
        })
    }

    /// Forgets the node and its timeline; its sessions and tokens end with it.
    pub fn remove(&self, reference: &NodeRef, now: Timestamp) -> Result<Node, OperatorError> {
        self.remove_if(reference, &Expected::Anything, now)
    }

    pub fn remove_if(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, OperatorError> {
        let mut book = self.lock();
        let id = locate_expected(&book, reference, expected)?;
        let node = book.view(id);
        let configured = node.iter().flat_map(|node| &node.ports).find(|port| book.is_configured(port.mac));
        if let Some(port) = configured {
            return Err(OperatorError::InConfiguration { mac: port.mac });
        }
        let entry = book.remove(id);
        let pending = self.submit_and_wait_later(id, vec![Change::DropNode(id)]);
        drop(book);
        if let Err(error) = pending.wait() {
            let mut book = self.lock();
            // Its machine may have netbooted in between and be a new node by now; that one is right then.
            let free = |entry: &Entry| entry.node.ports.iter().all(|port| book.owner_of(port.mac).is_none());
            if let Some(entry) = entry.filter(free) {
                book.insert(entry);
            }
            return Err(error.into());
        }
        self.announce(entry.iter().map(|entry| entry.farewell(now)).collect());
        node.ok_or_else(|| OperatorError::NotFound { reference: reference.to_string() })
    }

    /// Takes a change back in memory, and sees to it that the store hears of that once it can write again.
    pub(super) fn undo(&self, id: NodeId, now: Timestamp, put_back: impl FnOnce(&mut Node)) {
        let mut book = self.lock_at(now);
        let _ = book.change(id, now, |act| put_back(&mut act.entry.node));
        self.mark_unsaved(id);
    }

    fn change_durably(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
        change: impl FnOnce(&mut Act<'_>),
        put_back: impl FnOnce(&mut Node, &Node),
    ) -> Result<Node, OperatorError> {
        let not_found = || OperatorError::NotFound { reference: reference.to_string() };
        let mut book = self.lock_at(now);
        let id = locate_expected(&book, reference, expected)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or_else(not_found)?;
        let ((), effects) = book.change(id, now, change).ok_or_else(not_found)?;
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| put_back(node, &before));
            return Err(error.into());
        }
        node.ok_or_else(not_found)
    }
}

/// Finds a node that is what the operator thinks it is.
pub(super) fn locate_expected(
    book: &Book,
    reference: &NodeRef,
    expected: &Expected,
) -> Result<NodeId, OperatorError> {
    match book.locate(reference) {
        Ok(id) => expected.allows(book.view(id).as_ref()).map(|()| id),
        // If-Match on what is not there fails for that reason first (RFC 9110 §13.1.1).
        Err(missing @ OperatorError::NotFound { .. }) => expected.allows(None).and(Err(missing)),
        Err(error) => Err(error),
    }
}

/// The rules of registration; tells which seen node is adopted, if one has the port already.
pub(super) fn check(book: &Book, new: &NewNode) -> Result<Option<NodeId>, RegisterError> {
    if new.macs.is_empty() {
        return Err(RegisterError::NoPort);
    }
    if new.macs.len() > PORTS_MAX {
        return Err(RegisterError::TooManyPorts { count: new.macs.len() });
    }
    let mut adopted = None;
    let mut named = BTreeSet::new();
    let mut fixed = BTreeSet::new();
    for (mac, address) in &new.macs {
        let mac = *mac;
        if !mac.is_station() {
            return Err(RegisterError::NotAStation { mac });
        }
        if !named.insert(mac) {
            return Err(RegisterError::PortTwice { mac });
        }
        if let Some(owner) = book.owner_of(mac).and_then(|id| book.get(id)) {
            let adoptable = owner.node.origin == Origin::Seen && owner.node.name.is_none();
            if !adoptable || adopted.is_some_and(|id| id != owner.node.id) {
                let name = owner.node.name.as_ref().map(ToString::to_string);
                let owner = name.unwrap_or_else(|| owner.node.id.to_string());
                return Err(RegisterError::PortTaken { mac, owner });
            }
            adopted = Some(owner.node.id);
        }
        if let Some(address) = *address {
            let taken = book.reserved_for(address).filter(|owner| *owner != mac);
            if let Some(owner) = taken.or_else(|| (!fixed.insert(address)).then_some(mac)) {
                return Err(RegisterError::AddressTaken { address, owner });
            }
        }
    }
    if let Some(name) = new.name.as_ref().filter(|name| book.owner_of_name(name).is_some()) {
        return Err(RegisterError::NameTaken { name: name.clone() });
    }
    Ok(adopted)
}

pub(super) fn take_over(act: &mut Act<'_>, new: NewNode) {
    let node = &mut act.entry.node;
    node.name = new.name;
    node.origin = Origin::Registered;
    node.approved = true;
    for (mac, reserved) in new.macs {
        match node.ports.iter_mut().find(|port| port.mac == mac) {
            Some(port) => port.reserved = reserved,
            None => node.ports.push(Port { mac, reserved }),
        }
    }
    act.node_changed = true;
    act.approved = true;
    act.note(Happening::Registered);
    set_quirks(act, new.quirks);
}

/// `None` leaves them as they are.
pub(super) fn set_quirks(act: &mut Act<'_>, quirks: Option<Quirks>) {
    let Some(quirks) = quirks.filter(|quirks| *quirks != act.entry.node.quirks) else { return };
    act.entry.node.quirks = quirks;
    act.node_changed = true;
    // What it needs is known now, perhaps: it may try again at once.
    act.entry.loaders.forgive();
    act.note(Happening::QuirksSet { quirks });
}
