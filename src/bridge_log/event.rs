//! Events of the bridge, and their words.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::guard::rivals::Kind;
use crate::net::MacAddr;
use crate::net::ports::PortState;

/// Something that happened to the bridge. `GET /api/v1/bridge/events` lists them, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BridgeEvent {
    /// Counts up by one.
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    #[serde(flatten)]
    pub happening: BridgeHappening,
}

/// Why nothing can be served on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BridgeFault {
    Down,
    Gone,
    /// It does not carry our address any more.
    WithoutAddress,
}

impl BridgeFault {
    /// As in "the bridge br0 was …".
    pub fn words(self) -> &'static str {
        match self {
            BridgeFault::Down => "down",
            BridgeFault::Gone => "gone",
            BridgeFault::WithoutAddress => "without our address",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum BridgeHappening {
    /// Nothing can be served any more.
    BridgeOut {
        fault: BridgeFault,
    },
    /// It can be served again.
    BridgeBack {
        fault: BridgeFault,
        #[schema(value_type = String, format = DateTime)]
        out_since: Timestamp,
    },
    /// A port with somebody at its other end passes nothing on: spanning tree, or somebody's doing.
    PortHeld {
        port: String,
        state: PortState,
    },
    /// It does again, or nobody is there any more.
    PortBack {
        port: String,
        #[schema(value_type = String, format = DateTime)]
        held_since: Timestamp,
    },
    /// Somebody else answers on the bridge.
    RivalAppeared {
        kind: Kind,
        #[schema(value_type = String)]
        address: IpAddr,
        mac: Option<MacAddr>,
        /// The port of the bridge it is behind, if that is known.
        port: Option<String>,
    },
    RivalGone {
        kind: Kind,
        #[schema(value_type = String)]
        address: IpAddr,
        mac: Option<MacAddr>,
        #[schema(value_type = String, format = DateTime)]
        first_at: Timestamp,
    },
    /// The bridge has become this host's way to other networks, which is no network to answer DHCP on.
    DefaultRoute {
        route: String,
    },
    DefaultRouteGone {
        route: String,
    },
}

impl BridgeHappening {
    pub fn is_of_rival(&self) -> bool {
        match self {
            BridgeHappening::RivalAppeared { .. } | BridgeHappening::RivalGone { .. } => true,
            BridgeHappening::BridgeOut { .. }
            | BridgeHappening::BridgeBack { .. }
            | BridgeHappening::PortHeld { .. }
            | BridgeHappening::PortBack { .. }
            | BridgeHappening::DefaultRoute { .. }
            | BridgeHappening::DefaultRouteGone { .. } => false,
        }
    }

    /// Whether it is the beginning of something wrong, not its end.
    pub fn is_trouble(&self) -> bool {
        match self {
            BridgeHappening::BridgeOut { .. }
            | BridgeHappening::PortHeld { .. }
            | BridgeHappening::RivalAppeared { .. }
            | BridgeHappening::DefaultRoute { .. } => true,
            BridgeHappening::BridgeBack { .. }
            | BridgeHappening::PortBack { .. }
            | BridgeHappening::RivalGone { .. }
            | BridgeHappening::DefaultRouteGone { .. } => false,
        }
    }

    /// What happened, in a word or two, and the rest of it. `at` is when.
    pub fn words(&self, at: Timestamp) -> (&'static str, String) {
        let whose = |address: &IpAddr, mac: &Option<MacAddr>| match mac {
            Some(mac) => format!("{address} ({mac})"),
            None => address.to_string(),
        };
        let lasted = |since: &Timestamp| format!("{:.1} s", at.since(*since).as_secs_f64());
        match self {
            BridgeHappening::BridgeOut { fault } => {
                ("bridge out", format!("it is {}: nothing can be served", fault.words()))
            }
            BridgeHappening::BridgeBack { fault, out_since } => {
                ("bridge back", format!("it was {} for {}", fault.words(), lasted(out_since)))
            }
            BridgeHappening::PortHeld { port, state } => {
                ("port held", format!("{port} is {}: nothing passes", state.as_str()))
            }
            BridgeHappening::PortBack { port, held_since } => {
                ("port back", format!("{port} was held for {}", lasted(held_since)))
            }
            BridgeHappening::RivalAppeared { kind, address, mac, port } => {
                let behind = port.as_ref().map(|port| format!(", behind port {port}")).unwrap_or_default();
                ("rival", format!("{} answers: {}{behind}", kind.described(), whose(address, mac)))
            }
            BridgeHappening::RivalGone { kind, address, mac, first_at } => {
                let told =
                    format!("{} is quiet: {}, {}", kind.described(), whose(address, mac), lasted(first_at));
                ("rival gone", format!("{told} after it was first heard"))
            }
            BridgeHappening::DefaultRoute { route } => {
                ("default route", format!("this host's way to other networks leads over it: {route}"))
            }
            BridgeHappening::DefaultRouteGone { route } => ("default route", format!("gone again: {route}")),
        }
    }
}
