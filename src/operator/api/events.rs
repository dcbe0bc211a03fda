//! What the event stream carries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::timeline::TimelineEvent;

/// Data of one `timeline` event of `GET /api/v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventMessage {
    pub node_name: Option<NodeName>,
    pub node_mac: Option<MacAddr>,
    #[serde(flatten)]
    pub event: TimelineEvent,
}

/// Data of a `lagged` event: the watcher was too slow and this many events were left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaggedMessage {
    pub left_out: u64,
}

/// Data of a `gap` event: what came between the watcher's last event and the next cannot be told any more, because
/// the appliance was started anew, or too much has happened since. The timelines have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GapMessage {
    pub reason: GapReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The last event was one of an earlier run.
    Restarted,
    /// The last event is older than what is kept.
    TooOld,
}
