//! What a verdict rests on besides the boot itself: how the appliance, its bridge and its tables are now.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::boot::decision::UnknownPolicy;
use crate::boot::loader::LoaderTable;
use crate::bridge_log::event::BridgeFault;
use crate::bridge_log::outages::Outage;
use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::dhcp::lease::PoolUse;
use crate::net::MacAddr;
use crate::net::ports::BridgePort;
use crate::node::timeline::Stage;

/// Everything that is so now; see [`super::of`].
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// As of when is judged; events after it have not happened.
    pub now: Timestamp,
    /// When the appliance was started.
    pub started_at: Timestamp,
    pub mode: DhcpMode,
    pub unknown: UnknownPolicy,
    /// How long a ramdisk may take to call, by configuration.
    pub call_deadline: Duration,
    pub bridge: BridgeView,
    pub ports: Vec<BridgePort>,
    /// When it or a port of it was out, oldest first; also what is out still.
    pub outages: Vec<Outage>,
    /// Other DHCP servers whose MAC is known.
    pub servers: BTreeMap<Ipv4Addr, MacAddr>,
    pub pool: PoolUse,
    pub loaders: Arc<LoaderTable>,
    /// The deploy profile machines boot.
    pub profile: String,
    /// Its kernel was changed after it was signed.
    pub kernel_altered: bool,
    /// A file the machine is fetching at this moment.
    pub fetching: Option<Fetching>,
}

/// A download under way: no event tells of it until it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetching {
    pub stage: Stage,
    pub since: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeView {
    pub name: String,
    /// Ours on it, with prefix length.
    pub address: String,
    /// Why nothing can be served there, if nothing can.
    pub fault: Option<BridgeFault>,
}
