use std::time::Duration;

use super::*;
use crate::boot::decision::NextBoot;
use crate::dhcp::lease::{BindingState, LeaseState, OFFER_HOLD, OFFER_HOLD_MIN, QUARANTINE};
use crate::dhcp::testing::{
    ClientMessage, LEASE, SERVER, World, address, answer, codes_of, mac, option_of, parsed, reply, settings,
    silence,
};

mod model;
mod modes;
mod policy;
mod probing;
mod relay;

const SECOND: Duration = Duration::from_secs(1);

fn discover(last: u8) -> ClientMessage {
    ClientMessage::discover(mac(last))
}

#[test]
fn the_usual_exchange_ends_in_a_durable_binding() {
    let mut world = World::new(settings());
    let offer = world.send(&discover(1));
    assert_eq!(answer(&offer), "offer 192.168.2.50");
    assert!(offer.changes.is_empty(), "an offer is a promise, not a record");
    let ack = world.send(&ClientMessage::selecting(mac(1), address(50)).option(12, b"web\n1"));
    assert_eq!(answer(&ack), "ack 192.168.2.50");
    let [Change::PutBinding(binding)] = &ack.changes[..] else { panic!("{:?}", ack.changes) };
    assert_eq!((binding.address, binding.mac, binding.state), (address(50), mac(1), BindingState::Bound));
    assert_eq!(binding.expires_at, world.now.plus(LEASE));
    assert_eq!(binding.hostname.as_deref(), Some("web1"));
    let report = ack.report.unwrap();
    assert_eq!((report.mac, report.message, report.xid), (mac(1), "request", 0xfeed_0001));
}

#[test]
fn the_same_client_is_offered_the_same_address_again() {
    let mut world = World::new(settings());
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.51");
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    world.pass(OFFER_HOLD - SECOND);
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    world.pass(OFFER_HOLD - SECOND);
    assert_eq!(answer(&world.send(&discover(3))), "offer 192.168.2.52", "asking again keeps an offer alive");
}

#[test]
fn an_offer_keeps_its_address_from_others_until_it_lapses() {
    let mut world = World::with_pool(50, 50);
    world.nodes.know(mac(2));
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    world.pass(OFFER_HOLD - SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    world.pass(SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(1), address(50)))), "nak");
}

#[test]
fn a_client_whose_loader_is_not_installed_gets_an_address_and_the_reason_is_told() {
    let loaders = LoaderTable::built_in().with_installed(|name| name.0 != "uefi-x64/grubx64.efi");
    let mut world = World::new(Settings { loaders: Arc::new(loaders), ..settings() });
    let outcome = world.send(&discover(1).uefi());
    let Answer::Reply(reply) = &outcome.answer else { panic!("{outcome:?}") };
    assert_eq!((reply.kind, reply.boot_file.as_deref()), (ReplyKind::Offer, None));
    let report = outcome.report.unwrap();
    assert_eq!(report.nothing_to_boot, Some(NothingToBoot::NoLoader));
    assert_eq!(world.server.lacking_loader(report.class).unwrap().package, "grub-efi-amd64-signed");
    let installed = world.send(&discover(2).ipxe()).report.unwrap();
    assert_eq!(installed.nothing_to_boot, None);
}

#[test]
fn an_offer_in_use_stays_alive_without_a_request() {
    let mut world = World::with_pool(50, 50);
    world.send(&discover(1));
    for _ in 0..5 {
        world.pass(OFFER_HOLD - SECOND);
        world.server.in_use(address(50), world.now);
    }
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
}

#[test]
fn an_address_asked_for_is_given_if_it_is_free_and_in_the_pool() {
    let cases = [
        (address(77), "offer 192.168.2.77"),
        (address(10), "offer 192.168.2.50"),
        (SERVER, "offer 192.168.2.50"),
        (Ipv4Addr::new(10, 0, 0, 1), "offer 192.168.2.50"),
        (Ipv4Addr::BROADCAST, "offer 192.168.2.50"),
    ];
    for (wanted, expected) in cases {
        let mut world = World::new(settings());
        let outcome = world.send(&discover(1).option(50, &wanted.octets()));
        assert_eq!(answer(&outcome), expected, "{wanted}");
    }
    let mut world = World::new(settings());
    world.bind(mac(9));
    let outcome = world.send(&discover(1).option(50, &address(50).octets()));
    assert_eq!(answer(&outcome), "offer 192.168.2.51", "not one that another client has");
}

#[test]
fn the_network_broadcast_gateway_and_our_own_address_are_never_given() {
    let mut world = World::with_pool(0, 4);
    world.server.reconfigure(
        Settings {
            pool: PoolRange { first: address(0), last: address(4) },
            gateway: Some(address(1)),
            ..settings()
        },
        world.now,
    );
    for last in 1..=3 {
        world.nodes.know(mac(last));
    }
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.3");
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.4");
    assert_eq!(answer(&world.send(&discover(3))), "pool-exhausted");
}

