//! How each kind of client behaves on the wire: options, timing, patience. Data only.
//!
//! OVMF and iPXE are as captured (OVMF 2022.11, iPXE of 2019, under QEMU); so are their option lists and order. The
//! BIOS ROM is a classic PXE 2.1 one: four DISCOVERs, 4, 8, 16 and 32 s apart, and the combined answer taken at once.
//! The ramdisk is our own agent: busybox udhcpc with `-T 1 -t 4 -A 1`, which never gives up. shim has no network code
//! of its own: it asks the firmware, with blocks of 512 bytes, and the firmware adds its window of 4. GRUB has its own
//! TFTP (2.06): blocks of 1024, no window, and it never repeats an ACK by itself, it only waits.

use serde::Serialize;

/// A machine's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Bios,
    Uefi,
    UefiHttp,
    /// With Secure Boot: the signed chain of shim and GRUB.
    UefiSecure,
}

impl Kind {
    /// The kinds that boot by way of iPXE; the signed chain is another deploy, and one server is set up for one.
    pub const MIX: [Kind; 3] = [Kind::Bios, Kind::Uefi, Kind::UefiHttp];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Bios => "bios",
            Kind::Uefi => "uefi",
            Kind::UefiHttp => "uefi-http",
            Kind::UefiSecure => "uefi-secure",
        }
    }

    pub fn manners(self) -> &'static Manners {
        match self {
            Kind::Bios => &BIOS_ROM,
            Kind::Uefi | Kind::UefiSecure => &OVMF,
            Kind::UefiHttp => &OVMF_HTTP,
        }
    }

    /// The program that reads the boot script: iPXE as this firmware starts it, or GRUB.
    pub fn script_reader(self) -> &'static Manners {
        match self {
            Kind::Bios => &IPXE_BIOS,
            Kind::Uefi | Kind::UefiHttp => &IPXE_UEFI,
            Kind::UefiSecure => &GRUB,
        }
    }
}

