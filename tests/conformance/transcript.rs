//! Feeds datagrams to a server of fixed configuration and writes down what comes back.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use farrier::boot::client::ClientClass;
use farrier::boot::decision::{Standing, UnknownPolicy};
use farrier::boot::loader::LoaderTable;
use farrier::clock::Timestamp;
use farrier::config::{DhcpMode, Identity, PoolRange, StrangerLimits};
use farrier::dhcp::server::{
    Answer, Destination, DhcpServer, Directory, Outcome, Received, Reply, Service, Settings,
};
use farrier::net::MacAddr;
use farrier::store::Change;

use crate::capture::Datagram;

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

/// Parsed once; the sweeps start a server per packet.
static LOADERS: LazyLock<Arc<LoaderTable>> = LazyLock::new(|| Arc::new(LoaderTable::built_in()));

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Conversation {
    AsCaptured,
    WithUs,
}

/// Nobody is known, nothing is reserved.
struct NoNodes;

impl Directory for NoNodes {
    fn standing(&self, _mac: MacAddr, _now: Timestamp) -> Standing {
        Standing::Stranger
    }

    fn reserved_for(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        None
    }
}

fn server() -> DhcpServer {
    let settings = Settings {
        mode: DhcpMode::Server,
        network: "192.168.2.2/24".parse().unwrap(),
        gateway: Some(Ipv4Addr::new(192, 168, 2, 1)),
        dns: vec![Ipv4Addr::new(192, 168, 2, 1)],
        pool: PoolRange { first: Ipv4Addr::new(192, 168, 2, 50), last: Ipv4Addr::new(192, 168, 2, 250) },
        lease: Duration::from_secs(12 * 3600),
        unknown: UnknownPolicy::Enroll,
        identity: Identity::Mac,
        authoritative: true,
        bootp: false,
        strangers: StrangerLimits::default(),
        loaders: LOADERS.clone(),
    };
    DhcpServer::new(settings, Vec::new(), START)
}

fn handle(server: &mut DhcpServer, datagram: &Datagram) -> Outcome {
    let received = Received {
        bytes: &datagram.payload,
        source: datagram.source,
        destination: *datagram.destination.ip(),
        service: if datagram.destination.port() == 4011 { Service::BootServer } else { Service::Dhcp },
    };
    server.handle(&received, &NoNodes, START.plus(datagram.at))
}

pub fn survives_cut(datagram: &Datagram, len: usize) {
    let mut cut = datagram.clone();
    cut.payload.truncate(len);
    let outcome = handle(&mut server(), &cut);
    if len < 240 {
        assert!(matches!(outcome.answer, Answer::Silence(_)), "frame {} cut to {len}", datagram.frame);
    }
}

pub fn survives_change(datagram: &Datagram, offset: usize, value: u8) {
    let mut changed = datagram.clone();
    changed.payload[offset] = value;
    handle(&mut server(), &changed);
}

pub fn replay(datagrams: &[Datagram], conversation: Conversation) -> String {
    let mut server = server();
    let mut given = HashMap::new();
    let mut text = String::new();
    for datagram in datagrams {
        let mut datagram = datagram.clone();
        if conversation == Conversation::WithUs {
            translate(&mut datagram, &given);
        }
        let outcome = handle(&mut server, &datagram);
        if let Answer::Reply(Reply { address: Some(address), .. }) = &outcome.answer {
            given.insert(hardware_address(&datagram.payload), *address);
        }
        describe(&mut text, &datagram, &outcome);
    }
    text
}

fn hardware_address(payload: &[u8]) -> MacAddr {
    MacAddr(payload[28..34].try_into().unwrap())
}

