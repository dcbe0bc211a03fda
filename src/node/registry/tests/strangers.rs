//! Who becomes a node, when, and who has to go.

use super::*;

/// Times and words of a node's DHCP exchange.
fn exchange(bench: &Bench, last: u16) -> Vec<Timestamp> {
    let boots = bench.registry.boots(bench.node(last).id);
    let dhcp = |event: &TimelineEvent| matches!(event.happening, Happening::Dhcp { .. });
    boots.into_iter().flat_map(|boot| boot.events).filter(dhcp).map(|event| event.at).collect()
}

fn unproven_max() -> u16 {
    u16::try_from(UNPROVEN_MAX).unwrap()
}

#[test]
fn an_offer_makes_no_node_and_a_granted_request_does() {
    for (policy, known) in
        [(UnknownPolicy::Enroll, true), (UnknownPolicy::Approve, true), (UnknownPolicy::Ignore, false)]
    {
        let bench = Bench::new(policy);
        bench.offered(1, 0);
        bench.offered(1, 4);
        assert!(bench.is_stranger(1, 4) && bench.registry.nodes().is_empty());
        assert_eq!(bench.store.load().unwrap(), Snapshot::default());
        bench.seen(1, 8);
        assert_eq!(!bench.is_stranger(1, 8), known, "{policy:?}");
        if known {
            assert_eq!(exchange(&bench, 1), [after(0), after(4), after(8)], "nothing is lost");
            let boot = bench.registry.boots(bench.node(1).id).pop().unwrap();
            assert_eq!((boot.number, boot.started_at), (1, START));
        }
        bench.assert_stored();
    }
}

#[test]
fn a_rom_that_requests_nothing_is_a_node_once_it_fetches() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.offered(1, 0);
    bench.file(1, Stage::Loader, "bootcode.bin", 1);
    assert!(!bench.is_stranger(1, 1));
    assert_eq!(bench.happenings(1).len(), 2);
    bench.offered(2, 2);
    bench.registry.asks_for_script(mac(2), after(3)).unwrap();
    assert!(bench.registry.issue_token(mac(2), ADDRESS, after(3)).is_some(), "no normal boot waits");
    // Whom DHCP told nothing, or an operator removed, is none by fetching.
    bench.file(3, Stage::Loader, "bootcode.bin", 4);
    assert_eq!(bench.registry.asks_for_script(mac(3), after(4)), None);
    bench.registry.remove(&NodeRef::Mac(mac(2)), after(5)).unwrap();
    assert_eq!(bench.registry.asks_for_script(mac(2), after(5)), None);
    assert_eq!(bench.registry.nodes().len(), 1);
    bench.assert_stored();
}

/// The batch of its node failed, that of its lease did not, and the power went before the node was written again.
#[test]
fn who_has_a_lease_and_lost_its_node_is_one_again_when_it_asks() {
    for unknown in [UnknownPolicy::Enroll, UnknownPolicy::Approve] {
        let bench = Bench::new(unknown);
        bench.store.fail_next_commits(2);
        bench.seen(1, 0);
        let bench = bench.restart();
        assert!(bench.is_stranger(1, 1), "it was not stored");
        bench.registry.started([mac(1)], after(1));
        assert!(bench.is_stranger(1, 1), "until it asks");
        bench.registry.asks_for_script(mac(1), after(11)).unwrap();
        assert_eq!(bench.registry.asks_for_script(mac(2), after(11)), None);
        bench.assert_stored();
    }
    let bench = Bench::new(UnknownPolicy::Ignore);
    bench.registry.started([mac(1)], after(1));
    assert_eq!(bench.registry.asks_for_script(mac(1), after(2)), None);
}

#[test]
fn the_waiting_room_is_bounded_and_forgets() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    for at in 0..10 {
        bench.offered(1, at);
    }
    bench.seen(1, 10);
    assert_eq!(exchange(&bench, 1), [6, 7, 8, 9, 10].map(after), "the oldest are gone");
    bench.offered(2, 20);
    bench.seen(2, 21 + WAITING_LIFETIME.as_secs());
    assert_eq!(exchange(&bench, 2).len(), 1);
    let waiting = u16::try_from(WAITING_MAX).unwrap();
    bench.offered(3, 200);
    for last in 1000..1000 + 2 * waiting {
        bench.offered(last, 201);
    }
    assert_eq!(bench.registry.lock().waiting().len(), WAITING_MAX);
    assert_eq!(bench.registry.nodes().len(), 2);
    bench.seen(3, 202);
    assert_eq!(exchange(&bench, 3).len(), 1);
    bench.offered(1, 400);
    assert_eq!(bench.registry.lock().waiting().len(), WAITING_MAX, "nodes do not wait");
    bench.offered(3, 401);
    bench.offered(4, 402);
    assert_eq!(bench.registry.lock().waiting().len(), 1);
}

#[test]
fn ten_thousand_new_machines_push_out_none_of_each_other() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    for last in 0..10_000 {
        bench.offered(last, 0);
    }
    for last in 0..10_000 {
        bench.seen(last, 4);
    }
    assert_eq!(bench.registry.nodes().len(), 10_000);
    const { assert!(NODES_MAX >= 10_000 + UNPROVEN_MAX, "and operators can register as many more") };
}

#[test]
fn who_has_come_least_far_goes_first_and_nobody_in_the_middle_of_a_boot() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    // Oldest first: served its ramdisk, holds a token, fetched its kernel, fetched a loader.
    for last in 1..=5 {
        bench.seen(last, 0);
    }
    bench.file(1, Stage::Ramdisk, "initrd.img", 1);
    let token = bench.token(2, 1);
    bench.file(3, Stage::Kernel, "vmlinuz", 1);
    bench.file(4, Stage::Loader, "shimx64.efi", 1);
    for last in 0..unproven_max() - 5 {
        bench.seen(1000 + last, 2);
    }
    bench.seen(50_000, 3);
    assert!(bench.is_stranger(5, 3), "only DHCP so far, and the oldest of those");
    // It was here a moment ago: its script makes it a node again, in another's place.
    bench.registry.asks_for_script(mac(5), after(4)).unwrap();
    for last in 0..unproven_max() {
        bench.seen(20_000 + last, 5);
    }
    for last in 1..=4 {
        assert!(!bench.is_stranger(last, 6), "{last}");
    }
    bench.hello(&token, 2, 6).unwrap();

    // A token that has lapsed protects no more.
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let _token = bench.token(1, 0);
    let late = 1 + TOKEN_LIFETIME.as_secs();
    for last in 0..unproven_max() {
        bench.seen(1000 + last, late);
    }
    assert!(bench.is_stranger(1, late));
}

#[test]
fn where_all_are_in_the_middle_of_a_boot_the_oldest_goes() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    for last in 0..unproven_max() {
        bench.seen(last, u64::from(last));
        let _token = bench.registry.issue_token(mac(last), ADDRESS, after(u64::from(last)));
    }
    // Tokens of the first have lapsed by then; those go before any other.
    let now = u64::from(unproven_max());
    bench.seen(50_000, now);
    assert!(bench.is_stranger(0, now) && !bench.is_stranger(1, now));
    assert_eq!(bench.registry.nodes().len(), UNPROVEN_MAX);
}
