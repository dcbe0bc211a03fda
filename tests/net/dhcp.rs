//! The DHCP thread on a real bridge, with a store that can be told to wait or to fail.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farrier::boot::client::Client;
use farrier::boot::decision::{Standing, UnknownPolicy};
use farrier::boot::loader::LoaderTable;
use farrier::clock::{Clock, Timestamp};
use farrier::config::{
    BootConfig, Config, DhcpConfig, DhcpMode, Identity, MetadataConfig, NetworkConfig, OnRival,
    OperatorConfig, PoolRange, StoreConfig, StrangerLimits,
};
use farrier::dhcp::address_book::AddressBook;
use farrier::dhcp::lease::LeaseState;
use farrier::dhcp::network::{self, BindError, DhcpHandle, DhcpParts, Nodes};
use farrier::dhcp::server::Directory;
use farrier::guard::Guard;
use farrier::net::hazards::Allowed;
use farrier::net::{Bridge, MacAddr};
use farrier::node::registry::{NewNode, Registry, RegistrySettings};
use farrier::node::timeline::Happening;
use farrier::node::token::TokenKey;
use farrier::store::Store;
use farrier::store::memory::MemoryStore;
use farrier::telemetry::Tally;

use crate::support::{
    Wire, attach, bridge_name, eventually, ip, isolated, make_bridge, network, ones_sum, udp_frame,
};

pub const SERVER: [u8; 4] = [192, 168, 2, 2];
pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;

/// A registry that knows nobody and remembers what it is told, a word each.
#[derive(Default)]
struct Notes(Mutex<Vec<(MacAddr, String)>>);

impl Directory for Notes {
    fn standing(&self, _mac: MacAddr, _now: Timestamp) -> Standing {
        Standing::Stranger
    }

    fn reserved_for(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        None
    }
}

impl Nodes for Notes {
    fn seen(&self, client: &Client, _now: Timestamp) {
        self.0.lock().unwrap().push((client.mac, "seen".to_owned()));
    }

    fn granted(&self, client: &Client, _now: Timestamp) {
        self.0.lock().unwrap().push((client.mac, "granted".to_owned()));
    }

    fn record(&self, mac: MacAddr, happening: Happening, _now: Timestamp) {
        let Happening::Dhcp { message, answer, .. } = happening else { panic!("{happening:?}") };
        let answer = answer.unwrap_or_else(|reason| format!("silence: {reason}"));
        self.0.lock().unwrap().push((mac, format!("{message} {answer}")));
    }
}

/// The thread and everything around it.
struct Bench {
    dhcp: DhcpHandle,
    wire: Wire,
    store: Arc<MemoryStore>,
    notes: Arc<Notes>,
    addresses: Arc<AddressBook>,
    tally: Arc<Tally>,
}

fn config() -> Arc<Config> {
    Arc::new(Config {
        user: None,
        network: NetworkConfig {
            bridge: bridge_name("br0"),
            address: network("192.168.2.2/24"),
            gateway: None,
            dns: Vec::new(),
            allow: Allowed::default(),
        },
        dhcp: DhcpConfig {
            mode: DhcpMode::Server,
            pool: PoolRange { first: [192, 168, 2, 50].into(), last: [192, 168, 2, 250].into() },
            lease: Duration::from_secs(3600),
            unknown: UnknownPolicy::Enroll,
            identity: Identity::Mac,
            authoritative: true,
            bootp: false,
            on_rival: OnRival::Warn,
            strangers: StrangerLimits::default(),
            reservations: Vec::new(),
        },
        operator: OperatorConfig { socket: "/nonexistent".into(), ..OperatorConfig::default() },
        store: StoreConfig { path: "/nonexistent".into() },
        boot: BootConfig {
            loaders: BTreeMap::new(),
            profile: "vm".to_owned(),
            kernel_arguments: Vec::new(),
            first_boot_deadline: Duration::from_secs(1800),
            call_deadline: Duration::from_secs(600),
        },
        metadata: MetadataConfig::default(),
        installer: Default::default(),
    })
}

fn parts(bridge: Bridge) -> DhcpParts<Notes> {
    DhcpParts {
        bridge,
        config: config(),
        loaders: Arc::new(LoaderTable::built_in()),
        bindings: Vec::new(),
        registry: Arc::new(Notes::default()),
        store: Arc::new(MemoryStore::new()),
        addresses: Arc::default(),
        tally: Arc::default(),
        guard: Arc::default(),
        clock: Clock::start(),
    }
}

