//! What the inner loops cost: codec, lease table, `handle()`, transfer engine, scripts. `make bench-micro`.
//!
//! Nothing here touches a socket or a disk; what those add is in `versus`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use farrier::boot::decision::{ScriptPlan, Standing, UnknownPolicy};
use farrier::boot::loader::LoaderTable;
use farrier::boot::script::{ScriptContext, render_grub, render_ipxe};
use farrier::clock::Timestamp;
use farrier::config::{Identity, PoolRange};
use farrier::dhcp::lease::table::LeaseTable;
use farrier::dhcp::lease::{Binding, BindingState, ClientKey};
use farrier::dhcp::server::{Answer, DhcpServer, Directory, Received, Service, Settings};
use farrier::dhcp::wire::{self, Message, OptionCode, ReplyHeader};
use farrier::net::MacAddr;
use farrier::tftp::transfer::{Limits, Transfer};
use farrier::tftp::wire::parse_request;

fn main() {
    divan::main();
}

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 2);
const POOL: PoolRange =
    PoolRange { first: Ipv4Addr::new(10, 33, 0, 0), last: Ipv4Addr::new(10, 46, 255, 255) };
const LEASE: Duration = Duration::from_secs(12 * 3600);
/// Leases held while the table or the server is measured.
const HELD: [u32; 2] = [50_000, 500_000];
const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(POOL.first) + number)
}

fn binding(number: u32) -> Binding {
    Binding {
        address: address(number),
        key: ClientKey::Mac(mac(number)),
        mac: mac(number),
        client_id: None,
        hostname: None,
        state: BindingState::Bound,
        granted_at: NOW,
        expires_at: NOW.plus(LEASE),
    }
}

/// DISCOVER, or the REQUEST for an address, with a boot ROM's options if `pxe`.
fn message(number: u32, requested: Option<Ipv4Addr>, pxe: bool) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&number.to_be_bytes());
    bytes[28..34].copy_from_slice(&mac(number).0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let mut option = |code: u8, data: &[u8]| {
        bytes.extend_from_slice(&[code, data.len() as u8]);
        bytes.extend_from_slice(data);
    };
    option(53, &[if requested.is_some() { 3 } else { 1 }]);
    if let Some(address) = requested {
        option(54, &SERVER.octets());
        option(50, &address.octets());
    }
    option(55, &[1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 43, 54, 60, 66, 67, 97]);
    if pxe {
        option(57, &[5, 192]);
        option(97, &[0x11; 17]);
        option(93, &[0, 7]);
        option(60, b"PXEClient:Arch:00007:UNDI:003000");
    }
    bytes.push(255);
    bytes
}

#[divan::bench(args = [false, true])]
fn codec_parse(bencher: Bencher<'_, '_>, pxe: bool) {
    let bytes = message(1, None, pxe);
    bencher.bench(|| Message::parse(black_box(&bytes)).is_ok());
}

#[divan::bench]
fn codec_emit() -> Vec<u8> {
    let header = ReplyHeader {
        htype: 1,
        xid: 1,
        flags: 0,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: address(1),
        siaddr: SERVER,
        giaddr: Ipv4Addr::UNSPECIFIED,
        chaddr: &[0x52, 0x54, 0, 0, 0, 1],
        file: b"ipxe/ipxe.efi",
    };
    let options = [
        (OptionCode::MessageType, &[2][..]),
        (OptionCode::ServerIdentifier, &[10, 32, 0, 2]),
        (OptionCode::AddressLeaseTime, &[0, 0, 168, 192]),
        (OptionCode::SubnetMask, &[255, 240, 0, 0]),
        (OptionCode::BootfileName, b"ipxe/ipxe.efi\0"),
    ];
    wire::emit(black_box(&header), options.into_iter())
}

