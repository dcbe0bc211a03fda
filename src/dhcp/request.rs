//! Message → request in our words, or the reason it is refused.
//!
//! This is the border between the two vocabularies: above it nobody says `ciaddr` or "option 50". What reaches
//! [`Request`] was sent by an Ethernet station, on our own link or through a relay agent, is a message type a server
//! handles, and has been cleaned of the contradictions the field is known for (protocol: clear `ciaddr` beside option
//! 50, and in DISCOVER).

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::boot::client::{self, BootOptions, ClientClass};
use crate::dhcp::server::{Service, Silence};
use crate::dhcp::wire::{self, Message, MessageType, OptionCode, ParseError};
use crate::net::MacAddr;

/// IANA hardware type of Ethernet; the only one a bridge carries.
const ETHERNET: u8 = 1;
/// RFC 1542 §4.1.1: a message that crossed more relays than this is going in circles.
const HOPS_MAX: u8 = 16;
/// One option holds no more (RFC 2132 §2); a longer client identifier could not be echoed as one option.
const CLIENT_ID_LEN_MAX: usize = 255;
/// A label of a host name (RFC 1123 §2.1).
const HOSTNAME_LEN_MAX: usize = 63;

/// What the client asks for, in protocol order (RFC 2131 table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
    /// No DHCP message at all (RFC 951, RFC 1497).
    Bootp,
}

impl MessageKind {
    pub fn as_str(self) -> &'static str {
        match self {
            MessageKind::Discover => "discover",
            MessageKind::Request => "request",
            MessageKind::Decline => "decline",
            MessageKind::Release => "release",
            MessageKind::Inform => "inform",
            MessageKind::Bootp => "bootp",
        }
    }
}

/// The client states a REQUEST may come from, told apart by what it carries (RFC 2131 §4.3.2, table 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// Answers an offer: server identifier and requested address.
    Selecting { address: Ipv4Addr },
    /// Restarted and remembers an address: requested address only.
    InitReboot { address: Ipv4Addr },
    /// Has an address and asks us directly.
    Renewing { address: Ipv4Addr },
    /// Has an address and asks whoever hears it.
    Rebinding { address: Ipv4Addr },
    /// Names no address at all. RFC 2131 has no such state; some clients do.
    Bare,
}

/// The relay agent a request came through (RFC 2131 §4.1, RFC 3046).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay<'a> {
    /// `giaddr`: where answers go, and which link the client is on unless `link` says so.
    pub agent: Ipv4Addr,
    /// Option 82 byte for byte, to be echoed.
    pub information: Option<&'a [u8]>,
    /// The link the client is on, where `giaddr` does not tell (RFC 3527).
    pub link: Option<Ipv4Addr>,
    /// The agent takes answers at the port it sent from (RFC 8357).
    pub own_port: bool,
}

impl<'a> Relay<'a> {
    fn read(message: &'a Message<'a>) -> Option<Relay<'a>> {
        const LINK_SELECTION: u8 = 5;
        const SOURCE_PORT: u8 = 19;
        let agent = message.giaddr();
        // Option 82 without an agent is a client's claim, and is not looked at (RFC 3046 §2.1).
        if agent.is_unspecified() {
            return None;
        }
        let information = message.options().bytes(OptionCode::RelayAgentInformation);
        let sub_option = |code| information.and_then(|field| wire::agent_sub_option(field, code));
        let link = sub_option(LINK_SELECTION).and_then(|data| data.first_chunk::<4>());
        Some(Relay {
            agent,
            information,
            link: link.copied().map(Ipv4Addr::from),
            own_port: sub_option(SOURCE_PORT).is_some(),
        })
    }
}

/// One request. Borrows from the message it was read from.
#[derive(Debug)]
pub struct Request<'a> {
    pub message: &'a Message<'a>,
    pub kind: MessageKind,
    pub mac: MacAddr,
    /// The address the client already uses (`ciaddr`).
    pub current: Option<Ipv4Addr>,
    /// The address it would like (option 50).
    pub requested: Option<Ipv4Addr>,
    /// The server it answers to (option 54).
    pub server: Option<Ipv4Addr>,
    /// Option 61, byte for byte.
    pub client_id: Option<&'a [u8]>,
    pub class: ClientClass,
    pub uuid: Option<Uuid>,
    pub relay: Option<Relay<'a>>,
}