#[test]
fn a_discover_that_names_a_server_is_ignored() {
    let mut world = World::new(settings());
    let outcome = world.send(&discover(1).option(54, &SERVER.octets()));
    assert_eq!(silence(&outcome), Some(Silence::DiscoverNamesServer));
}

#[test]
fn choosing_another_server_frees_the_offer() {
    let mut world = World::with_pool(50, 50);
    world.send(&discover(1));
    let elsewhere =
        ClientMessage::new(3, mac(1)).option(54, &[192, 168, 2, 9]).option(50, &address(50).octets());
    assert_eq!(silence(&world.send(&elsewhere)), Some(Silence::OtherServer));
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
}

#[test]
fn a_selecting_client_is_acknowledged_after_our_restart_if_the_address_is_still_free() {
    let mut world = World::new(settings());
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(1), address(60)))), "ack 192.168.2.60");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(2), address(60)))), "nak");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(2), address(20)))), "nak");
}

#[test]
fn an_offer_that_stands_is_never_refused_even_if_its_address_was_reserved_meanwhile() {
    let mut world = World::new(settings());
    world.send(&discover(1).uefi());
    world.nodes.reserve(mac(9), address(50));
    assert_eq!(
        answer(&world.send(&ClientMessage::selecting(mac(1), address(50)).uefi())),
        "ack 192.168.2.50"
    );
}

/// RFC 2131 §4.3.2 for clients that come back: state of the record × what they ask.
#[test]
fn returning_clients_get_what_their_record_says() {
    let off_network = Ipv4Addr::new(10, 1, 1, 1);
    let (own, other, free) = (address(50), address(51), address(90));
    type Send = fn(MacAddr, Ipv4Addr) -> ClientMessage;
    let init_reboot: Send = ClientMessage::init_reboot;
    let renewing: Send = ClientMessage::renewing;
    let rebinding: Send = ClientMessage::rebinding;
    // client 1 has `own`, client 2 has `other`, client 3 has nothing
    let table = [
        // who, how, which, authoritative, not authoritative
        (1, init_reboot, own, "ack 192.168.2.50", "ack 192.168.2.50"),
        (1, init_reboot, other, "nak", "nak"),
        (1, init_reboot, free, "nak", "nak"),
        (1, init_reboot, off_network, "nak", "nak"),
        (3, init_reboot, free, "ack 192.168.2.90", "unknown-client"),
        (3, init_reboot, own, "nak", "nak"),
        (3, init_reboot, address(20), "nak", "unknown-client"),
        (3, init_reboot, off_network, "nak", "nak"),
        (1, renewing, own, "ack 192.168.2.50", "ack 192.168.2.50"),
        (1, renewing, other, "nak", "nak"),
        (3, renewing, free, "nak", "nak"),
        (3, renewing, own, "nak", "nak"),
        (1, rebinding, own, "ack 192.168.2.50", "ack 192.168.2.50"),
        (1, rebinding, other, "nak", "nak"),
        (3, rebinding, own, "nak", "nak"),
        (3, rebinding, free, "ack 192.168.2.90", "unknown-client"),
        (3, rebinding, off_network, "nak", "unknown-client"),
    ];
    for (who, how, which, authoritative, otherwise) in table {
        for (policy, expected) in [(true, authoritative), (false, otherwise)] {
            let mut world = World::new(Settings { authoritative: policy, ..settings() });
            assert_eq!((world.bind(mac(1)), world.bind(mac(2))), (own, other));
            let message = how(mac(who), which);
            let name = format!("client {who}, {:?} {which}, authoritative {policy}", message.destination);
            let outcome = world.send(&message);
            assert_eq!(answer(&outcome), expected, "{name}");
            assert_eq!(outcome.changes.is_empty(), !expected.starts_with("ack"), "{name}");
        }
    }
}

#[test]
fn renewing_moves_the_end_and_answers_the_client_directly() {
    let mut world = World::new(settings());
    let current = world.bind(mac(1));
    world.pass(LEASE / 2);
    let outcome = world.send(&ClientMessage::renewing(mac(1), current));
    let ack = reply(&outcome);
    assert_eq!(ack.destination, Destination::Unicast(SocketAddrV4::new(current, 68)));
    assert_eq!((parsed(&outcome).ciaddr(), parsed(&outcome).yiaddr()), (current, current));
    let [Change::PutBinding(binding)] = &outcome.changes[..] else { panic!("{:?}", outcome.changes) };
    assert_eq!((binding.granted_at, binding.expires_at), (world.now, world.now.plus(LEASE)));
}

