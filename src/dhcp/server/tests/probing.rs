//! Addresses that somebody uses without a lease (protocol D-31, D-32), as the core sees it.

use super::*;

fn asking(first: u8, last: u8) -> World {
    let mut world = World::with_pool(first, last);
    world.server.ask_the_wire();
    world
}

fn silent_at(world: &mut World, addresses: impl IntoIterator<Item = Ipv4Addr>) {
    world.pass(PROBE_WAIT);
    for address in addresses {
        world.server.address_silent(address, world.now);
    }
}

#[test]
fn a_fresh_address_is_asked_for_before_it_is_offered_and_so_are_the_next() {
    let mut world = asking(50, 250);
    let outcome = world.send(&discover(1));
    assert_eq!((silence(&outcome), outcome.awaits), (Some(Silence::Probing), Some(address(50))));
    assert_eq!(outcome.ask[0], address(50));
    assert_eq!(outcome.ask[1..4], [address(51), address(52), address(53)]);
    assert!(outcome.changes.is_empty());
    // Asked again meanwhile: the same answer is awaited, and the wire is not asked twice.
    let again = world.send(&discover(1));
    assert_eq!((again.awaits, again.ask), (Some(address(50)), vec![]));
    silent_at(&mut world, outcome.ask.clone());
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.50");
    // Those after the first find theirs known, and the line is kept full behind their backs.
    let mut more = Vec::new();
    for last in 2..=25 {
        let outcome = world.send(&discover(last));
        assert_eq!(silence(&outcome), None, "client {last} waits");
        more.extend(outcome.ask.clone());
        for address in outcome.ask {
            world.server.address_silent(address, world.now);
        }
    }
    assert!(!more.is_empty() && more.len() < 64, "{more:?}");
}

#[test]
fn an_address_that_answers_is_set_aside_and_the_next_one_offered() {
    let mut world = asking(50, 51);
    world.send(&discover(1));
    let changes = world.server.address_answered(address(50), mac(99), world.now);
    let [Change::PutBinding(binding)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!(
        (binding.address, binding.mac, binding.state),
        (address(50), mac(99), BindingState::Quarantined)
    );
    assert_eq!(binding.expires_at, world.now.plus(QUARANTINE));
    assert!(world.server.address_answered(address(50), mac(99), world.now).is_empty(), "once is enough");
    silent_at(&mut world, [address(51)]);
    assert_eq!(answer(&world.send(&discover(1))), "offer 192.168.2.51");
    world.nodes.know(mac(2));
    assert_eq!(answer(&world.send(&discover(2))), "pool-exhausted");
    // Nor is it given to whoever names it.
    assert_eq!(answer(&world.send(&ClientMessage::init_reboot(mac(3), address(50)))), "nak");
    world.pass(QUARANTINE);
    let outcome = world.send(&ClientMessage::discover(mac(4)).option(50, &address(50).octets()));
    assert_eq!(outcome.awaits, Some(address(50)), "after its time it is asked for again");
}

#[test]
fn an_address_asked_for_ahead_that_answers_is_never_offered() {
    let mut world = asking(50, 60);
    let outcome = world.send(&discover(1));
    assert_eq!(world.server.address_answered(address(51), mac(99), world.now).len(), 1);
    silent_at(&mut world, outcome.ask);
    let offered: Vec<String> = (1..=5).map(|last| answer(&world.send(&discover(last)))).collect();
    assert!(!offered.contains(&"offer 192.168.2.51".to_owned()), "{offered:?}");
    assert_eq!(offered[1], "offer 192.168.2.52");
}

#[test]
fn a_client_waits_for_an_answer_that_was_asked_for_ahead() {
    let mut world = asking(50, 60);
    world.send(&discover(1));
    let outcome = world.send(&discover(2));
    assert_eq!((outcome.awaits, outcome.ask), (Some(address(51)), vec![]));
    assert_eq!(world.server.address_answered(address(51), mac(99), world.now).len(), 1);
    assert_eq!(world.send(&discover(2)).awaits, Some(address(52)));
    // Its own answer is no conflict: it has been there before we lost the record.
    assert!(world.server.address_answered(address(52), mac(2), world.now).is_empty());
    assert_eq!(answer(&world.send(&discover(2))), "offer 192.168.2.52");
}

#[test]
fn who_had_an_address_is_not_asked_about_it() {
    let mut world = asking(50, 60);
    let outcome = world.send(&discover(1));
    silent_at(&mut world, outcome.ask);
    assert_eq!(world.bind(mac(1)), address(50));
    for pause in [SECOND, LEASE, LEASE * 2] {
        world.pass(pause);
        let outcome = world.send(&discover(1));
        assert_eq!(answer(&outcome), "offer 192.168.2.50");
        assert!(outcome.ask.is_empty());
        // It answers for its own address, asked or not.
        assert!(world.server.address_answered(address(50), mac(1), world.now).is_empty());
    }
    world.nodes.reserve(mac(7), address(70));
    assert_eq!(answer(&world.send(&discover(7))), "offer 192.168.2.70");
}

#[test]
fn machines_behind_a_relay_are_beyond_arp() {
    let mut world = asking(50, 60);
    let outcome = world.send(&discover(1).relayed(address(9), b""));
    assert_eq!(answer(&outcome), "offer 192.168.2.50");
    assert!(outcome.ask.is_empty());
}

#[test]
fn an_answer_nobody_asked_for_changes_nothing() {
    let mut world = asking(50, 60);
    assert!(world.server.address_answered(address(50), mac(99), world.now).is_empty());
    assert_eq!(world.server.pool_use().quarantined, 0);
    let outcome = world.send(&discover(1));
    silent_at(&mut world, outcome.ask);
    assert_eq!(world.bind(mac(1)), address(50));
    assert!(world.server.address_answered(address(50), mac(99), world.now).is_empty());
}

#[test]
fn a_flood_is_served_without_being_asked_for() {
    let mut world = World::new(Settings {
        network: "10.0.0.2/16".parse().unwrap(),
        pool: PoolRange { first: Ipv4Addr::new(10, 0, 1, 0), last: Ipv4Addr::new(10, 0, 200, 0) },
        ..settings()
    });
    world.server.ask_the_wire();
    let (mut asked, mut offers) = (0, 0);
    for number in 0..4000_u16 {
        let [high, low] = number.to_be_bytes();
        let outcome = world.send(&ClientMessage::discover(MacAddr([2, 0, 0, 1, high, low])));
        asked += outcome.ask.len();
        offers += usize::from(silence(&outcome).is_none());
    }
    assert!(asked <= 1024, "{asked}");
    assert!(offers >= 4000 - 1024, "{offers}");
}
