//! Who is asking: firmware, boot loader, ramdisk or operating system, read from a DHCP request's options.
//!
//! Option 93 (RFC 4578, IANA "Processor Architecture Types") says which firmware; option 60 whether it wants a
//! TFTP name (`PXEClient`) or a URL (`HTTPClient`); options 77 and 175 whether it is iPXE already. Firmware lies in
//! small ways: codes 7 and 9 were swapped by an erratum and both mean x64, FlexBoot sends 175 without 77, and the
//! architecture may be a list.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::net::MacAddr;

/// The firmware families we have a loader row for. Text form is the key used in `pxe/loaders.toml` and `[boot.loaders]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// The options of a request that tell who sent it, as raw bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootOptions<'a> {
    /// Option 60.
    pub vendor_class: Option<&'a [u8]>,
    /// Option 77, raw (`iPXE`) or length-prefixed (RFC 3004).
    pub user_class: Option<&'a [u8]>,
    /// Option 93: one or more 16-bit codes.
    pub arch: Option<&'a [u8]>,
    /// Option 97: a type byte and 16 bytes of GUID.
    pub uuid: Option<&'a [u8]>,
    /// Option 175: iPXE's encapsulated options.
    pub ipxe: Option<&'a [u8]>,
}

/// Vendor class our ramdisk sends.
pub const RAMDISK_VENDOR_CLASS: &[u8] = b"farrier-agent";

/// iPXE feature sub-options of option 175 (iPXE `features.h`).
mod ipxe_feature {
    pub const HTTP: u8 = 0x13;
    pub const BZIMAGE: u8 = 0x18;
    pub const EFI: u8 = 0x24;
}

/// Tells firmware, iPXE, ramdisk and operating system apart. Total: any bytes give a class.
pub fn classify(options: &BootOptions<'_>) -> ClientClass {
    let vendor_class = options.vendor_class.unwrap_or_default();
    if vendor_class.starts_with(RAMDISK_VENDOR_CLASS) {
        return ClientClass::Ramdisk;
    }
    let http = vendor_class.starts_with(b"HTTPClient");
    // It takes no loader: it looks for its configuration by itself, on the server that a boot client is told.
    let u_boot = vendor_class.starts_with(b"U-Boot");
    if !http && !u_boot && !vendor_class.starts_with(b"PXEClient") {
        return ClientClass::OperatingSystem;
    }
    let codes = arch_codes(options);
    let firmware = codes.iter().filter(|_| !u_boot).find_map(|code| Firmware::from_arch(*code));
    let Some(firmware) = firmware else {
        return ClientClass::UnknownFirmware { arch: codes.first().copied().unwrap_or(u16::MAX) };
    };
    if options.ipxe.is_some() || names_ipxe(options.user_class.unwrap_or_default()) {
        // iPXE started by HTTP Boot still reports itself as PXEClient with the plain architecture.
        return ClientClass::Ipxe { firmware, can_boot: ipxe_can_boot(firmware, options.ipxe) };
    }
    ClientClass::Firmware { firmware: if http { firmware.over_http() } else { firmware } }
}

/// Option 93 as a list; without it the digits of `PXEClient:Arch:00007:…`.
fn arch_codes(options: &BootOptions<'_>) -> Vec<u16> {
    let listed: Vec<u16> = options
        .arch
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|code| u16::from_be_bytes([code[0], code[1]]))
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    let text = String::from_utf8_lossy(options.vendor_class.unwrap_or_default());
    let digits = text.split(':').skip_while(|part| *part != "Arch").nth(1).unwrap_or_default();
    digits.parse().into_iter().collect()
}

fn names_ipxe(user_class: &[u8]) -> bool {
    let is_ipxe = |class: &[u8]| class == b"iPXE" || class == b"gPXE";
    if is_ipxe(user_class) {
        return true;
    }
    let mut rest = user_class;
    while let Some((&length, tail)) = rest.split_first() {
        let Some((class, next)) = tail.split_at_checked(usize::from(length)) else { return false };
        if is_ipxe(class) {
            return true;
        }
        rest = next;
    }
    false
}

/// Whether this build can fetch a kernel by HTTP and start it. Without option 175 we cannot know, and assume so.
fn ipxe_can_boot(firmware: Firmware, encapsulated: Option<&[u8]>) -> bool {
    let Some(encapsulated) = encapsulated else { return true };
    let loads_kernels = if firmware == Firmware::Bios { ipxe_feature::BZIMAGE } else { ipxe_feature::EFI };
    has_sub_option(encapsulated, ipxe_feature::HTTP) && has_sub_option(encapsulated, loads_kernels)
}

fn has_sub_option(encapsulated: &[u8], wanted: u8) -> bool {
    let mut rest = encapsulated;
    while let Some((&code, tail)) = rest.split_first() {
        match code {
            0 => rest = tail,
            255 => return false,
            code if code == wanted => return true,
            _ => {
                let Some((&length, value)) = tail.split_first() else { return false };
                rest = value.get(usize::from(length)..).unwrap_or_default();
            }
        }
    }
    false
}

