//! Operators' verbs.
use std::net::Ipv4Addr;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::registry::{NodeRef, Registry};
use crate::node::state::Order;
use crate::node::{Node, NodeName, PORTS_MAX};
use crate::store::CommitError;

/// A node an operator registers before its first boot; each port may have a fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub name: Option<NodeName>,
    pub macs: Vec<(MacAddr, Option<Ipv4Addr>)>,
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
    #[error("the registry is full: {limit} nodes are known; remove some first")]
    Full { limit: usize },
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
    #[error("nothing was changed")]
    Store(#[from] CommitError),
}

impl Registry {
    /// Registers a node, or adopts one that was seen unregistered; durable before it returns.
    pub fn register(&self, _new: NewNode, _now: Timestamp) -> Result<Node, RegisterError> {
        unimplemented!()
    }
    /// Lets a seen node boot and call home; also ends a boot loop's pause.
    pub fn approve(&self, _reference: &NodeRef, _now: Timestamp) -> Result<Node, OperatorError> {
        unimplemented!()
    }
    /// Leaves an order for the node's agent; it is taken with the next heartbeat.
    pub fn order(&self, _reference: &NodeRef, _order: Order, _now: Timestamp) -> Result<Node, OperatorError> {
        unimplemented!()
    }
    /// Forgets the node and its timeline; its sessions and tokens end with it.
    pub fn remove(&self, _reference: &NodeRef) -> Result<Node, OperatorError> {
        unimplemented!()
    }
}
