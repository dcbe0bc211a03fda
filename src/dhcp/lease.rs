//! Pool, bindings, offers, quarantine.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::net::MacAddr;

/// Who holds a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ClientKey {
    Mac(MacAddr),
    ClientId(Vec<u8>),
}

/// The durable record of one address. RFC 2131 §1.4 "binding".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub address: Ipv4Addr,
    pub key: ClientKey,
    pub mac: MacAddr,
    /// Option 61 as last sent: stored, echoed, shown.
    pub client_id: Option<Vec<u8>>,
    /// Option 12 after filtering to host name characters.
    pub hostname: Option<String>,
    pub state: BindingState,
    pub granted_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingState {
    Bound,
    /// Given back or expired; kept so that the same client gets the same address again.
    Released,
    /// Declined by its client, or found in use: withheld until `expires_at`. `mac` is who said so.
    Quarantined,
}
