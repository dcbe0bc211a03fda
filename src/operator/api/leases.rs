//! Addresses: what was given out, and what is kept for whom.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::dhcp::lease::LeaseState;
use crate::net::MacAddr;
use crate::node::{NodeId, NodeName};

/// One row of `GET /api/v1/leases`, by address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseEntry {
    #[schema(value_type = String, format = "ipv4")]
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    /// Name of the node the MAC belongs to.
    pub node_name: Option<NodeName>,
    pub hostname: Option<String>,
    pub state: LeaseState,
    /// When it was last acknowledged.
    pub granted_at: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// One row of `GET /api/v1/reservations`, by address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReservationEntry {
    #[schema(value_type = String, format = "ipv4")]
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub node: Option<NodeId>,
    pub node_name: Option<NodeName>,
    pub source: ReservationSource,
}

/// Who fixed an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationSource {
    /// Registered with a node; changed with it.
    Operator,
    /// `dhcp.reservation` in the configuration file; changed there.
    Configuration,
}

/// `PUT /api/v1/reservations/{address}`: the port this address is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReservationPut {
    pub mac: MacAddr,
}
