use super::*;
use crate::dhcp::testing::{address, mac};
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);
const LEASE: Duration = Duration::from_secs(3600);

fn key(number: u32) -> ClientKey {
    ClientKey::Mac(mac_of(number))
}

fn mac_of(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}

fn binding(address: Ipv4Addr, number: u32, expires_at: Timestamp) -> Binding {
    Binding {
        address,
        key: key(number),
        mac: mac_of(number),
        client_id: None,
        hostname: None,
        state: BindingState::Bound,
        granted_at: NOW,
        expires_at,
    }
}

fn small_pool() -> PoolRange {
    PoolRange { first: address(50), last: address(53) }
}

/// A /12 with 500 000 addresses in the pool, all bound but the last one.
fn crowded() -> (LeaseTable, Ipv4Addr) {
    let first = u32::from(Ipv4Addr::new(10, 16, 0, 10));
    let last = Ipv4Addr::from(first + 500_000);
    let pool = PoolRange { first: Ipv4Addr::from(first), last };
    let bindings =
        (0..500_000).map(|number| binding(Ipv4Addr::from(first + number), number, NOW.plus(LEASE))).collect();
    (LeaseTable::new(pool, bindings, NOW), last)
}

#[test]
fn half_a_million_bindings_do_not_make_a_message_look_at_more_than_one_address() {
    let (mut table, last) = crowded();
    let mut looked_at = 0;
    let mut count = |_| {
        looked_at += 1;
        true
    };
    assert_eq!(table.find_free(NOW, &mut count), Some(last));
    table.offer(last, &key(900_000), mac_of(900_000), true, NOW);
    assert_eq!(table.find_free(NOW, &mut count), None);
    table.release(&key(77), NOW);
    let released = table.find_free(NOW, &mut count).unwrap();
    assert_eq!(table.binding(&key(77)).map(|binding| binding.address), Some(released));
    assert_eq!(looked_at, 2, "one look for each address found");
    assert_eq!(table.pool_use(), PoolUse { size: 500_001, bound: 499_999, offered: 1, quarantined: 0 });
}

#[test]
fn leases_that_end_together_are_taken_note_of_in_batches() {
    let (mut table, _) = crowded();
    let later = NOW.plus(LEASE);
    assert!(table.expire(later), "more are waiting");
    assert_eq!(table.pool_use().bound as usize, 500_000 - index::EXPIRE_BATCH);
    // But what has ended is free at once, for whoever asks.
    assert_eq!(table.live_binding(&key(400_000), later), None);
    let address = table.binding(&key(400_000)).unwrap().address;
    assert_eq!(table.availability(address, &key(1), later), Availability::Free);
}

#[test]
fn reserved_addresses_go_to_the_end_of_the_line() {
    let mut table = LeaseTable::new(small_pool(), Vec::new(), NOW);
    let mut looked_at = Vec::new();
    let found = table.find_free(NOW, |candidate| {
        looked_at.push(candidate);
        candidate == address(53)
    });
    assert_eq!((found, looked_at.len()), (Some(address(53)), 4));
    table.bind(binding(address(53), 1, NOW.plus(LEASE)), NOW);
    assert_eq!(table.find_free(NOW, |_| false), None);
    assert_eq!(table.find_free(NOW, |_| true), Some(address(50)), "none is lost when the reservation goes");
}

#[test]
fn two_records_of_one_client_after_a_crash_leave_it_the_newer_one() {
    let mut newer = binding(address(51), 1, NOW.plus(LEASE));
    newer.granted_at = NOW.plus(Duration::from_secs(1));
    let older = binding(address(50), 1, NOW.plus(LEASE));
    for bindings in [vec![newer.clone(), older.clone()], vec![older, newer]] {
        let table = LeaseTable::new(small_pool(), bindings, NOW);
        assert_eq!(table.binding(&key(1)).map(|binding| binding.address), Some(address(51)));
        assert_eq!(table.pool_use().bound, 2, "the older one is withheld until its end");
    }
}

#[test]
fn nothing_is_left_of_offers_outside_the_pool_once_they_lapse() {
    let mut table = LeaseTable::new(small_pool(), Vec::new(), NOW);
    table.offer(address(9), &key(1), mac(1), false, NOW);
    assert_eq!(table.pool_use().offered, 0, "a reservation outside takes nothing from the pool");
    table.expire(NOW.plus(OFFER_HOLD));
    assert!(table.slots.is_empty() && table.clients.is_empty() && table.claims.is_empty());
}

#[test]
fn clients_that_never_request_leave_nothing_behind() {
    let mut table = LeaseTable::new(small_pool(), Vec::new(), NOW);
    let mut now = NOW;
    for number in 0..100 {
        now = now.plus(OFFER_HOLD);
        table.expire(now);
        let found = table.find_free(now, |_| true).unwrap();
        table.offer(found, &key(number), mac_of(number), true, now);
    }
    assert_eq!((table.clients.len(), table.slots.len(), table.newcomers()), (1, 4, 1));
}

#[test]
fn the_end_of_the_address_space_is_not_stepped_over() {
    let top = Ipv4Addr::BROADCAST;
    let mut table = LeaseTable::new(PoolRange { first: top, last: top }, Vec::new(), NOW);
    assert_eq!(table.find_free(NOW, |_| false), None);
    assert_eq!(table.find_free(NOW, |_| true), Some(top));
}
