//! The guard's thread on a real segment, and what a flood of made-up machines leaves to the others.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farrier::boot::decision::UnknownPolicy;
use farrier::bridge_log::BridgeLog;
use farrier::bridge_log::event::{BridgeEvent, BridgeHappening};
use farrier::clock::Clock;
use farrier::config::OnRival;
use farrier::guard::rivals::{Evidence, Kind};
use farrier::guard::{Guard, network};
use farrier::net::link::Netlink;
use farrier::net::{Bridge, MacAddr, ports};
use farrier::node::registry::{Registry, RegistrySettings};
use farrier::node::token::TokenKey;
use farrier::store::Store;
use farrier::store::memory::MemoryStore;
use farrier::telemetry::Tally;
use tokio::sync::broadcast;

use crate::dhcp::{self, ACK, DECLINE, DISCOVER, OFFER, REQUEST, SERVER};
use crate::support::{DEADLINE, Wire, attach, eventually, ip, isolated, make_bridge, ones_sum, udp_frame};

const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x99]);

struct Bench {
    guard: Arc<Guard>,
    tally: Arc<Tally>,
    wire: Wire,
    bridge: Bridge,
    /// Events of the bridge, for who watches.
    told: broadcast::Receiver<Arc<BridgeEvent>>,
    _handle: network::GuardHandle,
}

fn bench(on_rival: OnRival) -> Bench {
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let (guard, tally) = (Arc::new(Guard::new(on_rival).unwrap()), Arc::new(Tally::default()));
    let clock = Clock::start();
    let log = Arc::new(BridgeLog::new(Vec::new(), Arc::new(MemoryStore::new())));
    let told = log.subscribe();
    let handle = network::start(bridge.clone(), Arc::clone(&guard), log, Arc::clone(&tally), clock).unwrap();
    Bench { guard, tally, wire, bridge, told, _handle: handle }
}

fn router_advertisement(lifetime: u16) -> Vec<u8> {
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99).octets();
    let destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend_from_slice(&lifetime.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    let pseudo = [&source[..], &destination, &[0, 0, 0, 16, 0, 0, 0, 58]].concat();
    let checksum = !ones_sum(&[pseudo.as_slice(), &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let head = [0x33, 0x33, 0, 0, 0, 1];
    [&head[..], &OTHER.0, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255], &source, &destination, &message]
        .concat()
}

/// What the server with this last octet sends a client: to its MAC alone, or to all.
fn foreign_offer(server: u8, to: MacAddr) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[2, 1, 6]);
    bytes[28..34].copy_from_slice(&dhcp::mac(7).0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend_from_slice(&[53, 1, 2, 54, 4, 192, 168, 2, server, 255]);
    udp_frame((OTHER, to), ([192, 168, 2, server], 67), ([192, 168, 2, 77], 68), &bytes)
}

#[test]
fn a_foreign_router_is_heard_and_its_leave_as_well() {
    if !isolated("guard::a_foreign_router_is_heard_and_its_leave_as_well") {
        return;
    }
    let mut bench = bench(OnRival::Hold);
    bench.wire.expect("a solicitation", |frame| {
        let to_routers = frame.get(..6) == Some(&[0x33, 0x33, 0, 0, 0, 2]);
        // The kernel solicits from its own address, if at all.
        let is_ours = to_routers && frame.get(22..38) == Some(&[0; 16]) && frame.get(54) == Some(&133);
        is_ours.then_some(())
    });
    bench.wire.send(&router_advertisement(1800));
    let found = eventually("the router", || bench.guard.rivals().pop());
    assert_eq!((found.kind, found.mac), (Kind::RouterAdvertisement, Some(OTHER)));
    assert_eq!(found.address, IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99)));
    assert!(!bench.guard.holds(), "a router keeps nobody from getting an address");
    bench.wire.send(&router_advertisement(0));
    eventually("its leave", || bench.guard.rivals().is_empty().then_some(()));
    // Both are told to whoever watches.
    let mut told = || eventually("an event", || bench.told.try_recv().ok()).happening.clone();
    assert!(matches!(told(), BridgeHappening::RivalAppeared { mac: Some(OTHER), .. }));
    assert!(matches!(told(), BridgeHappening::RivalGone { kind: Kind::RouterAdvertisement, .. }));
}

