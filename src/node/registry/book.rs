//! Nodes in memory, and the indexes that find them.
use std::net::Ipv4Addr;

use crate::boot::decision::Standing;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::registry::{NodeRef, OperatorError, RegistrySettings};
use crate::node::timeline::Boot;
use crate::node::{Node, NodeId};
use crate::store::{Change, Snapshot};

pub(super) struct Book {}

impl Book {
    pub(super) fn from_snapshot(_snapshot: &Snapshot, _settings: RegistrySettings) -> (Book, Vec<Change>) {
        unimplemented!()
    }
    pub(super) fn reconfigure(&mut self, _settings: RegistrySettings, _now: Timestamp) -> Vec<NodeId> {
        unimplemented!()
    }
    pub(super) fn standing(&mut self, _mac: MacAddr, _now: Timestamp) -> Standing {
        unimplemented!()
    }
    pub(super) fn reserved_for(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        unimplemented!()
    }
    pub(super) fn locate(&self, _reference: &NodeRef) -> Result<NodeId, OperatorError> {
        unimplemented!()
    }
    pub(super) fn view(&self, _id: NodeId) -> Option<Node> {
        unimplemented!()
    }
    pub(super) fn views(&self) -> Vec<Node> {
        unimplemented!()
    }
    pub(super) fn boots(&self, _id: NodeId) -> Vec<Boot> {
        unimplemented!()
    }
    pub(super) fn with_record(&mut self, _id: NodeId, _changes: Vec<Change>) -> Vec<Change> {
        unimplemented!()
    }
}
