//! Nodes, their ports and boots, and what operators ask of them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::boot::decision::NextBoot;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::inventory::Inventory;
use crate::node::labels::{LabelEdit, Labels};
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::Stage;
use crate::node::{NodeId, NodeName, Origin};
use crate::operator::api::TaskDetail;

/// One row of `GET /api/v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// As operators set them.
    #[serde(default)]
    pub labels: Labels,
    pub last_seen_at: Option<Timestamp>,
    pub enrolled_at: Option<Timestamp>,
    /// The newest boot, if any.
    pub boot: Option<BootSummary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortSummary {
    pub mac: MacAddr,
    /// Fixed by an operator.
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub reserved: Option<Ipv4Addr>,
    /// What it holds now by lease or offer.
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub address: Option<Ipv4Addr>,
}

/// How far a boot has come, without its events; those are `GET /api/v1/nodes/{ref}/boots`, a list of
/// [`Boot`](crate::node::timeline::Boot), oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeDetail {
    #[serde(flatten)]
    pub summary: NodeSummary,
    pub uuid: Option<Uuid>,
    pub created_at: Timestamp,
    pub inventory: Option<Inventory>,
    /// What is done otherwise for its firmware, as it was set.
    #[serde(default)]
    pub quirks: Quirks,
    /// The last thing wanted for its disks, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskDetail>,
    pub version: u64,
}

/// `POST /api/v1/nodes`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    pub name: Option<NodeName>,
    pub ports: Vec<PortRequest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub quirks: Option<Quirks>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    pub mac: MacAddr,
    /// Reserves this address for the port.
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub address: Option<Ipv4Addr>,
}

/// `PATCH /api/v1/nodes/{ref}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// A new name; null takes the name away.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NodeName>)]
    pub name: Option<Option<NodeName>>,
    /// All ports it is to have, with the addresses reserved for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ports: Option<Vec<PortRequest>>,
    /// True lets it boot and enroll; false sends it back to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub approved: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_boot: Option<NextBoot>,
    /// All of its quirks; those that are not named are off. `{}` is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub quirks: Option<Quirks>,
    /// Labels to set; null takes the label away, and those that are not named stay.
    #[serde(default, skip_serializing_if = "LabelEdit::is_empty")]
    #[schema(schema_with = super::schema::label_edit)]
    pub labels: LabelEdit,
}

/// Tells `null` from absent: both would be `None` otherwise.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// `PUT /api/v1/nodes/{name}`: the node as it is to be; its name is in the path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePut {
    pub ports: Vec<PortRequest>,
    /// Left out, they stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub quirks: Option<Quirks>,
}

/// One row of `GET /api/v1/ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortEntry {
    pub mac: MacAddr,
    pub node: NodeId,
    pub node_name: Option<NodeName>,
    /// Fixed by an operator or the configuration.
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub reserved: Option<Ipv4Addr>,
    /// What it holds now by lease or offer.
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub address: Option<Ipv4Addr>,
}

/// `POST /api/v1/nodes/{ref}/order`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    pub order: Order,
}
