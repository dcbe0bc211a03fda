//! Pool, bindings, offers, quarantine: the values here, the bookkeeping in [`table`].
//!
//! A *binding* is durable: an address granted to a client until a time, or given back, or withheld. An *offer* is a
//! promise kept in memory for [`OFFER_HOLD`]. After its end a binding stays on record for *affinity*: the same client
//! gets the same address again unless another had to have it.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::net::MacAddr;

pub mod table;

/// How long an offered address waits for its REQUEST. Covers the slowest firmware's retries (4, 8, 16, 32 s), and
/// Raspberry Pi ROMs, which use an offer without ever requesting it.
pub const OFFER_HOLD: Duration = Duration::from_secs(120);
/// What an offer may count on even while a flood of strangers asks: OVMF collects offers for 3.6 s before its REQUEST.
pub const OFFER_HOLD_MIN: Duration = Duration::from_secs(4);
/// How long a declined address is withheld: somebody without a lease is using it, and may be gone by then.
pub const QUARANTINE: Duration = Duration::from_secs(3600);

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
    /// When it was last acknowledged. The latest of all tells until when the server ran at least (`server/restart.rs`).
    pub granted_at: Timestamp,
    pub expires_at: Timestamp,
}

impl Binding {
    /// Whether its client may use the address now.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.state == BindingState::Bound && self.expires_at > now
    }
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

/// One line of `lease list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub hostname: Option<String>,
    pub client_id: Option<Vec<u8>>,
    pub state: LeaseState,
    /// When the state began; absent for an offer.
    pub granted_at: Option<Timestamp>,
    /// When it ends, or ended: a `bound` lease in the past has expired.
    pub expires_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    Offered,
    Bound,
    Released,
    Quarantined,
    /// Another server gave it: heard, not given (`dhcp.mode`).
    Elsewhere,
}

/// How full the pool is. Addresses outside it (reservations) are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUse {
    pub size: u32,
    pub bound: u32,
    pub offered: u32,
    pub quarantined: u32,
}
