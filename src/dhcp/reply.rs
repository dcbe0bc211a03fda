//! Where an answer goes (RFC 2131 §4.1) and what it carries (§4.3.1, table 3).
//!
//! The order of options is fixed, boot data is sent whether or not it was asked for, and it is the same in OFFER and
//! ACK: each is a trap some firmware falls into. What is left out when a reply grows too long is decided by
//! [`DROPPED_FIRST`]; options are never split and `file` never carries options.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::boot::client::ClientClass;
use crate::boot::decision::{BootFile, VendorClass};
use crate::config::DhcpMode;
use crate::dhcp::request::{MessageKind, Request};
use crate::dhcp::server::{Destination, Reply, ReplyKind, Settings};
use crate::dhcp::wire::{self, MessageType, OptionCode, ReplyHeader};
use crate::net::MacAddr;

pub(super) const CLIENT_PORT: u16 = 68;
/// RFC 2131 §4.1: relay agents listen where servers do.
const SERVER_PORT: u16 = 67;
/// RFC 2131 §2: what every client takes when option 57 says nothing.
const MESSAGE_SIZE_DEFAULT: u16 = 576;
/// Larger replies would be fragmented, which boot ROMs do not reassemble; OVMF's REQUEST allows 65280.
const MTU: u16 = 1500;
/// IPv4 and UDP headers. Some clients count them in option 57 and some do not: the smaller reading is safe for both.
const HEADERS_LEN: u16 = 28;
/// Some clients state less than RFC 2131's minimum of 576; then 576 holds.
const PAYLOAD_MIN: u16 = MESSAGE_SIZE_DEFAULT - HEADERS_LEN;
/// As many resolvers as a client would try (glibc takes three, others a few more).
const NAME_SERVERS_MAX: usize = 8;
/// PXE 2.1 table 2-3: option 43 with PXE_DISCOVERY_CONTROL bit 3, "just use the boot file", and its own END. Without
/// it UEFI takes option 60 as a hint to ask port 4011, and iPXE waits two seconds for a ProxyDHCP offer.
const JUST_USE_THE_BOOT_FILE: [u8; 4] = [6, 1, 8, 255];
/// iPXE sub-option 0xb0 `no-pxedhcp`: do not wait for a ProxyDHCP offer.
const NO_PROXY_DHCP: [u8; 3] = [0xb0, 1, 1];

/// What is left out, in this order, when a reply would be longer than its client takes.
const DROPPED_FIRST: [OptionCode; 6] = [
    OptionCode::DomainNameServer,
    OptionCode::BroadcastAddr,
    wire::IPXE_ENCAPSULATED,
    OptionCode::ClientIdentifier,
    OptionCode::ClientMachineIdentifier,
    OptionCode::TFTPServerName,
];

/// How a client that has no address yet hears an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// By its broadcast flag (RFC 2131 §4.1).
    AsItSays,
    /// Whatever it says: an operator knows better.
    BroadcastOnly,
}

/// What decides where a reply goes.
#[derive(Clone, Copy, Debug)]
pub struct Addressing {
    pub kind: ReplyKind,
    pub mac: MacAddr,
    /// The address the client already uses (`ciaddr`).
    pub current: Option<Ipv4Addr>,
    pub source: SocketAddrV4,
    pub broadcast_flag: bool,
    /// The address granted (`yiaddr`).
    pub granted: Option<Ipv4Addr>,
    /// Where the relay agent takes answers, if the request came through one.
    pub relay: Option<SocketAddrV4>,
}

/// RFC 2131 §4.1.
pub fn destination(addressing: &Addressing) -> Destination {
    let Addressing { kind, mac, current, source, broadcast_flag, granted, relay } = *addressing;
    if let Some(relay) = relay {
        return Destination::Unicast(relay);
    }
    // "In all cases, when giaddr is zero, the server broadcasts any DHCPNAK messages": a client that is wrong about
    // its address may not be reachable by it.
    match (kind, current, granted) {
        (ReplyKind::Nak, _, _) => Destination::Broadcast,
        // A client that already receives at its address may ask from a port of its choice.
        (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Bootp, Some(address), _)
            if *source.ip() == address =>
        {
            Destination::Unicast(source)
        }
        (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Bootp, Some(address), _) => {
            Destination::Unicast(SocketAddrV4::new(address, CLIENT_PORT))
        }
        (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Bootp, None, Some(address)) if !broadcast_flag => {
            Destination::Frame { mac, address }
        }
        (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Bootp, None, Some(_) | None) => {
            Destination::Broadcast
        }
    }
}

