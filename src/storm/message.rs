//! DHCP as a client writes and reads it, and the Ethernet frame around it.

use std::net::Ipv4Addr;

use crate::net::MacAddr;
use crate::storm::firmware::DhcpManners;

const BOOTP_LENGTH: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Boot clients pad to what BOOTP relays of old insist on.
const MESSAGE_MIN: usize = 300;

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub mac: MacAddr,
    pub uuid: [u8; 16],
}

/// What is being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Discover,
    /// SELECTING (RFC 2131 §4.3.2).
    Request {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
}

pub fn emit(manners: &DhcpManners, who: &Identity, ask: Ask, xid: u32, attempt: usize) -> Vec<u8> {
    let mut bytes = vec![0; BOOTP_LENGTH];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    let secs = manners.secs.get(attempt).or(manners.secs.last()).copied().unwrap_or(0);
    bytes[8..10].copy_from_slice(&secs.to_be_bytes());
    if manners.broadcast {
        bytes[10] = 0x80;
    }
    bytes[28..34].copy_from_slice(&who.mac.0);
    bytes.extend_from_slice(&COOKIE);
    for code in manners.order {
        let data = option(manners, who, ask, *code);
        if let Some(data) = data {
            bytes.push(*code);
            bytes.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(&data[..data.len().min(255)]);
        }
    }
    bytes.push(255);
    if bytes.len() < MESSAGE_MIN {
        bytes.resize(MESSAGE_MIN, 0);
    }
    bytes
}

fn option(manners: &DhcpManners, who: &Identity, ask: Ask, code: u8) -> Option<Vec<u8>> {
    let request = match ask {
        Ask::Discover => None,
        Ask::Request { address, server } => Some((address, server)),
    };
    match code {
        50 => request.map(|(address, _)| address.octets().to_vec()),
        53 => Some(vec![if request.is_some() { REQUEST } else { DISCOVER }]),
        54 => request.map(|(_, server)| server.octets().to_vec()),
        55 => Some(manners.parameters.to_vec()),
        57 => {
            let (discover, request_max) = manners.message_max;
            let max = if request.is_some() { request_max } else { discover };
            Some(max.to_be_bytes().to_vec())
        }
        60 => Some(manners.vendor_class.to_vec()),
        61 => manners.sends_client_id.then(|| [&[1], &who.mac.0[..]].concat()),
        77 => manners.user_class.map(<[u8]>::to_vec),
        93 => manners.architecture.map(|code| code.to_be_bytes().to_vec()),
        94 => manners.architecture.map(|_| vec![1, 3, 0]),
        97 => manners.sends_uuid.then(|| [&[0], &who.uuid[..]].concat()),
        175 => manners.ipxe.map(<[u8]>::to_vec),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    Offer,
    Ack,
    Nak,
}

/// What a client makes of a server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: ReplyKind,
    pub xid: u32,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// `siaddr`, else option 54.
    pub next_server: Option<Ipv4Addr>,
    /// Option 67, else `file`: a name or a URL.
    pub boot_file: Option<String>,
    /// Option 60 begins with `HTTPClient`.
    pub for_http: bool,
    /// No ProxyDHCP to wait for.
    pub settled: bool,
}

/// `None` for what is no DHCP reply to an Ethernet client.
pub fn parse(bytes: &[u8]) -> Option<Reply> {
    let (head, options) = bytes.split_at_checked(BOOTP_LENGTH)?;
    let options = options.strip_prefix(&COOKIE)?;
    if head[..3] != [2, 1, 6] {
        return None;
    }
    let quad = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(head.get(at..at + 4)?).ok()?));
    let set = |address: Ipv4Addr| (!address.is_unspecified()).then_some(address);
    let kind = match find(options, 53)? {
        [2] => ReplyKind::Offer,
        [5] => ReplyKind::Ack,
        [6] => ReplyKind::Nak,
        _ => return None,
    };
    let server = find(options, 54).and_then(|data| <[u8; 4]>::try_from(data).ok()).map(Ipv4Addr::from);
    let vendor_class = find(options, 60).unwrap_or_default();
    let discovery_control = find(options, 43).and_then(|data| find(data, 6)).and_then(|data| data.first());
    let no_proxy = find(options, 175).and_then(|data| find(data, 176)).is_some_and(|data| data == [1]);
    Some(Reply {
        kind,
        xid: u32::from_be_bytes(head[4..8].try_into().ok()?),
        mac: MacAddr(head[28..34].try_into().ok()?),
        address: quad(16)?,
        server,
        next_server: set(quad(20)?).or(server),
        boot_file: text(find(options, 67).unwrap_or_default()).or_else(|| text(&head[108..236])),
        for_http: vendor_class.starts_with(b"HTTPClient"),
        settled: no_proxy
            || (vendor_class.starts_with(b"PXEClient")
                && discovery_control.is_some_and(|bits| bits & 8 != 0)),
    })
}