#[test]
fn a_request_that_names_no_address_is_acknowledged_only_if_we_know_which_is_meant() {
    let mut world = World::new(settings());
    assert_eq!(answer(&world.send(&ClientMessage::new(3, mac(1)))), "nak");
    world.send(&discover(1));
    assert_eq!(answer(&world.send(&ClientMessage::new(3, mac(1)))), "ack 192.168.2.50");
    assert_eq!(answer(&world.send(&ClientMessage::new(3, mac(1)))), "ack 192.168.2.50");
}

#[test]
fn an_expired_client_gets_its_old_address_back_unless_another_needed_it() {
    let mut world = World::with_pool(50, 51);
    assert_eq!((world.bind(mac(1)), world.bind(mac(2))), (address(50), address(51)));
    world.pass(LEASE + SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.51");
    assert_eq!(world.bind(mac(3)), address(50), "the address away for longest goes first");
    assert_eq!(answer(&world.send(&discover(1))), "pool-exhausted");
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(1), address(50)))), "nak");
}

#[test]
fn release_frees_the_address_and_remembers_its_client() {
    let mut world = World::with_pool(50, 51);
    let current = world.bind(mac(1));
    let outcome = world.send(&ClientMessage::release(mac(1), current));
    assert_eq!(silence(&outcome), Some(Silence::Released));
    let [Change::PutBinding(binding)] = &outcome.changes[..] else { panic!("{:?}", outcome.changes) };
    assert_eq!((binding.state, binding.expires_at), (BindingState::Released, world.now));
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.51", "a fresh address goes first");
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
}

#[test]
fn a_release_that_is_not_the_clients_own_changes_nothing() {
    let mut world = World::new(settings());
    let current = world.bind(mac(1));
    let other_server = ClientMessage::new(7, mac(1)).option(54, &[192, 168, 2, 9]).using(current);
    for (message, expected) in [
        (ClientMessage::release(mac(2), current), Silence::ReleaseUnfounded),
        (ClientMessage::release(mac(1), address(77)), Silence::ReleaseUnfounded),
        (ClientMessage::new(7, mac(1)), Silence::ReleaseUnfounded),
        (other_server, Silence::OtherServer),
    ] {
        let outcome = world.send(&message);
        assert_eq!((silence(&outcome), outcome.changes), (Some(expected), vec![]));
    }
    let without_server = ClientMessage::new(7, mac(1)).using(current);
    assert_eq!(silence(&world.send(&without_server)), Some(Silence::Released));
}

#[test]
fn a_declined_address_is_withheld_for_an_hour() {
    let mut world = World::with_pool(50, 50);
    let current = world.bind(mac(1));
    let outcome = world.send(&ClientMessage::decline(mac(1), current));
    assert_eq!(silence(&outcome), Some(Silence::Declined));
    let [Change::PutBinding(binding)] = &outcome.changes[..] else { panic!("{:?}", outcome.changes) };
    assert_eq!((binding.state, binding.expires_at), (BindingState::Quarantined, world.now.plus(QUARANTINE)));
    assert_eq!(answer(&world.send(&discover(1))), "pool-exhausted");
    assert_eq!(answer(&world.send(&ClientMessage::init_reboot(mac(1), current))), "nak");
    world.pass(QUARANTINE);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
}

#[test]
fn declining_one_address_leaves_the_offer_of_another() {
    let mut world = World::with_pool(50, 51);
    let declined = world.bind(mac(1));
    world.nodes.reserve(mac(9), declined);
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.51");
    assert_eq!(silence(&world.send(&ClientMessage::decline(mac(1), declined))), Some(Silence::Declined));
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(1), address(51)))), "ack 192.168.2.51");
}

#[test]
fn only_its_owner_can_decline_an_address_and_only_while_it_has_it() {
    let mut world = World::new(settings());
    let current = world.bind(mac(1));
    for message in [
        ClientMessage::decline(mac(2), current),
        ClientMessage::decline(mac(1), address(77)),
        ClientMessage::new(4, mac(1)).option(54, &SERVER.octets()),
    ] {
        let outcome = world.send(&message);
        assert_eq!((silence(&outcome), outcome.changes), (Some(Silence::DeclineUnfounded), vec![]));
    }
    world.pass(LEASE);
    let late = world.send(&ClientMessage::decline(mac(1), current));
    assert_eq!(silence(&late), Some(Silence::DeclineUnfounded));
}