/// Renewal and rebinding times (RFC 2131 §4.4.5): half and seven eighths of the lease, moved by up to 5 % so that
/// machines started together do not renew together. The same machine always gets the same times.
pub fn renewal_times(lease: Duration, mac: MacAddr) -> (Duration, Duration) {
    // FNV-1a: spreads MACs that differ in the last digit only.
    let hash = mac.0.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let permille = 950 + (hash >> 32) % 101;
    let secs = lease.as_secs();
    let scaled = |numerator: u64| Duration::from_secs(secs.saturating_mul(numerator * permille) / 1_000_000);
    (scaled(500), scaled(875))
}

/// Everything a reply is made of.
pub struct Draft<'a> {
    pub request: &'a Request<'a>,
    pub kind: ReplyKind,
    /// The address granted.
    pub granted: Option<Ipv4Addr>,
    /// Absent where no lease is given: NAK, INFORM, boot server answers.
    pub lease: Option<Duration>,
    pub boot_file: Option<BootFile>,
    /// Echoed to PXE boot server discovery.
    pub boot_item: Option<[u8; 4]>,
    /// Sent in NAK, for the reader of a capture.
    pub reason: &'static str,
    pub settings: &'a Settings,
    pub destination: Destination,
    pub hearing: Hearing,
}

impl Reply {
    /// The same acknowledgement for what is left of a lease, when the disk would not take its extension.
    pub fn without_extension(mut self, left: Duration) -> Option<Reply> {
        let secs = u32::try_from(left.as_secs()).ok().filter(|secs| *secs > 0)?;
        // Renewal is tried again soon: the disk may have room by then.
        let times = [
            (OptionCode::AddressLeaseTime, secs),
            (OptionCode::Renewal, secs / 2),
            (OptionCode::Rebinding, secs - secs / 8),
        ];
        for (code, value) in times {
            wire::overwrite_u32(&mut self.bytes, code, value)?;
        }
        Some(self)
    }
}