#[test]
fn an_answer_between_two_other_ports_is_overheard() {
    if !isolated("guard::an_answer_between_two_other_ports_is_overheard") {
        return;
    }
    let bench = bench(OnRival::Hold);
    // The client is known behind a port of its own, so what is sent to it passes the bridge by.
    let client = Wire::open(&attach("br0", "other"));
    let alive = |socket: &Wire| {
        socket.send(&[&[0xff; 6], &dhcp::mac(7).0[..], &[0x08, 0x06], &[0; 46]].concat());
    };
    let netlink = Netlink::default();
    eventually("the bridge knows the client's port", || {
        alive(&client);
        ports::behind(&netlink, bench.bridge.index, dhcp::mac(7)).unwrap()
    });
    assert_eq!(ports::behind(&netlink, bench.bridge.index, dhcp::mac(8)).unwrap(), None);
    let heard_after = |server: u8| {
        let (address, sent_at) = (IpAddr::from([192, 168, 2, server]), Instant::now());
        bench.wire.send(&foreign_offer(server, dhcp::mac(7)));
        eventually("the server", || bench.guard.rivals().into_iter().find(|rival| rival.address == address));
        sent_at.elapsed()
    };
    // The promise. It takes milliseconds; on a machine that stood still meanwhile another server has its turn.
    const PROMISED: Duration = Duration::from_secs(2);
    let took = heard_after(9);
    println!("heard {took:?} after it answered");
    assert!(took < PROMISED || heard_after(8) < PROMISED, "heard {took:?} after it answered, and late again");
    let first = || bench.guard.rivals().into_iter().next();
    let found = first().unwrap();
    assert_eq!((found.evidence, found.mac), (Evidence::Offer, Some(OTHER)));
    assert_eq!((found.address, found.client), (IpAddr::from([192, 168, 2, 9]), Some(dhcp::mac(7))));
    assert!(bench.guard.holds());
    let found = eventually("its port", || first().filter(|rival| rival.port.is_some()));
    assert_eq!((found.port.as_deref(), found.process), (Some("br0p"), None), "no process of this host");
    // A bridge made anew is listened to as well.
    ip("link del br0");
    ip("link add br0 type bridge");
    ip("addr add 192.168.2.2/24 dev br0");
    ip("link set br0 up");
    let wire = Wire::open(&attach("br0", "new"));
    let heard = bench.tally.value("guard", "foreign-offer");
    eventually("heard on the new bridge", || {
        wire.send(&foreign_offer(9, MacAddr::BROADCAST));
        (bench.tally.value("guard", "foreign-offer") > heard).then_some(())
    });
}

#[test]
fn our_own_question_is_answered_by_nobody_here() {
    if !isolated("guard::our_own_question_is_answered_by_nobody_here") {
        return;
    }
    let bench = bench(OnRival::Warn);
    let question = bench.wire.expect("a question", |frame| {
        let is_it = frame.len() > 285 && frame[23] == 17 && frame[34..38] == [0, 68, 0, 67] && frame[42] == 1;
        is_it.then(|| frame.to_vec())
    });
    let server = dhcp::start_with(&bench.bridge, &bench.guard);
    // A loop in the network brings it back, from whatever MAC.
    let mut back = question.clone();
    back[6..12].copy_from_slice(&OTHER.0);
    bench.wire.send(&back);
    eventually("seen for what it is", || (server.tally.value("dhcp", "own-probe") == 1).then_some(()));
    assert_eq!(server.dhcp.pool_use().offered, 0);
    // A client that took another's offer is told of once, and holds nothing.
    let mut chosen = dhcp::message(1, REQUEST, Some([192, 168, 2, 60].into()));
    let place = chosen.len() - 5;
    chosen[place..place + 4].copy_from_slice(&[192, 168, 2, 8]);
    let macs = (dhcp::mac(1), MacAddr::BROADCAST);
    bench.wire.send(&udp_frame(macs, ([0; 4], 68), ([255; 4], 67), &chosen));
    let found = eventually("the other server", || bench.guard.rivals().pop());
    assert_eq!((found.address, found.evidence), (IpAddr::from([192, 168, 2, 8]), Evidence::Chosen));
    assert_eq!(found.client, Some(dhcp::mac(1)));
}

/// A machine of a crowd: forged ones have this number in their MAC.
fn crowd(kind: u8, number: u16, address: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = dhcp::message(0, kind, address.map(Into::into));
    bytes[28..34].copy_from_slice(&[2, 0xba, 0xd0, 0, (number >> 8) as u8, number as u8]);
    let mac = MacAddr(bytes[28..34].try_into().unwrap());
    udp_frame((mac, MacAddr::BROADCAST), ([0; 4], 68), ([255; 4], 67), &bytes)
}

