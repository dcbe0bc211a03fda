//! What a supervisor is told: a network and a list of programs. All knowledge of firmware and configuration stays
//! with whoever writes the plan; the supervisor only builds, starts, restarts and ends.

use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::net::MacAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub network: NetworkPlan,
    /// In the order they start.
    pub programs: Vec<ProgramPlan>,
    /// Ends with the process that started it (a demo, a test), or goes on by itself (`farrier lab up`).
    pub ends_with_launcher: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkPlan {
    pub bridge: String,
    pub bridge_mac: MacAddr,
    /// Addresses of the bridge itself; the first is the appliance's.
    pub addresses: Vec<Ipv4Network>,
    /// One per machine.
    pub taps: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramPlan {
    pub name: String,
    pub arguments: Vec<String>,
    pub directory: PathBuf,
    /// Takes what it prints; emptied when the lab starts.
    pub log: PathBuf,
    /// Standard input is the operator's listening socket, opened outside the namespace.
    pub takes_listener: bool,
    /// Started again when it ends, as an init system would.
    pub restarts: bool,
}

/// The supervisor's one line to its launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// Network built, every program started.
    Ready,
    Failed {
        message: String,
    },
}
