//! Bytes ↔ DHCP message (RFC 2131 §2, RFC 2132): the only file that knows field offsets and option numbers.
//!
//! Reading is a checked view: [`Message::parse`] accepts or refuses the fixed part, collects the options we look at,
//! and nothing behind it can fail or read past the end. dhcproto walks the options; its owned decoder is not used,
//! because it panics on a hardware length above 16 and loses every option after one it cannot decode.
//!
//! - Options are gathered from the option field, then, if option 52 says so, from `file` and `sname` (RFC 2131 §4.1).
//! - An option that appears several times is one option, joined in order (RFC 3396 §7).
//! - A last option that is cut off is dropped; what came before it stands.
//!
//! Writing is ours: the order of options and the padding decide whether old firmware boots (see [`emit`]).

use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::{self, DhcpOption, DhcpOptionIterator};
pub use dhcproto::v4::{MessageType, OptionCode};

/// `op` of a message from a client, and of one from a server.
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// RFC 2131 §3: the first four bytes of the option field.
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Offsets of the fixed part, RFC 2131 figure 1.
const CHADDR: usize = 28;
const SNAME: usize = 44;
const FILE: usize = 108;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;
const CHADDR_LEN: usize = 16;
pub const BROADCAST_FLAG: u16 = 0x8000;
/// A reply shorter than this is dropped by some relays and ROMs (RFC 951 has 300-byte messages).
pub const REPLY_LEN_MIN: usize = 300;
/// The vendor field of BOOTP, cookie included (RFC 951 §3).
pub const BOOTP_LEN: usize = COOKIE + 64;
/// `file` holds a name and its NUL (RFC 2131 §2).
pub const FILE_LEN_MAX: usize = 127;

/// iPXE's encapsulated options (ipxe `src/include/ipxe/dhcp.h`), unknown to dhcproto.
pub const IPXE_ENCAPSULATED: OptionCode = OptionCode::Unknown(175);

/// The options of a request that we look at; all others are skipped.
const WANTED: [OptionCode; 15] = [
    OptionCode::MessageType,
    OptionCode::ServerIdentifier,
    OptionCode::RequestedIpAddress,
    OptionCode::ParameterRequestList,
    OptionCode::MaxMessageSize,
    OptionCode::ClassIdentifier,
    OptionCode::ClientIdentifier,
    OptionCode::Hostname,
    OptionCode::UserClass,
    OptionCode::ClientSystemArchitecture,
    OptionCode::ClientMachineIdentifier,
    OptionCode::VendorExtensions,
    IPXE_ENCAPSULATED,
    OptionCode::OptionOverload,
    OptionCode::RelayAgentInformation,
];

/// Why bytes are not a DHCP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("shorter than the 240 bytes of the fixed part")]
    Truncated,
    #[error("`op` {0} is neither a request nor a reply")]
    BadOperation(u8),
    #[error("a hardware address of {0} bytes does not fit the 16 bytes of its field")]
    BadHardwareLength(u8),
    #[error("the vendor field is neither empty nor begins with the magic cookie")]
    NoCookie,
}

/// A checked view of one message.
#[derive(Debug)]
pub struct Message<'a> {
    fixed: borrowed::Message<'a>,
    bytes: &'a [u8],
    options: Options<'a>,
}

