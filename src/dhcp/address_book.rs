//! Which MAC an address on the bridge belongs to now.
//!
//! The DHCP thread writes it (offers and bindings alike: some ROMs use an offer without ever requesting it); TFTP,
//! HTTP and the registry read it to know which node a request comes from.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use crate::net::MacAddr;

#[derive(Debug, Default)]
pub struct AddressBook {
    owners: RwLock<HashMap<Ipv4Addr, MacAddr>>,
}

impl AddressBook {
    pub fn set(&self, address: Ipv4Addr, owner: MacAddr) {
        self.owners.write().unwrap_or_else(PoisonError::into_inner).insert(address, owner);
    }

    pub fn clear(&self, address: Ipv4Addr) {
        self.owners.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    pub fn owner(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }
}
