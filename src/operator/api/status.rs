//! How the appliance is: status, readiness, the pool.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::dhcp::rivals::OtherServer;
use crate::guard::process::LocalServer;
use crate::guard::rivals::{Evidence, Kind};
use crate::net::MacAddr;
use crate::node::state::ProvisionState;

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub started_at: Timestamp,
    pub uptime_secs: u64,
    pub bridge: BridgeStatus,
    pub services: Vec<ServiceStatus>,
    #[serde(default)]
    pub dhcp: DhcpStatus,
    /// Who else answers on the bridge; nobody should.
    #[serde(default)]
    pub rivals: Vec<RivalStatus>,
    pub pool: PoolStatus,
    /// Every state is listed, also with 0.
    pub nodes: BTreeMap<ProvisionState, u64>,
    pub waiting_for_approval: u64,
    pub image: ImageStatus,
    pub store: StoreStatus,
    #[serde(default)]
    pub process: ProcessStatus,
    pub transfers: TransfersStatus,
    /// Newest last.
    pub problems: Vec<ReportedProblem>,
    pub counters: Vec<Counter>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BridgeStatus {
    pub name: String,
    /// With prefix length: 192.168.2.2/24.
    pub address: String,
    pub mac: MacAddr,
    /// It is there, it is up, and it has our address.
    pub up: bool,
    /// Why nothing can be served while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What speaks against serving it, though it was not so at the start: the host's default route leads over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objection: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// `dhcp`, `tftp`, `http`, `operator`, …
    pub name: String,
    /// Where it listens, for people.
    pub listens: String,
    pub running: bool,
}

/// What part the appliance plays beside other DHCP servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DhcpStatus {
    /// `dhcp.mode`
    pub mode: DhcpMode,
    /// Heard on the bridge since the start; listened for only where the mode is not "server".
    pub other_servers: Vec<OtherServer>,
}

/// Another DHCP server, or a foreign IPv6 router, on the bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RivalStatus {
    pub kind: Kind,
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Where its frames come from; unknown if only a machine told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The port of the bridge it is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// How it was noticed first.
    pub evidence: Evidence,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    /// How often it was heard.
    pub heard: u64,
    /// The last machine it dealt with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<MacAddr>,
    /// The process, if it runs on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<LocalServer>,
    /// What to do about it.
    pub way_out: String,
    /// Nobody is answered until it is quiet (`dhcp.on_rival = "hold"`).
    pub holding: bool,
}

impl RivalStatus {
    /// Who it is, in a line.
    pub fn headline(&self) -> String {
        let mac = self.mac.map(|mac| format!(" ({mac})")).unwrap_or_default();
        let process = self.process.as_ref().map(|process| {
            let file = process
                .configuration
                .as_ref()
                .map(|file| format!(", configured in {file}"))
                .unwrap_or_default();
            format!(": {} of this host, pid {}{file}", process.program, process.pid)
        });
        let (what, address) = (self.kind.described(), self.address);
        format!("{what} answers on the bridge, {address}{mac}{}", process.unwrap_or_default())
    }
}

/// How full the pool is; also `GET /api/v1/pool`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    #[schema(value_type = String, format = "ipv4")]
    pub first: Ipv4Addr,
    #[schema(value_type = String, format = "ipv4")]
    pub last: Ipv4Addr,
    pub size: u64,
    pub bound: u64,
    pub offered: u64,
    pub quarantined: u64,
}

/// Transfers under way now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransfersStatus {
    pub tftp: u64,
    pub http: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageStatus {
    pub profile: String,
    /// Whether deploy kernel and ramdisk of that profile can be served.
    pub present: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    pub path: String,
    /// Why the last commit failed; absent once one has succeeded again.
    pub last_error: Option<String>,
    /// Transactions synced to disk since the start, and the batches and changes they made durable.
    #[serde(default)]
    pub commits: u64,
    #[serde(default)]
    pub batches: u64,
    #[serde(default)]
    pub changes: u64,
    #[serde(default)]
    pub failed_commits: u64,
    /// Batches that wait now.
    #[serde(default)]
    pub queued: u64,
    /// Most batches one transaction carried.
    #[serde(default)]
    pub largest_group: u64,
    #[serde(default)]
    pub last_commit_micros: u64,
}

/// What the running program may do to the machine it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessStatus {
    pub user: String,
    /// Those it kept, in the kernel's spelling.
    pub capabilities: Vec<String>,
    /// Nothing it could execute would have more.
    pub no_new_privileges: bool,
    /// How far the kernel restricts it to its own files: `full`, `partial` (an older kernel) or `off`.
    pub landlock: String,
    /// Whether the kernel restricts it to a list of system calls.
    pub seccomp: bool,
}

/// A warning or an error the appliance logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportedProblem {
    pub at: Timestamp,
    pub severity: Severity,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counter {
    pub service: String,
    pub outcome: String,
    pub count: u64,
}

/// `GET /healthz`, `GET /readyz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub ok: bool,
    /// What is missing when not ok.
    pub reason: Option<String>,
}