/// The thread, for tests of what others do to it.
pub struct Running {
    pub dhcp: DhcpHandle,
    pub tally: Arc<Tally>,
}

/// With nobody known, beside this guard.
pub fn start_with(bridge: &Bridge, guard: &Arc<Guard>) -> Running {
    let tally = Arc::new(Tally::default());
    let parts = DhcpParts { tally: Arc::clone(&tally), guard: Arc::clone(guard), ..parts(bridge.clone()) };
    Running { dhcp: network::start(parts).unwrap(), tally }
}

/// An operator registers a machine.
pub fn register(registry: &Registry, mac: MacAddr) {
    let new = NewNode { name: None, macs: vec![(mac, None)], quirks: None };
    registry.register(new, Clock::start().now()).unwrap();
}

/// With the registry itself.
pub fn start_for(bridge: &Bridge, registry: Arc<Registry>) -> Running {
    start_configured(bridge, registry, config())
}

/// The same, with so many strangers behind a port at most.
pub fn start_limited(bridge: &Bridge, registry: Arc<Registry>, per_port: u32) -> Running {
    let mut config = Config::clone(&config());
    config.dhcp.strangers.per_port = Some(per_port);
    start_configured(bridge, registry, Arc::new(config))
}

fn start_configured(bridge: &Bridge, registry: Arc<Registry>, config: Arc<Config>) -> Running {
    let tally = Arc::new(Tally::default());
    let DhcpParts { loaders, bindings, store, addresses, guard, clock, .. } = parts(bridge.clone());
    let parts = DhcpParts {
        bridge: bridge.clone(),
        config,
        loaders,
        bindings,
        registry,
        store,
        addresses,
        tally: Arc::clone(&tally),
        guard,
        clock,
    };
    Running { dhcp: network::start(parts).unwrap(), tally }
}

impl Bench {
    fn start() -> Bench {
        let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
        let (store, notes) = (Arc::new(MemoryStore::new()), Arc::new(Notes::default()));
        let (addresses, tally) = (Arc::new(AddressBook::default()), Arc::new(Tally::default()));
        let dhcp = network::start(DhcpParts {
            registry: Arc::clone(&notes),
            store: Arc::<MemoryStore>::clone(&store),
            addresses: Arc::clone(&addresses),
            tally: Arc::clone(&tally),
            ..parts(bridge)
        })
        .unwrap();
        Bench { dhcp, wire, store, notes, addresses, tally }
    }

    /// DISCOVER to OFFER; returns the address.
    fn offer(&self, client: u8) -> Ipv4Addr {
        self.wire.send(&broadcast(client, DISCOVER, None));
        let (to, kind, address) = self.reply();
        assert_eq!((to, kind), (mac(client), OFFER));
        address
    }

    fn request(&self, client: u8, address: Ipv4Addr) {
        self.wire.send(&broadcast(client, REQUEST, Some(address)));
    }

    /// The next reply on the wire: whom it was sent to, message type, address.
    fn reply(&self) -> (MacAddr, u8, Ipv4Addr) {
        self.wire.expect("a DHCP reply", reply)
    }

    fn notes_of(&self, client: u8) -> Vec<String> {
        let notes = self.notes.0.lock().unwrap();
        notes.iter().filter(|(of, _)| *of == mac(client)).map(|(_, note)| note.clone()).collect()
    }
}

pub fn mac(client: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, client])
}

/// A message of an iPXE ROM, which does not ask for broadcasts.
pub fn message(client: u8, kind: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&[0xca, 0xfe, 0, client]);
    bytes[28..34].copy_from_slice(&mac(client).0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend_from_slice(&[53, 1, kind, 93, 2, 0, 0]);
    bytes.extend_from_slice(&[60, 32]);
    bytes.extend_from_slice(b"PXEClient:Arch:00000:UNDI:002001");
    bytes.extend_from_slice(b"\x4d\x04iPXE");
    if let Some(address) = address {
        bytes.extend_from_slice(&[50, 4]);
        bytes.extend_from_slice(&address.octets());
        bytes.extend_from_slice(&[54, 4]);
        bytes.extend_from_slice(&SERVER);
    }
    bytes.push(255);
    bytes
}

