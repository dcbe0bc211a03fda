//! Configuration: what the file means, checked once, immutable afterwards.
//!
//! `file` mirrors `config/farrier.toml` key by key (serde, unknown keys refused); this module holds what the
//! program reads. Each mistake is one error that names the key, the value, the rule and the way out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::boot::client::Firmware;
use crate::boot::decision::UnknownPolicy;
use crate::boot::loader::LoaderName;
use crate::boot::script::KernelArgument;
use crate::net::MacAddr;
use crate::node::NodeName;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub network: NetworkConfig,
    pub dhcp: DhcpConfig,
    pub operator: OperatorConfig,
    pub store: StoreConfig,
    pub boot: BootConfig,
}

/// A Linux interface name; there is no default and no wildcard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeName(pub String);

impl fmt::Display for BridgeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    pub bridge: BridgeName,
    /// Our own address with its prefix: 192.168.2.2/24. Also the server identifier.
    pub address: Ipv4Network,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
}

/// First and last address of the dynamic pool, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRange {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A client is its MAC: firmware, iPXE, ramdisk and OS get one address (protocol: three client-ids in one boot).
    #[default]
    Mac,
    /// RFC 2131 §4.2 to the letter: option 61 identifies the client when present.
    ClientId,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DhcpConfig {
    pub pool: PoolRange,
    pub lease: Duration,
    pub unknown: UnknownPolicy,
    pub identity: Identity,
    pub authoritative: bool,
    pub reservations: Vec<Reservation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub name: Option<NodeName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OperatorConfig {
    pub socket: PathBuf,
    /// Loopback only; serves health, metrics and status, read-only.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// State directory: `farrier.db`, `images/`, `loaders/`.
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BootConfig {
    /// Overrides `pxe/loaders.toml`, per firmware.
    pub loaders: BTreeMap<Firmware, LoaderName>,
    /// Which deploy profile of `images/deploy.toml` nodes get: `vm` or `metal`.
    pub profile: String,
    /// Appended to the deploy kernel's command line.
    pub kernel_arguments: Vec<KernelArgument>,
}
