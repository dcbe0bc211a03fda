//! What becomes of a message where we are not the server, and of one that is not DHCP.

use super::*;
use crate::config::DhcpMode;

const OTHER: [u8; 4] = [192, 168, 2, 9];

fn world(mode: DhcpMode) -> World {
    World::new(Settings { mode, ..settings() })
}

#[test]
fn a_proxy_gives_boot_files_and_never_an_address() {
    let mut world = world(DhcpMode::Proxy);
    let offer = world.send(&discover(1).uefi());
    assert_eq!(answer(&offer), "offer");
    assert_eq!(codes_of(&reply(&offer).bytes), [53, 54, 66, 67, 60, 43, 97]);
    assert_eq!(reply(&offer).destination, Destination::Broadcast);
    assert_eq!(answer(&world.send(&discover(2))), "not-a-boot-client");
    let ipxe = world.send(&discover(3).ipxe());
    assert_eq!(option_of(&reply(&ipxe).bytes, 175), None, "its wait ends with this offer");
    assert_eq!((world.server.leases(), world.server.pool_use().offered), (vec![], 0));
}

#[test]
fn a_proxy_remembers_what_clients_say_of_their_addresses() {
    let mut world = world(DhcpMode::Proxy);
    let takes = |who: u8, which: u8| {
        ClientMessage::new(3, mac(who)).ipxe().option(54, &OTHER).option(50, &address(which).octets())
    };
    let outcome = world.send(&takes(1, 70));
    assert_eq!(answer(&outcome), "address-elsewhere");
    let report = outcome.report.unwrap();
    assert_eq!((report.elsewhere, report.other_server), (Some(address(70)), Some(OTHER.into())));
    let held = |world: &World| -> Vec<_> {
        world.server.leases().iter().map(|lease| (lease.address, lease.mac, lease.state)).collect()
    };
    world.send(&takes(2, 71));
    assert_eq!(
        held(&world),
        [(address(70), mac(1), LeaseState::Elsewhere), (address(71), mac(2), LeaseState::Elsewhere)]
    );
    // The newest claim stands, and a machine has one.
    world.send(&takes(2, 70));
    assert_eq!(held(&world), [(address(70), mac(2), LeaseState::Elsewhere)]);
    world.send(&takes(2, 2));
    assert_eq!(held(&world).len(), 1, "our own address is nobody's");
    let leaves = ClientMessage::new(7, mac(2)).option(54, &OTHER).using(address(70));
    assert_eq!(answer(&world.send(&leaves)), "address-elsewhere");
    assert_eq!(held(&world), []);
}

#[test]
fn an_observer_says_what_a_server_would_and_grants_nothing() {
    let mut observer = world(DhcpMode::Observe);
    assert_eq!(answer(&observer.send(&discover(1).uefi())), "would-offer 192.168.2.50");
    let ack = observer.send(&ClientMessage::selecting(mac(1), address(50)));
    assert_eq!((answer(&ack), ack.changes), ("would-ack 192.168.2.50".to_owned(), vec![]));
    let nak = observer.send(&ClientMessage::init_reboot(mac(2), Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(answer(&nak), "would-nak");
    let other = ClientMessage::new(3, mac(1)).option(54, &OTHER).option(50, &address(90).octets());
    assert_eq!(answer(&observer.send(&other)), "address-elsewhere");
    // What it says of a thousand messages never is a reply.
    for last in 1..=250 {
        for message in
            [discover(last), discover(last).ipxe(), ClientMessage::init_reboot(mac(last), address(last))]
        {
            let outcome = observer.send(&message);
            assert!(!matches!(outcome.answer, Answer::Reply(_)) && outcome.changes.is_empty());
        }
    }
}

#[test]
fn bootp_is_for_approved_machines_with_an_address_of_their_own() {
    let bootp = |who: u8| {
        let mut message = discover(who);
        message.options.clear();
        message
    };
    let mut world = World::new(settings());
    world.nodes.reserve(mac(1), address(20));
    assert_eq!(answer(&world.send(&bootp(1))), "bootp", "off by default");
    world.server.reconfigure(Settings { bootp: true, ..settings() }, world.now);
    let outcome = world.send(&bootp(1));
    assert_eq!(answer(&outcome), "bootp-reply 192.168.2.20");
    assert_eq!(reply(&outcome).bytes.len(), 300);
    assert_eq!(codes_of(&reply(&outcome).bytes), [1, 3, 6]);
    assert!(outcome.changes.is_empty(), "what has no end is no lease");
    world.nodes.know(mac(2));
    assert_eq!(answer(&world.send(&bootp(2))), "bootp-without-address");
    assert_eq!(answer(&world.send(&bootp(3))), "bootp-without-address");
    world.nodes.know(mac(1)).approved = false;
    assert_eq!(answer(&world.send(&bootp(1))), "bootp-without-address");
}
