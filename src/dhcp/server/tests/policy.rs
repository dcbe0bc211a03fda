//! Who is served what: standing, reservations, identity.

use super::*;
use crate::config::Identity;

#[test]
fn a_stranger_is_not_answered_when_strangers_are_ignored_and_a_known_node_is() {
    let mut world = World::new(Settings { unknown: UnknownPolicy::Ignore, ..settings() });
    for message in [
        discover(1).uefi(),
        discover(1),
        ClientMessage::selecting(mac(1), address(50)),
        ClientMessage::init_reboot(mac(1), address(50)),
        ClientMessage::inform(mac(1)).using(address(50)),
        ClientMessage::new(3, mac(1)).using(address(50)).uefi().at_boot_server(),
    ] {
        assert_eq!(silence(&world.send(&message)), Some(Silence::UnknownMac));
    }
    world.nodes.know(mac(1));
    assert_eq!(answer(&world.send(&discover(1).uefi())), "offer 192.168.2.50");
}

#[test]
fn a_node_that_is_to_boot_from_disk_gets_an_address_only() {
    let mut world = World::new(settings());
    world.nodes.know(mac(1)).next_boot = NextBoot::LocalDisk;
    let bios = discover(1).option(60, b"PXEClient:Arch:00000").option(93, &[0, 0]);
    let outcome = world.send(&bios);
    let offer = reply(&outcome);
    assert_eq!((offer.address, &offer.boot_file), (Some(address(50)), &None));
    for code in [66, 67, 60, 43] {
        assert_eq!(option_of(&offer.bytes, code), None);
    }
}

#[test]
fn an_unknown_architecture_still_gets_an_address() {
    let mut world = World::new(settings());
    let outcome = world.send(&discover(1).option(60, b"PXEClient:Arch:00099").option(93, &[0, 99]));
    assert_eq!(answer(&outcome), "offer 192.168.2.50");
    assert_eq!(reply(&outcome).boot_file, None);
    assert_eq!(outcome.report.unwrap().class, ClientClass::UnknownFirmware { arch: 99 });
}

#[test]
fn a_reservation_is_honoured_inside_and_outside_the_pool() {
    for reserved in [address(10), address(60)] {
        let mut world = World::new(settings());
        world.nodes.reserve(mac(1), reserved);
        let wants_another = discover(1).option(50, &address(99).octets());
        assert_eq!(reply(&world.send(&wants_another)).address, Some(reserved));
        assert_eq!(world.bind(mac(1)), reserved);
        let renewed = world.send(&ClientMessage::renewing(mac(1), reserved));
        assert_eq!(reply(&renewed).address, Some(reserved));
        world.pass(LEASE * 100);
        let back = world.send(&ClientMessage::init_reboot(mac(1), reserved));
        assert_eq!(reply(&back).address, Some(reserved));
    }
}

#[test]
fn a_reserved_address_is_never_given_to_others_even_when_its_lease_is_over() {
    let mut world = World::with_pool(50, 51);
    world.nodes.reserve(mac(1), address(50));
    assert_eq!(world.bind(mac(2)), address(51));
    assert_eq!(answer(&world.send(&discover(3))), "pool-exhausted");
    assert_eq!(answer(&world.send(&discover(3).option(50, &address(50).octets()))), "pool-exhausted");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(3), address(50)))), "nak");
    assert_eq!(answer(&world.send(&ClientMessage::init_reboot(mac(3), address(50)))), "nak");
    world.bind(mac(1));
    world.pass(LEASE * 10);
    assert_eq!(answer(&world.send(&discover(3))), "offer 192.168.2.51");
    world.nodes.know(mac(4));
    assert_eq!(answer(&world.send(&discover(4))), "pool-exhausted");
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
}

#[test]
fn a_new_reservation_moves_its_node_at_the_next_renewal() {
    let mut world = World::new(settings());
    let before = world.bind(mac(1));
    world.nodes.reserve(mac(1), address(20));
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(1), before))), "nak");
    let offered = world.send(&discover(1));
    assert_eq!(answer(&offered), "offer 192.168.2.20");
    let moved = world.send(&ClientMessage::selecting(mac(1), address(20)));
    assert_eq!(moved.changes.len(), 2, "the old record goes in the same batch");
    assert_eq!(moved.changes[0], Change::DropBinding { address: before });
    assert_eq!(world.server.leases().len(), 1);
}