#[test]
fn a_client_that_declines_three_times_in_ten_minutes_gets_no_new_address_for_an_hour() {
    let mut world = World::new(settings());
    let kept = world.bind(mac(2));
    for _ in 0..3 {
        let current = world.bind(mac(1));
        world.send(&ClientMessage::decline(mac(1), current));
        world.pass(SECOND);
    }
    assert_eq!(answer(&world.send(&discover(1))), "too-many-declines");
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(1), address(99)))), "too-many-declines");
    assert_eq!(answer(&world.send(&ClientMessage::init_reboot(mac(1), address(99)))), "too-many-declines");
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(2), kept))), "ack 192.168.2.50");
    world.pass(QUARANTINE);
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.54");
}

#[test]
fn a_released_address_is_anybodys_also_if_its_client_was_offered_it_again() {
    let mut world = World::new(settings());
    let current = world.bind(mac(1));
    assert_eq!(reply(&world.send(&discover(1))).address, Some(current));
    assert_eq!(silence(&world.send(&ClientMessage::release(mac(1), current))), Some(Silence::Released));
    let taken = world.send(&ClientMessage::selecting(mac(2), current));
    assert_eq!((reply(&taken).kind, reply(&taken).address), (ReplyKind::Ack, Some(current)));
}

#[test]
fn a_stranger_whose_decline_withholds_nothing_any_more_is_still_offered_another_address() {
    let mut world = World::new(settings());
    for number in 101..=110 {
        let declined = world.bind(mac(number));
        world.send(&ClientMessage::decline(mac(number), declined));
    }
    let declined = world.bind(mac(1));
    let outcome = world.send(&ClientMessage::decline(mac(1), declined));
    assert_eq!(silence(&outcome), Some(Silence::DeclineLimit));
    assert_eq!(outcome.changes, [Change::DropBinding { address: declined }]);
    // RFC 2131 §4.3.3: it is not available, to this client least of all.
    let offer = world.send(&discover(1));
    let offered = reply(&offer).address.expect("an address");
    assert_ne!(offered, declined);
    // The same for an address it was only offered, and for one it had and gave back.
    world.send(&ClientMessage::decline(mac(1), offered));
    let again = world.bind(mac(1));
    assert!(again != declined && again != offered);
    world.send(&ClientMessage::release(mac(1), again));
    assert_eq!(reply(&world.send(&discover(1))).address, Some(again));
    world.send(&ClientMessage::decline(mac(1), again));
    assert_ne!(reply(&world.send(&discover(1))).address, Some(again));
}

#[test]
fn a_patient_decliner_cannot_drain_ten_addresses() {
    let mut world = World::new(settings());
    let mut most = 0;
    for _ in 0..60 {
        if let Answer::Reply(offer) = world.send(&discover(1)).answer {
            let offered = offer.address.unwrap();
            world.send(&ClientMessage::selecting(mac(1), offered));
            world.send(&ClientMessage::decline(mac(1), offered));
        }
        world.pass(Duration::from_secs(301));
        world.server.expire(world.now);
        most = most.max(world.server.pool_use().quarantined);
    }
    assert!((3..10).contains(&most), "{most}");
}

