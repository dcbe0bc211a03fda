//! The boot decision: what a client gets, and the reason when it gets nothing.
//!
//! One pure function, so that DHCP, TFTP, HTTP, `explain` and the tests can never disagree about it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::boot::client::Firmware;
use crate::boot::loader::LoaderName;
use crate::node::NodeId;

/// What we know of the machine behind a MAC when it asks. Built by the node registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No record of this MAC.
    Stranger,
    Known(KnownNode),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownNode {
    pub id: NodeId,
    /// Operators registered it, or policy enrolls on sight.
    pub approved: bool,
    pub next_boot: NextBoot,
    /// The address the operator fixed for this port, if any.
    pub reserved: Option<Ipv4Addr>,
    /// Times in the last ten minutes that this port fetched a loader with no script fetched since.
    pub fruitless_loaders: u32,
}

/// What the operator (or, later, an install intent) wants the next netboot to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextBoot {
    /// Deploy kernel and ramdisk: the agent takes inventory and waits for orders.
    #[default]
    Ramdisk,
    /// Hand over to the local disk.
    LocalDisk,
}

/// `dhcp.unknown`: what happens to a MAC nobody registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownPolicy {
    /// Boots and enrolls on sight.
    #[default]
    Enroll,
    /// Gets an address and a screen that waits until an operator approves.
    Approve,
    /// Gets no answer at all.
    Ignore,
}

/// What a client is told to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootPlan {
    /// Fetch this boot loader: by TFTP, or by URL for HTTP Boot firmware.
    Loader { firmware: Firmware, loader: LoaderName },
    /// iPXE: fetch your script.
    Script,
    /// An address, and nothing to boot.
    AddressOnly(NothingToBoot),
    /// No answer: not even an address.
    Refuse(RefusedBoot),
}

/// Why a client gets an address but no boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NothingToBoot {
    /// It did not ask: an operating system or the ramdisk.
    NotABootClient,
    /// The node is to boot from its own disk.
    LocalDisk,
    /// Architecture code without a loader.
    UnknownFirmware,
    /// A loader row exists for this firmware but names none (`[boot.loaders]` or `pxe/loaders.toml`).
    NoLoader,
    /// It fetched the same loader three times without ever asking for a script.
    BootLoop,
}

/// Why a client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedBoot {
    /// `dhcp.unknown = "ignore"` and nobody registered this MAC.
    UnknownMac,
}

/// What an iPXE script or GRUB configuration is to do. Decided when the text is fetched, not when DHCP answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptPlan {
    /// Load the deploy kernel and ramdisk.
    Ramdisk,
    /// Wait and ask again: an operator has to approve this node.
    AwaitApproval,
    /// Leave the loader so that the firmware goes on to the local disk.
    LocalDisk,
}
