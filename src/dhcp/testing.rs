//! Client messages for tests, and a server with a settable directory and clock.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use uuid::Uuid;

use crate::boot::decision::{KnownNode, NextBoot, Standing, UnknownPolicy};
use crate::boot::loader::LoaderTable;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::config::{DhcpMode, Identity, PoolRange, StrangerLimits};
use crate::dhcp::server::{
    Answer, DhcpServer, Directory, Outcome, Received, Reply, ReplyKind, Service, Settings, Silence,
};
use crate::dhcp::wire::{Message, OptionCode};
use crate::net::MacAddr;
use crate::node::NodeId;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
pub(crate) const LEASE: Duration = Duration::from_secs(3600);
static LOADERS: LazyLock<Arc<LoaderTable>> = LazyLock::new(|| Arc::new(LoaderTable::built_in()));

pub(crate) fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 2, last)
}

pub(crate) fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

pub(crate) fn settings() -> Settings {
    Settings {
        mode: DhcpMode::Server,
        network: "192.168.2.2/24".parse().unwrap(),
        gateway: Some(GATEWAY),
        dns: vec![address(3), address(4)],
        pool: PoolRange { first: address(50), last: address(250) },
        lease: LEASE,
        unknown: UnknownPolicy::Enroll,
        identity: Identity::Mac,
        authoritative: true,
        bootp: false,
        strangers: StrangerLimits::default(),
        loaders: LOADERS.clone(),
    }
}

/// A client's message, field by field.
#[derive(Clone, Debug)]
pub(crate) struct ClientMessage {
    pub(crate) bytes_fixed: [u8; 236],
    pub(crate) options: Vec<(u8, Vec<u8>)>,
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: Ipv4Addr,
    pub(crate) service: Service,
}

impl ClientMessage {
    pub(crate) fn new(kind: u8, mac: MacAddr) -> ClientMessage {
        let mut fixed = [0; 236];
        fixed[..3].copy_from_slice(&[1, 1, 6]);
        fixed[4..8].copy_from_slice(&[0xfe, 0xed, 0, mac.0[5]]);
        fixed[28..34].copy_from_slice(&mac.0);
        ClientMessage {
            bytes_fixed: fixed,
            options: vec![(53, vec![kind])],
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            destination: Ipv4Addr::BROADCAST,
            service: Service::Dhcp,
        }
    }

    pub(crate) fn discover(mac: MacAddr) -> ClientMessage {
        ClientMessage::new(1, mac)
    }

    pub(crate) fn selecting(mac: MacAddr, wanted: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(3, mac).option(54, &SERVER.octets()).option(50, &wanted.octets())
    }

    pub(crate) fn init_reboot(mac: MacAddr, wanted: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(3, mac).option(50, &wanted.octets())
    }

    pub(crate) fn renewing(mac: MacAddr, current: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(3, mac).using(current).sent_to(SERVER)
    }

    pub(crate) fn rebinding(mac: MacAddr, current: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(3, mac).using(current)
    }

    pub(crate) fn decline(mac: MacAddr, declined: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(4, mac).option(54, &SERVER.octets()).option(50, &declined.octets())
    }

    pub(crate) fn release(mac: MacAddr, current: Ipv4Addr) -> ClientMessage {
        ClientMessage::new(7, mac).option(54, &SERVER.octets()).using(current).sent_to(SERVER)
    }

    pub(crate) fn inform(mac: MacAddr) -> ClientMessage {
        ClientMessage::new(8, mac)
    }

    /// Sets `ciaddr` and the source address.
    pub(crate) fn using(mut self, current: Ipv4Addr) -> ClientMessage {
        self.bytes_fixed[12..16].copy_from_slice(&current.octets());
        self.source = SocketAddrV4::new(current, 68);
        self
    }

    pub(crate) fn sent_to(mut self, destination: Ipv4Addr) -> ClientMessage {
        self.destination = destination;
        self
    }

    pub(crate) fn option(mut self, code: u8, data: &[u8]) -> ClientMessage {
        self.options.push((code, data.to_vec()));
        self
    }

    pub(crate) fn broadcast_flag(mut self) -> ClientMessage {
        self.bytes_fixed[10] = 0x80;
        self
    }

    /// Overwrites a byte of the fixed part.
    pub(crate) fn byte(mut self, offset: usize, value: u8) -> ClientMessage {
        self.bytes_fixed[offset] = value;
        self
    }

    pub(crate) fn at_boot_server(mut self) -> ClientMessage {
        self.service = Service::BootServer;
        self.source.set_port(4011);
        self
    }

    /// As a relay agent forwards it: `giaddr` set, option 82 behind the client's own, sent to us from its port 67.
    pub(crate) fn relayed(mut self, agent: Ipv4Addr, information: &[u8]) -> ClientMessage {
        self.bytes_fixed[3] = 1;
        self.bytes_fixed[24..28].copy_from_slice(&agent.octets());
        self.source = SocketAddrV4::new(agent, 67);
        self.destination = SERVER;
        if information.is_empty() { self } else { self.option(82, information) }
    }

    /// OVMF as captured: architecture 7, UUID, 1472 bytes at most, broadcast flag.
    pub(crate) fn uefi(self) -> ClientMessage {
        let mut uuid = vec![0];
        uuid.extend_from_slice(&[0x11; 16]);
        self.broadcast_flag()
            .option(57, &[5, 0xc0])
            .option(97, &uuid)
            .option(93, &[0, 7])
            .option(60, b"PXEClient:Arch:00007:UNDI:003000")
    }