/// Up to the first NUL; `None` if that is nothing.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The first option of that code; also works on what is encapsulated.
fn find(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (&code, rest) = options.split_first()?;
        match code {
            0 => options = rest,
            255 => return None,
            code => {
                let (&length, rest) = rest.split_first()?;
                let (data, rest) = rest.split_at_checked(usize::from(length))?;
                if code == wanted {
                    return Some(data);
                }
                options = rest;
            }
        }
    }
}

/// The DHCP message in an Ethernet frame sent to UDP port 68; `None` for every other frame.
pub fn payload_for_client(frame: &[u8]) -> Option<&[u8]> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    if ethernet[12..14] != [8, 0] {
        return None;
    }
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    if packet.get(9) != Some(&17) || header < 20 {
        return None;
    }
    let datagram = packet.get(header..total)?;
    let length = usize::from(u16::from_be_bytes([*datagram.get(4)?, *datagram.get(5)?]));
    if datagram.get(2..4)? != [0, 68] {
        return None;
    }
    datagram.get(8..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::firmware::{IPXE_BIOS, OVMF};

    const WHO: Identity = Identity { mac: MacAddr([2, 0, 0, 0, 0, 1]), uuid: [7; 16] };

    fn codes(bytes: &[u8]) -> Vec<u8> {
        let mut codes = Vec::new();
        let mut rest = &bytes[240..];
        while let [code, length, tail @ ..] = rest {
            if *code == 255 {
                break;
            }
            codes.push(*code);
            rest = &tail[usize::from(*length)..];
        }
        codes
    }

    #[test]
    fn options_come_in_the_captured_order() {
        let discover = emit(&OVMF.dhcp, &WHO, Ask::Discover, 1, 0);
        assert_eq!(codes(&discover), [53, 57, 55, 97, 94, 93, 60]);
        assert_eq!(discover[10], 0x80);
        let discover = emit(&IPXE_BIOS.dhcp, &WHO, Ask::Discover, 1, 1);
        assert_eq!(codes(&discover), [53, 57, 93, 94, 60, 77, 55, 175, 61, 97]);
        assert_eq!(discover[8..12], [0, 10, 0, 0]);
        let ask = Ask::Request { address: Ipv4Addr::new(1, 2, 3, 4), server: Ipv4Addr::new(1, 2, 3, 1) };
        let request = emit(&OVMF.dhcp, &WHO, ask, 1, 0);
        assert_eq!(find(&request[240..], 57), Some(&65_280_u16.to_be_bytes()[..]));
        assert_eq!(find(&request[240..], 50), Some(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn a_reply_is_read_and_every_truncation_survived() {
        let mut bytes = emit(&OVMF.dhcp, &WHO, Ask::Discover, 9, 0);
        bytes.truncate(240);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 0, 0, 9]);
        bytes.extend_from_slice(&[53, 1, 2, 54, 4, 10, 0, 0, 1, 67, 3, b'a', b'b', 0, 60, 9]);
        bytes.extend_from_slice(b"PXEClient");
        bytes.extend_from_slice(&[43, 4, 6, 1, 8, 255, 255]);
        let reply = parse(&bytes).unwrap();
        assert_eq!((reply.kind, reply.xid, reply.mac), (ReplyKind::Offer, 9, WHO.mac));
        assert_eq!((reply.boot_file.as_deref(), reply.settled), (Some("ab"), true));
        assert_eq!(reply.next_server, Some(Ipv4Addr::new(10, 0, 0, 1)));
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
            let _ = payload_for_client(&bytes[..length]);
        }
    }
}
