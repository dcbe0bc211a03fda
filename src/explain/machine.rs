//! The kinds of machine that can be asked about, and the requests they send.
//!
//! Options and their order are those of captures: OVMF for UEFI, iPXE's own ROM, a PXE ROM for BIOS.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::boot::client::{ClientClass, Firmware, RAMDISK_VENDOR_CLASS};
use crate::dhcp::request::Request;
use crate::dhcp::wire::Message;
use crate::net::MacAddr;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIXED: usize = 236;
/// Boot clients pad to what BOOTP relays of old insist on.
const MESSAGE_MIN: usize = 300;
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

/// What is asked about: `bios`, `uefi`, `uefi-http`, `uefi-secure`, `ipxe`, or any firmware by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Machine {
    firmware: Firmware,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Starts signed loaders only.
    SecureBoot,
    /// iPXE in ROM.
    Ipxe,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no firmware: bios, uefi, uefi-http, uefi-secure, ipxe, ipxe-uefi, or one of {known}")]
pub struct ParseMachineError {
    pub text: String,
    pub known: String,
}

impl Machine {
    pub fn firmware(self) -> Firmware {
        self.firmware
    }

    pub fn secure_boot(self) -> bool {
        self.kind == Kind::SecureBoot
    }

    pub fn is_ipxe(self) -> bool {
        self.kind == Kind::Ipxe
    }

    pub(super) fn as_ipxe(self) -> Machine {
        Machine { kind: Kind::Ipxe, ..self }
    }
}

impl FromStr for Machine {
    type Err = ParseMachineError;

    fn from_str(text: &str) -> Result<Machine, ParseMachineError> {
        let plain = |firmware| Machine { firmware, kind: Kind::Plain };
        Ok(match text {
            "uefi" => plain(Firmware::UefiX64),
            "uefi-http" => plain(Firmware::UefiX64Http),
            "uefi-secure" => Machine { firmware: Firmware::UefiX64, kind: Kind::SecureBoot },
            "ipxe" => Machine { firmware: Firmware::Bios, kind: Kind::Ipxe },
            "ipxe-uefi" => Machine { firmware: Firmware::UefiX64, kind: Kind::Ipxe },
            text => match Firmware::ALL.iter().find(|firmware| firmware.to_string() == text) {
                Some(firmware) => plain(*firmware),
                None => {
                    let known: Vec<String> = Firmware::ALL.iter().map(ToString::to_string).collect();
                    let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
                    return Err(ParseMachineError { text, known: known.join(", ") });
                }
            },
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.firmware) {
            (Kind::Plain, firmware) => firmware.fmt(formatter),
            (Kind::SecureBoot, _) => formatter.write_str("uefi-secure"),
            (Kind::Ipxe, Firmware::Bios) => formatter.write_str("ipxe"),
            (Kind::Ipxe, _) => formatter.write_str("ipxe-uefi"),
        }
    }
}

impl TryFrom<String> for Machine {
    type Error = ParseMachineError;
    fn try_from(text: String) -> Result<Machine, ParseMachineError> {
        text.parse()
    }
}

impl From<Machine> for String {
    fn from(machine: Machine) -> String {
        machine.to_string()
    }
}

/// Which program in the machine speaks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Speaker {
    Firmware(Firmware),
    Ipxe(Firmware),
    Ramdisk,
}

/// A DISCOVER; or the REQUEST that takes `take`'s address from `take`'s server.
pub(super) fn request(
    speaker: Speaker,
    mac: MacAddr,
    xid: u32,
    take: Option<(Ipv4Addr, Ipv4Addr)>,
) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    if let Speaker::Firmware(firmware) = speaker
        && firmware.platform() != Firmware::Bios
    {
        // edk2 asks for broadcasts.
        bytes[10] = 0x80;
    }
    bytes[28..34].copy_from_slice(&mac.0);
    bytes.extend_from_slice(&COOKIE);
    let mut put = |code: u8, data: &[u8]| {
        if let Ok(length) = u8::try_from(data.len()) {
            bytes.extend_from_slice(&[code, length]);
            bytes.extend_from_slice(data);
        }
    };
    put(53, &[if take.is_some() { REQUEST } else { DISCOVER }]);
    if let Some((address, server)) = take {
        put(54, &server.octets());
        put(50, &address.octets());
    }
    put(57, &1472_u16.to_be_bytes());
    put(55, &[1, 3, 6, 12, 15, 17, 43, 54, 60, 66, 67, 97, 128, 129, 150]);
    // A made-up machine: a UUID of its MAC.
    let mut guid = [0; 17];
    guid[11..].copy_from_slice(&mac.0);
    match speaker {
        Speaker::Firmware(firmware) => {
            put(97, &guid);
            put(94, &[1, 3, 0]);
            put(93, &arch(firmware).to_be_bytes());
            let client = if firmware.is_http() { "HTTPClient" } else { "PXEClient" };
            put(60, format!("{client}:Arch:{:05}:UNDI:003000", arch(firmware)).as_bytes());
        }
        Speaker::Ipxe(firmware) => {
            let platform = arch(firmware.platform());
            put(93, &platform.to_be_bytes());
            put(94, &[1, 3, 16]);
            put(60, format!("PXEClient:Arch:{platform:05}:UNDI:003010").as_bytes());
            put(77, b"iPXE");
            // Features: HTTP, HTTPS, TFTP, DNS, bzImage, EFI, menu (iPXE `features.h`).
            put(175, &[0x13, 1, 1, 0x14, 1, 1, 0x15, 1, 1, 0x17, 1, 1, 0x18, 1, 1, 0x24, 1, 1, 0x27, 1, 1]);
            put(61, &[&[1], &mac.0[..]].concat());
            put(97, &guid);
        }
        Speaker::Ramdisk => put(60, RAMDISK_VENDOR_CLASS),
    }
    bytes.push(255);
    if bytes.len() < MESSAGE_MIN {
        bytes.resize(MESSAGE_MIN, 0);
    }
    bytes
}

/// Who the appliance takes the sender for.
pub(super) fn class_of(request: &[u8]) -> ClientClass {
    let message = Message::parse(request).ok();
    let read = message.as_ref().and_then(|message| Request::read(message).ok());
    read.map_or(ClientClass::OperatingSystem, |request| request.class)
}

/// IANA "Processor Architecture Types".
fn arch(firmware: Firmware) -> u16 {
    let code = (0..=0x30).find(|code| Firmware::from_arch(*code) == Some(firmware));
    code.unwrap_or_default()
}
