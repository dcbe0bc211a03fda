//! Where replies leave: four sockets, shared by the DHCP thread and the store's.
//!
//! Every transaction is one line in the log, written here, when its reply has left (or could not).

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::dhcp::network::desk::{Parcel, Post};
use crate::dhcp::network::relays::{Relays, Verdict};
use crate::dhcp::network::{BindError, SERVICE};
use crate::dhcp::server::{Destination, ReplyKind, Report, Service};
use crate::guard::process;
use crate::net::arp::ArpProber;
use crate::net::frame::{Delivery, FrameSender};
use crate::net::sys::{self, BATCH_MAX, Outgoing, Pieces};
use crate::net::{Bridge, MacAddr};
use crate::telemetry::Tally;
use crate::telemetry::stages::Timed;

const DHCP_PORT: u16 = 67;
/// PXE 2.1 §2.2.4.
const BOOT_SERVER_PORT: u16 = 4011;
const CLIENT_PORT: u16 = 68;

/// Fewer replies are not worth being sent as one packet.
const TOGETHER_MIN: usize = 3;
/// What an IP packet carries, with room for its headers.
const TOGETHER_BYTES_MAX: usize = 60_000;

/// The sockets of ports 67 and 4011; to bind them takes CAP_NET_BIND_SERVICE, to move them CAP_NET_RAW.
pub struct Doors {
    dhcp: UdpSocket,
    boot_server: UdpSocket,
}

impl Doors {
    pub fn open(bridge: &Bridge) -> Result<Doors, BindError> {
        let udp = |port| {
            let refused = |source| refuse(bridge, format!("UDP port {port}"), Some(port), source);
            bridge.udp_socket(port).map_err(refused)
        };
        Ok(Doors { dhcp: udp(DHCP_PORT)?, boot_server: udp(BOOT_SERVER_PORT)? })
    }

    /// The same sockets, tied to the device that has the bridge's name now. With them stay the ports, which nobody else
    /// could take meanwhile, and the length of their queues.
    fn moved_to(&self, bridge: &Bridge) -> io::Result<Doors> {
        let move_one = |socket: &UdpSocket| {
            let socket = socket.try_clone()?;
            bridge.rebind(&socket).map(|()| socket)
        };
        Ok(Doors { dhcp: move_one(&self.dhcp)?, boot_server: move_one(&self.boot_server)? })
    }
}

fn refuse(bridge: &Bridge, what: String, port: Option<u16>, source: io::Error) -> BindError {
    let bridge = bridge.name.clone();
    match (source.kind(), port) {
        (io::ErrorKind::AddrInUse, Some(port)) => {
            let holder = process::holder_of_port(&bridge).map(Box::new);
            BindError::PortTaken { bridge, port, holder, source }
        }
        (io::ErrorKind::PermissionDenied, _) => BindError::NotPermitted { bridge, what, source },
        (_, _) => BindError::Unavailable { bridge, what, source },
    }
}

pub(super) struct Outbound {
    doors: Doors,
    pub(super) arp: ArpProber,
    frames: FrameSender,
    from: (Ipv4Addr, u32),
    relays: Mutex<Relays>,
    tally: Arc<Tally>,
}

impl Outbound {
    pub(super) fn new(bridge: &Bridge, doors: Doors, tally: &Arc<Tally>) -> Result<Outbound, BindError> {
        let refused = |source| refuse(bridge, "a packet socket".to_owned(), None, source);
        let frames = FrameSender::open(bridge).map_err(refused)?;
        let arp = ArpProber::open(bridge).map_err(refused)?;
        let (from, relays) = ((bridge.ip(), bridge.index), Mutex::default());
        Ok(Outbound { doors, arp, frames, from, relays, tally: Arc::clone(tally) })
    }

    /// The same on a bridge that was made anew.
    pub(super) fn moved_to(&self, bridge: &Bridge) -> Result<Outbound, BindError> {
        let moved = self.doors.moved_to(bridge);
        let doors =
            moved.map_err(|source| refuse(bridge, "moving its sockets there".to_owned(), None, source))?;
        Outbound::new(bridge, doors, &self.tally)
    }