pub fn broadcast(client: u8, kind: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
    let macs = (mac(client), MacAddr::BROADCAST);
    udp_frame(macs, ([0; 4], 68), ([255; 4], 67), &message(client, kind, address))
}

pub fn reply(frame: &[u8]) -> Option<(MacAddr, u8, Ipv4Addr)> {
    let is_reply = frame.len() > 285 && frame[23] == 17 && frame[34..38] == [0, 67, 0, 68] && frame[42] == 2;
    if !is_reply {
        return None;
    }
    assert_eq!(frame[26..30], SERVER);
    assert_eq!(frame[282..284], [53, 1], "the message type comes first");
    let to = MacAddr(frame[..6].try_into().unwrap());
    let address = <[u8; 4]>::try_from(&frame[58..62]).unwrap();
    Some((to, frame[284], address.into()))
}

#[test]
fn an_ack_leaves_when_its_binding_is_on_disk_and_not_before() {
    if !isolated("dhcp::an_ack_leaves_when_its_binding_is_on_disk_and_not_before") {
        return;
    }
    let bench = Bench::start();
    let address = bench.offer(1);
    assert_eq!(bench.addresses.owner(address), Some(mac(1)), "an offer may be used without a request");
    bench.store.hold();
    // Asked twice, as by a client that hears nothing: the second answer must wait as well.
    bench.request(1, address);
    bench.request(1, address);
    // Requests are handled in order: this offer shows that those before it were, and what comes first on the wire.
    let other = bench.offer(2);
    assert_ne!(other, address);
    assert!(bench.store.load().unwrap().bindings.is_empty());
    bench.store.release();
    assert_eq!(bench.reply(), (mac(1), ACK, address));
    assert_eq!(bench.reply(), (mac(1), ACK, address));
    assert_eq!(bench.store.load().unwrap().bindings[0].address, address);
    assert_eq!(
        bench.notes_of(1),
        ["seen", "discover offer", "granted", "request ack", "granted", "request ack"]
    );
    let leases = bench.dhcp.leases();
    let states: Vec<_> = leases.iter().map(|lease| (lease.mac, lease.state)).collect();
    assert!(states.contains(&(mac(1), LeaseState::Bound)) && states.contains(&(mac(2), LeaseState::Offered)));
    assert_eq!(bench.dhcp.pool_use().bound, 1);
    eventually("both counted", || (bench.tally.value("dhcp", "ack") == 2).then_some(()));
}

/// The kernel's UDP would leave the checksum to the device, and a virtual one leaves it undone.
#[test]
fn a_broadcast_reply_has_its_whole_checksum() {
    if !isolated("dhcp::a_broadcast_reply_has_its_whole_checksum") {
        return;
    }
    let bench = Bench::start();
    let mut discover = message(1, DISCOVER, None);
    discover[10] = 0x80;
    let macs = (mac(1), MacAddr::BROADCAST);
    bench.wire.send(&udp_frame(macs, ([0; 4], 68), ([255; 4], 67), &discover));
    let (frame, address) = bench.wire.expect("an offer to everybody", |frame| {
        let (to, kind, address) = reply(frame)?;
        assert_eq!((to, kind), (MacAddr::BROADCAST, OFFER));
        Some((frame.to_vec(), address))
    });
    assert_eq!((&frame[30..34], address.octets()[3]), ([255; 4].as_slice(), 50));
    let length = u16::from_be_bytes([frame[38], frame[39]]);
    let datagram = &frame[34..34 + usize::from(length)];
    let pseudo = [&frame[26..34], &[0, 17], &length.to_be_bytes()].concat();
    assert_ne!(datagram[6..8], [0, 0]);
    assert_eq!(ones_sum(&[&pseudo, datagram].concat()), 0xffff);
}

