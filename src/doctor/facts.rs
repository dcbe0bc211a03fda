//! What was seen of the machine; data only, so that every judgement can be tried without making the fault.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::firewall::Chain;
use crate::clock::Timestamp;
use crate::config::{DhcpMode, PoolRange};
use crate::guard::rivals::Kind;
use crate::net::MacAddr;
use crate::net::hazards::{Allowed, Hazard};

/// Something that was looked at, or why it could not be.
pub type Seen<T> = Result<T, String>;

#[derive(Clone, Debug)]
pub struct Facts {
    pub wanted: Wanted,
    /// Why `farrier serve` would not start on the interface; `None` if it would.
    pub refused: Option<Refusal>,
    pub links: Seen<Vec<LinkFact>>,
    /// Names of the devices that carry a default route.
    pub default_routes: Vec<String>,
    /// `net.bridge.bridge-nf-call-iptables`; `None` where the module is not there.
    pub bridge_netfilter: Option<bool>,
    pub firewall: FirewallFact,
    pub rivals: RivalsFact,
    pub doors: Vec<Door>,
    /// Effective capabilities, a bit each.
    pub capabilities: Seen<u64>,
    /// `net.ipv4.ip_unprivileged_port_start`
    pub unprivileged_ports: u16,
    /// The kernel's neighbour table holds so many.
    pub neighbour_limit: Option<u32>,
    pub state: StateFact,
    pub loaders: LoadersFact,
    pub image: ImageFact,
    /// What the machine says it is (DMI): "VirtualBox", "Standard PC (Q35 + ICH9, 2009)".
    pub product: Option<String>,
    pub now: Timestamp,
    /// Whether the kernel's clock is kept by somebody.
    pub synchronised: Seen<bool>,
    pub lab: LabFact,
}

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub bridge: String,
    pub address: Ipv4Network,
    /// `network.allow`
    pub allowed: Allowed,
    pub mode: DhcpMode,
    pub pool: PoolRange,
    pub state: PathBuf,
    pub profile: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFact {
    pub name: String,
    pub up: bool,
    /// Something is at the other end.
    pub carrier: bool,
    /// "bridge", "veth", "tun"; empty for a physical card.
    pub kind: String,
    /// The bridge or bond it is a port of.
    pub master: Option<String>,
    /// The other end of a veth pair, if it is in this network namespace.
    pub peer: Option<String>,
    pub bridge: Option<BridgeFact>,
    /// Of a bridge's port: "forwarding", "blocking" …
    pub port_state: Option<String>,
    pub addresses: Vec<Ipv4Network>,
    pub wireless: bool,
    /// The kernel leaves checksums to the device; `None` where it does not tell.
    pub checksum_offload: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeFact {
    pub spanning_tree: bool,
    pub forward_delay: Duration,
    pub calls_iptables: bool,
}

#[derive(Clone, Debug, Default)]
pub struct FirewallFact {
    pub chains: Vec<Chain>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// What `farrier serve` says to the interface before it opens a socket there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What `network.allow` can lift, and the route or the device it is about.
    Hazard(Hazard, String),
    /// Anything else, in its words.
    Other(String),
}

/// Who else answers on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RivalsFact {
    NobodyAsked,
    /// Not to be found out, and why.
    Unknown(String),
    /// Asked by us, just now.
    Answered(Vec<Rival>),
    /// What the appliance that serves this bridge has heard and found by asking.
    Told(Vec<Rival>),
}

/// Another DHCP server, or a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    pub kind: Kind,
    pub address: IpAddr,
    /// Unknown if only a machine told of it.
    pub mac: Option<MacAddr>,
    /// The address it would give away.
    pub offered: Option<Ipv4Addr>,
    /// What is to be done about it, where more is known than that it answers.
    pub way_out: Option<String>,
}

/// A port we serve, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    pub service: &'static str,
    pub protocol: &'static str,
    pub port: u16,
    pub state: DoorState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoorState {
    Free,
    /// By whom, as far as we may know.
    Taken(Vec<Holder>),
    Refused(String),
    /// Without the bridge there is nothing to try.
    NotTried,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub program: String,
    pub arguments: Vec<String>,
    /// The systemd unit it runs in.
    pub unit: Option<String>,
}

#[derive(Clone, Debug)]
pub struct StateFact {
    /// Why it cannot be used.
    pub unusable: Option<String>,
    pub free_bytes: Seen<u64>,
    /// How long a small synced write took, the median of a few.
    pub sync: Seen<Duration>,
}

#[derive(Clone, Debug, Default)]
pub struct LoadersFact {
    pub served: Vec<String>,
    /// Firmware that matters here and gets no loader, with what is missing.
    pub wanting: Vec<(String, String)>,
    /// Another packaged loader that is not installed: firmware that may not matter here.
    pub lacking: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFact {
    Served { kernel_bytes: u64, ramdisk_bytes: u64 },
    Missing { others: Vec<String> },
    Damaged(String),
}

/// What `farrier lab` needs; machines of flesh and iron boot without.
#[derive(Clone, Debug, Default)]
pub struct LabFact {
    /// Why KVM works or does not; `None` if it was not tried.
    pub kvm: Option<Result<String, String>>,
    /// What is not installed, as the lab would say it.
    pub missing: Option<String>,
}