/// One client program. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manners {
    pub dhcp: DhcpManners,
    pub tftp: TftpManners,
    pub http: HttpManners,
    /// From the last byte of the loader (or ramdisk) to the first DISCOVER of what was loaded.
    pub starts_within: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpManners {
    pub vendor_class: &'static [u8],
    pub user_class: Option<&'static [u8]>,
    /// Option 175.
    pub ipxe: Option<&'static [u8]>,
    /// Option 93, and 94 with it.
    pub architecture: Option<u16>,
    pub sends_uuid: bool,
    /// Option 61, `01` and the MAC.
    pub sends_client_id: bool,
    pub broadcast: bool,
    /// Option 57 in DISCOVER and in REQUEST.
    pub message_max: (u16, u16),
    pub parameters: &'static [u8],
    /// Option codes in the order they are written.
    pub order: &'static [u8],
    /// `secs` of the first, second, … message; the last repeats.
    pub secs: &'static [u16],
    /// Before each resend, and at the end before giving up.
    pub discover_waits: &'static [u64],
    pub request_waits: &'static [u64],
    /// Offers are collected this long after the first DISCOVER.
    pub offer_window: u64,
    /// The same, unless the offer says that there is no ProxyDHCP (option 43.6 bit 3, or 175.176).
    pub proxy_wait: u64,
    /// From ACK to the first request without a router advertisement on the link.
    pub router_wait: u64,
    /// Starts over for ever instead of giving up.
    pub insists: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TftpManners {
    pub blksize: u16,
    pub windowsize: Option<u16>,
    /// First asks for the size only, and ends that transfer with ERROR 8.
    pub probes_size: bool,
    /// Asks for the size (`tsize`) with the file.
    pub asks_size: bool,
    /// Repeats its last ACK when no data come; others leave that to the server.
    pub repeats_ack: bool,
    /// Before each resend of the last packet, and at the end before giving up; from the last progress on.
    pub waits: &'static [u64],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpManners {
    pub user_agent: &'static str,
    /// HEAD before GET of the loader.
    pub asks_size: bool,
    /// Without a byte for this long the transfer has failed.
    pub stall: u64,
    /// Comes back after a 503 with `Retry-After`; others give up on it.
    pub comes_back: bool,
}

const EDK2_PARAMETERS: &[u8] = &[
    1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97,
    128, 129, 130, 131, 132, 133, 134, 135,
];
const IPXE_PARAMETERS: &[u8] =
    &[1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203];
const ROM_PARAMETERS: &[u8] = &[
    1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97,
];

const PXE_WAITS: &[u64] = &[4000, 8000, 16_000, 32_000];
const IPXE_WAITS: &[u64] = &[1000, 2000, 4000, 8000, 8000];

const NO_TFTP: TftpManners = TftpManners {
    blksize: 1432,
    windowsize: None,
    probes_size: false,
    asks_size: true,
    repeats_ack: true,
    waits: &[1000, 2000, 4000, 8000, 8000],
};
const EDK2_TFTP: TftpManners = TftpManners {
    blksize: 1468,
    windowsize: Some(4),
    probes_size: true,
    // It has the size from the probe.
    asks_size: false,
    repeats_ack: true,
    waits: &[4000; 6],
};
const SHIM_TFTP: TftpManners = TftpManners { blksize: 512, probes_size: false, ..EDK2_TFTP };
const GRUB_TFTP: TftpManners = TftpManners {
    blksize: 1024,
    windowsize: None,
    probes_size: false,
    asks_size: true,
    repeats_ack: false,
    waits: &GRUB_WAITS,
};

/// `GRUB_NET_TRIES` times `GRUB_NET_INTERVAL`, a little longer each time.
const GRUB_WAITS: [u64; 40] = {
    let mut waits = [400; 40];
    let mut index = 0;
    while index < waits.len() {
        waits[index] += 20 * index as u64;
        index += 1;
    }
    waits
};
const IPXE_HTTP: HttpManners =
    HttpManners { user_agent: "iPXE/1.21.1", asks_size: false, stall: 120_000, comes_back: true };
const EDK2_HTTP: HttpManners =
    HttpManners { user_agent: "UefiHttpBoot/1.0", asks_size: true, stall: 5000, comes_back: false };

const EDK2_ORDER: &[u8] = &[53, 54, 50, 57, 55, 97, 94, 93, 60];
const IPXE_ORDER: &[u8] = &[53, 57, 93, 94, 60, 77, 55, 175, 61, 97, 54, 50];
/// HTTP, HTTPS, TFTP, DNS, bzImage, menu, EFI; version 1.21.1; PCI network card.
const IPXE_FEATURES: &[u8] = &[
    0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0x00, 0xeb, 3, 1, 21, 1, 0x17, 1, 1, 0x15, 1, 1, 0x13, 1, 1, 0x14, 1, 1,
    0x27, 1, 1, 0x18, 1, 1, 0x24, 1, 1,
];

pub const OVMF: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"PXEClient:Arch:00007:UNDI:003000",
        user_class: None,
        ipxe: None,
        architecture: Some(7),
        sends_uuid: true,
        sends_client_id: false,
        broadcast: true,
        message_max: (1472, 65_280),
        parameters: EDK2_PARAMETERS,
        order: EDK2_ORDER,
        secs: &[0],
        discover_waits: PXE_WAITS,
        request_waits: PXE_WAITS,
        offer_window: 3600,
        proxy_wait: 0,
        router_wait: 0,
        insists: false,
    },
    tftp: EDK2_TFTP,
    http: EDK2_HTTP,
    starts_within: 700,
};

pub const OVMF_HTTP: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"HTTPClient:Arch:00016:UNDI:003000",
        architecture: Some(16),
        ..OVMF.dhcp
    },
    tftp: EDK2_TFTP,
    http: EDK2_HTTP,
    starts_within: 700,
};

pub const BIOS_ROM: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"PXEClient:Arch:00000:UNDI:002001",
        architecture: Some(0),
        parameters: ROM_PARAMETERS,
        order: &[53, 50, 55, 57, 54, 97, 93, 94, 60],
        message_max: (1260, 1260),
        secs: &[4, 12, 28, 60],
        offer_window: 0,
        ..OVMF.dhcp
    },
    tftp: TftpManners {
        blksize: 1456,
        windowsize: None,
        probes_size: true,
        asks_size: false,
        repeats_ack: true,
        waits: &[1000, 2000, 4000, 8000, 16_000],
    },
    http: IPXE_HTTP,
    starts_within: 400,
};