#[test]
fn a_client_with_an_address_is_answered_there_from_the_port_it_asked() {
    if !isolated("dhcp::a_client_with_an_address_is_answered_there_from_the_port_it_asked") {
        return;
    }
    let bench = Bench::start();
    let address = bench.offer(1);
    bench.request(1, address);
    assert_eq!(bench.reply(), (mac(1), ACK, address));
    // The machine would answer ARP; a wire cannot.
    ip(&format!("neigh add {address} lladdr {} dev br0", mac(1)));
    let bridge = Bridge::find(&bridge_name("br0"), network("192.168.2.2/24")).unwrap();
    let ask = |client, port, boot_item: &[u8]| {
        let mut request = message(client, REQUEST, None);
        request[12..16].copy_from_slice(&address.octets());
        request.truncate(request.len() - 1);
        request.extend_from_slice(boot_item);
        request.push(255);
        let ports = ((address.octets(), 68), (SERVER, port));
        bench.wire.send(&udp_frame((mac(client), bridge.mac), ports.0, ports.1, &request));
        bench.wire.expect("a unicast answer", |frame| {
            let datagram = frame.get(26..46)?;
            (frame[23] == 17 && datagram[..8] == [SERVER, address.octets()].concat()[..])
                .then(|| (MacAddr(frame[..6].try_into().unwrap()), datagram[8..12].to_vec()))
        })
    };
    assert_eq!(ask(1, 67, &[]), (mac(1), vec![0, 67, 0, 68]));
    assert_eq!(ask(1, 4011, &[]), (mac(1), vec![0x0f, 0xab, 0, 68]));
    // Another machine that claims the address gets a boot file at most, not the name that goes with the address.
    ask(2, 4011, &[43, 6, 71, 4, 0, 0, 0, 0]);
    assert_eq!(bench.addresses.owner(address), Some(mac(1)));
}

#[test]
fn a_lease_that_cannot_be_stored_is_not_given_and_can_be_asked_for_again() {
    if !isolated("dhcp::a_lease_that_cannot_be_stored_is_not_given_and_can_be_asked_for_again") {
        return;
    }
    let bench = Bench::start();
    let address = bench.offer(1);
    bench.store.hold();
    bench.request(1, address);
    bench.offer(2);
    bench.store.fail_next_commits(1);
    bench.store.release();
    eventually("the failure to be counted", || (bench.tally.value("dhcp", "not-durable") == 1).then_some(()));
    // The next reply on the wire is an offer: no ACK slipped out.
    bench.offer(3);
    assert!(bench.notes_of(1).contains(&"request silence: not-durable".to_owned()));
    bench.request(1, address);
    assert_eq!(bench.reply(), (mac(1), ACK, address));
    assert_eq!(bench.store.load().unwrap().bindings.len(), 1);
}

#[test]
fn stopping_waits_for_commits_under_way() {
    if !isolated("dhcp::stopping_waits_for_commits_under_way") {
        return;
    }
    let bench = Bench::start();
    let address = bench.offer(1);
    bench.store.hold();
    bench.request(1, address);
    bench.offer(2);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| bench.dhcp.stop());
        bench.store.release();
        stopping.join().unwrap();
    });
    assert_eq!(bench.reply(), (mac(1), ACK, address));
    assert!(bench.dhcp.leases().is_empty(), "nobody is left to ask");
}

#[test]
fn a_stalled_disk_delays_everybody_and_loses_nobody() {
    if !isolated("dhcp::a_stalled_disk_delays_everybody_and_loses_nobody") {
        return;
    }
    let bench = Bench::start();
    // As many strangers as may hold offers, each asking until it is more than the thread lets wait.
    let offers: Vec<_> = (1..=25).map(|client| (client, bench.offer(client))).collect();
    bench.store.hold();
    for _ in 0..6 {
        for (client, address) in &offers {
            bench.request(*client, *address);
        }
    }
    // Whether the thread has taken them all or stopped at its limit, it still obeys.
    assert_eq!(bench.dhcp.pool_use().size, 201);
    bench.store.release();
    let mut answers = BTreeMap::<_, u32>::new();
    for _ in 0..6 * offers.len() {
        let (to, kind, address) = bench.reply();
        assert_eq!(kind, ACK);
        *answers.entry((to, address)).or_default() += 1;
    }
    let expected = offers.iter().map(|(client, address)| ((mac(*client), *address), 6)).collect();
    assert_eq!(answers, expected);
}

