//! The operator API's documents: one struct each, written by the server and read by the CLI.
//!
//! Names are stable: fields are added, not renamed. Times are RFC 3339, durations carry their unit.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::dhcp::lease::LeaseState;
use crate::net::MacAddr;
use crate::node::inventory::Inventory;
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::{Stage, TimelineEvent};
use crate::node::{NodeId, NodeName, Origin};

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub started_at: Timestamp,
    pub uptime_secs: u64,
    pub bridge: BridgeStatus,
    pub services: Vec<ServiceStatus>,
    pub pool: PoolStatus,
    /// Every state is listed, also with 0.
    pub nodes: BTreeMap<ProvisionState, u64>,
    pub waiting_for_approval: u64,
    pub image: ImageStatus,
    pub store: StoreStatus,
    /// Newest last.
    pub problems: Vec<ReportedProblem>,
    pub counters: Vec<Counter>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BridgeStatus {
    pub name: String,
    /// With prefix length: 192.168.2.2/24.
    pub address: String,
    pub mac: MacAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `dhcp`, `tftp`, `http`, `operator`, …
    pub name: String,
    /// Where it listens, for people.
    pub listens: String,
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
    pub size: u64,
    pub bound: u64,
    pub offered: u64,
    pub quarantined: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    pub profile: String,
    /// Whether deploy kernel and ramdisk of that profile can be served.
    pub present: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    pub path: String,
    /// Why the last commit failed; absent once one has succeeded again.
    pub last_error: Option<String>,
}

/// A warning or an error the appliance logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedProblem {
    pub at: Timestamp,
    pub severity: Severity,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    pub service: String,
    pub outcome: String,
    pub count: u64,
}

/// One row of `GET /api/v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    pub id: NodeId,
    pub name: Option<NodeName>,
    pub ports: Vec<PortSummary>,
    pub state: ProvisionState,
    pub approved: bool,
    pub origin: Origin,
    pub firmware: Option<Firmware>,
    pub next_boot: NextBoot,
    /// Given, not yet picked up by the agent.
    pub order: Option<Order>,
    pub failure: Option<String>,
    pub last_seen_at: Option<Timestamp>,
    pub enrolled_at: Option<Timestamp>,
    /// The newest boot, if any.
    pub boot: Option<BootSummary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSummary {
    pub mac: MacAddr,
    /// Fixed by an operator.
    pub reserved: Option<Ipv4Addr>,
    /// What it holds now by lease or offer.
    pub address: Option<Ipv4Addr>,
}

/// How far a boot has come, without its events; those are `GET /api/v1/nodes/{ref}/boots`, a list of
/// [`Boot`](crate::node::timeline::Boot), oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSummary {
    pub number: u32,
    pub started_at: Timestamp,
    pub stage: Option<Stage>,
    /// When that stage was reached.
    pub stage_at: Option<Timestamp>,
    pub enrolled: bool,
    /// Why it is no further; absent once enrolled.
    pub stopped_at: Option<String>,
}

/// `GET /api/v1/nodes/{ref}`, and the answer to every request that changes a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDetail {
    #[serde(flatten)]
    pub summary: NodeSummary,
    pub uuid: Option<Uuid>,
    pub created_at: Timestamp,
    pub inventory: Option<Inventory>,
    pub version: u64,
}

/// `POST /api/v1/nodes`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    pub name: Option<NodeName>,
    pub ports: Vec<PortRequest>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    pub mac: MacAddr,
    /// Reserves this address for the port.
    pub address: Option<Ipv4Addr>,
}

/// `POST /api/v1/nodes/{ref}/order`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    pub order: Order,
}

/// One row of `GET /api/v1/leases`, by address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseEntry {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    /// Name of the node the MAC belongs to.
    pub node_name: Option<NodeName>,
    pub hostname: Option<String>,
    pub state: LeaseState,
    pub granted_at: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// Data of one `timeline` event of `GET /api/v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventMessage {
    pub node_name: Option<NodeName>,
    pub node_mac: Option<MacAddr>,
    #[serde(flatten)]
    pub event: TimelineEvent,
}

/// Data of a `lagged` event: the watcher was too slow and this many events were left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaggedMessage {
    pub left_out: u64,
}

/// `GET /healthz`, `GET /readyz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub ok: bool,
    /// What is missing when not ok.
    pub reason: Option<String>,
}

/// RFC 9457: why a request was not done. `application/problem+json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemDocument {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// The part of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_out: Option<String>,
}