/// Puts our address for the other server's, and the address we gave this client for the one it got there.
fn translate(datagram: &mut Datagram, given: &HashMap<MacAddr, Ipv4Addr>) {
    let ours = given.get(&hardware_address(&datagram.payload)).copied();
    if let Some(ours) = ours
        && datagram.payload[12..16] != [0; 4]
    {
        datagram.payload[12..16].copy_from_slice(&ours.octets());
    }
    if let Some(ours) = ours
        && !datagram.source.ip().is_unspecified()
    {
        datagram.source.set_ip(ours);
    }
    if !datagram.destination.ip().is_broadcast() {
        datagram.destination.set_ip(SERVER);
    }
    let mut offset = 240;
    while datagram.payload[offset] != 255 {
        if datagram.payload[offset] == 0 {
            offset += 1;
            continue;
        }
        let data = offset + 2..offset + 2 + usize::from(datagram.payload[offset + 1]);
        match (datagram.payload[offset], ours) {
            (54, _) => datagram.payload[data.clone()].copy_from_slice(&SERVER.octets()),
            (50, Some(ours)) => datagram.payload[data.clone()].copy_from_slice(&ours.octets()),
            (_, _) => {}
        }
        offset = data.end;
    }
}

fn describe(text: &mut String, datagram: &Datagram, outcome: &Outcome) {
    let Datagram { frame, at, source, destination, payload } = datagram;
    let message = outcome.report.as_ref().map_or("unreadable", |report| report.message);
    let mac = hardware_address(payload);
    let at = at.as_secs_f64();
    writeln!(text, "#{frame} at {at:.3} s: {message} of {mac}, {source} to {destination}").unwrap();
    if let Some(report) = &outcome.report {
        let uuid = report.uuid.map(|uuid| format!(", uuid {uuid}")).unwrap_or_default();
        writeln!(text, "  client   {}{uuid}", class(report.class)).unwrap();
    }
    match &outcome.answer {
        Answer::Silence(silence) => writeln!(text, "  silence  {silence}").unwrap(),
        Answer::Reply(reply) => describe_reply(text, reply),
        Answer::Withheld(reply) => writeln!(text, "  withheld {}", reply.kind.as_str()).unwrap(),
    }
    for change in &outcome.changes {
        match change {
            Change::PutBinding(binding) => {
                writeln!(text, "  stored   {} {:?} {}", binding.address, binding.state, binding.mac).unwrap();
            }
            other => writeln!(text, "  stored   {other:?}").unwrap(),
        }
    }
    text.push('\n');
}

fn describe_reply(text: &mut String, reply: &Reply) {
    let address = reply.address.map(|address| format!(" {address}")).unwrap_or_default();
    let to = match reply.destination {
        Destination::Broadcast => "broadcast".to_owned(),
        Destination::Unicast(peer) => peer.to_string(),
        Destination::Frame { mac, address } => format!("{address} at {mac}, without ARP"),
    };
    writeln!(text, "  answer   {}{address} to {to}", reply.kind.as_str()).unwrap();
    let bytes = &reply.bytes;
    let field = |range: std::ops::Range<usize>| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[range]).unwrap());
    let fixed = [("ciaddr", field(12..16)), ("yiaddr", field(16..20)), ("siaddr", field(20..24))];
    let fixed: Vec<_> = fixed.iter().map(|(name, address)| format!("{name} {address}")).collect();
    writeln!(text, "  fields   {}, {} bytes", fixed.join(", "), bytes.len()).unwrap();
    if let Some(boot_file) = &reply.boot_file {
        writeln!(text, "  file     {boot_file}").unwrap();
    }
    let mut rest = &bytes[240..];
    while rest[0] != 255 {
        let len = usize::from(rest[1]);
        writeln!(text, "  option   {:<3} {}", rest[0], option(rest[0], &rest[2..2 + len])).unwrap();
        rest = &rest[2 + len..];
    }
}

fn option(code: u8, data: &[u8]) -> String {
    match (code, data) {
        (1 | 3 | 6 | 28 | 54, [a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
        (51 | 58 | 59, [a, b, c, d]) => format!("{} s", u32::from_be_bytes([*a, *b, *c, *d])),
        (56 | 60 | 66 | 67, text) => format!("{:?}", String::from_utf8_lossy(text)),
        (_, data) => data.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}

fn class(class: ClientClass) -> String {
    match class {
        ClientClass::Firmware { firmware } => format!("firmware {firmware}"),
        ClientClass::UnknownFirmware { arch } => format!("unknown firmware {arch}"),
        ClientClass::Ipxe { firmware, can_boot } => {
            format!("ipxe on {firmware}, {}", if can_boot { "can boot" } else { "cannot boot" })
        }
        ClientClass::Ramdisk => "ramdisk".to_owned(),
        ClientClass::OperatingSystem => "operating system".to_owned(),
    }
}