/// Renews one lease after another among those held.
#[divan::bench(args = HELD)]
fn lease_bind(bencher: Bencher<'_, '_>, held: u32) {
    let mut table = LeaseTable::new(POOL, (0..held).map(binding).collect(), NOW);
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + 7919) % held;
        table.bind(binding(number), NOW.plus(Duration::from_millis(u64::from(number)))).len()
    });
}

struct Strangers;

impl Directory for Strangers {
    fn standing(&self, _mac: MacAddr, _now: Timestamp) -> Standing {
        Standing::Stranger
    }

    fn reserved_for(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        None
    }
}

fn server(held: u32) -> DhcpServer {
    let settings = Settings {
        mode: farrier::config::DhcpMode::Server,
        bootp: false,
        strangers: farrier::config::StrangerLimits::default(),
        network: "10.32.0.2/12".parse().expect("a network"),
        gateway: None,
        dns: vec![SERVER],
        pool: POOL,
        lease: LEASE,
        unknown: UnknownPolicy::Enroll,
        identity: Identity::Mac,
        authoritative: true,
        loaders: Arc::new(LoaderTable::built_in()),
    };
    DhcpServer::new(settings, (0..held).map(binding).collect(), NOW)
}

/// DISCOVER and REQUEST of clients that hold a lease already: what every reboot of a rack is.
fn exchange(bencher: Bencher<'_, '_>, held: u32, pxe: bool) {
    let mut server = server(held);
    let mut number = 0;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        number = (number + 7919) % held;
        let requested = address(number);
        for bytes in [message(number, None, pxe), message(number, Some(requested), pxe)] {
            let received = Received {
                bytes: &bytes,
                source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                destination: Ipv4Addr::BROADCAST,
                service: Service::Dhcp,
            };
            let outcome = server.handle(&received, &Strangers, NOW);
            assert!(matches!(black_box(outcome).answer, Answer::Reply(_)));
        }
    });
}

#[divan::bench(args = HELD)]
fn handle_exchange(bencher: Bencher<'_, '_>, held: u32) {
    exchange(bencher, held, false);
}

#[divan::bench(args = HELD)]
fn handle_exchange_pxe(bencher: Bencher<'_, '_>, held: u32) {
    exchange(bencher, held, true);
}

/// A whole transfer of 4 MiB to a client that acknowledges everything, by window.
#[divan::bench(args = [1_u64, 16, 64])]
fn transfer(bencher: Bencher<'_, '_>, windowsize: u64) {
    let content = Bytes::from(vec![7; 4 * 1024 * 1024]);
    let request = [
        b"\0\x01k\0octet\0blksize\x001468\0windowsize\0".as_slice(),
        windowsize.to_string().as_bytes(),
        b"\0",
    ]
    .concat();
    let limits = Limits { blksize_max: 1468, windowsize_max: 64 };
    bencher.counter(BytesCount::new(content.len())).bench(|| {
        let now = Instant::now();
        let parsed = parse_request(&request).expect("a request");
        let mut transfer = Transfer::new(&parsed, &limits, content.clone(), now);
        let mut acknowledged: u64 = 0;
        while transfer.outcome().is_none() {
            while transfer.poll_transmit().is_some() {}
            let [high, low] = (acknowledged as u16).to_be_bytes();
            transfer.handle_datagram(&[0, 4, high, low], now);
            acknowledged += windowsize;
            acknowledged = acknowledged.min(content.len() as u64 / 1468 + 1);
        }
        transfer.acknowledged()
    });
}

fn context() -> ScriptContext<'static> {
    ScriptContext {
        server: SERVER,
        mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
        node: None,
        profile: "metal",
        token: "token-of-the-usual-length-0123456789abcdef0123456789abcdef",
        arguments: &[],
        grubs: &[],
        boot: Default::default(),
    }
}

#[divan::bench]
fn script_ipxe() -> String {
    render_ipxe(ScriptPlan::Ramdisk, black_box(&context()))
}

#[divan::bench]
fn script_grub() -> String {
    render_grub(ScriptPlan::Ramdisk, black_box(&context()))
}
