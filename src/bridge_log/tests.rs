use std::net::IpAddr;

use super::outages::{Look, Observer, OutageOf};
use super::*;
use crate::guard::rivals::Kind;
use crate::net::ports::{BridgePort, PortState};
use crate::store::memory::MemoryStore;
use event::BridgeFault;

fn at(secs: u64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000 + secs * 1000)
}

fn port(state: PortState, carrier: bool) -> BridgePort {
    BridgePort { name: "tap3".to_owned(), state, carrier, learned: false }
}

fn log(store: &Arc<MemoryStore>) -> BridgeLog {
    let events = store.load().unwrap().bridge_events;
    BridgeLog::new(events, Arc::clone(store) as _)
}

#[test]
fn an_outage_is_told_when_it_begins_and_when_it_is_over() {
    let mut observer = Observer::default();
    let fault = |fault| Look { fault, ..Look::default() };
    assert!(observer.look(fault(None), at(0)).is_empty());
    let out = observer.look(fault(Some(BridgeFault::Down)), at(1));
    assert_eq!(out, [BridgeHappening::BridgeOut { fault: BridgeFault::Down }]);
    assert!(observer.look(fault(Some(BridgeFault::Gone)), at(2)).is_empty(), "one outage");
    let back = observer.look(fault(None), at(5));
    assert_eq!(back, [BridgeHappening::BridgeBack { fault: BridgeFault::Down, out_since: at(1) }]);
    assert_eq!(back[0].words(at(5)).1, "it was down for 4.0 s");

    let ports = |port: BridgePort| Look { ports: vec![port], ..Look::default() };
    assert!(observer.look(ports(port(PortState::Disabled, false)), at(6)).is_empty(), "nobody is there");
    let held = observer.look(ports(port(PortState::Listening, true)), at(7));
    assert!(matches!(held[..], [BridgeHappening::PortHeld { state: PortState::Listening, .. }]));
    assert!(observer.look(ports(port(PortState::Learning, true)), at(22)).is_empty());
    // The bridge's own outage says nothing new of its ports.
    assert_eq!(observer.look(fault(Some(BridgeFault::Down)), at(23)).len(), 1);
    assert_eq!(observer.look(ports(port(PortState::Learning, true)), at(24)).len(), 1);
    let back = observer.look(ports(port(PortState::Forwarding, true)), at(37));
    assert_eq!(back, [BridgeHappening::PortBack { port: "tap3".to_owned(), held_since: at(7) }]);

    let route = |text: Option<&str>| Look { default_route: text.map(str::to_owned), ..Look::default() };
    let came = observer.look(route(Some("default via 10.0.0.1")), at(40));
    assert!(came.len() == 1 && came[0].is_trouble());
    assert_eq!(observer.look(route(Some("default")), at(41)).len(), 2, "another one");
    let gone = observer.look(route(None), at(42));
    assert_eq!(gone, [BridgeHappening::DefaultRouteGone { route: "default".to_owned() }]);
}

#[test]
fn the_log_outlives_a_restart_and_what_was_out_is_looked_for_again() {
    let store = Arc::new(MemoryStore::new());
    let first = log(&store);
    let mut watcher = first.subscribe();
    first.record(BridgeHappening::BridgeOut { fault: BridgeFault::Gone }, at(0));
    first.record(BridgeHappening::PortHeld { port: "tap3".to_owned(), state: PortState::Blocking }, at(0));
    assert_eq!(watcher.try_recv().unwrap().sequence, 1);

    let again = log(&store);
    assert_eq!(again.events(), first.events());
    let open = again.outages();
    assert!(open.len() == 2 && open.iter().all(|outage| outage.to.is_none()));
    let mut observer = Observer::from_events(again.events().iter().map(|event| &**event));
    for happening in observer.look(Look::default(), at(9)) {
        again.record(happening, at(9));
    }
    let over = again.outages();
    assert!(over.iter().all(|outage| outage.to.is_some()), "{over:?}");
    assert_eq!(over[0].of, OutageOf::Bridge(BridgeFault::Gone));
    assert_eq!(again.events().last().unwrap().sequence, 4);
}

#[test]
fn what_the_disk_refused_is_written_with_the_next_event() {
    let store = Arc::new(MemoryStore::new());
    let log = log(&store);
    store.fail_next_commits(1);
    log.record(BridgeHappening::BridgeOut { fault: BridgeFault::Down }, at(0));
    assert!(store.load().unwrap().bridge_events.is_empty());
    log.record(BridgeHappening::DefaultRoute { route: "default".to_owned() }, at(0));
    let kept: Vec<u64> = store.load().unwrap().bridge_events.iter().map(|event| event.sequence).collect();
    assert_eq!(kept, [1, 2]);
}

#[test]
fn the_log_is_bounded_and_rivals_cannot_fill_it() {
    let store = Arc::new(MemoryStore::new());
    let log = log(&store);
    log.record(BridgeHappening::BridgeOut { fault: BridgeFault::Down }, at(0));
    let rival = || BridgeHappening::RivalAppeared {
        kind: Kind::Dhcp,
        address: IpAddr::from([192, 168, 2, 9]),
        mac: None,
        port: None,
    };
    (0..2 * RIVALS_PER_MINUTE).for_each(|_| log.record(rival(), at(0)));
    assert_eq!(log.events().len(), 1 + RIVALS_PER_MINUTE as usize);
    for _ in 0..EVENTS_MAX {
        log.record(BridgeHappening::DefaultRoute { route: "default".to_owned() }, at(0));
    }
    let kept = store.load().unwrap().bridge_events;
    assert_eq!((kept.len(), log.events().len()), (EVENTS_MAX, EVENTS_MAX));
    assert_eq!(kept[0].sequence, log.events()[0].sequence);
}
