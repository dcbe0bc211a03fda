//! Addresses that another server gave, as clients tell of them: in a REQUEST, an INFORM, or a question at port 4011.
//!
//! A claim and not a lease: nobody is bound by it, nothing rests on it but what operators are shown. The newest claim
//! on an address stands.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::dhcp::lease::{LeaseState, LeaseView};
use crate::dhcp::request::MessageKind;
use crate::dhcp::server::DhcpServer;
use crate::dhcp::server::handling::Visit;
use crate::net::MacAddr;

/// As many machines as a bridge is built for, and a few MB; who was heard longest ago makes room.
const CLAIMS_MAX: usize = 32_768;

#[derive(Debug)]
struct Claim {
    address: Ipv4Addr,
    hostname: Option<String>,
    since: Timestamp,
    heard_at: Timestamp,
    /// Number of the message that said it: tells claims of one instant apart.
    turn: u64,
}

#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    by_mac: HashMap<MacAddr, Claim>,
    by_address: HashMap<Ipv4Addr, MacAddr>,
    by_turn: BTreeMap<u64, MacAddr>,
    turn: u64,
}

impl Elsewhere {
    fn claim(&mut self, mac: MacAddr, address: Ipv4Addr, hostname: Option<String>, now: Timestamp) {
        let since = self.by_mac.get(&mac).filter(|claim| claim.address == address).map(|claim| claim.since);
        self.drop_claim(mac);
        if let Some(before) = self.by_address.get(&address).copied() {
            self.drop_claim(before);
        }
        if self.by_mac.len() >= CLAIMS_MAX
            && let Some((_, oldest)) = self.by_turn.first_key_value()
        {
            self.drop_claim(*oldest);
        }
        self.turn += 1;
        let claim = Claim { address, hostname, since: since.unwrap_or(now), heard_at: now, turn: self.turn };
        self.by_turn.insert(self.turn, mac);
        self.by_address.insert(address, mac);
        self.by_mac.insert(mac, claim);
    }

    fn drop_claim(&mut self, mac: MacAddr) {
        if let Some(claim) = self.by_mac.remove(&mac) {
            self.by_address.remove(&claim.address);
            self.by_turn.remove(&claim.turn);
        }
    }

    /// By address. How long the other server lets them have it is not known: they are shown for as long as we would.
    pub(super) fn views(&self, lease: Duration) -> Vec<LeaseView> {
        let view = |(mac, claim): (&MacAddr, &Claim)| LeaseView {
            address: claim.address,
            mac: *mac,
            hostname: claim.hostname.clone(),
            client_id: None,
            state: LeaseState::Elsewhere,
            granted_at: Some(claim.since),
            expires_at: claim.heard_at.plus(lease),
        };
        let mut views: Vec<LeaseView> = self.by_mac.iter().map(view).collect();
        views.sort_unstable_by_key(|view| view.address);
        views
    }
}

impl DhcpServer {
    /// Takes note of an address that the client has from another server; tells which.
    pub(super) fn note_elsewhere(&mut self, visit: &Visit<'_>) -> Option<Ipv4Addr> {
        match self.settings.mode {
            DhcpMode::Server => return None,
            DhcpMode::Proxy | DhcpMode::Observe => {}
        }
        let request = visit.request;
        let source = Some(*visit.received.source.ip()).filter(|_| request.relay.is_none());
        let told = match request.kind {
            MessageKind::Request | MessageKind::Inform => {
                request.requested.or(request.current).or(source).filter(|it| self.settings.is_host(*it))
            }
            MessageKind::Decline | MessageKind::Release => {
                self.elsewhere.drop_claim(request.mac);
                None
            }
            MessageKind::Discover | MessageKind::Bootp => None,
        };
        if let Some(address) = told {
            self.elsewhere.claim(request.mac, address, request.hostname(), visit.now);
        }
        told
    }
}