    /// The socket requests to this service arrive on, and replies to them leave from.
    pub(super) fn socket(&self, service: Service) -> &UdpSocket {
        match service {
            Service::Dhcp => &self.doors.dhcp,
            Service::BootServer => &self.doors.boot_server,
        }
    }

    fn message<'a>(&self, parcel: &'a Parcel) -> Option<Outgoing<'a>> {
        let to = match parcel.reply.destination {
            Destination::Unicast(to) => to,
            Destination::Broadcast | Destination::Frame { .. } => return None,
        };
        Some(Outgoing { payload: &parcel.reply.bytes, to, from: self.from })
    }

    /// Sends what goes by UDP; a result for each, in their order.
    fn send_udp(&self, service: Service, parcels: &[&Parcel]) -> Vec<io::Result<()>> {
        self.note_requests(parcels);
        let mut results: Vec<Option<io::Result<()>>> = parcels.iter().map(|_| None).collect();
        for together in self.together(parcels) {
            let slices: Vec<IoSlice<'_>> =
                together.indices.iter().map(|index| IoSlice::new(&parcels[*index].reply.bytes)).collect();
            let (to, from) = (together.to, Some(self.from));
            let pieces = Pieces { slices: &slices, to, from, cut_at: Some(together.length) };
            // Whatever the reason (a device that cannot have its packets cut, a full queue), one by one tells it apart.
            if sys::send_pieces(self.socket(service), &[pieces]).is_err() {
                continue;
            }
            self.tally.add(SERVICE, "sent-together", together.indices.len() as u64);
            let mut relays = self.relays();
            for index in together.indices {
                results[index] = Some(Ok(()));
                if let (ReplyKind::Offer, Some(report)) = (parcels[index].reply.kind, &parcels[index].report)
                {
                    relays.offered_together(*to.ip(), report.mac);
                }
            }
        }
        let rest: Vec<usize> = (0..parcels.len()).filter(|index| results[*index].is_none()).collect();
        let messages: Vec<Outgoing<'_>> =
            rest.iter().filter_map(|index| self.message(parcels[*index])).collect();
        for (index, result) in rest.into_iter().zip(sys::send_batch(self.socket(service), &messages)) {
            results[index] = Some(result);
        }
        results.into_iter().flatten().collect()
    }

    /// Who is answered a REQUEST was told of an offer before.
    fn note_requests(&self, parcels: &[&Parcel]) {
        let mut relays = self.relays();
        for parcel in parcels {
            let kind = parcel.reply.kind;
            if let (Destination::Unicast(to), ReplyKind::Ack | ReplyKind::Nak, Some(report)) =
                (parcel.reply.destination, kind, &parcel.report)
            {
                relays.heard_of(*to.ip(), report.mac);
            }
        }
    }

    /// Which of them leave as one packet: those of one length for one relay agent.
    fn together(&self, parcels: &[&Parcel]) -> Vec<Together> {
        let mut alike: BTreeMap<(SocketAddrV4, u16), Vec<usize>> = BTreeMap::new();
        for (index, parcel) in parcels.iter().enumerate() {
            let (Destination::Unicast(to), Ok(length)) =
                (parcel.reply.destination, u16::try_from(parcel.reply.bytes.len()))
            else {
                continue;
            };
            if to.port() != DHCP_PORT || length == 0 {
                continue;
            }
            alike.entry((to, length)).or_default().push(index);
        }
        alike.retain(|(to, _), indices| {
            indices.len() >= TOGETHER_MIN && self.may_have_them_together(*to.ip())
        });
        let packets = alike.into_iter().flat_map(|((to, length), indices)| {
            let most = BATCH_MAX.min(TOGETHER_BYTES_MAX / usize::from(length));
            let packet = move |indices: &[usize]| Together { to, length, indices: indices.to_vec() };
            indices.chunks(most.max(1)).map(packet).collect::<Vec<_>>()
        });
        packets.filter(|together| together.indices.len() >= TOGETHER_MIN).collect()
    }

    fn may_have_them_together(&self, relay: Ipv4Addr) -> bool {
        let verdict = self.relays().verdict(relay, Instant::now());
        if verdict == Verdict::OneByOneFromNow {
            tracing::warn!(
                %relay,
                "a relay agent seems to lose replies that are sent several in a packet: does it read raw frames, in a container of this machine? for an hour it gets each by itself"
            );
        }
        verdict == Verdict::Together
    }

    fn relays(&self) -> MutexGuard<'_, Relays> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replies that leave as one packet of the link.
