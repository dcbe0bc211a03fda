//! Which firmware and which loader can carry a profile.
//!
//! | profile | BIOS | UEFI | UEFI with Secure Boot |
//! |---|---|---|---|
//! | kernel | with the header of Linux | a program of this platform | and signed |
//! | EFI program | no | a program of this platform | and signed |
//! | ISO image | iPXE | iPXE, if it can boot by UEFI | no: no signed loader attaches one |
//!
//! Asked twice: when a profile is assigned, of what is known of the nodes then; and when a node asks what to boot, with
//! the loader that asks. Whose key signed a program is for firmware to say.

use serde::{Deserialize, Serialize};

use crate::boot::client::Firmware;
use crate::boot::profile::{BootProfile, ProfileKind, What};
use crate::image::executable::Signature;
use crate::node::Node;
use crate::node::inventory::BootedBy;

/// What reads the text we render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Ipxe,
    Grub,
    /// U-Boot, and PXELINUX.
    Pxelinux,
}

/// Why a machine cannot boot a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unfit {
    #[error("Secure Boot is on, and its {kind} is not signed")]
    NotSigned { kind: ProfileKind },
    #[error("Secure Boot is on, and its {kind} was changed after it was signed")]
    Altered { kind: ProfileKind },
    #[error("Secure Boot is on, and no signed loader attaches an ISO image")]
    IsoUnderSecureBoot,
    #[error("it is an EFI program, and the machine boots by BIOS")]
    NeedsUefi,
    #[error("its kernel starts by UEFI only, and the machine boots by BIOS")]
    KernelNeedsUefi,
    #[error("its kernel starts by BIOS only: it has no EFI stub")]
    KernelNeedsBios,
    #[error("its {kind} is for {made_for}, and the machine is {firmware}")]
    OtherPlatform { kind: ProfileKind, made_for: Firmware, firmware: Firmware },
    #[error("the machine's loader is {}, which cannot attach an ISO image: only iPXE can", .reader.as_str())]
    IsoNeedsIpxe { reader: Reader },
    #[error("the machine's loader is U-Boot, which starts kernels only")]
    KernelsOnly,
    #[error("the machine's loader is U-Boot, which takes one initrd, and this has {count}")]
    OneInitrdOnly { count: usize },
}

impl Reader {
    pub fn as_str(self) -> &'static str {
        match self {
            Reader::Ipxe => "iPXE",
            Reader::Grub => "GRUB",
            Reader::Pxelinux => "U-Boot",
        }
    }
}

/// Serialized inside [`Unfit`] by its word.
impl Serialize for Reader {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Reader, D::Error> {
        let text = String::deserialize(deserializer)?;
        [Reader::Ipxe, Reader::Grub, Reader::Pxelinux]
            .into_iter()
            .find(|reader| reader.as_str() == text)
            .ok_or_else(|| serde::de::Error::custom("no such loader"))
    }
}

/// Whether a machine with this firmware can boot it.
pub fn fits(profile: &BootProfile, firmware: Firmware, secure_boot: bool) -> Result<(), Unfit> {
    let (kind, program) = (profile.what.kind(), profile.program);
    let uefi = firmware.platform() != Firmware::Bios;
    match kind {
        ProfileKind::Iso if uefi && secure_boot => return Err(Unfit::IsoUnderSecureBoot),
        ProfileKind::Iso => return Ok(()),
        ProfileKind::EfiProgram if !uefi => return Err(Unfit::NeedsUefi),
        ProfileKind::Kernel if !uefi => {
            return match (program.bios, program.platform) {
                (false, Some(_)) => Err(Unfit::KernelNeedsUefi),
                // What is neither is of a kind we do not know: iPXE may.
                (true, _) | (false, None) => Ok(()),
            };
        }
        ProfileKind::EfiProgram | ProfileKind::Kernel => {}
    }
    match program.platform {
        Some(made_for) if made_for != firmware.platform() => {
            return Err(Unfit::OtherPlatform { kind, made_for, firmware: firmware.platform() });
        }
        None if program.bios => return Err(Unfit::KernelNeedsBios),
        Some(_) | None => {}
    }
    match program.signature {
        Signature::Absent if secure_boot => Err(Unfit::NotSigned { kind }),
        Signature::Broken if secure_boot => Err(Unfit::Altered { kind }),
        Signature::Absent | Signature::Broken | Signature::Whole => Ok(()),
    }
}

