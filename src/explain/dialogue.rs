//! What `explain` tells: steps, the settings that decided something, and how it ends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::explain::machine::Machine;
use crate::explain::message::OptionLine;
use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::timeline::Stage;

/// What would happen, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dialogue {
    pub mac: MacAddr,
    pub name: Option<NodeName>,
    pub firmware: Machine,
    /// False when it was asked of a configuration, without leases and nodes.
    #[serde(default)]
    pub live: bool,
    pub steps: Vec<Step>,
    /// Settings of an operator that decided something.
    pub decisions: Vec<Decision>,
    /// How it ends, in one sentence.
    pub ends: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    pub stage: Stage,
    pub from: Party,
    /// One line: `DISCOVER, broadcast`.
    pub text: String,
    /// Options of a DHCP message, in wire order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<OptionLine>,
    /// A script as it would be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The message on the wire (UDP payload), in hexadecimal, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    Machine,
    Appliance,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// `dhcp.unknown`, `reservation`, `approval`, …
    pub setting: String,
    pub effect: String,
}