#[test]
fn service_goes_on_when_the_bridge_comes_back() {
    if !isolated("dhcp::service_goes_on_when_the_bridge_comes_back") {
        return;
    }
    let mut bench = Bench::start();
    let address = bench.offer(1);
    ip("link set br0 down");
    ip("link set br0 up");
    assert_eq!(bench.offer(1), address);
    ip("link del br0");
    ip("link add br0 type bridge");
    ip("addr add 192.168.2.2/24 dev br0");
    ip("link set br0 up");
    bench.wire = Wire::open(&attach("br0", "new"));
    // Frames sent before the sockets are open again are lost, as on any network: ask until answered.
    eventually("an offer on the new bridge", || {
        bench.wire.send(&broadcast(1, DISCOVER, None));
        let until = std::time::Instant::now() + Duration::from_millis(100);
        let frame = bench.wire.receive(until)?;
        reply(&frame).filter(|found| *found == (mac(1), OFFER, address))
    });
    assert_eq!(bench.tally.value("dhcp", "bridge-gone"), 1);
    assert!(bench.tally.value("dhcp", "mac-changed") >= 1, "the new bridge has another MAC");
}

/// A bridge that was given no MAC takes its ports' lowest, and may change it with them; who is in the middle of a download
/// is told.
#[test]
fn a_new_mac_of_the_bridge_is_announced() {
    if !isolated("dhcp::a_new_mac_of_the_bridge_is_announced") {
        return;
    }
    let bench = Bench::start();
    bench.offer(1);
    ip("link set br0 address 02:00:00:00:00:01");
    let announced = eventually("an announcement", || {
        let frame = bench.wire.receive(std::time::Instant::now() + Duration::from_millis(100))?;
        (frame[12..14] == [8, 6] && frame[28..32] == SERVER).then_some(frame)
    });
    let own = [2, 0, 0, 0, 0, 1];
    assert_eq!((&announced[..6], &announced[6..12]), (&[255; 6][..], &own[..]), "to everybody, from there");
    assert_eq!((&announced[22..28], &announced[38..42]), (&own[..], &SERVER[..]));
    assert_eq!(bench.tally.value("dhcp", "mac-changed"), 1);
    bench.offer(1);
}

#[test]
fn a_second_server_on_the_same_bridge_does_not_start() {
    if !isolated("dhcp::a_second_server_on_the_same_bridge_does_not_start") {
        return;
    }
    let (bridge, _wire) = make_bridge("br0", "192.168.2.2/24");
    let first = network::start(parts(bridge.clone())).unwrap();
    let error = network::start(parts(bridge.clone())).map(drop).unwrap_err();
    assert!(matches!(error, BindError::PortTaken { port: 67, .. }), "{error}");
    drop(first);
    drop(network::start(parts(bridge)).unwrap());
}

/// With the registry itself: offers make nobody a node and strangers get their share of the pool, until one goes on.
#[test]
fn a_flood_of_strangers_leaves_no_nodes_and_gets_its_share() {
    if !isolated("dhcp::a_flood_of_strangers_leaves_no_nodes_and_gets_its_share") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
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
    let registry = Arc::new(Registry::new(Arc::clone(&store), snapshot, settings, key));
    let DhcpParts { config, loaders, bindings, addresses, tally, clock, .. } = parts(bridge.clone());
    let dhcp = network::start(DhcpParts {
        bridge,
        config,
        loaders,
        bindings,
        registry: Arc::clone(&registry),
        store: Arc::clone(&store),
        addresses,
        tally: Arc::clone(&tally),
        guard: Arc::default(),
        clock,
    })
    .unwrap();
    let (flood, share) = (120, 201 / 2 / 4);
    for round in 1..=2 {
        for client in 1..=flood {
            wire.send(&broadcast(client, DISCOVER, None));
            let answered = u64::from(client) + (round - 1) * u64::from(flood);
            let both = || tally.value("dhcp", "offer") + tally.value("dhcp", "offer-limit") == answered;
            eventually("an answer or none", || both().then_some(()));
        }
        assert_eq!(dhcp.pool_use().offered, share, "asking again gains nothing");
        assert!(registry.nodes().is_empty() && store.load().unwrap().nodes.is_empty());
    }
    let (to, kind, address) = wire.expect("an offer", reply);
    assert_eq!((to, kind), (mac(1), OFFER));
    wire.send(&broadcast(1, REQUEST, Some(address)));
    eventually("granted", || (tally.value("dhcp", "ack") == 1).then_some(()));
    let nodes = registry.nodes();
    assert_eq!((nodes.len(), nodes[0].ports[0].mac), (1, mac(1)));
    let boots = registry.boots(nodes[0].id);
    assert_eq!(boots[0].events.len(), 3, "both its DISCOVERs are told: {boots:?}");
}
