//! Nodes: the machines we know, what they are, where they stand, and what they did.
//!
//! - [`state`]: provision states and power orders, in Ironic's words
//! - [`transition`]: `apply(state, event) → state` or a refusal; pure and exhaustive
//! - [`inventory`]: what the agent found in the machine; bounded, validated
//! - [`install`]: what operators want done to its disks, exactly once
//! - [`labels`]: what operators know of a node and we do not
//! - [`timeline`]: boots and their events; bounded
//! - [`token`]: one-time boot tokens and agent sessions that need no write when issued
//! - [`verdict`]: why a boot ended where it did, with evidence and what to do; pure
//! - [`roster`]: lists of nodes in other programs' formats, read and written
//! - [`registry`]: the one writer of all of it: looks up, applies, commits, tells watchers
//!
//! A *node* is our record; the *machine* is the hardware or VM itself. A *port* is one of its NICs, by MAC.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::boot::decision::NextBoot;
use crate::boot::profile::ProfileName;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::install::intent::{Intent, IntentNonce};
use crate::node::inventory::Inventory;
use crate::node::labels::Labels;
use crate::node::state::{Order, ProvisionState};
use crate::node::token::Redeemer;

pub mod install;
pub mod inventory;
pub mod labels;
pub mod registry;
pub mod roster;
pub mod state;
pub mod timeline;
pub mod token;
pub mod transition;
pub mod verdict;

/// Ports one node may have; a machine with more NICs keeps the first ones its agent lists.
pub const PORTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Uuid);

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An operator's name for a node: a host name label (RFC 1123 §2.1), so that it is inert in every text we render.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a node name: 1 to 63 lower-case letters, digits and inner hyphens are wanted, as in rack1-node07"
)]
pub struct ParseNameError {
    pub text: String,
}

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters =
            text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        // A name that reads as a MAC or a UUID would make `node show` ambiguous.
        let ambiguous = text.parse::<MacAddr>().is_ok() || Uuid::try_parse(text).is_ok();
        if letters
            && !ambiguous
            && (1..=63).contains(&text.len())
            && !text.starts_with('-')
            && !text.ends_with('-')
        {
            Ok(NodeName(text.to_owned()))
        } else {
            Err(ParseNameError { text: text.chars().filter(|c| !c.is_control()).take(80).collect() })
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = ParseNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How a node's record came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// `farrier node add`, or a reservation in the configuration.
    Registered,
    /// It netbooted and nobody had registered it.
    Seen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub mac: MacAddr,
    /// Fixed by an operator; never given to another.
    pub reserved: Option<Ipv4Addr>,
}

/// The durable record of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: Option<NodeName>,
    pub uuid: Option<Uuid>,
    pub ports: Vec<Port>,
    pub origin: Origin,
    pub approved: bool,
    pub state: ProvisionState,
    pub next_boot: NextBoot,
    /// What is done otherwise for its firmware; absent in records of an earlier farrier.
    #[serde(default)]
    pub quirks: Quirks,
    /// Firmware it last netbooted with.
    pub firmware: Option<Firmware>,
    pub created_at: Timestamp,
    pub last_seen_at: Option<Timestamp>,
    /// When the agent first called home with an inventory.
    pub enrolled_at: Option<Timestamp>,
    pub inventory: Option<Inventory>,
    /// Waits for the agent's next heartbeat.
    pub order: Option<Order>,
    /// Issue time of the newest boot token redeemed; that one and all older ones are spent.
    pub redeemed_token_at: Option<Timestamp>,
    /// Who redeemed it, if that agent came with a nonce: its repeated call is no second use.
    pub redeemed_by: Option<Redeemer>,
    /// The last thing an operator wanted for its disks, whatever became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Box<Intent>>,
    /// Why it is in a failed state, in the agent's or the appliance's words.
    pub failure: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Grows by one with every stored change.
    pub version: u64,
}

impl Node {
    /// What the next netboot does: an open task on its disks outranks what was set.
    pub fn boots_next(&self) -> NextBoot {
        if self.must_netboot() { NextBoot::Ramdisk } else { self.next_boot }
    }

    /// An open task on its disks is done by the ramdisk, or by an installer, whatever else it is to boot.
    pub fn must_netboot(&self) -> bool {
        self.intent.as_ref().is_some_and(|intent| intent.needs_netboot())
    }

    /// The boot profile of the installer that it is to start, or that is at work.
    pub fn installer(&self) -> Option<&ProfileName> {
        self.intent.as_ref().and_then(|intent| intent.installer())
    }

    /// Whether a task on its disks may still come to something: no boot profile comes between.
    pub fn has_open_task(&self) -> bool {
        self.intent.as_ref().is_some_and(|intent| intent.is_open())
    }

    /// For whoever may read everything but act for nobody: without the key of its task.
    pub fn without_secrets(&self) -> Node {
        let mut node = self.clone();
        if let Some(intent) = &mut node.intent {
            intent.nonce = IntentNonce::from_bytes([0; IntentNonce::LEN]);
        }
        node
    }
}
