//! Provision states and orders, named as Ironic names them; only those that can be reached.
//!
//! ```text
//!  enroll ──ramdisk served──> inspecting ──inventory──> manageable ──┐
//!                               │    ^                    │          │ deploy, clean, rescue
//!                 agent failed, │    └── netboots again ──┘          v
//!                 or no call    v                            [the install's states]
//!                        inspect failed ──netboots again──> inspecting
//!
//!  deploy: wait call-back ──agent begins──> deploying ──installed system calls──> active ──release──> available
//!  clean:  clean wait ──────agent begins──> cleaning ──agent reports──> available
//!  rescue: rescuing ────────agent begins──> rescue ──unrescue──> what it was before
//!          each may end in its own failed state, from where it goes on or is asked for again
//! ```
//!
//! The states of the second picture follow from the node's intent ([`crate::node::install::intent`]) alone.

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
    /// Its disks hold nothing anybody needs: cleaned, or released.
    Available,
    /// An install is wanted; the next netboot begins it.
    WaitCallBack,
    /// Its disk is written to, or the installed system's first call is awaited.
    Deploying,
    DeployFailed,
    /// The installed system has called.
    Active,
    /// Cleaning is wanted; the next netboot begins it.
    CleanWait,
    Cleaning,
    CleanFailed,
    /// The rescue ramdisk is wanted; the next netboot is it.
    Rescuing,
    /// The rescue ramdisk runs.
    Rescue,
    RescueFailed,
}

impl ProvisionState {
    pub const ALL: [ProvisionState; 15] = [
        ProvisionState::Enroll,
        ProvisionState::Inspecting,
        ProvisionState::InspectFailed,
        ProvisionState::Manageable,
        ProvisionState::Available,
        ProvisionState::WaitCallBack,
        ProvisionState::Deploying,
        ProvisionState::DeployFailed,
        ProvisionState::Active,
        ProvisionState::CleanWait,
        ProvisionState::Cleaning,
        ProvisionState::CleanFailed,
        ProvisionState::Rescuing,
        ProvisionState::Rescue,
        ProvisionState::RescueFailed,
    ];

    /// Whether something went wrong that an operator has to know of.
    pub fn is_failed(self) -> bool {
        match self {
            ProvisionState::InspectFailed
            | ProvisionState::DeployFailed
            | ProvisionState::CleanFailed
            | ProvisionState::RescueFailed => true,
            ProvisionState::Enroll
            | ProvisionState::Inspecting
            | ProvisionState::Manageable
            | ProvisionState::Available
            | ProvisionState::WaitCallBack
            | ProvisionState::Deploying
            | ProvisionState::Active
            | ProvisionState::CleanWait
            | ProvisionState::Cleaning
            | ProvisionState::Rescuing
            | ProvisionState::Rescue => false,
        }
    }
}

impl fmt::Display for ProvisionState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ProvisionState::Enroll => "enroll",
            ProvisionState::Inspecting => "inspecting",
            ProvisionState::InspectFailed => "inspect failed",
            ProvisionState::Manageable => "manageable",
            ProvisionState::Available => "available",
            ProvisionState::WaitCallBack => "wait call-back",
            ProvisionState::Deploying => "deploying",
            ProvisionState::DeployFailed => "deploy failed",
            ProvisionState::Active => "active",
            ProvisionState::CleanWait => "clean wait",
            ProvisionState::Cleaning => "cleaning",
            ProvisionState::CleanFailed => "clean failed",
            ProvisionState::Rescuing => "rescuing",
            ProvisionState::Rescue => "rescue",
            ProvisionState::RescueFailed => "rescue failed",
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
