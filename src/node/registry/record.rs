//! What happens on the wire.
use std::time::Duration;

use crate::boot::client::Client;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::NodeId;
use crate::node::registry::Registry;
use crate::node::timeline::Happening;

/// Fruitless fetches of the same loader at which it is offered no more (protocol.md P-11).
pub const BOOT_LOOP_AT: u32 = 3;
/// After this long without a fetch the machine gets another try.
pub const BOOT_LOOP_WINDOW: Duration = Duration::from_secs(10 * 60);

impl Registry {
    /// A client got an answer from DHCP. Creates the node on sight if policy allows; tells whose it is.
    pub fn seen(&self, _client: &Client, _now: Timestamp) -> Option<NodeId> {
        unimplemented!()
    }
    /// Puts a happening on the timeline of the node with this port and lets state follow; strangers are ignored.
    pub fn record(&self, _mac: MacAddr, _happening: Happening, _now: Timestamp) {
        unimplemented!()
    }
    /// Deadlines, and what could not be saved; call it about once a second.
    pub fn tick(&self, _now: Timestamp) {
        unimplemented!()
    }
}