pub const IPXE_BIOS: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"PXEClient:Arch:00000:UNDI:002001",
        user_class: Some(b"iPXE"),
        ipxe: Some(IPXE_FEATURES),
        architecture: Some(0),
        sends_uuid: true,
        sends_client_id: true,
        broadcast: false,
        message_max: (1472, 1472),
        parameters: IPXE_PARAMETERS,
        order: IPXE_ORDER,
        secs: &[4, 10, 18],
        discover_waits: IPXE_WAITS,
        request_waits: IPXE_WAITS,
        offer_window: 0,
        proxy_wait: 3070,
        router_wait: 13_000,
        insists: false,
    },
    tftp: NO_TFTP,
    http: IPXE_HTTP,
    // The kernel and its drivers, until the agent asks for an address.
    starts_within: 2500,
};

pub const IPXE_UEFI: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"PXEClient:Arch:00007:UNDI:003010",
        architecture: Some(7),
        ..IPXE_BIOS.dhcp
    },
    tftp: NO_TFTP,
    http: IPXE_HTTP,
    starts_within: 2500,
};

pub const SHIM: Manners = Manners { dhcp: OVMF.dhcp, tftp: SHIM_TFTP, http: EDK2_HTTP, starts_within: 150 };

/// It takes the firmware's lease over; it never speaks DHCP.
pub const GRUB: Manners = Manners {
    dhcp: OVMF.dhcp,
    tftp: GRUB_TFTP,
    http: EDK2_HTTP,
    // As after iPXE: the kernel and its drivers.
    starts_within: 2500,
};

pub const RAMDISK: Manners = Manners {
    dhcp: DhcpManners {
        vendor_class: b"farrier-agent",
        user_class: None,
        ipxe: None,
        architecture: None,
        sends_uuid: false,
        sends_client_id: true,
        broadcast: false,
        message_max: (576, 576),
        parameters: &[1, 3, 6, 12, 15, 28, 42],
        order: &[53, 57, 50, 54, 55, 60, 61],
        secs: &[0],
        discover_waits: &[1000; 4],
        request_waits: &[1000; 4],
        offer_window: 0,
        proxy_wait: 0,
        router_wait: 0,
        insists: true,
    },
    tftp: NO_TFTP,
    http: HttpManners {
        user_agent: concat!("farrier-agent/", env!("CARGO_PKG_VERSION")),
        asks_size: false,
        stall: 20_000,
        comes_back: true,
    },
    starts_within: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::client::{BootOptions, ClientClass, Firmware, classify};

    #[test]
    fn every_client_is_taken_for_what_it_is() {
        let class = |manners: &Manners| {
            let dhcp = &manners.dhcp;
            let arch = dhcp.architecture.map(u16::to_be_bytes);
            classify(&BootOptions {
                vendor_class: Some(dhcp.vendor_class),
                user_class: dhcp.user_class,
                arch: arch.as_ref().map(|bytes| &bytes[..]),
                uuid: None,
                ipxe: dhcp.ipxe,
            })
        };
        assert_eq!(class(&RAMDISK), ClientClass::Ramdisk);
        for (kind, firmware, plain) in [
            (Kind::Bios, Firmware::Bios, Firmware::Bios),
            (Kind::Uefi, Firmware::UefiX64, Firmware::UefiX64),
            (Kind::UefiHttp, Firmware::UefiX64Http, Firmware::UefiX64),
        ] {
            assert_eq!(class(kind.manners()), ClientClass::Firmware { firmware });
            assert_eq!(class(kind.script_reader()), ClientClass::Ipxe { firmware: plain, can_boot: true });
        }
        let secure = class(Kind::UefiSecure.manners());
        assert_eq!(secure, ClientClass::Firmware { firmware: Firmware::UefiX64 });
    }
}