impl<'a> Request<'a> {
    pub fn read(message: &'a Message<'a>) -> Result<Request<'a>, Silence> {
        if message.is_reply() {
            return Err(Silence::ReplyFromAnotherServer);
        }
        let hardware_address = <[u8; 6]>::try_from(message.chaddr());
        let mac = match (message.htype(), hardware_address) {
            (ETHERNET, Ok(bytes)) if MacAddr(bytes).is_station() => MacAddr(bytes),
            // UEFI's optional SendGUID mode (hlen 16) also ends here: it hides the MAC that identifies a client.
            (_, _) => return Err(Silence::BadHardwareAddress),
        };
        let options = message.options();
        let kind = match message.message_type() {
            Some(message_type) => kind_of(message_type)?,
            None => MessageKind::Bootp,
        };
        if message.hops() > HOPS_MAX {
            return Err(Silence::TooManyHops);
        }
        let requested = options.address(OptionCode::RequestedIpAddress).filter(|it| !it.is_unspecified());
        let current = match kind {
            MessageKind::Discover => None,
            MessageKind::Bootp => Some(message.ciaddr()).filter(|it| !it.is_unspecified()),
            // In DECLINE option 50 is the address declined and `ciaddr` must be zero (RFC 2131 table 5).
            MessageKind::Request | MessageKind::Decline if requested.is_some() => None,
            MessageKind::Request | MessageKind::Decline | MessageKind::Release | MessageKind::Inform => {
                Some(message.ciaddr()).filter(|it| !it.is_unspecified())
            }
        };
        let boot_options = BootOptions {
            vendor_class: options.bytes(OptionCode::ClassIdentifier),
            user_class: options.bytes(OptionCode::UserClass),
            arch: options.bytes(OptionCode::ClientSystemArchitecture),
            uuid: options.bytes(OptionCode::ClientMachineIdentifier),
            ipxe: options.bytes(wire::IPXE_ENCAPSULATED),
        };
        Ok(Request {
            message,
            kind,
            mac,
            current,
            requested,
            server: options.address(OptionCode::ServerIdentifier),
            client_id: options.bytes(OptionCode::ClientIdentifier).filter(|id| id.len() <= CLIENT_ID_LEN_MAX),
            class: client::classify(&boot_options),
            uuid: boot_options.uuid.and_then(client::smbios_uuid),
            relay: Relay::read(message),
        })
    }

    /// Which of the REQUESTs of RFC 2131 §4.3.2 this is. The server identifier, if any, is known to be ours.
    pub fn state(&self, sent_to: Ipv4Addr) -> RequestState {
        match (self.server, self.requested, self.current) {
            (Some(_), Some(address), _) => RequestState::Selecting { address },
            (None, Some(address), _) => RequestState::InitReboot { address },
            // RFC 2131 forbids option 54 here; clients that send it mean the same.
            (_, None, Some(address)) if sent_to.is_broadcast() => RequestState::Rebinding { address },
            // A relay agent forwards only what it heard as a broadcast; who renews, asks us directly.
            (_, None, Some(address)) if self.relay.is_some() => RequestState::Rebinding { address },
            (_, None, Some(address)) => RequestState::Renewing { address },
            (_, None, None) => RequestState::Bare,
        }
    }

    /// Option 12 reduced to what a host name may hold (RFC 1123 §2.1), so that it is inert wherever it is shown.
    pub fn hostname(&self) -> Option<String> {
        let raw = self.message.options().bytes(OptionCode::Hostname)?;
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        let text: String = raw.iter().filter(|byte| allowed(byte)).map(|&byte| char::from(byte)).collect();
        let text = text.trim_matches(['-', '.']);
        let end = text.len().min(HOSTNAME_LEN_MAX);
        (!text.is_empty()).then(|| text[..end].to_owned())
    }

    /// Option 55. A zero in it is a PAD some firmware leaves there and asks for nothing.
    pub fn parameters(&self) -> &'a [u8] {
        self.message.options().bytes(OptionCode::ParameterRequestList).unwrap_or_default()
    }

    /// Option 97 as sent, to be echoed (PXE 2.1 §2.2.1).
    pub fn machine_id(&self) -> Option<&'a [u8]> {
        self.message.options().bytes(OptionCode::ClientMachineIdentifier)
    }

    pub fn size_limit(&self) -> Option<u16> {
        self.message.options().number(OptionCode::MaxMessageSize)
    }

    /// PXE's boot server discovery: sub-option 71 of option 43 (PXE 2.1 §2.2.4), type and layer.
    pub fn boot_item(&self) -> Option<[u8; 4]> {
        const BOOT_ITEM: u8 = 71;
        // The vendor field has the TLV shape of the option field, PAD and END included.
        let vendor = self.message.options().bytes(OptionCode::VendorExtensions)?;
        wire::sub_option(vendor, BOOT_ITEM)?.first_chunk::<4>().copied()
    }

    /// Whether this is addressed to a PXE boot server rather than to a DHCP server.
    pub fn asks_boot_server(&self, service: Service) -> bool {
        match (service, self.kind) {
            (Service::BootServer, _) => true,
            (Service::Dhcp, MessageKind::Request | MessageKind::Inform) => {
                self.boot_item().is_some() && self.requested.is_none() && self.class.wants_boot()
            }
            (
                Service::Dhcp,
                MessageKind::Discover | MessageKind::Decline | MessageKind::Release | MessageKind::Bootp,
            ) => false,
        }
    }
}

fn kind_of(message_type: MessageType) -> Result<MessageKind, Silence> {
    match message_type {
        MessageType::Discover => Ok(MessageKind::Discover),
        MessageType::Request => Ok(MessageKind::Request),
        MessageType::Decline => Ok(MessageKind::Decline),
        MessageType::Release => Ok(MessageKind::Release),
        MessageType::Inform => Ok(MessageKind::Inform),
        MessageType::Offer | MessageType::Ack | MessageType::Nak => Err(Silence::ReplyFromAnotherServer),
        // RFC 3203, 4388, 6926, 7724: not implemented.
        MessageType::ForceRenew
        | MessageType::LeaseQuery
        | MessageType::LeaseUnassigned
        | MessageType::LeaseUnknown
        | MessageType::LeaseActive
        | MessageType::BulkLeaseQuery
        | MessageType::LeaseQueryDone
        | MessageType::ActiveLeaseQuery
        | MessageType::LeaseQueryStatus
        | MessageType::Tls
        | MessageType::Unknown(_) => Err(Silence::UnknownMessage),
    }
}

impl From<ParseError> for Silence {
    fn from(error: ParseError) -> Silence {
        match error {
            ParseError::Truncated => Silence::Truncated,
            ParseError::BadOperation(_) => Silence::BadOperation,
            ParseError::BadHardwareLength(_) => Silence::BadHardwareAddress,
            ParseError::NoCookie => Silence::Bootp,
        }
    }
}

#[cfg(test)]
mod tests;