/// Whether a loader can be told to boot it.
pub fn carries(what: &What, reader: Reader) -> Result<(), Unfit> {
    match (what, reader) {
        (_, Reader::Ipxe) | (What::Kernel { .. } | What::EfiProgram { .. }, Reader::Grub) => Ok(()),
        (What::Iso { .. }, reader) => Err(Unfit::IsoNeedsIpxe { reader }),
        (What::EfiProgram { .. }, Reader::Pxelinux) => Err(Unfit::KernelsOnly),
        (What::Kernel { initrds, .. }, Reader::Pxelinux) => match initrds.len() {
            0 | 1 => Ok(()),
            count => Err(Unfit::OneInitrdOnly { count }),
        },
    }
}

/// What is known of a machine's firmware; a machine can be set up anew at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownFirmware {
    pub firmware: Option<Firmware>,
    pub secure_boot: Option<bool>,
}

impl KnownFirmware {
    /// What it netbooted with last, and what its agent saw then.
    pub fn of(node: &Node) -> KnownFirmware {
        let seen = node.inventory.as_ref().map(|inventory| inventory.booted_by);
        let uefi = node.firmware.map(|firmware| firmware.platform() != Firmware::Bios);
        let secure_boot = match (uefi, seen) {
            (Some(false), _) => Some(false),
            (Some(true), Some(BootedBy::Uefi)) => Some(false),
            (Some(true), Some(BootedBy::UefiSecureBoot)) => Some(true),
            // The agent saw a BIOS: it was set up otherwise since.
            (Some(true), Some(BootedBy::Bios) | None) | (None, _) => None,
        };
        KnownFirmware { firmware: node.firmware, secure_boot }
    }
}

/// What is to be said of a profile for a machine, before it boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Fits,
    Unfit(Unfit),
    /// Unless Secure Boot is off.
    Unsure(Unfit),
    /// Nothing is known of its firmware.
    Unknown,
}

