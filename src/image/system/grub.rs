//! GRUB for BIOS: its core image in a partition of its own, and a first sector that leads there.
//!
//! `grub-install` wants the disk as a device and root's rights; what it does for this layout is three patches:
//! the first sector (boot.img) learns where the core image begins, the core image's own first sector (diskboot.img)
//! learns where the rest of it is, and a jump becomes two NOPs so that the drive number the BIOS passes is checked.
//! Offsets: GRUB 2.06, grub-core/boot/i386/pc/{boot,diskboot}.S and include/grub/i386/pc/boot.h.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::image::package::{PackageError, run};
use crate::image::system::layout::{BIOS_BYTES, Extent, SECTOR_BYTES};

const SECTOR: usize = SECTOR_BYTES as usize;
/// In boot.img: sector of the core image, 8 bytes.
const KERNEL_SECTOR_AT: usize = 0x5C;
/// In boot.img: the jump over the check of the drive number.
const DRIVE_CHECK_AT: usize = 0x66;
const JUMP_SHORT: u8 = 0xEB;
const NOP: u8 = 0x90;
/// In the core image's first sector: where the rest begins, 8 bytes; its sectors, 2 bytes; the segment it goes to, 2.
const BLOCK_LIST_AT: usize = SECTOR - 12;
/// Segment right behind the core image's first sector at 0x8000.
const REST_SEGMENT: u16 = 0x820;
/// Boot code of an MBR.
pub const BOOT_CODE_BYTES: usize = 440;

/// What the core image needs to reach its configuration, and what configurations of ours and Debian's use.
const MODULES: &[&str] = &[
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "fat",
    "ext2",
    "normal",
    "linux",
    "configfile",
    "search",
    "search_label",
    "search_fs_uuid",
    "serial",
    "terminal",
    "echo",
    "test",
    "ls",
    "cat",
    "minicmd",
    "reboot",
    "halt",
    "gzio",
    "sleep",
];

#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    #[error(transparent)]
    Tool(#[from] PackageError),
    #[error("GRUB's {file} of package `grub-pc-bin` {what}")]
    Image { file: &'static str, what: String },
}

/// What goes onto the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BiosGrub {
    pub boot_code: [u8; BOOT_CODE_BYTES],
    pub core: Vec<u8>,
}

/// Makes GRUB out of the modules in `directory` (a `…/lib/grub/i386-pc`). `prefix` is where it looks for `grub.cfg`, a
/// partition without a disk like `(,gpt2)/grub`: it means the disk the BIOS booted from.
pub fn make(directory: &Path, prefix: &str, at: Extent, scratch: &Path) -> Result<BiosGrub, GrubError> {
    let unreadable = |file: &'static str| {
        move |error: std::io::Error| GrubError::Image { file, what: format!("cannot be read: {error}") }
    };
    let output = scratch.join("core.img");
    let mut command = Command::new("grub-mkimage");
    command.args(["-O", "i386-pc", "-p", prefix, "-d"]).arg(directory).arg("-o").arg(&output).args(MODULES);
    run(&mut command, "grub-common")?;
    let boot = fs::read(directory.join("boot.img")).map_err(unreadable("boot.img"))?;
    let core = fs::read(&output).map_err(unreadable("core.img"))?;
    embed(&boot, core, at)
}

/// Ties boot.img and core image to the place `at`, where the core image will be.
pub fn embed(boot: &[u8], mut core: Vec<u8>, at: Extent) -> Result<BiosGrub, GrubError> {
    let wrong = |file, what: String| GrubError::Image { file, what };
    let mut boot_code: [u8; BOOT_CODE_BYTES] =
        boot.first_chunk()
            .copied()
            .filter(|_| boot.len() == SECTOR)
            .ok_or_else(|| wrong("boot.img", format!("has {} bytes instead of {SECTOR}", boot.len())))?;
    if boot_code[DRIVE_CHECK_AT] != JUMP_SHORT {
        return Err(wrong("boot.img", "is of an unknown version: no jump at 0x66".to_owned()));
    }
    boot_code[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8].copy_from_slice(&at.first_sector().to_le_bytes());
    boot_code[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].fill(NOP);
    if core.len() <= SECTOR || core.len() as u64 > at.bytes.min(BIOS_BYTES) {
        return Err(wrong("core.img", format!("has {} bytes, which is no core image", core.len())));
    }
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let sectors = u16::try_from(core.len() / SECTOR - 1)
        .map_err(|_| wrong("core.img", format!("is too large: {} bytes", core.len())))?;
    let list = &mut core[BLOCK_LIST_AT..SECTOR];
    if list[10..12] != REST_SEGMENT.to_le_bytes() {
        return Err(wrong(
            "core.img",
            "is of an unknown version: no block list at its first sector's end".to_owned(),
        ));
    }
    list[..8].copy_from_slice(&(at.first_sector() + 1).to_le_bytes());
    list[8..10].copy_from_slice(&sectors.to_le_bytes());
    Ok(BiosGrub { boot_code, core })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Extent = Extent { start: 1 << 20, bytes: 1 << 20 };

    fn boot() -> Vec<u8> {
        let mut boot = vec![0x11; SECTOR];
        boot[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].copy_from_slice(&[JUMP_SHORT, 5]);
        boot
    }

    fn core(bytes: usize) -> Vec<u8> {
        let mut core = vec![0x22; bytes];
        core[BLOCK_LIST_AT..SECTOR].fill(0);
        core[SECTOR - 2..SECTOR].copy_from_slice(&REST_SEGMENT.to_le_bytes());
        core
    }

    #[test]
    fn each_stage_knows_where_the_next_one_is() {
        let made = embed(&boot(), core(3 * SECTOR + 7), AT).unwrap();
        assert_eq!(made.boot_code[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8], 2048_u64.to_le_bytes());
        assert_eq!(made.boot_code[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2], [NOP, NOP]);
        // Only those ten bytes differ from what GRUB was built as.
        let changed = made.boot_code.iter().zip(boot()).filter(|(new, old)| **new != *old).count();
        assert_eq!(changed, 10);
        assert_eq!(made.core.len(), 4 * SECTOR);
        assert_eq!(made.core[BLOCK_LIST_AT..BLOCK_LIST_AT + 8], 2049_u64.to_le_bytes());
        assert_eq!(made.core[BLOCK_LIST_AT + 8..BLOCK_LIST_AT + 10], 3_u16.to_le_bytes());
        assert_eq!(made.core[SECTOR..3 * SECTOR + 7], vec![0x22; 2 * SECTOR + 7]);
    }

    #[test]
    fn other_versions_and_sizes_are_refused() {
        let mut other = boot();
        other[DRIVE_CHECK_AT] = 0;
        assert!(embed(&other, core(2048), AT).is_err());
        assert!(embed(&boot()[..511], core(2048), AT).is_err());
        let mut other = core(2048);
        other[SECTOR - 1] = 0;
        assert!(embed(&boot(), other, AT).is_err());
        assert!(embed(&boot(), core(SECTOR), AT).is_err());
        assert!(embed(&boot(), core((1 << 20) + 1), AT).is_err());
    }
}