/// The SMBIOS UUID of option 97 (RFC 4578 §2.3). `None` for another type, a wrong length, and the values vendors
/// leave in place on every board they ship.
///
/// Firmware sends the bytes as SMBIOS stores them, the first three fields little-endian; so a UUID reads here as
/// the operating system shows it.
pub fn smbios_uuid(option_97: &[u8]) -> Option<Uuid> {
    let (&kind, guid) = option_97.split_first()?;
    let bytes: [u8; 16] = guid.try_into().ok()?;
    let uuid = Uuid::from_bytes_le(bytes);
    let placeholder = uuid.is_nil()
        || uuid.is_max()
        || uuid == Uuid::from_u128(0x0300_0200_0400_0500_0006_0007_0008_0009)
        || uuid == Uuid::from_u128(0x0002_0003_0004_0005_0006_0007_0008_0009);
    (kind == 0 && !placeholder).then_some(uuid)
}

impl Firmware {
    pub const ALL: &'static [Firmware] = &[
        Firmware::Bios,
        Firmware::BiosHttp,
        Firmware::UefiIa32,
        Firmware::UefiIa32Http,
        Firmware::UefiX64,
        Firmware::UefiX64Http,
        Firmware::UefiArm32,
        Firmware::UefiArm32Http,
        Firmware::UefiArm64,
        Firmware::UefiArm64Http,
        Firmware::UefiRiscv64,
        Firmware::UefiRiscv64Http,
        Firmware::UefiLoongarch64,
        Firmware::UefiLoongarch64Http,
    ];

    /// IANA "Processor Architecture Types". 7 and 9 both are x64 (RFC 4578 swapped them, and many firmwares followed).
    pub fn from_arch(code: u16) -> Option<Firmware> {
        Some(match code {
            0x00 => Firmware::Bios,
            0x06 => Firmware::UefiIa32,
            0x07 | 0x09 => Firmware::UefiX64,
            0x0a => Firmware::UefiArm32,
            0x0b => Firmware::UefiArm64,
            0x0f => Firmware::UefiIa32Http,
            0x10 | 0x11 => Firmware::UefiX64Http,
            0x12 => Firmware::UefiArm32Http,
            0x13 => Firmware::UefiArm64Http,
            0x14 => Firmware::BiosHttp,
            0x1b => Firmware::UefiRiscv64,
            0x1c => Firmware::UefiRiscv64Http,
            0x27 => Firmware::UefiLoongarch64,
            0x28 => Firmware::UefiLoongarch64Http,
            // Itanium, Alpha, PowerPC, s390, U-Boot, MIPS, Sunway, …: an address, and an event that names the code.
            _ => return None,
        })
    }

    /// Fetches its loader by URL (UEFI HTTP Boot) instead of by TFTP.
    pub fn is_http(self) -> bool {
        self == self.over_http()
    }

    /// The same firmware booting by TFTP: what a loader file is made for.
    pub fn platform(self) -> Firmware {
        match self {
            Firmware::Bios | Firmware::BiosHttp => Firmware::Bios,
            Firmware::UefiIa32 | Firmware::UefiIa32Http => Firmware::UefiIa32,
            Firmware::UefiX64 | Firmware::UefiX64Http => Firmware::UefiX64,
            Firmware::UefiArm32 | Firmware::UefiArm32Http => Firmware::UefiArm32,
            Firmware::UefiArm64 | Firmware::UefiArm64Http => Firmware::UefiArm64,
            Firmware::UefiRiscv64 | Firmware::UefiRiscv64Http => Firmware::UefiRiscv64,
            Firmware::UefiLoongarch64 | Firmware::UefiLoongarch64Http => Firmware::UefiLoongarch64,
        }
    }

    /// The HTTP Boot sibling of this firmware.
    fn over_http(self) -> Firmware {
        match self {
            Firmware::Bios | Firmware::BiosHttp => Firmware::BiosHttp,
            Firmware::UefiIa32 | Firmware::UefiIa32Http => Firmware::UefiIa32Http,
            Firmware::UefiX64 | Firmware::UefiX64Http => Firmware::UefiX64Http,
            Firmware::UefiArm32 | Firmware::UefiArm32Http => Firmware::UefiArm32Http,
            Firmware::UefiArm64 | Firmware::UefiArm64Http => Firmware::UefiArm64Http,
            Firmware::UefiRiscv64 | Firmware::UefiRiscv64Http => Firmware::UefiRiscv64Http,
            Firmware::UefiLoongarch64 | Firmware::UefiLoongarch64Http => Firmware::UefiLoongarch64Http,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn class(vendor: &[u8], user: Option<&[u8]>, arch: Option<&[u8]>, ipxe: Option<&[u8]>) -> ClientClass {
        classify(&BootOptions { vendor_class: Some(vendor), user_class: user, arch, uuid: None, ipxe })
    }

    #[test]
    fn every_architecture_code_has_one_answer() {
        use Firmware::*;
        let table = [
            (0x00, Bios),
            (0x06, UefiIa32),
            (0x07, UefiX64),
            (0x09, UefiX64),
            (0x0a, UefiArm32),
            (0x0b, UefiArm64),
            (0x0f, UefiIa32Http),
            (0x10, UefiX64Http),
            (0x11, UefiX64Http),
            (0x12, UefiArm32Http),
            (0x13, UefiArm64Http),
            (0x14, BiosHttp),
            (0x1b, UefiRiscv64),
            (0x1c, UefiRiscv64Http),
            (0x27, UefiLoongarch64),
            (0x28, UefiLoongarch64Http),
        ];
        for code in 0..=0x30_u16 {
            let expected = table.iter().find(|row| row.0 == code).map(|row| row.1);
            assert_eq!(Firmware::from_arch(code), expected, "code {code:#04x}");
        }
    }

    #[test]
    fn firmware_is_told_by_vendor_class_and_architecture() {
        let pxe = class(b"PXEClient:Arch:00007:UNDI:003000", None, Some(&[0, 7]), None);
        assert_eq!(pxe, ClientClass::Firmware { firmware: Firmware::UefiX64 });
        let http = class(b"HTTPClient:Arch:00016:UNDI:003000", None, Some(&[0, 16]), None);
        assert_eq!(http, ClientClass::Firmware { firmware: Firmware::UefiX64Http });
        // Some HTTP Boot firmware sends the plain code.
        let plain = class(b"HTTPClient:Arch:00007:UNDI:003000", None, Some(&[0, 7]), None);
        assert_eq!(plain, http);
    }

    #[test]
    fn the_vendor_class_digits_serve_when_option_93_is_missing() {
        let told = class(b"PXEClient:Arch:00007:UNDI:003000", None, None, None);
        assert_eq!(told, ClientClass::Firmware { firmware: Firmware::UefiX64 });
        let silent = class(b"PXEClient", None, None, None);
        assert_eq!(silent, ClientClass::UnknownFirmware { arch: u16::MAX });
    }

    #[test]
    fn u_boot_is_firmware_that_takes_no_loader() {
        let unsaid = ClientClass::UnknownFirmware { arch: u16::MAX };
        assert_eq!(class(b"U-Boot", None, None, None), unsaid);
        assert_eq!(
            class(b"U-Boot.armv8", None, Some(&[0, 0]), None),
            ClientClass::UnknownFirmware { arch: 0 }
        );
    }

    #[test]
    fn a_list_of_architectures_uses_the_first_known() {
        let listed = class(b"PXEClient", None, Some(&[0, 2, 0, 7]), None);
        assert_eq!(listed, ClientClass::Firmware { firmware: Firmware::UefiX64 });
        let unknown = class(b"PXEClient", None, Some(&[0, 2]), None);
        assert_eq!(unknown, ClientClass::UnknownFirmware { arch: 2 });
    }

    #[test]
    fn ipxe_is_found_by_any_of_its_signs() {
        let ipxe = ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: true };
        let arch = Some(&[0, 0][..]);
        assert_eq!(class(b"PXEClient", Some(b"iPXE"), arch, None), ipxe);
        assert_eq!(class(b"PXEClient", Some(b"\x04iPXE"), arch, None), ipxe);
        assert_eq!(class(b"PXEClient", Some(b"\x03foo\x04iPXE"), arch, None), ipxe);
        assert_eq!(class(b"PXEClient", None, arch, Some(&[0x13, 1, 1, 0x18, 1, 1])), ipxe);
        let other = class(b"PXEClient", Some(b"\xffiPXE"), arch, None);
        assert_eq!(other, ClientClass::Firmware { firmware: Firmware::Bios });
    }

    #[test]
    fn ipxe_without_http_or_kernels_cannot_boot() {
        let arch = Some(&[0, 0][..]);
        let no_http = class(b"PXEClient", None, arch, Some(&[0x18, 1, 1]));
        assert_eq!(no_http, ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: false });
        let cut_short = class(b"PXEClient", None, arch, Some(&[0x13, 200]));
        assert_eq!(cut_short, ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: false });
    }

    #[test]
    fn everything_else_only_wants_an_address() {
        assert_eq!(classify(&BootOptions::default()), ClientClass::OperatingSystem);
        assert_eq!(class(b"udhcp 1.35.0", None, None, None), ClientClass::OperatingSystem);
        assert_eq!(class(b"farrier-agent", None, None, None), ClientClass::Ramdisk);
    }

    #[test]
    fn smbios_uuid_reads_as_the_operating_system_shows_it() {
        let sent =
            [0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        let uuid = smbios_uuid(&sent).unwrap();
        assert_eq!(uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(smbios_uuid(&[0; 17]), None);
        assert_eq!(smbios_uuid(&sent[..16]), None);
        assert_eq!(smbios_uuid(&[]), None);
    }
}