pub fn judge(profile: &BootProfile, known: KnownFirmware) -> Judgement {
    let Some(firmware) = known.firmware else { return Judgement::Unknown };
    let with = |secure_boot| fits(profile, firmware, secure_boot);
    match known.secure_boot {
        Some(secure_boot) => with(secure_boot).map_or_else(Judgement::Unfit, |()| Judgement::Fits),
        None => match (with(false), with(true)) {
            (Err(unfit), _) => Judgement::Unfit(unfit),
            (Ok(()), Err(unfit)) => Judgement::Unsure(unfit),
            (Ok(()), Ok(())) => Judgement::Fits,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::profile::testing::{efi, iso, kernel};

    /// Which firmware carries what, as a table.
    #[test]
    fn firmware_carries_what_it_can() {
        let signed = kernel("signed", 1, &[]);
        let mut plain = signed.clone();
        plain.program.signature = Signature::Absent;
        let mut altered = signed.clone();
        altered.program.signature = Signature::Broken;
        let mut old = plain.clone();
        old.program.platform = None;
        let mut stub_only = plain.clone();
        stub_only.program.bios = false;
        let mut strange = old.clone();
        strange.program.bios = false;
        let (bios, x64, arm) = (Firmware::Bios, Firmware::UefiX64, Firmware::UefiArm64);
        let kind = ProfileKind::Kernel;
        let other = |kind| Unfit::OtherPlatform { kind, made_for: x64, firmware: arm };
        // BIOS, UEFI x64, UEFI x64 with Secure Boot, UEFI arm64
        let table = [
            (&signed, [Ok(()), Ok(()), Ok(()), Err(other(kind))]),
            (&plain, [Ok(()), Ok(()), Err(Unfit::NotSigned { kind }), Err(other(kind))]),
            (&altered, [Ok(()), Ok(()), Err(Unfit::Altered { kind }), Err(other(kind))]),
            (
                &old,
                [
                    Ok(()),
                    Err(Unfit::KernelNeedsBios),
                    Err(Unfit::KernelNeedsBios),
                    Err(Unfit::KernelNeedsBios),
                ],
            ),
            (
                &stub_only,
                [Err(Unfit::KernelNeedsUefi), Ok(()), Err(Unfit::NotSigned { kind }), Err(other(kind))],
            ),
            (&strange, [Ok(()), Ok(()), Err(Unfit::NotSigned { kind }), Ok(())]),
            (
                &efi("memtest"),
                [
                    Err(Unfit::NeedsUefi),
                    Ok(()),
                    Err(Unfit::NotSigned { kind: ProfileKind::EfiProgram }),
                    Err(other(ProfileKind::EfiProgram)),
                ],
            ),
            (&iso("live"), [Ok(()), Ok(()), Err(Unfit::IsoUnderSecureBoot), Ok(())]),
        ];
        for (profile, expected) in table {
            let machines = [(bios, false), (x64, false), (x64, true), (arm, false)];
            let found = machines.map(|(firmware, secure_boot)| fits(profile, firmware, secure_boot));
            assert_eq!(found, expected, "{profile:?}");
            // How a loader comes is nothing to what it can start.
            assert_eq!(fits(profile, Firmware::UefiX64Http, true), expected[2]);
            assert_eq!(fits(profile, Firmware::BiosHttp, true), expected[0], "BIOS has no Secure Boot");
        }
    }

    #[test]
    fn loaders_carry_what_their_text_can_say() {
        let (none, one, two) = (kernel("k", 0, &[]), kernel("k", 1, &[]), kernel("k", 2, &[]));
        for profile in [&none, &one, &two, &efi("e")] {
            assert_eq!(carries(&profile.what, Reader::Ipxe), Ok(()));
            assert_eq!(carries(&profile.what, Reader::Grub), Ok(()));
        }
        assert_eq!(carries(&iso("i").what, Reader::Ipxe), Ok(()));
        for reader in [Reader::Grub, Reader::Pxelinux] {
            assert_eq!(carries(&iso("i").what, reader), Err(Unfit::IsoNeedsIpxe { reader }));
        }
        assert_eq!(carries(&one.what, Reader::Pxelinux), Ok(()));
        assert_eq!(carries(&two.what, Reader::Pxelinux), Err(Unfit::OneInitrdOnly { count: 2 }));
        assert_eq!(carries(&efi("e").what, Reader::Pxelinux), Err(Unfit::KernelsOnly));
    }

    #[test]
    fn what_is_not_known_is_not_judged() {
        let known = |firmware, secure_boot| KnownFirmware { firmware, secure_boot };
        let unsigned = Unfit::NotSigned { kind: ProfileKind::EfiProgram };
        let memtest = efi("memtest");
        for (known, expected) in [
            (known(None, None), Judgement::Unknown),
            (known(Some(Firmware::UefiX64), None), Judgement::Unsure(unsigned)),
            (known(Some(Firmware::UefiX64), Some(true)), Judgement::Unfit(unsigned)),
            (known(Some(Firmware::UefiX64), Some(false)), Judgement::Fits),
            (known(Some(Firmware::Bios), None), Judgement::Unfit(Unfit::NeedsUefi)),
        ] {
            assert_eq!(judge(&memtest, known), expected, "{known:?}");
        }
        assert_eq!(judge(&kernel("k", 1, &[]), known(Some(Firmware::UefiX64), None)), Judgement::Fits);
    }
}