#[test]
fn inform_gets_configuration_but_no_lease() {
    let mut world = World::new(settings());
    let source = address(20);
    let cases = [
        ("from its address", ClientMessage::inform(mac(1)).using(source), Some(source)),
        (
            "ciaddr only",
            ClientMessage {
                source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                ..ClientMessage::inform(mac(1)).using(source)
            },
            Some(source),
        ),
        (
            "source address only",
            ClientMessage { source: SocketAddrV4::new(source, 68), ..ClientMessage::inform(mac(1)) },
            Some(source),
        ),
        ("no address", ClientMessage::inform(mac(1)), None),
    ];
    for (name, message, expected) in cases {
        let outcome = world.send(&message.option(55, &[6]));
        assert!(outcome.changes.is_empty());
        let Some(expected) = expected else {
            assert_eq!(silence(&outcome), Some(Silence::InformWithoutAddress), "{name}");
            continue;
        };
        let ack = reply(&outcome);
        assert_eq!((ack.kind, ack.address), (ReplyKind::Ack, None), "{name}");
        assert_eq!(ack.destination, Destination::Unicast(SocketAddrV4::new(expected, 68)), "{name}");
        assert_eq!(codes_of(&ack.bytes), [53, 54, 1, 3, 6], "{name}");
        assert_eq!(parsed(&outcome).yiaddr(), Ipv4Addr::UNSPECIFIED, "{name}");
    }
    let away = ClientMessage::inform(mac(1)).using(Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(silence(&world.send(&away)), Some(Silence::OffNetwork));
}

#[test]
fn port_4011_tells_a_boot_rom_its_file() {
    let mut world = World::new(settings());
    let request = || ClientMessage::new(3, mac(1)).using(address(50)).sent_to(SERVER).uefi().at_boot_server();
    let outcome = world.send(&request());
    let ack = reply(&outcome);
    assert_eq!((ack.kind, ack.address), (ReplyKind::Ack, None));
    assert_eq!(ack.destination, Destination::Unicast(SocketAddrV4::new(address(50), 4011)));
    assert_eq!(option_of(&ack.bytes, 43), Some(vec![6, 1, 8, 255]));
    assert_eq!(parsed(&outcome).file(), ack.boot_file.as_ref().unwrap().as_bytes());
    assert_eq!(parsed(&outcome).yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(outcome.changes.is_empty() && world.server.leases().is_empty());

    let outcome = world.send(&request().option(43, &[71, 4, 0, 5, 0, 0, 255]));
    assert_eq!(option_of(&reply(&outcome).bytes, 43), Some(vec![71, 4, 0, 5, 0, 0, 255]));
    assert_eq!(parsed(&outcome).yiaddr(), address(50), "yiaddr repeats ciaddr for a boot item");
    assert_eq!(option_of(&reply(&outcome).bytes, 51), None);
}

#[test]
fn port_4011_has_reasons_for_its_silence() {
    let mut world = World::new(settings());
    let request = || ClientMessage::new(3, mac(1)).using(address(50)).sent_to(SERVER).at_boot_server();
    let cases = [
        ("not a boot client", request(), Silence::NotABootRequest),
        ("a DISCOVER", discover(1).uefi().at_boot_server(), Silence::NotABootRequest),
        ("signed items", request().uefi().option(43, &[71, 4, 0, 5, 0x80, 0, 255]), Silence::BisRefused),
        ("no address", ClientMessage::new(3, mac(1)).uefi().at_boot_server(), Silence::InformWithoutAddress),
        (
            "off the network",
            request().using(Ipv4Addr::new(10, 0, 0, 9)).uefi().at_boot_server(),
            Silence::OffNetwork,
        ),
    ];
    for (name, message, expected) in cases {
        assert_eq!(silence(&world.send(&message)), Some(expected), "{name}");
    }
    world.nodes.know(mac(1)).next_boot = NextBoot::LocalDisk;
    let bios = request().option(60, b"PXEClient:Arch:00000").option(93, &[0, 0]);
    assert_eq!(silence(&world.send(&bios)), Some(Silence::NothingToBoot));
}

#[test]
fn a_pool_without_a_free_address_is_silent_but_renews() {
    let mut world = World::with_pool(50, 52);
    for last in 1..=3 {
        world.bind(mac(last));
    }
    assert_eq!(answer(&world.send(&discover(4))), "pool-exhausted");
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.51");
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(3), address(52)))), "ack 192.168.2.52");
}

#[test]
fn strangers_hold_at_most_a_quarter_of_their_share_by_offers() {
    let mut world = World::new(settings());
    let offered = (0..=250).filter(|last| matches!(world.send(&discover(*last)).answer, Answer::Reply(_)));
    // Half of the pool is theirs.
    assert_eq!(offered.count(), 201 / 2 / 4);
    assert_eq!(silence(&world.send(&discover(251))), Some(Silence::OfferLimit));
    world.nodes.know(mac(252));
    assert!(matches!(world.send(&discover(252)).answer, Answer::Reply(_)), "a known node is served");
    assert!(matches!(world.send(&discover(0)).answer, Answer::Reply(_)), "and so is an offer's owner");
    world.send(&ClientMessage::selecting(mac(3), address(53)));
    assert!(matches!(world.send(&discover(251)).answer, Answer::Reply(_)), "a request makes room");
    world.pass(OFFER_HOLD);
    assert!(matches!(world.send(&discover(253)).answer, Answer::Reply(_)), "and so does time");
}

#[test]
fn a_stranger_that_never_came_for_its_address_makes_room_for_the_next() {
    let mut world = World::new(settings());
    let limit = 201 / 2 / 4;
    for last in 0..limit {
        assert!(matches!(world.send(&discover(last)).answer, Answer::Reply(_)));
    }
    world.pass(OFFER_HOLD_MIN / 2);
    assert_eq!(silence(&world.send(&discover(200))), Some(Silence::OfferLimit), "it may still come");
    world.pass(OFFER_HOLD_MIN / 2);
    for last in 200..200 + limit {
        assert!(matches!(world.send(&discover(last)).answer, Answer::Reply(_)), "{last}");
    }
    assert_eq!(silence(&world.send(&discover(0))), Some(Silence::OfferLimit), "the limit holds");
}

#[test]
fn in_a_small_pool_too_a_quarter_of_their_share_is_offered_and_one_address_at_least() {
    // Sixteen are theirs, whatever the share, or all there are.
    for (size, most) in [(1, 1), (3, 1), (4, 1), (8, 2), (20, 4), (32, 4), (40, 5)] {
        let mut world = World::with_pool(50, 50 + size - 1);
        let offered = (0..40).filter(|last| matches!(world.send(&discover(*last)).answer, Answer::Reply(_)));
        assert_eq!(offered.count(), most, "{size} addresses");
        // As many machines as there are addresses for come through, one after the other.
        let mut world = World::with_pool(50, 50 + size - 1);
        for last in 0..size.min(16) {
            world.bind(mac(last));
        }
    }
}

