//! What an operator changed in a node's record, one thing at a time: found by comparing, told in words.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::decision::NextBoot;
use crate::net::MacAddr;
use crate::node::labels::{LabelKey, LabelValue};
use crate::node::{Node, NodeName};

/// One difference between two records of a node. There are at most three, and two for each port and each
/// label it may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "of")]
pub enum NodeChange {
    Name {
        from: Option<NodeName>,
        to: Option<NodeName>,
    },
    PortAdded {
        port: MacAddr,
        /// Fixed for it, if one is.
        #[schema(value_type = Option<String>, format = "ipv4")]
        address: Option<Ipv4Addr>,
    },
    PortRemoved {
        port: MacAddr,
    },
    /// The address fixed for a port.
    Address {
        port: MacAddr,
        #[schema(value_type = Option<String>, format = "ipv4")]
        from: Option<Ipv4Addr>,
        #[schema(value_type = Option<String>, format = "ipv4")]
        to: Option<Ipv4Addr>,
    },
    NextBoot {
        to: NextBoot,
    },
    ApprovalWithdrawn,
    Label {
        key: LabelKey,
        from: Option<LabelValue>,
        to: Option<LabelValue>,
    },
}

/// What an edit made different; approval has an event of its own.
pub fn between(before: &Node, now: &Node) -> Vec<NodeChange> {
    let mut changes = Vec::new();
    if before.name != now.name {
        changes.push(NodeChange::Name { from: before.name.clone(), to: now.name.clone() });
    }
    for port in &before.ports {
        match now.ports.iter().find(|other| other.mac == port.mac) {
            None => changes.push(NodeChange::PortRemoved { port: port.mac }),
            Some(other) if other.reserved != port.reserved => {
                changes.push(NodeChange::Address { port: port.mac, from: port.reserved, to: other.reserved });
            }
            Some(_) => {}
        }
    }
    let added = now.ports.iter().filter(|port| before.ports.iter().all(|known| known.mac != port.mac));
    changes.extend(added.map(|port| NodeChange::PortAdded { port: port.mac, address: port.reserved }));
    let keys: BTreeSet<&LabelKey> =
        before.labels.iter().chain(now.labels.iter()).map(|(key, _)| key).collect();
    for key in keys {
        let (from, to) = (before.labels.get(key), now.labels.get(key));
        if from != to {
            changes.push(NodeChange::Label { key: key.clone(), from: from.cloned(), to: to.cloned() });
        }
    }
    if before.next_boot != now.next_boot {
        changes.push(NodeChange::NextBoot { to: now.next_boot });
    }
    if before.approved && !now.approved {
        changes.push(NodeChange::ApprovalWithdrawn);
    }
    changes
}

/// All of them in a line.
pub fn told(changes: &[NodeChange]) -> String {
    changes.iter().map(tell).collect::<Vec<_>>().join("; ")
}

fn tell(change: &NodeChange) -> String {
    match change {
        NodeChange::Name { from: Some(from), to: Some(to) } => format!("renamed from {from} to {to}"),
        NodeChange::Name { from: Some(from), to: None } => format!("name {from} taken away"),
        NodeChange::Name { from: None, to: Some(to) } => format!("named {to}"),
        NodeChange::Name { from: None, to: None } => "name unchanged".to_owned(),
        NodeChange::PortAdded { port, address: None } => format!("port {port} added"),
        NodeChange::PortAdded { port, address: Some(address) } => {
            format!("port {port} added with address {address}")
        }
        NodeChange::PortRemoved { port } => format!("port {port} removed"),
        NodeChange::Address { port, from: None, to: Some(to) } => format!("{to} fixed for {port}"),
        NodeChange::Address { port, from: Some(from), to: Some(to) } => {
            format!("{to} instead of {from} fixed for {port}")
        }
        NodeChange::Address { port, from: Some(from), to: None } => {
            format!("{from} no longer fixed for {port}")
        }
        NodeChange::Address { port, from: None, to: None } => format!("no address fixed for {port}"),
        NodeChange::NextBoot { to: NextBoot::Ramdisk } => "boots the deploy ramdisk next".to_owned(),
        NodeChange::NextBoot { to: NextBoot::LocalDisk } => "boots from its disk next".to_owned(),
        NodeChange::Label { key, to: Some(to), .. } => format!("labelled {key}={to}"),
        NodeChange::Label { key, to: None, .. } => format!("label {key} taken away"),
        NodeChange::ApprovalWithdrawn => "approval withdrawn".to_owned(),
    }
}