fn registered(count: u8) -> Arc<Registry> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let settings = RegistrySettings {
        unknown: UnknownPolicy::Enroll,
        call_deadline: Duration::from_secs(600),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations: Vec::new(),
    };
    let snapshot = store.load().unwrap();
    let key = TokenKey::load_or_create(&snapshot, &*store).unwrap();
    let registry = Arc::new(Registry::new(store, snapshot, settings, key));
    for client in 1..=count {
        dhcp::register(&registry, dhcp::mac(client));
    }
    registry
}

#[test]
fn s_06_ten_thousand_made_up_machines_leave_known_nodes_served() {
    if !isolated("guard::s_06_ten_thousand_made_up_machines_leave_known_nodes_served") {
        return;
    }
    const KNOWN: u8 = 80;
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let registry = registered(KNOWN);
    let server = dhcp::start_for(&bridge, Arc::clone(&registry));
    let forger = Wire::open(&attach("br0", "forger"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut unserved = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each asks, takes what it is offered, and comes back as somebody else.
            let mut number = 0;
            while number < 10_000 && !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for _ in 0..20 {
                    forger.send(&crowd(DISCOVER, number, None));
                    number += 1;
                }
                let until = Instant::now() + Duration::from_millis(5);
                while let Some(frame) = forger.receive(until) {
                    if let Some((to, OFFER, address)) = dhcp::reply(&frame)
                        && to.0[..4] == [2, 0xba, 0xd0, 0]
                    {
                        let whom = u16::from_be_bytes([to.0[4], to.0[5]]);
                        forger.send(&crowd(REQUEST, whom, Some(address.octets())));
                    }
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        // Each known node in turn, with the patience of firmware: it asks again after a second, four times.
        for client in 1..=KNOWN {
            let answer = |kind, wanted, address: Option<std::net::Ipv4Addr>| {
                (0..4).find_map(|_| {
                    wire.send(&dhcp::broadcast(client, kind, address));
                    let until = Instant::now() + Duration::from_secs(1);
                    while let Some(frame) = wire.receive(until) {
                        if let Some((to, kind, address)) = dhcp::reply(&frame)
                            && (to, kind) == (dhcp::mac(client), wanted)
                        {
                            return Some(address);
                        }
                    }
                    None
                })
            };
            let served =
                answer(DISCOVER, OFFER, None).and_then(|address| answer(REQUEST, ACK, Some(address)));
            unserved.extend(served.is_none().then_some(client));
        }
        // The rest of the ten thousand still comes.
    });
    assert!(unserved.is_empty(), "{} of {KNOWN} unserved: {unserved:?}", unserved.len());
    assert!(stop.load(std::sync::atomic::Ordering::Relaxed));
    let usage = server.dhcp.pool_use();
    assert!(usage.bound + usage.offered <= u32::from(KNOWN) + 201 / 2, "{usage:?}");
    assert!(server.tally.value("dhcp", "stranger-limit") + server.tally.value("dhcp", "offer-limit") > 0);
}

#[test]
fn d_18_declining_what_one_gets_withholds_ten_addresses_at_most() {
    if !isolated("guard::d_18_declining_what_one_gets_withholds_ten_addresses_at_most") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let server = dhcp::start_for(&bridge, registered(1));
    for number in 0..60 {
        wire.send(&crowd(DISCOVER, number, None));
        let address = wire.expect("an offer", |frame| {
            dhcp::reply(frame).filter(|(to, kind, _)| (to.0[5], *kind) == (number as u8, OFFER))
        });
        wire.send(&crowd(DECLINE, number, Some(address.2.octets())));
        let declined =
            || server.tally.value("dhcp", "declined") + server.tally.value("dhcp", "decline-limit");
        eventually("heeded", || (declined() == u64::from(number) + 1).then_some(()));
    }
    assert_eq!(server.dhcp.pool_use().quarantined, 10);
    // One machine alone gets fewer still, and then nothing.
    assert_eq!(server.tally.value("dhcp", "decline-limit"), 50);
    let _ = (SERVER, DEADLINE);
}

#[test]
fn strangers_behind_one_port_leave_the_others_something() {
    if !isolated("guard::strangers_behind_one_port_leave_the_others_something") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let other = Wire::open(&attach("br0", "other"));
    let server = dhcp::start_limited(&bridge, registered(1), 3);
    for number in 0..10 {
        wire.send(&crowd(DISCOVER, number, None));
        let answered = || server.tally.value("dhcp", "offer") + server.tally.value("dhcp", "port-limit");
        eventually("an answer or none", || (answered() == u64::from(number) + 1).then_some(()));
    }
    assert_eq!(server.tally.value("dhcp", "port-limit"), 7);
    other.send(&crowd(DISCOVER, 100, None));
    eventually("behind another port", || (server.tally.value("dhcp", "offer") == 4).then_some(()));
}