impl<'a> Message<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, ParseError> {
        let fixed = borrowed::Message::new(bytes).map_err(|_| ParseError::Truncated)?;
        match bytes[0] {
            BOOTREQUEST | BOOTREPLY => {}
            other => return Err(ParseError::BadOperation(other)),
        }
        if usize::from(fixed.hlen()) > CHADDR_LEN {
            return Err(ParseError::BadHardwareLength(fixed.hlen()));
        }
        let mut options = Options::default();
        match bytes[COOKIE..OPTIONS] {
            // RFC 951: a vendor field that is not used is zero.
            [0, 0, 0, 0] => return Ok(Message { fixed, bytes, options }),
            ref cookie if *cookie == MAGIC_COOKIE => {}
            _ => return Err(ParseError::NoCookie),
        }
        options.collect(fixed.opts());
        // RFC 2132 §9.3: 1 = `file` holds options, 2 = `sname` does, 3 = both.
        let overload = options.byte(OptionCode::OptionOverload).unwrap_or(0);
        if matches!(overload, 1 | 3) {
            options.collect(DhcpOptionIterator::new(&bytes[FILE..COOKIE]));
        }
        if matches!(overload, 2 | 3) {
            options.collect(DhcpOptionIterator::new(&bytes[SNAME..FILE]));
        }
        Ok(Message { fixed, bytes, options })
    }

    pub fn is_reply(&self) -> bool {
        self.bytes[0] == BOOTREPLY
    }

    pub fn htype(&self) -> u8 {
        self.bytes[1]
    }

    pub fn hops(&self) -> u8 {
        self.fixed.hops()
    }

    pub fn xid(&self) -> u32 {
        self.fixed.xid()
    }

    pub fn flags(&self) -> u16 {
        u16::from_be_bytes([self.bytes[10], self.bytes[11]])
    }

    pub fn broadcast(&self) -> bool {
        self.flags() & BROADCAST_FLAG != 0
    }

    pub fn ciaddr(&self) -> Ipv4Addr {
        self.fixed.ciaddr()
    }

    pub fn yiaddr(&self) -> Ipv4Addr {
        self.fixed.yiaddr()
    }

    pub fn siaddr(&self) -> Ipv4Addr {
        self.fixed.siaddr()
    }

    pub fn giaddr(&self) -> Ipv4Addr {
        self.fixed.giaddr()
    }

    /// The hardware address proper: `hlen` bytes.
    pub fn chaddr(&self) -> &'a [u8] {
        &self.bytes[CHADDR..CHADDR + usize::from(self.fixed.hlen())]
    }

    /// Up to the NUL; without meaning if option 52 says the field holds options.
    pub fn file(&self) -> &'a [u8] {
        self.fixed.fname()
    }

    pub fn options(&self) -> &Options<'a> {
        &self.options
    }

    pub fn message_type(&self) -> Option<MessageType> {
        self.options.byte(OptionCode::MessageType).map(MessageType::from)
    }
}

/// The options of one message, one slot for each code in [`WANTED`].
#[derive(Debug, Default)]
pub struct Options<'a> {
    slots: [Option<DhcpOption<'a>>; WANTED.len()],
    /// Options that came in several separate pieces: rare, so kept aside.
    joined: Vec<(OptionCode, Vec<u8>)>,
}

impl<'a> Options<'a> {
    fn collect(&mut self, options: DhcpOptionIterator<'a>) {
        for option in options {
            let code = option.code();
            let Some(slot) = WANTED.iter().position(|&wanted| wanted == code) else { continue };
            match &self.slots[slot] {
                None => self.slots[slot] = Some(option),
                Some(first) => match self.joined.iter_mut().find(|(joined, _)| *joined == code) {
                    Some((_, bytes)) => bytes.extend_from_slice(option.data()),
                    None => self.joined.push((code, [first.data(), option.data()].concat())),
                },
            }
        }
    }

    pub fn bytes(&self, code: OptionCode) -> Option<&[u8]> {
        let slot = WANTED.iter().position(|&wanted| wanted == code)?;
        let first = self.slots[slot].as_ref()?;
        match self.joined.iter().find(|(joined, _)| *joined == code) {
            Some((_, bytes)) => Some(bytes),
            None => Some(first.data()),
        }
    }

    /// Options of fixed size: broken peers send them twice, so the first bytes count and the rest is ignored.
    fn first<const N: usize>(&self, code: OptionCode) -> Option<[u8; N]> {
        self.bytes(code)?.first_chunk::<N>().copied()
    }

    pub fn byte(&self, code: OptionCode) -> Option<u8> {
        self.first::<1>(code).map(|[byte]| byte)
    }

    pub fn number(&self, code: OptionCode) -> Option<u16> {
        self.first(code).map(u16::from_be_bytes)
    }

    pub fn address(&self, code: OptionCode) -> Option<Ipv4Addr> {
        self.first::<4>(code).map(Ipv4Addr::from)
    }
}

/// Puts another number into the first instance of an option of ours; `None` if there is none of four bytes.
pub fn overwrite_u32(message: &mut [u8], wanted: OptionCode, value: u32) -> Option<()> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    let mut at = OPTIONS;
    loop {
        match *message.get(at)? {
            PAD => at += 1,
            END => return None,
            code => {
                let data = at + 2;
                let end = data + usize::from(*message.get(at + 1)?);
                if code == u8::from(wanted) {
                    let field: &mut [u8; 4] = message.get_mut(data..end)?.try_into().ok()?;
                    *field = value.to_be_bytes();
                    return Some(());
                }
                at = end;
            }
        }
    }
}

