//! Who is registered, by an operator or by the configuration, and what becomes of it when the disk refuses.

use super::*;

#[test]
fn a_node_is_registered_before_its_first_boot() {
    let bench = Bench::new(UnknownPolicy::Ignore);
    let new = || NewNode {
        name: "node-1".parse().ok(),
        macs: vec![(mac(1), Some(ADDRESS)), (mac(2), None)],
        quirks: None,
    };
    let node = bench.registry.register(new(), START).unwrap();
    assert_eq!((node.origin, node.approved, node.state), (Origin::Registered, true, ProvisionState::Enroll));
    assert_eq!(bench.known(1, 0).reserved, Some(ADDRESS));
    assert_eq!(bench.registry.reserved_for(ADDRESS), Some(mac(1)));
    for reference in ["node-1", "52:54:00:00:00:02", &node.id.to_string()] {
        assert_eq!(bench.registry.find(&reference.parse().unwrap()).unwrap().id, node.id, "{reference}");
    }
    let register = |name: &str, macs: Vec<(MacAddr, Option<Ipv4Addr>)>| {
        bench.registry.register(NewNode { name: name.parse().ok(), macs, quirks: None }, START).unwrap_err()
    };
    let owner = "node-1".to_owned();
    assert_eq!(register("b", vec![(mac(2), None)]), RegisterError::PortTaken { mac: mac(2), owner });
    assert_eq!(
        register("node-1", vec![(mac(3), None)]),
        RegisterError::NameTaken { name: "node-1".parse().unwrap() }
    );
    assert_eq!(
        register("b", vec![(mac(3), Some(ADDRESS))]),
        RegisterError::AddressTaken { address: ADDRESS, owner: mac(1) }
    );
    assert_eq!(register("b", vec![]), RegisterError::NoPort);
    assert_eq!(register("b", vec![(mac(3), None); 2]), RegisterError::PortTwice { mac: mac(3) });
    assert_eq!(
        register("b", vec![(MacAddr::BROADCAST, None)]),
        RegisterError::NotAStation { mac: MacAddr::BROADCAST }
    );
    let bench = bench.restart();
    assert_eq!(bench.node(2).name, node.name);
    assert_eq!(bench.registry.reserved_for(ADDRESS), Some(mac(1)));
    bench.registry.remove(&"node-1".parse().unwrap(), after(1)).unwrap();
    assert_eq!(bench.registry.reserved_for(ADDRESS), None);
    bench.registry.register(new(), START).unwrap();
    bench.assert_stored();
}

#[test]
fn registering_a_node_that_was_seen_adopts_it() {
    let bench = Bench::new(UnknownPolicy::Approve);
    let id = bench.seen(1, 0);
    let new = NewNode { name: "node-1".parse().ok(), macs: vec![(mac(1), None)], quirks: None };
    bench.store.fail_next_commits(1);
    assert!(matches!(bench.registry.register(new.clone(), after(1)), Err(RegisterError::Store(_))));
    assert_eq!((bench.node(1).name, bench.node(1).approved), (None, false));
    let node = bench.registry.register(new, after(2)).unwrap();
    assert_eq!((Some(node.id), node.approved, node.origin), (id, true, Origin::Registered));
    bench.registry.tick(after(3));
    bench.assert_stored();
}

#[test]
fn what_could_not_be_stored_is_undone() {
    let bench = Bench::new(UnknownPolicy::Approve);
    bench.seen(1, 0);
    let by_mac = NodeRef::Mac(mac(1));
    bench.store.fail_next_commits(4);
    assert!(bench.registry.approve(&by_mac, after(1)).is_err());
    assert!(bench.registry.order(&by_mac, Order::LocalBoot, after(1)).is_err());
    assert!(bench.registry.remove(&by_mac, after(1)).is_err());
    let new = NewNode { name: None, macs: vec![(mac(2), None)], quirks: None };
    assert!(bench.registry.register(new, after(1)).is_err());
    let node = bench.node(1);
    assert_eq!((node.approved, node.order, node.next_boot), (false, None, NextBoot::Ramdisk));
    assert_eq!(bench.registry.nodes().len(), 1);
    bench.registry.tick(after(2));
    bench.assert_stored();
}