#[test]
fn in_a_small_pool_too_who_never_came_makes_room() {
    // Half of 32 is the share of all strangers: twelve took theirs, four were asked whether they want them.
    let mut world = World::with_pool(50, 81);
    for last in 0..12 {
        world.bind(mac(last));
    }
    for last in 12..16 {
        assert!(matches!(world.send(&discover(last)).answer, Answer::Reply(_)), "{last}");
    }
    world.pass(OFFER_HOLD_MIN / 2);
    assert_eq!(silence(&world.send(&discover(100))), Some(Silence::StrangerLimit), "they may still come");
    world.pass(OFFER_HOLD_MIN / 2);
    let first = reply(&world.send(&discover(100))).address.unwrap();
    assert!(matches!(world.send(&discover(101)).answer, Answer::Reply(_)));
    // What was promised to who asks in time is kept; the oldest have lost theirs, and the limit holds.
    assert_eq!(reply(&world.send(&discover(100))).address, Some(first));
    assert_eq!(answer(&world.send(&ClientMessage::selecting(mac(100), first))), format!("ack {first}"));
    assert_eq!(world.server.pool_use(), PoolUse { size: 32, bound: 13, offered: 3, quarantined: 0 });
}

#[test]
fn bindings_survive_a_restart_and_offers_do_not() {
    let mut world = World::new(settings());
    let mut stored = Vec::new();
    for last in 1..=3 {
        let offered = reply(&world.send(&discover(last))).address.unwrap();
        stored.extend(world.send(&ClientMessage::selecting(mac(last), offered)).changes);
    }
    world.send(&discover(4));
    let bindings = stored.into_iter().filter_map(|change| match change {
        Change::PutBinding(binding) => Some(binding),
        _ => None,
    });
    world.server = DhcpServer::new(settings(), bindings.collect(), world.now);
    assert_eq!(world.server.leases().len(), 3);
    assert_eq!(answer(&world.send(&ClientMessage::renewing(mac(2), address(51)))), "ack 192.168.2.51");
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    assert_eq!(answer(&world.send(&discover(5))), "offer 192.168.2.53");
    assert_eq!(world.server.pool_use(), PoolUse { size: 201, bound: 3, offered: 1, quarantined: 0 });
}

#[test]
fn a_failed_commit_leaves_the_client_able_to_try_again_and_others_out() {
    let mut world = World::with_pool(50, 50);
    world.send(&discover(1));
    let lost = world.send(&ClientMessage::selecting(mac(1), address(50)));
    world.server.forget(&lost.changes, world.now);
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    let again = world.send(&ClientMessage::selecting(mac(1), address(50)));
    assert_eq!(answer(&again), "ack 192.168.2.50");
    assert_eq!(again.changes.len(), 1, "and it is committed again");
    world.server.forget(&again.changes, world.now);
    world.pass(OFFER_HOLD);
    assert_eq!(
        answer(&world.send(&discover(2))),
        "offer 192.168.2.50",
        "a client that gave up blocks nobody"
    );
}

