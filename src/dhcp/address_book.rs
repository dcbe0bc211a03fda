//! Which MAC an address on the bridge belongs to now.
//!
//! The DHCP thread writes it (offers and bindings alike: some ROMs use an offer without ever requesting it); TFTP,
//! HTTP and the registry read it to know which node a request comes from.
//!
//! Where another server gives the addresses (`dhcp.mode = "proxy"`) what we hear of them is a client's claim, renewals
//! pass us by, and a restart forgets it all. So there the kernel is asked first: the MAC that answers ARP for an
//! address is the one our answer goes to, whatever anybody says.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use crate::net::MacAddr;

/// Who answers for an address, as far as the kernel knows.
pub type Neighbours = Box<dyn Fn(Ipv4Addr) -> Option<MacAddr> + Send + Sync>;

/// What is written here stays: more addresses than this are no bridge of ours, and make room for one another.
const CLAIMS_MAX: usize = 65_536;

#[derive(Default)]
pub struct AddressBook {
    owners: RwLock<HashMap<Ipv4Addr, MacAddr>>,
    neighbours: Option<Neighbours>,
}

impl AddressBook {
    /// A book of claims, which the kernel's word precedes.
    pub fn of_claims(neighbours: Neighbours) -> AddressBook {
        AddressBook { owners: RwLock::default(), neighbours: Some(neighbours) }
    }

    pub fn set(&self, address: Ipv4Addr, owner: MacAddr) {
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        // Leases are bounded by the pool, claims by nothing.
        if self.neighbours.is_some()
            && owners.len() >= CLAIMS_MAX
            && !owners.contains_key(&address)
            && let Some(other) = owners.keys().next().copied()
        {
            owners.remove(&other);
        }
        owners.insert(address, owner);
    }

    pub fn clear(&self, address: Ipv4Addr) {
        self.owners.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    pub fn owner(&self, address: Ipv4Addr) -> Option<MacAddr> {
        let answering = self.neighbours.as_ref().and_then(|neighbours| neighbours(address));
        answering
            .or_else(|| self.owners.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied())
    }
}

impl std::fmt::Debug for AddressBook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AddressBook").field("owners", &self.owners).finish_non_exhaustive()
    }
}