#[test]
fn what_the_wire_told_while_the_disk_failed_is_stored_later() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.store.fail_next_commits(3);
    bench.seen(1, 0);
    bench.file(1, Stage::Ramdisk, "initrd.img", 1);
    assert_eq!(bench.store.load().unwrap(), Snapshot::default());
    bench.registry.tick(after(2));
    bench.assert_stored();
    assert_eq!(bench.restart().node(1).state, ProvisionState::Inspecting);
}

#[test]
fn reservations_of_the_configuration_are_registered_nodes() {
    let mut settings = settings(UnknownPolicy::Ignore);
    settings.reservations = vec![reservation(1, ADDRESS, "node-1")];
    let bench = Bench::with(Arc::new(MemoryStore::new()), settings.clone());
    assert_eq!(bench.known(1, 0).reserved, Some(ADDRESS));
    assert_eq!(bench.node(1).name.unwrap().as_str(), "node-1");
    assert_eq!(bench.node(1).ports[0].reserved, Some(ADDRESS));
    let remove = bench.registry.remove(&NodeRef::Mac(mac(1)), after(1));
    assert_eq!(remove, Err(OperatorError::InConfiguration { mac: mac(1) }));
    let bench = bench.restart();
    assert_eq!(bench.known(1, 1).reserved, Some(ADDRESS));
    assert_eq!(bench.registry.nodes().len(), 1);
    settings.reservations = vec![reservation(2, ADDRESS, "node-2")];
    bench.registry.reconfigure(settings, after(2));
    assert_eq!((bench.known(1, 2).reserved, bench.known(2, 2).reserved), (None, Some(ADDRESS)));
    assert_eq!(bench.registry.reserved_for(ADDRESS), Some(mac(2)));
    assert!(bench.known(1, 2).approved, "what was registered stays registered");
    bench.assert_stored();
}

#[test]
fn a_reservation_of_the_configuration_never_overrides_an_operators() {
    let bench = Bench::new(UnknownPolicy::Ignore);
    let five = NewNode { name: "five".parse().ok(), macs: vec![(mac(5), Some(ADDRESS))], quirks: None };
    bench.registry.register(five, START).unwrap();
    let mut settings = settings(UnknownPolicy::Ignore);
    settings.reservations = vec![reservation(6, ADDRESS, "six"), reservation(5, OTHER_ADDRESS, "five")];
    bench.registry.reconfigure(settings.clone(), after(1));
    let started = Bench::with(Arc::clone(&bench.store), settings);
    for bench in [&bench, &started] {
        let conflicts = bench.registry.reservation_conflicts();
        assert_eq!(conflicts.len(), 2, "another port's address, and another address of the same port");
        let told = conflicts[0].to_string();
        for part in ["six", "52:54:00:00:00:06", "five", "52:54:00:00:00:05", "192.168.2.50", "reload"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(bench.known(5, 2).reserved, Some(ADDRESS));
        assert_eq!(bench.registry.reserved_for(ADDRESS), Some(mac(5)));
        assert_eq!(bench.registry.standing(mac(6), after(2)), Standing::Stranger);
    }
    started.assert_stored();
}

#[test]
fn a_refused_reservation_holds_once_its_address_is_free() {
    let bench = Bench::new(UnknownPolicy::Ignore);
    let five = NewNode { name: "five".parse().ok(), macs: vec![(mac(5), Some(ADDRESS))], quirks: None };
    bench.registry.register(five, START).unwrap();
    let mut settings = settings(UnknownPolicy::Ignore);
    settings.reservations = vec![reservation(6, ADDRESS, "six")];
    bench.registry.reconfigure(settings, after(1));
    bench.registry.remove(&"five".parse().unwrap(), after(2)).unwrap();
    assert_eq!(bench.known(6, 3).reserved, Some(ADDRESS));
    assert_eq!(bench.registry.reservation_conflicts(), []);
    bench.assert_stored();
}
