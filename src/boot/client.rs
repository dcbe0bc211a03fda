//! Who is asking: firmware, boot loader, ramdisk or operating system, read from a DHCP request's options.
//!
//! Option 93 (RFC 4578, IANA "Processor Architecture Types") says which firmware; option 60 whether it wants a
//! TFTP name (`PXEClient`) or a URL (`HTTPClient`); options 77 and 175 whether it is iPXE already. Firmware lies in
//! small ways: codes 7 and 9 were swapped by an erratum and both mean x64, FlexBoot sends 175 without 77, and the
//! architecture may be a list.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::net::MacAddr;

/// The firmware families we have a loader row for. Text form is the key used in `pxe/loaders.toml` and `[boot.loaders]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    Bios,
    BiosHttp,
    UefiIa32,
    UefiIa32Http,
    UefiX64,
    UefiX64Http,
    UefiArm32,
    UefiArm32Http,
    UefiArm64,
    UefiArm64Http,
    UefiRiscv64,
    UefiRiscv64Http,
    UefiLoongarch64,
    UefiLoongarch64Http,
}

/// What kind of program sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ClientClass {
    /// A PXE or HTTP Boot ROM of a firmware we know.
    Firmware { firmware: Firmware },
    /// Asks like a boot ROM, but its architecture code is one we have no loader for.
    UnknownFirmware { arch: u16 },
    /// iPXE, in ROM or chainloaded. `can_boot` is false when it lacks HTTP or its platform's kernel format.
    Ipxe { firmware: Firmware, can_boot: bool },
    /// Our own ramdisk: vendor class `farrier-agent`.
    Ramdisk,
    /// Anything that asks for an address only.
    OperatingSystem,
}

/// A request's sender, as far as booting is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub mac: MacAddr,
    pub class: ClientClass,
    /// SMBIOS UUID from option 97, if it is one a vendor bothered to set.
    pub uuid: Option<Uuid>,
}

impl ClientClass {
    /// Firmware, iPXE: anything that expects to be told what to boot.
    pub fn wants_boot(self) -> bool {
        match self {
            ClientClass::Firmware { .. } | ClientClass::UnknownFirmware { .. } | ClientClass::Ipxe { .. } => {
                true
            }
            ClientClass::Ramdisk | ClientClass::OperatingSystem => false,
        }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Firmware::Bios => "bios",
            Firmware::BiosHttp => "bios-http",
            Firmware::UefiIa32 => "uefi-ia32",
            Firmware::UefiIa32Http => "uefi-ia32-http",
            Firmware::UefiX64 => "uefi-x64",
            Firmware::UefiX64Http => "uefi-x64-http",
            Firmware::UefiArm32 => "uefi-arm32",
            Firmware::UefiArm32Http => "uefi-arm32-http",
            Firmware::UefiArm64 => "uefi-arm64",
            Firmware::UefiArm64Http => "uefi-arm64-http",
            Firmware::UefiRiscv64 => "uefi-riscv64",
            Firmware::UefiRiscv64Http => "uefi-riscv64-http",
            Firmware::UefiLoongarch64 => "uefi-loongarch64",
            Firmware::UefiLoongarch64Http => "uefi-loongarch64-http",
        })
    }
}