struct Together {
    to: SocketAddrV4,
    /// Of each.
    length: u16,
    indices: Vec<usize>,
}

impl Post for Outbound {
    /// Sends replies in one system call for each way they take.
    fn send(&self, parcels: &[Parcel]) {
        for way in [Way::Udp(Service::Dhcp), Way::Udp(Service::BootServer), Way::Frame] {
            let those: Vec<&Parcel> = parcels.iter().filter(|parcel| way_of(parcel) == way).collect();
            if those.is_empty() {
                continue;
            }
            let results = match way {
                Way::Udp(service) => self.send_udp(service, &those),
                Way::Frame => {
                    let deliveries: Vec<Delivery<'_>> =
                        those.iter().filter_map(|parcel| delivery(parcel)).collect();
                    self.frames.send_batch(&deliveries)
                }
            };
            for (parcel, sent) in those.into_iter().zip(results) {
                match &sent {
                    Ok(()) => {
                        self.tally.count(SERVICE, parcel.reply.kind.as_str());
                        self.tally.took(Timed::DhcpReply, parcel.decided_at.elapsed());
                    }
                    Err(_) => self.tally.count(SERVICE, "send-failed"),
                }
                log_reply(parcel, &sent);
            }
        }
    }
}

/// The socket a reply leaves by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp(Service),
    Frame,
}

fn way_of(parcel: &Parcel) -> Way {
    match parcel.reply.destination {
        Destination::Unicast(_) => Way::Udp(parcel.service),
        Destination::Broadcast | Destination::Frame { .. } => Way::Frame,
    }
}

fn delivery(parcel: &Parcel) -> Option<Delivery<'_>> {
    let (to, address) = match parcel.reply.destination {
        // Not by the kernel's UDP: it leaves the checksum to the device, and a virtual one leaves it undone. Clients
        // without an address read raw frames, and some of them check.
        Destination::Broadcast => (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
        Destination::Frame { mac, address } => (mac, address),
        Destination::Unicast(_) => return None,
    };
    let source_port = match parcel.service {
        Service::Dhcp => DHCP_PORT,
        Service::BootServer => BOOT_SERVER_PORT,
    };
    let destination = SocketAddrV4::new(address, CLIENT_PORT);
    Some(Delivery { to, destination, source_port, payload: &parcel.reply.bytes })
}

/// One line, at `info` for clients that want to boot and at `debug` for all others.
macro_rules! transaction {
    ($report:expr, $($field:tt)*) => {
        match $report {
            Some(report) if report.class.wants_boot() => tracing::info!(
                mac = %report.mac, xid = format_args!("{:08x}", report.xid), message = report.message, $($field)*
            ),
            Some(report) => tracing::debug!(
                mac = %report.mac, xid = format_args!("{:08x}", report.xid), message = report.message, $($field)*
            ),
            None => tracing::debug!(message = "unreadable", $($field)*),
        }
    };
}

fn log_reply(parcel: &Parcel, sent: &io::Result<()>) {
    let answer = parcel.reply.kind.as_str();
    let ip = parcel.reply.address.map(tracing::field::display);
    let boot_file = parcel.reply.boot_file.as_deref();
    match sent {
        Ok(()) => transaction!(&parcel.report, answer, ip, boot_file),
        Err(error) => transaction!(&parcel.report, answer, ip, reason = %error),
    }
}

pub(super) fn log_silence(reason: &'static str, report: Option<&Report>) {
    transaction!(report, reason);
}