/// Whether these bytes are a DISCOVER, and of which MAC, at a glance: enough to decide that they are not worth more.
pub fn discover_of(bytes: &[u8]) -> Option<[u8; 6]> {
    /// Wherever firmware puts the message type, it is among the first options.
    const LOOKED_AT: usize = 4;
    if bytes.get(..3)? != [BOOTREQUEST, 1, 6] {
        return None;
    }
    let mut rest = bytes.get(OPTIONS..)?;
    for _ in 0..LOOKED_AT {
        match rest {
            [53, 1, kind, ..] if *kind == u8::from(MessageType::Discover) => {
                return bytes.get(CHADDR..)?.first_chunk::<6>().copied();
            }
            [53, ..] => return None,
            [_, len, behind @ ..] => rest = behind.get(usize::from(*len)..)?,
            [] | [_] => return None,
        }
    }
    None
}

/// The data of one sub-option of an encapsulated vendor field (RFC 2132 §8.4): first instance, if whole.
pub fn sub_option(field: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = field;
    loop {
        match *rest.first()? {
            0 => rest = &rest[1..],
            255 => return None,
            code => {
                let len = usize::from(*rest.get(1)?);
                let data = rest.get(2..2 + len)?;
                if code == wanted {
                    return Some(data);
                }
                rest = &rest[2 + len..];
            }
        }
    }
}

/// The data of one sub-option of the relay agent information option, which has neither PAD nor END (RFC 3046 §2.0).
pub fn agent_sub_option(field: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = field;
    loop {
        let (&[code, len], behind) = rest.split_first_chunk::<2>()?;
        let (data, next) = behind.split_at_checked(usize::from(len))?;
        if code == wanted {
            return Some(data);
        }
        rest = next;
    }
}

/// The fixed part of a reply; what is not here is zero (RFC 2131 table 3).
#[derive(Clone, Copy, Debug)]
pub struct ReplyHeader<'a> {
    pub htype: u8,
    pub xid: u32,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub chaddr: &'a [u8],
    /// At most [`FILE_LEN_MAX`] bytes are written, so that a NUL always follows.
    pub file: &'a [u8],
}

/// Length of a reply with these options, before padding.
pub fn emitted_len<'a>(options: impl Iterator<Item = (OptionCode, &'a [u8])>) -> usize {
    OPTIONS + 1 + options.map(|(_, data)| 2 + data.len()).sum::<usize>()
}

/// Writes a reply: fixed part, cookie, options in the order given, END, then zeros up to 300 bytes.
///
/// Padding stands behind END because old U-Boot complains about it elsewhere. Each option's data is at most 255 bytes
/// (longer ones are left out: splitting per RFC 3396 is something firmware does not read). Option 52 is never written:
/// GRUB, shim and U-Boot read `file` raw.
pub fn emit<'a>(
    header: &ReplyHeader<'_>,
    options: impl Iterator<Item = (OptionCode, &'a [u8])> + Clone,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(emitted_len(options.clone()).max(REPLY_LEN_MIN));
    let hardware_len = header.chaddr.len().min(CHADDR_LEN);
    bytes.resize(OPTIONS, 0);
    bytes[0] = BOOTREPLY;
    bytes[1] = header.htype;
    bytes[2] = hardware_len as u8;
    bytes[4..8].copy_from_slice(&header.xid.to_be_bytes());
    bytes[10..12].copy_from_slice(&header.flags.to_be_bytes());
    bytes[12..16].copy_from_slice(&header.ciaddr.octets());
    bytes[16..20].copy_from_slice(&header.yiaddr.octets());
    bytes[20..24].copy_from_slice(&header.siaddr.octets());
    bytes[24..28].copy_from_slice(&header.giaddr.octets());
    bytes[CHADDR..CHADDR + hardware_len].copy_from_slice(&header.chaddr[..hardware_len]);
    let file_len = header.file.len().min(FILE_LEN_MAX);
    bytes[FILE..FILE + file_len].copy_from_slice(&header.file[..file_len]);
    bytes[COOKIE..OPTIONS].copy_from_slice(&MAGIC_COOKIE);
    for (code, data) in options {
        if let Ok(len) = u8::try_from(data.len()) {
            bytes.extend_from_slice(&[u8::from(code), len]);
            bytes.extend_from_slice(data);
        }
    }
    bytes.push(u8::from(OptionCode::End));
    if bytes.len() < REPLY_LEN_MIN {
        bytes.resize(REPLY_LEN_MIN, 0);
    }
    bytes
}

#[cfg(test)]
mod tests;
