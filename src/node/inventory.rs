//! What the agent found in the machine. It comes from a stranger: every string and list is bounded on arrival.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::net::MacAddr;

/// Characters kept of any string the agent sends.
pub const TEXT_MAX: usize = 128;
pub const DISKS_MAX: usize = 256;
pub const NICS_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    pub system: System,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// Seconds from kernel start to this report.
    pub uptime_secs: f64,
    pub kernel: String,
    /// `bios` or `uefi`, and whether Secure Boot was on, as the running kernel sees it.
    pub booted_by: BootedBy,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub uuid: Option<Uuid>,
    pub bios_vendor: Option<String>,
    pub bios_version: Option<String>,
    pub bios_date: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    pub model: String,
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    pub logical: u32,
    pub cores: u32,
    pub sockets: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Kernel name, e.g. `vda`.
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub bytes: u64,
    pub rotational: bool,
    pub removable: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub name: String,
    pub mac: MacAddr,
    pub driver: Option<String>,
    pub speed_mbps: Option<u32>,
    pub link: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootedBy {
    #[default]
    Bios,
    Uefi,
    UefiSecureBoot,
}
