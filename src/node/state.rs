//! Provision states and orders, named as Ironic names them; only those that can be reached.
//!
//! ```text
//!  enroll ──ramdisk served──> inspecting ──inventory──> manageable
//!                               │    ^                    │
//!                 agent failed, │    └── netboots again ──┘
//!                 or no call    v
//!                        inspect failed ──netboots again──> inspecting
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProvisionState {
    /// Known by MAC; nothing else promised. Unapproved nodes stay here.
    Enroll,
    /// Ramdisk handed out; its inventory is awaited. Transient.
    Inspecting,
    /// The ramdisk failed, or never called.
    InspectFailed,
    /// Inventory is in: the machine is enrolled.
    Manageable,
}

impl fmt::Display for ProvisionState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ProvisionState::Enroll => "enroll",
            ProvisionState::Inspecting => "inspecting",
            ProvisionState::InspectFailed => "inspect failed",
            ProvisionState::Manageable => "manageable",
        })
    }
}

/// What an operator asks of a waiting agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Reboot,
    PowerOff,
    /// Boot from the local disk, now and on later netboots.
    LocalBoot,
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Order::Reboot => "reboot",
            Order::PowerOff => "power off",
            Order::LocalBoot => "local boot",
        })
    }
}
