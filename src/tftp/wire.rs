//! TFTP datagrams ↔ values.
//!
//! ```text
//!  RRQ/WRQ  | 1 or 2 | name \0 mode \0 (option \0 value \0)* |     RFC 1350 §5, RFC 2347
//!  DATA     |   3    | block | up to blksize bytes           |
//!  ACK      |   4    | block |
//!  ERROR    |   5    | code  | message \0 |
//!  OACK     |   6    | (option \0 value \0)* |
//! ```
//!
//! Lenient in what ROMs get wrong without harm: option names in any case, a last string without its NUL, bytes after
//! the last complete option, numbers larger than their option allows (they are clamped by the answer). An option
//! whose value is no number, or is below its minimum, is ignored as if it had not been sent (RFC 2347).

use std::fmt;

/// A request may not be longer (RFC 2347).
pub const REQUEST_LEN_MAX: usize = 512;
/// Longer names are outside every namespace.
pub const NAME_LEN_MAX: usize = 255;
/// Opcode and block number before the bytes of a DATA.
pub const DATA_HEADER_LEN: usize = 4;
/// RFC 1350 §2: what a block holds when nobody negotiated.
pub const BLKSIZE_DEFAULT: u16 = 512;
/// RFC 2348.
pub const BLKSIZE_MIN: u64 = 8;
/// RFC 2348.
pub const BLKSIZE_MAX: u64 = 65464;
/// An error text stays readable on a ROM's one line and never grows with its cause.
pub const ERROR_MESSAGE_LEN_MAX: usize = 100;

const OPCODE_RRQ: u16 = 1;
const OPCODE_WRQ: u16 = 2;
const OPCODE_DATA: u16 = 3;
const OPCODE_ACK: u16 = 4;
const OPCODE_ERROR: u16 = 5;
const OPCODE_OACK: u16 = 6;

/// A request as it arrives on port 69.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub operation: Operation,
    pub name: &'a [u8],
    pub mode: Mode,
    pub options: RequestedOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Octet,
    Netascii,
    /// RFC 1350 §1: obsolete, refused.
    Mail,
}

/// Seconds between retransmissions, 1–255, as many digits wide as they were asked for: some clients compare the text of
/// the answer with their own (RFC 2349: "the value specified by the client").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutSecs {
    pub seconds: u8,
    width: usize,
}

impl TimeoutSecs {
    /// No more digits than the range has, so that an OACK stays as short as it is.
    const WIDTH_MAX: usize = 3;

    fn parse(text: &[u8], number: u64) -> Option<TimeoutSecs> {
        let seconds = u8::try_from(number).ok().filter(|&seconds| seconds >= 1)?;
        (text.len() <= Self::WIDTH_MAX).then_some(TimeoutSecs { seconds, width: text.len() })
    }
}

impl From<u8> for TimeoutSecs {
    fn from(seconds: u8) -> Self {
        TimeoutSecs { seconds, width: 0 }
    }
}

impl fmt::Display for TimeoutSecs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:0width$}", self.seconds, width = self.width)
    }
}

/// What the client proposes. Absent: not asked for, or not usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestedOptions {
    /// 8–65464; larger values read as 65464.
    pub blksize: Option<u16>,
    /// Asked for the size of the file.
    pub tsize: bool,
    pub timeout: Option<TimeoutSecs>,
    /// 1–65535; larger values read as 65535.
    pub windowsize: Option<u16>,
}

/// What the server grants; emitted as OACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantedOptions {
    pub blksize: Option<u16>,
    pub tsize: Option<u64>,
    pub timeout: Option<TimeoutSecs>,
    pub windowsize: Option<u16>,
}

/// Why a datagram on port 69 is not a request we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// DATA, ACK, ERROR, OACK or no TFTP at all: never answered, so that two servers cannot keep each other talking.
    #[error("not a request")]
    NotARequest,
    #[error("malformed request")]
    Malformed,
    #[error("file name longer than {NAME_LEN_MAX} bytes")]
    NameTooLong,
    #[error("request longer than {REQUEST_LEN_MAX} bytes")]
    TooLong,
    #[error("unknown transfer mode")]
    UnknownMode,
}

/// A datagram within a transfer, from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    Ack(u16),
    Error { code: u16, message: &'a [u8] },
}

/// RFC 1350 §5, RFC 2347 §"Error code 8".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    Undefined,
    FileNotFound,
    IllegalOperation,
    UnknownTransferId,
    OptionNegotiation,
}

impl ErrorCode {
    pub fn code(self) -> u16 {
        match self {
            ErrorCode::Undefined => 0,
            ErrorCode::FileNotFound => 1,
            ErrorCode::IllegalOperation => 4,
            ErrorCode::UnknownTransferId => 5,
            ErrorCode::OptionNegotiation => 8,
        }
    }
}

