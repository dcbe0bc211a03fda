//! The agent's side.
use std::net::Ipv4Addr;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::inventory::Inventory;
use crate::node::registry::Registry;
use crate::node::state::Order;
use crate::node::{Node, NodeId, NodeName};
use crate::store::CommitError;

/// What a redeemed token buys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSession {
    /// Goes into `Authorization: Bearer …`.
    pub session: String,
    pub node: NodeId,
    pub name: Option<NodeName>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentRefusal {
    #[error("the token is not one this appliance writes")]
    TokenMalformed,
    #[error("the token was altered, or issued by another appliance")]
    TokenForged,
    #[error("the token is older than half an hour: boot again for a new one")]
    TokenExpired,
    #[error("the token was used before, or a newer one was: boot again for a new one")]
    TokenSpent,
    #[error("the token was issued to another MAC address")]
    WrongMac,
    #[error("the token was issued to another IP address")]
    WrongAddress,
    #[error("no node has this MAC address")]
    UnknownNode,
    #[error("an operator has to approve this node first")]
    NotApproved,
    #[error("the session is not one this appliance opened for this node")]
    SessionForged,
    #[error("the node has called home again since: this session is over")]
    SessionReplaced,
    #[error("no inventory is awaited from this node: boot it again")]
    NotAwaited,
    /// The only one worth a retry with the same credentials: 503, not 401.
    #[error("the appliance cannot write to its disk")]
    NotDurable(#[from] CommitError),
}

impl AgentRefusal {
    pub fn as_str(&self) -> &'static str {
        match self {
            AgentRefusal::TokenMalformed => "token-malformed",
            AgentRefusal::TokenForged => "token-forged",
            AgentRefusal::TokenExpired => "token-expired",
            AgentRefusal::TokenSpent => "token-spent",
            AgentRefusal::WrongMac => "wrong-mac",
            AgentRefusal::WrongAddress => "wrong-address",
            AgentRefusal::UnknownNode => "unknown-node",
            AgentRefusal::NotApproved => "not-approved",
            AgentRefusal::SessionForged => "session-forged",
            AgentRefusal::SessionReplaced => "session-replaced",
            AgentRefusal::NotAwaited => "not-awaited",
            AgentRefusal::NotDurable(_) => "not-durable",
        }
    }
}

impl Registry {
    pub fn issue_token(&self, _mac: MacAddr, _address: Ipv4Addr, _now: Timestamp) -> Option<String> {
        unimplemented!()
    }
    pub fn hello(
        &self,
        _token: &str,
        _mac: MacAddr,
        _address: Ipv4Addr,
        _uptime_secs: f64,
        _now: Timestamp,
    ) -> Result<AgentSession, AgentRefusal> {
        unimplemented!()
    }
    pub fn report_inventory(
        &self,
        _session: &str,
        _mac: MacAddr,
        _address: Ipv4Addr,
        _inventory: Inventory,
        _now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        unimplemented!()
    }
    /// Taken with a session, or with an unspent boot token if `hello` never succeeded.
    pub fn report_failure(
        &self,
        _credential: &str,
        _mac: MacAddr,
        _address: Ipv4Addr,
        _step: &str,
        _message: &str,
        _now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        unimplemented!()
    }
    /// The agent is alive; tells it the order that waits.
    pub fn heartbeat(
        &self,
        _session: &str,
        _mac: MacAddr,
        _address: Ipv4Addr,
        _now: Timestamp,
    ) -> Result<Option<Order>, AgentRefusal> {
        unimplemented!()
    }
    /// The agent is about to act on an order: it will not be given again.
    pub fn obeying(
        &self,
        _session: &str,
        _mac: MacAddr,
        _address: Ipv4Addr,
        _order: Order,
        _now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        unimplemented!()
    }
}