#[test]
fn a_reservation_another_client_still_has_waits_for_its_end() {
    let mut world = World::new(settings());
    let taken = world.bind(mac(1));
    world.nodes.reserve(mac(2), taken);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.51");
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(1), taken))), "nak", "it is not renewed");
    world.pass(LEASE);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
}

#[test]
fn one_machine_with_three_identities_has_one_address_and_one_lease() {
    let mut world = World::new(settings());
    let with_mac = [&[1], &mac(1).0[..]].concat();
    let identities: [&[u8]; 3] = [b"", &with_mac, b"\xff\x01\x02\x03\x04\x00\x02duid"];
    for id in identities {
        let dress = |message: ClientMessage| if id.is_empty() { message } else { message.option(61, id) };
        assert_eq!(answer(&world.send(&dress(discover(1)))), "offer 192.168.2.50");
        let ack = world.send(&dress(ClientMessage::selecting(mac(1), address(50))));
        assert_eq!(answer(&ack), "ack 192.168.2.50");
    }
    assert_eq!(world.server.leases().len(), 1);
    assert_eq!(
        world.server.leases()[0].client_id.as_deref(),
        Some(identities[2]),
        "the last one is on record"
    );
}

#[test]
fn two_machines_with_one_identity_have_two_addresses() {
    let mut world = World::new(settings());
    let clone = |last: u8| discover(last).option(61, b"\xffcloned");
    assert_eq!(answer(&world.send(&clone(1))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&clone(2))), "offer 192.168.2.51");
}

#[test]
fn strict_identity_follows_the_client_identifier() {
    let mut world = World::new(Settings { identity: Identity::ClientId, ..settings() });
    let with = |last: u8, id: &[u8]| discover(last).option(61, id);
    assert_eq!(answer(&world.send(&with(1, b"first"))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&with(2, b"first"))), "offer 192.168.2.50", "same client, another NIC");
    assert_eq!(answer(&world.send(&with(1, b"second"))), "offer 192.168.2.51", "another client, same NIC");
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.52", "without identifier it is the MAC");
    assert_eq!(answer(&world.send(&with(1, b"x"))), "offer 192.168.2.52", "too short to be an identifier");
}

#[test]
fn a_smaller_pool_after_a_reload_moves_clients_out() {
    let mut world = World::new(settings());
    assert_eq!(world.bind(mac(1)), address(50));
    let pool = PoolRange { first: address(100), last: address(110) };
    world.server.reconfigure(Settings { pool, ..settings() }, world.now);
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(1), address(50)))), "nak");
    assert_eq!(world.bind(mac(1)), address(100));
    assert_eq!(world.server.pool_use(), PoolUse { size: 11, bound: 1, offered: 0, quarantined: 0 });
}

#[test]
fn who_hears_nothing_else_is_answered_by_broadcast_until_it_has_an_address() {
    let mut world = World::new(settings());
    world.nodes.know(mac(1)).quirks.broadcast_replies = true;
    let mut told = |message: &ClientMessage| reply(&world.send(message)).clone();
    let flags = |reply: &Reply| reply.bytes[10] & 0x80 != 0;
    let offer = told(&discover(1));
    assert_eq!((&offer.destination, flags(&offer)), (&Destination::Broadcast, true));
    let ack = told(&ClientMessage::selecting(mac(1), offer.address.unwrap()));
    assert_eq!((&ack.destination, flags(&ack)), (&Destination::Broadcast, true));
    let renewed = told(&ClientMessage::renewing(mac(1), ack.address.unwrap()));
    assert!(matches!(renewed.destination, Destination::Unicast(_)) && !flags(&renewed));
    let other = told(&discover(2));
    assert!(matches!(other.destination, Destination::Frame { .. }) && !flags(&other));
}