    pub(crate) fn uefi_http(self) -> ClientMessage {
        self.broadcast_flag().option(93, &[0, 16]).option(60, b"HTTPClient:Arch:00016:UNDI:003000")
    }

    pub(crate) fn ipxe(self) -> ClientMessage {
        self.option(93, &[0, 0])
            .option(60, b"PXEClient:Arch:00000:UNDI:002001")
            .option(77, b"iPXE")
            .option(175, &[0x13, 1, 1, 0x18, 1, 1, 0x24, 1, 1])
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes_fixed.to_vec();
        bytes.extend_from_slice(&[99, 130, 83, 99]);
        for (code, data) in &self.options {
            bytes.push(*code);
            bytes.push(u8::try_from(data.len()).unwrap());
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }
}

/// Nodes and reservations as a test sets them.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pub(crate) known: HashMap<MacAddr, KnownNode>,
    pub(crate) reserved: HashMap<Ipv4Addr, MacAddr>,
}

impl Nodes {
    pub(crate) fn reserve(&mut self, mac: MacAddr, address: Ipv4Addr) {
        self.know(mac).reserved = Some(address);
        self.reserved.insert(address, mac);
    }

    pub(crate) fn know(&mut self, mac: MacAddr) -> &mut KnownNode {
        self.known.entry(mac).or_insert(KnownNode {
            id: NodeId(Uuid::nil()),
            approved: true,
            proven: true,
            next_boot: NextBoot::Ramdisk,
            task_open: false,
            installer: None,
            profile: None,
            reserved: None,
            fruitless_loaders: 0,
            quirks: Quirks::default(),
        })
    }
}

impl Directory for Nodes {
    fn standing(&self, mac: MacAddr, _now: Timestamp) -> Standing {
        self.known.get(&mac).cloned().map_or(Standing::Stranger, Standing::Known)
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.reserved.get(&address).copied()
    }
}

/// A server at a moment in time.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) server: DhcpServer,
    pub(crate) nodes: Nodes,
    pub(crate) now: Timestamp,
}

impl World {
    pub(crate) fn new(settings: Settings) -> World {
        let now = Timestamp::from_millis(1_795_000_000_000);
        World { server: DhcpServer::new(settings, Vec::new(), now), nodes: Nodes::default(), now }
    }

    pub(crate) fn with_pool(first: u8, last: u8) -> World {
        World::new(Settings { pool: PoolRange { first: address(first), last: address(last) }, ..settings() })
    }

    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now = self.now.plus(duration);
    }

    pub(crate) fn send(&mut self, message: &ClientMessage) -> Outcome {
        let bytes = message.bytes();
        let received = Received {
            bytes: &bytes,
            source: message.source,
            destination: message.destination,
            service: message.service,
        };
        self.server.handle(&received, &self.nodes, self.now)
    }

    /// The whole exchange; panics if it does not end in an address.
    pub(crate) fn bind(&mut self, mac: MacAddr) -> Ipv4Addr {
        let offered = reply(&self.send(&ClientMessage::discover(mac))).address.unwrap();
        let acknowledged = self.send(&ClientMessage::selecting(mac, offered));
        assert_eq!(reply(&acknowledged).kind, ReplyKind::Ack);
        assert_eq!(reply(&acknowledged).address, Some(offered));
        offered
    }
}

pub(crate) fn reply(outcome: &Outcome) -> &Reply {
    match &outcome.answer {
        Answer::Reply(reply) => reply,
        Answer::Withheld(_) => panic!("withheld: {}", answer(outcome)),
        Answer::Silence(silence) => panic!("silence: {silence}"),
    }
}

/// `offer 192.168.2.50`, `nak`, or the word of a silence.
pub(crate) fn answer(outcome: &Outcome) -> String {
    match &outcome.answer {
        Answer::Reply(reply) => match reply.address {
            Some(address) => format!("{} {address}", reply.kind.as_str()),
            None => reply.kind.as_str().to_owned(),
        },
        Answer::Withheld(reply) => match reply.address {
            Some(address) => format!("{} {address}", reply.kind.withheld()),
            None => reply.kind.withheld().to_owned(),
        },
        Answer::Silence(silence) => silence.to_string(),
    }
}

pub(crate) fn silence(outcome: &Outcome) -> Option<Silence> {
    match outcome.answer {
        Answer::Silence(silence) => Some(silence),
        Answer::Reply(_) | Answer::Withheld(_) => None,
    }
}

/// Codes and data of a reply's options, in wire order.
pub(crate) fn options_of(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options = Vec::new();
    let mut rest = &bytes[240..];
    while rest[0] != 255 {
        assert_ne!(rest[0], 0, "PAD stands before END");
        let len = usize::from(rest[1]);
        options.push((rest[0], rest[2..2 + len].to_vec()));
        rest = &rest[2 + len..];
    }
    assert!(rest[1..].iter().all(|&byte| byte == 0), "only zeros follow END");
    options
}

pub(crate) fn codes_of(bytes: &[u8]) -> Vec<u8> {
    options_of(bytes).into_iter().map(|(code, _)| code).collect()
}

pub(crate) fn option_of(bytes: &[u8], code: u8) -> Option<Vec<u8>> {
    options_of(bytes).into_iter().find(|(other, _)| *other == code).map(|(_, data)| data)
}

pub(crate) fn parsed<'a>(outcome: &'a Outcome) -> Message<'a> {
    Message::parse(&reply(outcome).bytes).unwrap()
}

pub(crate) fn server_of(message: &Message<'_>) -> Option<Ipv4Addr> {
    message.options().address(OptionCode::ServerIdentifier)
}