impl Draft<'_> {
    pub fn compose(self) -> Reply {
        let bytes = match self.kind {
            ReplyKind::Nak => self.nak(),
            ReplyKind::Offer | ReplyKind::Ack => self.grant(),
            ReplyKind::Bootp => self.bootp(),
        };
        Reply {
            kind: self.kind,
            bytes,
            destination: self.destination,
            // A boot server answer repeats the address its client claims; that grants nothing.
            address: match self.kind {
                ReplyKind::Bootp => self.granted,
                ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Nak => self.lease.and(self.granted),
            },
            boot_file: self.boot_file.map(|boot_file| boot_file.file),
        }
    }

    fn header(&self) -> ReplyHeader<'_> {
        let message = self.request.message;
        ReplyHeader {
            htype: message.htype(),
            xid: message.xid(),
            flags: match (self.kind, self.request.relay, self.request.current) {
                // For a relay agent, which goes by it as well.
                (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Bootp, _, None)
                    if self.granted.is_some() && self.hearing == Hearing::BroadcastOnly =>
                {
                    message.flags() | wire::BROADCAST_FLAG
                }
                // There is no address to send it to but everybody's.
                (ReplyKind::Offer, _, _) if self.granted.is_none() => message.flags() | wire::BROADCAST_FLAG,
                // RFC 2131 §4.3.2: a client that is wrong about its address is reached by broadcast only, and so may
                // be one that asks for configuration without saying where it is.
                (ReplyKind::Nak, Some(_), _) => message.flags() | wire::BROADCAST_FLAG,
                (ReplyKind::Ack, Some(_), None) if self.granted.is_none() => {
                    message.flags() | wire::BROADCAST_FLAG
                }
                (ReplyKind::Offer | ReplyKind::Ack | ReplyKind::Nak | ReplyKind::Bootp, _, _) => {
                    message.flags()
                }
            },
            ciaddr: match self.kind {
                ReplyKind::Ack | ReplyKind::Bootp => self.request.current.unwrap_or(Ipv4Addr::UNSPECIFIED),
                ReplyKind::Offer | ReplyKind::Nak => Ipv4Addr::UNSPECIFIED,
            },
            yiaddr: self.granted.unwrap_or(Ipv4Addr::UNSPECIFIED),
            siaddr: match self.boot_file {
                Some(_) => self.settings.server(),
                // U-Boot looks for its configuration by itself, and asks the server that is named here.
                None if self.kind != ReplyKind::Nak
                    && matches!(self.request.class, ClientClass::UnknownFirmware { .. }) =>
                {
                    self.settings.server()
                }
                None => Ipv4Addr::UNSPECIFIED,
            },
            giaddr: message.giaddr(),
            chaddr: message.chaddr(),
            file: self.boot_file.as_ref().map_or(b"", |boot_file| boot_file.file.as_bytes()),
        }
    }

    /// RFC 2131 table 3: message type, server identifier, a text; the client identifier (RFC 6842 §3) and what the
    /// relay agent added (RFC 3046 §2.2). Nothing else.
    fn nak(&self) -> Vec<u8> {
        let message_type = [u8::from(MessageType::Nak)];
        let server = self.settings.server().octets();
        let mut options = OptionList::default();
        options.push(OptionCode::MessageType, &message_type);
        options.push(OptionCode::ServerIdentifier, &server);
        options.push(OptionCode::Message, self.reason.as_bytes());
        options.push_some(OptionCode::ClientIdentifier, self.request.client_id);
        options.push_some(OptionCode::RelayAgentInformation, self.agent_information());
        options.emit(&self.header(), self.payload_limit())
    }

    /// RFC 1497: what a client needs beside its address, in a vendor field of 64 bytes; nothing of DHCP.
    fn bootp(&self) -> Vec<u8> {
        let settings = self.settings;
        let mask = settings.network.mask().octets();
        let gateway = settings.gateway.map(|gateway| gateway.octets());
        let name_servers: Vec<u8> =
            settings.dns.iter().take(NAME_SERVERS_MAX).flat_map(|server| server.octets()).collect();
        let mut options = OptionList::default();
        options.push(OptionCode::SubnetMask, &mask);
        options.push_some(OptionCode::Router, gateway.as_ref().map(|gateway| &gateway[..]));
        if !name_servers.is_empty() {
            options.push(OptionCode::DomainNameServer, &name_servers);
        }
        options.push_some(OptionCode::RelayAgentInformation, self.agent_information());
        options.emit(&self.header(), wire::BOOTP_LEN)
    }

    /// Option 82 as it came, always the last (RFC 3046 §2.2).
    fn agent_information(&self) -> Option<&[u8]> {
        self.request.relay.and_then(|relay| relay.information)
    }

    fn grant(&self) -> Vec<u8> {
        let message_type = [u8::from(match self.kind {
            ReplyKind::Offer => MessageType::Offer,
            ReplyKind::Ack | ReplyKind::Bootp => MessageType::Ack,
            ReplyKind::Nak => MessageType::Nak,
        })];
        let settings = self.settings;
        let server = settings.server().octets();
        let (t1, t2) = renewal_times(self.lease.unwrap_or_default(), self.request.mac);
        let (lease, t1, t2) = (seconds(self.lease.unwrap_or_default()), seconds(t1), seconds(t2));
        let mask = settings.network.mask().octets();
        let gateway = settings.gateway.map(|gateway| gateway.octets());
        let name_servers: Vec<u8> =
            settings.dns.iter().take(NAME_SERVERS_MAX).flat_map(|server| server.octets()).collect();
        let broadcast = settings.network.broadcast().octets();
        let boot = self.boot_file.as_ref().map(BootTexts::new);
        let server_name = terminated(settings.server().to_string().as_bytes());
        let boot_item = self.boot_item.map(boot_item_answer);

        let mut options = OptionList::default();
        options.push(OptionCode::MessageType, &message_type);
        options.push(OptionCode::ServerIdentifier, &server);
        if self.lease.is_some() {
            options.push(OptionCode::AddressLeaseTime, &lease);
            options.push(OptionCode::Renewal, &t1);
            options.push(OptionCode::Rebinding, &t2);
        }
        // The server that gives the addresses says the rest as well.
        let configures = self.boot_item.is_none() && settings.mode != DhcpMode::Proxy;
        if configures {
            options.push(OptionCode::SubnetMask, &mask);
            options.push_some(OptionCode::Router, gateway.as_ref().map(|gateway| &gateway[..]));
        }
        for &code in self.request.parameters().iter().filter(|_| configures) {
            match OptionCode::from(code) {
                OptionCode::DomainNameServer if !name_servers.is_empty() => {
                    options.push(OptionCode::DomainNameServer, &name_servers);
                }
                OptionCode::BroadcastAddr => options.push(OptionCode::BroadcastAddr, &broadcast),
                // Not ours to tell, or sent in its own place.
                _ => {}
            }
        }
        if let Some(boot) = &boot {
            options.push(OptionCode::TFTPServerName, &server_name);
            options.push(OptionCode::BootfileName, &boot.file);
            options.push(OptionCode::ClassIdentifier, boot.vendor_class);
            match &boot_item {
                Some(vendor) => options.push(OptionCode::VendorExtensions, vendor),
                None => options.push_some(OptionCode::VendorExtensions, boot.vendor_options),
            }
        }
        if self.request.class.wants_boot() {
            options.push_some(OptionCode::ClientMachineIdentifier, self.request.machine_id());
        }
        // A proxy's offer ends that wait by itself.
        if matches!(self.request.class, ClientClass::Ipxe { .. }) && settings.mode != DhcpMode::Proxy {
            options.push(wire::IPXE_ENCAPSULATED, &NO_PROXY_DHCP);
        }
        options.push_some(OptionCode::ClientIdentifier, self.request.client_id);
        options.push_some(OptionCode::RelayAgentInformation, self.agent_information());
        options.emit(&self.header(), self.payload_limit())
    }

    /// Longest UDP payload this client takes without a fragment.
    fn payload_limit(&self) -> usize {
        let stated = self.request.size_limit().unwrap_or(MESSAGE_SIZE_DEFAULT);
        usize::from(stated.min(MTU).saturating_sub(HEADERS_LEN).max(PAYLOAD_MIN))
    }
}

