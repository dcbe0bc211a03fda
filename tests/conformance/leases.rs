//! Leases by the ten thousand, in the store before the appliance starts.

use std::net::Ipv4Addr;
use std::time::Duration;

use farrier::clock::Clock;
use farrier::dhcp::lease::{Binding, BindingState, ClientKey};
use farrier::net::MacAddr;
use farrier::store::sqlite::SqliteStore;
use farrier::store::{Change, Store};

use crate::support::TestBed;

pub fn stored_mac(number: u32) -> MacAddr {
    MacAddr([2, 0x50, 0, (number >> 16) as u8, (number >> 8) as u8, number as u8])
}

/// Leases of a day, from this address upwards, in the store of an appliance that does not run.
pub fn store_leases(bed: &TestBed, first: Ipv4Addr, count: u32) {
    let store = SqliteStore::open(&bed.state().join("farrier.db")).expect("the database");
    let now = Clock::start().now();
    for piece in (0..count).collect::<Vec<_>>().chunks(5000) {
        let puts = piece.iter().map(|number| {
            Change::PutBinding(Binding {
                address: Ipv4Addr::from(u32::from(first) + number),
                key: ClientKey::Mac(stored_mac(*number)),
                mac: stored_mac(*number),
                client_id: None,
                hostname: None,
                state: BindingState::Bound,
                granted_at: now,
                expires_at: now.plus(Duration::from_secs(86_400)),
            })
        });
        store.commit(puts.collect()).expect("durable");
    }
}