#[test]
fn a_renewal_whose_commit_failed_falls_back_to_the_lease_that_was_acknowledged() {
    let mut world = World::with_pool(50, 50);
    let current = world.bind(mac(1));
    world.pass(LEASE / 2);
    let lost = world.send(&ClientMessage::renewing(mac(1), current));
    world.server.forget(&lost.changes, world.now);
    world.pass(LEASE / 2 - SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    world.pass(SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
}

#[test]
fn with_a_full_disk_a_renewal_is_told_what_is_left_and_nobody_is_told_more() {
    let mut world = World::with_pool(50, 51);
    let current = world.bind(mac(1));
    world.pass(LEASE / 2);
    // However often it asks, also with requests that overtake the disk, it is never told more than the disk has.
    for round in 0..6 {
        let renew = || ClientMessage::renewing(mac(1), current);
        let first = world.send(&renew());
        world.pass(SECOND);
        let second = world.send(&renew());
        world.pass(SECOND);
        for lost in [first, second] {
            let still = world.server.forget(&lost.changes, world.now);
            let Answer::Reply(reply) = lost.answer else { panic!("an ACK was decided on") };
            assert_eq!(still.len(), 1, "round {round}");
            let left = still[0].until.since(world.now);
            assert_eq!(left, LEASE / 2 - SECOND * 2 * (round + 1), "round {round}");
            let reply = reply.without_extension(left).expect("a lease that runs");
            let [a, b, c, d] = u32::try_from(left.as_secs()).unwrap().to_be_bytes();
            assert!(reply.bytes.windows(6).any(|option| option == [51, 4, a, b, c, d]), "round {round}");
        }
    }
    // A newcomer has nothing on disk, and one whose lease has ended has nothing left.
    world.send(&discover(2));
    let new = world.send(&ClientMessage::selecting(mac(2), address(51)));
    assert_eq!(world.server.forget(&new.changes, world.now), []);
    world.pass(LEASE);
    let late = world.send(&ClientMessage::renewing(mac(1), current));
    assert_eq!(world.server.forget(&late.changes, world.now), []);
}

#[test]
fn a_move_whose_commit_failed_leaves_the_client_its_earlier_address() {
    let mut world = World::with_pool(50, 51);
    let earlier = world.bind(mac(1));
    world.nodes.reserve(mac(1), address(20));
    world.send(&discover(1));
    let lost = world.send(&ClientMessage::selecting(mac(1), address(20)));
    assert_eq!(lost.changes.len(), 2);
    world.server.forget(&lost.changes, world.now);
    world.bind(mac(2));
    world.pass(OFFER_HOLD);
    assert_eq!(answer(&world.send(&discover(3))), "pool-exhausted", "its ACK still stands");
    world.send(&discover(1));
    let moved = world.send(&ClientMessage::selecting(mac(1), address(20)));
    assert_eq!(moved.changes[0], Change::DropBinding { address: earlier });
    world.pass(OFFER_HOLD);
    assert_eq!(
        reply(&world.send(&discover(3))).address,
        Some(earlier),
        "free once the move has had its time"
    );
}

#[test]
fn leases_are_listed_by_address_with_their_state() {
    let mut world = World::new(settings());
    let declined = world.bind(mac(1));
    world.send(&ClientMessage::decline(mac(1), declined));
    let released = world.bind(mac(2));
    world.send(&ClientMessage::release(mac(2), released));
    world.bind(mac(3));
    world.send(&discover(4));
    let states: Vec<_> =
        world.server.leases().into_iter().map(|lease| (lease.address, lease.mac, lease.state)).collect();
    assert_eq!(
        states,
        [
            (address(50), mac(1), LeaseState::Quarantined),
            (address(51), mac(2), LeaseState::Released),
            (address(52), mac(3), LeaseState::Bound),
            (address(53), mac(4), LeaseState::Offered),
        ]
    );
    assert_eq!(world.server.pool_use(), PoolUse { size: 201, bound: 1, offered: 1, quarantined: 1 });
}

#[test]
fn every_silence_has_a_word_of_its_own() {
    let words: std::collections::BTreeSet<_> = Silence::ALL.iter().map(|silence| silence.as_str()).collect();
    assert_eq!(words.len(), Silence::ALL.len());
    assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
}

/// the wall clock is read at start, so a jump shows as a restart at another time.
#[test]
fn r_06_a_clock_that_jumped_before_a_restart_takes_no_address_away() {
    const HOUR: Duration = Duration::from_secs(3600);
    const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let jumps: [fn(Timestamp) -> Timestamp; 4] =
        [|now| now.plus(HOUR), |now| now.plus(TEN_YEARS), |now| now.minus(HOUR), |now| now.minus(TEN_YEARS)];
    for (case, jump) in jumps.into_iter().enumerate() {
        let mut world = World::with_pool(50, 60);
        let held: Vec<Ipv4Addr> = (1..=5).map(|client| world.bind(mac(client))).collect();
        let stored: Vec<Binding> = world.server.table.bindings().cloned().collect();
        assert_eq!(stored.len(), 5);
        world.now = jump(world.now);
        world.server = DhcpServer::restarted(world.server.settings.clone(), stored, world.now);
        // Newcomers come first, and still nobody's address is given to them.
        for client in 6..=11 {
            let address = world.bind(mac(client));
            assert!(!held.contains(&address), "jump {case}: {address} was another's");
        }
        for (client, address) in (1..=5).zip(&held) {
            let renewed = world.send(&ClientMessage::renewing(mac(client), *address));
            assert_eq!(answer(&renewed), format!("ack {address}"), "jump {case}");
        }
        let latest = world.server.leases().iter().map(|lease| lease.expires_at).max().unwrap();
        assert!(latest <= world.now.plus(LEASE), "jump {case}: no lease is longer than one period");
    }
    // What was granted since the clock was set back is not moved by another start, though what was granted before is.
    let mut world = World::with_pool(50, 60);
    world.bind(mac(1));
    let mut stored: Vec<Binding> = world.server.table.bindings().cloned().collect();
    world.now = world.now.minus(TEN_YEARS);
    world.server = DhcpServer::restarted(world.server.settings.clone(), stored.clone(), world.now);
    let address = world.bind(mac(2));
    stored.extend(world.server.table.bindings().filter(|binding| binding.address == address).cloned());
    world.pass(SECOND);
    world.server = DhcpServer::restarted(world.server.settings.clone(), stored, world.now);
    assert_eq!(world.server.leases().iter().filter(|lease| lease.state == LeaseState::Bound).count(), 2);
    assert_ne!(world.bind(mac(3)), address);
    // Who does not come back loses its address after one period, also when the clock went back by ten years.
    let mut world = World::with_pool(50, 50);
    world.bind(mac(1));
    let stored: Vec<Binding> = world.server.table.bindings().cloned().collect();
    world.now = world.now.minus(TEN_YEARS);
    world.server = DhcpServer::restarted(world.server.settings.clone(), stored, world.now);
    world.pass(LEASE - SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    world.pass(SECOND * 2);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
    // Nor does one that went forward hold it for longer.
    let mut world = World::with_pool(50, 50);
    world.bind(mac(1));
    world.now = world.now.plus(TEN_YEARS);
    restart(&mut world);
    world.pass(LEASE - SECOND);
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    world.pass(SECOND * 2);
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.50");
}

/// As if the appliance had stored all of this and started again.
fn restart(world: &mut World) {
    let stored: Vec<Binding> = world.server.table.bindings().cloned().collect();
    world.server = DhcpServer::restarted(world.server.settings.clone(), stored, world.now);
}

#[test]
fn r_06_with_no_address_to_spare_a_newcomer_waits_for_one_period_whatever_the_clock_did() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    for forward in [LEASE + SECOND, DAY, DAY * 3650] {
        let mut world = World::with_pool(50, 52);
        let held: Vec<Ipv4Addr> = (1..=3).map(|client| world.bind(mac(client))).collect();
        world.now = world.now.plus(forward);
        restart(&mut world);
        assert_eq!(world.server.carried_over(), 3);
        assert_eq!(answer(&world.send(&discover(4))), "pool-exhausted", "{forward:?}");
        // Two come back, and the clock is put forward once more: the third still has its address.
        for client in 1..=2 {
            world.send(&ClientMessage::renewing(mac(client), held[usize::from(client) - 1]));
        }
        world.now = world.now.plus(forward);
        restart(&mut world);
        assert_eq!(answer(&world.send(&discover(4))), "pool-exhausted", "{forward:?}, again");
        assert_eq!(answer(&world.send(&discover(3))), format!("offer {}", held[2]), "{forward:?}");
    }
    // What had ended while the server was there to renew it has ended.
    let mut world = World::with_pool(50, 51);
    world.bind(mac(1));
    world.pass(LEASE + SECOND);
    let second = world.bind(mac(2));
    world.pass(LEASE + SECOND);
    restart(&mut world);
    assert_eq!(world.server.carried_over(), 1);
    assert_ne!(world.bind(mac(3)), second);
}

#[test]
fn r_06_times_set_to_the_clock_are_stored_with_whatever_is_stored_first() {
    let mut world = World::with_pool(50, 60);
    for client in 1..=3 {
        world.bind(mac(client));
    }
    world.now = world.now.plus(LEASE * 10);
    restart(&mut world);
    let mut store = |changes: &[Change]| {
        let mut changes = changes.to_vec();
        world.server.store_first(&mut changes, world.now);
        changes
    };
    assert_eq!(store(&[]), [], "nothing is stored for their sake");
    let change = Change::DropBinding { address: Ipv4Addr::new(192, 168, 2, 60) };
    let first = store(std::slice::from_ref(&change));
    assert_eq!(first.len(), 4);
    assert_eq!(first.last(), Some(&change), "they come first");
    for carried in &first[..3] {
        let Change::PutBinding(binding) = carried else { panic!("{carried:?}") };
        assert_eq!((binding.granted_at, binding.expires_at), (world.now, world.now.plus(LEASE)));
    }
    // Once, unless that failed.
    assert_eq!(store(std::slice::from_ref(&change)).len(), 1);
    world.server.forget(&first, world.now);
    world.pass(SECOND);
    let renewed = world.send(&ClientMessage::renewing(mac(2), Ipv4Addr::new(192, 168, 2, 51)));
    assert_eq!(answer(&renewed), "ack 192.168.2.51");
    let mut again = vec![change];
    world.server.store_first(&mut again, world.now);
    // Of the second client there is something newer by now.
    assert_eq!(again.len(), 4);
    assert_eq!(again[..3].iter().filter(|change| first.contains(change)).count(), 2);
    // What failed took nothing from those it was about.
    assert_eq!(world.server.pool_use().bound, 3);
}