/// Where the answer to this request goes.
pub fn destination_of(
    request: &Request<'_>,
    kind: ReplyKind,
    granted: Option<Ipv4Addr>,
    source: SocketAddrV4,
    hearing: Hearing,
) -> Destination {
    destination(&Addressing {
        kind,
        mac: request.mac,
        current: match request.kind {
            // INFORM from a client that left `ciaddr` empty: it is reached where it sent from.
            MessageKind::Inform if request.relay.is_none() => request.current.or(Some(*source.ip())),
            MessageKind::Inform => request.current,
            MessageKind::Discover
            | MessageKind::Request
            | MessageKind::Decline
            | MessageKind::Release
            | MessageKind::Bootp => request.current,
        },
        source,
        broadcast_flag: request.message.broadcast() || hearing == Hearing::BroadcastOnly,
        granted,
        relay: match (request.kind, request.current) {
            // RFC 2131 §4.3.5: straight to a client that says where it is.
            (MessageKind::Inform, Some(_)) => None,
            (MessageKind::Inform, None) => relay_of(request, source),
            (
                MessageKind::Discover
                | MessageKind::Request
                | MessageKind::Decline
                | MessageKind::Release
                | MessageKind::Bootp,
                _,
            ) => relay_of(request, source),
        },
    })
}

/// Where the relay agent of this request takes answers.
pub(super) fn relay_of(request: &Request<'_>, source: SocketAddrV4) -> Option<SocketAddrV4> {
    request.relay.map(|relay| {
        let port = if relay.own_port { source.port() } else { SERVER_PORT };
        SocketAddrV4::new(relay.agent, port)
    })
}

/// The options that tell firmware what to fetch.
struct BootTexts {
    file: Vec<u8>,
    vendor_class: &'static [u8],
    vendor_options: Option<&'static [u8]>,
}

impl BootTexts {
    fn new(boot_file: &BootFile) -> BootTexts {
        BootTexts {
            // Old UEFI reads past the end of option 67 until a NUL.
            file: terminated(boot_file.file.as_bytes()),
            vendor_class: match boot_file.vendor_class {
                VendorClass::Pxe => b"PXEClient",
                // GRUB compares this option in place as a C string.
                VendorClass::Http => b"HTTPClient\0",
            },
            vendor_options: match boot_file.vendor_class {
                VendorClass::Pxe => Some(&JUST_USE_THE_BOOT_FILE),
                VendorClass::Http => None,
            },
        }
    }
}

fn terminated(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

/// PXE 2.1 §2.2.4: the boot item asked for, echoed as sub-option 71.
fn boot_item_answer(item: [u8; 4]) -> [u8; 7] {
    let [kind_high, kind_low, layer_high, layer_low] = item;
    [71, 4, kind_high, kind_low, layer_high, layer_low, 255]
}

fn seconds(duration: Duration) -> [u8; 4] {
    // All ones means "for ever", which only reservations may be (RFC 2132 §9.2).
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1).to_be_bytes()
}

/// Options of a reply in wire order; each code once.
#[derive(Default)]
struct OptionList<'a> {
    /// The 17 options we ever send fit; `push` ignores a code that is already there.
    slots: [Option<(OptionCode, &'a [u8])>; 17],
    len: usize,
}

impl<'a> OptionList<'a> {
    fn push(&mut self, code: OptionCode, data: &'a [u8]) {
        let known = self.slots[..self.len].iter().flatten().any(|(other, _)| *other == code);
        if !known && self.len < self.slots.len() {
            self.slots[self.len] = Some((code, data));
            self.len += 1;
        }
    }

    fn push_some(&mut self, code: OptionCode, data: Option<&'a [u8]>) {
        if let Some(data) = data {
            self.push(code, data);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (OptionCode, &'a [u8])> + Clone {
        self.slots.iter().flatten().copied()
    }

    fn emit(mut self, header: &ReplyHeader<'_>, limit: usize) -> Vec<u8> {
        for dropped in DROPPED_FIRST {
            if wire::emitted_len(self.iter()) <= limit {
                break;
            }
            if let Some(slot) =
                self.slots.iter_mut().find(|slot| slot.is_some_and(|(code, _)| code == dropped))
            {
                *slot = None;
            }
        }
        wire::emit(header, self.iter())
    }
}

#[cfg(test)]
mod tests;