/// Reads a datagram that arrived on port 69. It may be cut short by the receive buffer if that holds more than
/// [`REQUEST_LEN_MAX`] bytes.
pub fn parse_request(datagram: &[u8]) -> Result<Request<'_>, RequestError> {
    let (operation, mut rest) = match split_u16(datagram) {
        Some((OPCODE_RRQ, rest)) => (Operation::Read, rest),
        Some((OPCODE_WRQ, rest)) => (Operation::Write, rest),
        _ => return Err(RequestError::NotARequest),
    };
    let too_long = datagram.len() > REQUEST_LEN_MAX;
    // A name is looked at before the length of the whole, so that a hostile name is told "not found" whatever its length.
    let name = match take_string(&mut rest) {
        Some(name) if name.len() > NAME_LEN_MAX => return Err(RequestError::NameTooLong),
        Some(name) => name,
        None if too_long => return Err(RequestError::NameTooLong),
        None => return Err(RequestError::Malformed),
    };
    if too_long {
        return Err(RequestError::TooLong);
    }
    let mode = take_string(&mut rest).unwrap_or_else(|| std::mem::take(&mut rest));
    if name.is_empty() || mode.is_empty() {
        return Err(RequestError::Malformed);
    }
    let mode = parse_mode(mode).ok_or(RequestError::UnknownMode)?;
    Ok(Request { operation, name, mode, options: parse_options(rest) })
}

fn parse_mode(mode: &[u8]) -> Option<Mode> {
    [(b"octet".as_slice(), Mode::Octet), (b"netascii", Mode::Netascii), (b"mail", Mode::Mail)]
        .into_iter()
        .find_map(|(word, known)| mode.eq_ignore_ascii_case(word).then_some(known))
}

/// The first usable value of each option counts (RFC 2347: an option may be given once).
fn parse_options(mut rest: &[u8]) -> RequestedOptions {
    let mut options = RequestedOptions::default();
    while let Some(name) = take_string(&mut rest) {
        let Some(value) =
            take_string(&mut rest).or_else(|| (!rest.is_empty()).then(|| std::mem::take(&mut rest)))
        else {
            break;
        };
        let Some(number) = parse_number(value) else { continue };
        let within = |min: u64, max: u64| (number >= min).then(|| number.min(max));
        if name.eq_ignore_ascii_case(b"blksize") {
            options.blksize = options.blksize.or(within(BLKSIZE_MIN, BLKSIZE_MAX).map(|value| value as u16));
        } else if name.eq_ignore_ascii_case(b"tsize") {
            options.tsize = true;
        } else if name.eq_ignore_ascii_case(b"timeout") {
            // Echoed exactly or not at all (RFC 2349), hence not clamped.
            options.timeout = options.timeout.or(TimeoutSecs::parse(value, number));
        } else if name.eq_ignore_ascii_case(b"windowsize") {
            options.windowsize = options.windowsize.or(within(1, u16::MAX.into()).map(|value| value as u16));
        }
    }
    options
}

/// ASCII decimal without sign or blank; a number beyond 64 bits reads as the largest.
fn parse_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        text.iter()
            .fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))),
    )
}

/// Reads a datagram of a running transfer. `None`: nothing a client may send there.
pub fn parse_datagram(datagram: &[u8]) -> Option<Datagram<'_>> {
    match split_u16(datagram)? {
        // Some ROMs pad their ACKs to the smallest Ethernet frame, hence no check of the length.
        (OPCODE_ACK, rest) => split_u16(rest).map(|(block, _)| Datagram::Ack(block)),
        (OPCODE_ERROR, rest) => {
            let (code, mut rest) = split_u16(rest)?;
            let message = take_string(&mut rest).unwrap_or(rest);
            Some(Datagram::Error { code, message })
        }
        _ => None,
    }
}

/// The four bytes before the data of block `block`; the number on the wire rolls over from 65535 to 0.
pub fn data_header(block: u64) -> [u8; DATA_HEADER_LEN] {
    let [a, b] = OPCODE_DATA.to_be_bytes();
    let [c, d] = (block as u16).to_be_bytes();
    [a, b, c, d]
}

/// `message` is ours, never the client's; what does not fit is cut.
pub fn emit_error(code: ErrorCode, message: &str) -> Vec<u8> {
    let message = &message.as_bytes()[..message.len().min(ERROR_MESSAGE_LEN_MAX)];
    let mut datagram = Vec::with_capacity(5 + message.len());
    datagram.extend_from_slice(&OPCODE_ERROR.to_be_bytes());
    datagram.extend_from_slice(&code.code().to_be_bytes());
    datagram.extend_from_slice(message);
    datagram.push(0);
    datagram
}

pub fn emit_oack(options: &GrantedOptions) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(80);
    datagram.extend_from_slice(&OPCODE_OACK.to_be_bytes());
    let granted = [
        ("blksize", options.blksize.map(|value| value.to_string())),
        ("tsize", options.tsize.map(|value| value.to_string())),
        ("timeout", options.timeout.map(|value| value.to_string())),
        ("windowsize", options.windowsize.map(|value| value.to_string())),
    ];
    for (name, value) in granted {
        if let Some(value) = value {
            datagram.extend_from_slice(name.as_bytes());
            datagram.push(0);
            datagram.extend_from_slice(value.as_bytes());
            datagram.push(0);
        }
    }
    datagram
}

impl GrantedOptions {
    pub fn is_empty(&self) -> bool {
        *self == GrantedOptions::default()
    }
}

fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (&[high, low], rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes([high, low]), rest))
}

/// Takes the bytes before the next NUL, and the NUL. `None` if there is none; `rest` is then untouched.
fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let string = &rest[..end];
    *rest = &rest[end + 1..];
    Some(string)
}

#[cfg(test)]
mod tests;
