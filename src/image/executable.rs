//! What a UEFI loader says about itself: is it revoked, and is it still what was signed.
//!
//! UEFI programs are PE files. shim and GRUB carry their *SBAT* generations in a section of that name, and shim refuses
//! whatever is below the machine's SBAT level; so a loader below `pxe/sbat-level.csv` is no use to a machine with Secure
//! Boot, and a danger to others. That file is the newest of shim's levels that Debian 12's own packages are up to; raise
//! it when they are up to the next (2025112400 wants grub 6).
//!
//! A signature covers a digest of the file without the signature itself (Authenticode). Whose key it is is for firmware
//! to say, which has the keys; that a signature is not of these bytes can be told by anybody.

use std::mem::size_of;
use std::ops::Range;

use object::LittleEndian;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_SECURITY, IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_ARM,
    IMAGE_FILE_MACHINE_ARM64, IMAGE_FILE_MACHINE_ARMNT, IMAGE_FILE_MACHINE_I386, IMAGE_FILE_MACHINE_RISCV64,
    IMAGE_FILE_MACHINE_THUMB, IMAGE_SUBSYSTEM_EFI_APPLICATION, ImageDataDirectory, ImageDosHeader,
    ImageNtHeaders32, ImageNtHeaders64, Machine,
};
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader, PeFile};
use object::{FileKind, Object, ObjectSection};
use sbat::{ImageSbat, RevocationSbat, ValidationResult};

use crate::boot::client::Firmware;
use crate::boot::profile::Program;
use crate::image::digest::Digest;

/// Not yet among the names `object` has (PE/COFF specification).
const IMAGE_FILE_MACHINE_LOONGARCH64: Machine = Machine(0x6264);
const SBAT_LEVEL: &[u8] = include_bytes!("../../pxe/sbat-level.csv");
/// Signature and file header, before the optional header (PE/COFF specification).
const BEFORE_OPTIONAL_HEADER: usize = 4 + 20;
/// Of the checksum in the optional header, 32 or 64 bits wide alike.
const CHECKSUM: Range<usize> = 64..68;

/// A component of a loader that is older than may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is revoked: its SBAT component {component} has generation {generation}, and level {level} wants {wanted} or newer"
)]
pub struct Revoked {
    pub component: String,
    pub generation: u32,
    pub wanted: u32,
    /// shim's name for the list: the date it was made.
    pub level: String,
}

/// What a file's signature says of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Not signed, or no UEFI program.
    Absent,
    /// Of these bytes.
    Whole,
    /// Of other bytes: it was changed after it was signed.
    Broken,
}

/// Insists that no component of the loader is below the checked-in level. What carries no SBAT data cannot be told.
pub fn check_generation(loader: &[u8]) -> Result<(), Revoked> {
    check_against(loader, SBAT_LEVEL)
}

fn check_against(loader: &[u8], level: &[u8]) -> Result<(), Revoked> {
    // A test parses the checked-in list, so no loader passes for want of it.
    let Ok(level) = RevocationSbat::parse(level) else { return Ok(()) };
    let Some(Ok(said)) = sbat_section(loader).map(ImageSbat::parse) else { return Ok(()) };
    let ValidationResult::Revoked(entry) = level.validate_image(said) else { return Ok(()) };
    let same = level.revoked_components().find(|component| component.name == entry.component.name);
    Err(Revoked {
        component: entry.component.name.to_string(),
        generation: entry.component.generation.to_u32(),
        wanted: same.map_or(0, |component| component.generation.to_u32()),
        level: level.date().map_or_else(String::new, ToString::to_string),
    })
}

fn sbat_section(loader: &[u8]) -> Option<&[u8]> {
    match FileKind::parse(loader).ok()? {
        FileKind::Pe32 => section::<ImageNtHeaders32>(loader),
        FileKind::Pe64 => section::<ImageNtHeaders64>(loader),
        _ => None,
    }
}

fn section<Pe: ImageNtHeaders>(loader: &[u8]) -> Option<&[u8]> {
    PeFile::<Pe>::parse(loader).ok()?.section_by_name_bytes(b".sbat")?.data().ok()
}

/// Whether what is signed is what is there.
pub fn signature(program: &[u8]) -> Signature {
    let parts = match FileKind::parse(program) {
        Ok(FileKind::Pe32) => parts::<ImageNtHeaders32>(program),
        Ok(FileKind::Pe64) => parts::<ImageNtHeaders64>(program),
        Ok(_) | Err(_) => None,
    };
    let Some((signed, signature)) = parts else { return Signature::Absent };
    let digest = Digest::of_parts(&signed);
    // The digest stands in the signature as it is, behind its algorithm.
    let found = signature.windows(Digest::LEN).any(|window| window == digest.bytes());
    if found { Signature::Whole } else { Signature::Broken }
}

/// What a signature covers, and the signature; `None` if there is none.
fn parts<Pe: ImageNtHeaders>(program: &[u8]) -> Option<([&[u8]; 3], &[u8])> {
    let file = PeFile::<Pe>::parse(program).ok()?;
    let directory = file.data_directory(IMAGE_DIRECTORY_ENTRY_SECURITY)?;
    // Unlike every other directory's, this "address" is a place in the file.
    let start = directory.virtual_address.get(LittleEndian) as usize;
    let end = start.checked_add(directory.size.get(LittleEndian) as usize)?;
    let signature = program.get(start..end).filter(|signature| !signature.is_empty())?;
    let optional = ImageDosHeader::parse(program).ok()?.nt_headers_offset() as usize + BEFORE_OPTIONAL_HEADER;
    let entry = optional
        + size_of::<Pe::ImageOptionalHeader>()
        + IMAGE_DIRECTORY_ENTRY_SECURITY * size_of::<ImageDataDirectory>();
    let signed = [
        program.get(..optional + CHECKSUM.start)?,
        program.get(optional + CHECKSUM.end..entry)?,
        program.get(entry + size_of::<ImageDataDirectory>()..start)?,
    ];
    Some((signed, signature))
}

/// Where a kernel or an EFI program runs, and whether it is signed.
pub fn program(bytes: &[u8]) -> Program {
    let platform = match FileKind::parse(bytes) {
        Ok(FileKind::Pe32) => platform::<ImageNtHeaders32>(bytes),
        Ok(FileKind::Pe64) => platform::<ImageNtHeaders64>(bytes),
        Ok(_) | Err(_) => None,
    };
    Program { signature: signature(bytes), platform, bios: is_bzimage(bytes) }
}

/// Only programs that UEFI starts: a Windows program is a PE file as well.
fn platform<Pe: ImageNtHeaders>(program: &[u8]) -> Option<Firmware> {
    let file = PeFile::<Pe>::parse(program).ok()?;
    let headers = file.nt_headers();
    if headers.optional_header().subsystem() != IMAGE_SUBSYSTEM_EFI_APPLICATION {
        return None;
    }
    Some(match headers.file_header().machine.get(LittleEndian) {
        IMAGE_FILE_MACHINE_I386 => Firmware::UefiIa32,
        IMAGE_FILE_MACHINE_AMD64 => Firmware::UefiX64,
        IMAGE_FILE_MACHINE_ARM | IMAGE_FILE_MACHINE_THUMB | IMAGE_FILE_MACHINE_ARMNT => Firmware::UefiArm32,
        IMAGE_FILE_MACHINE_ARM64 => Firmware::UefiArm64,
        IMAGE_FILE_MACHINE_RISCV64 => Firmware::UefiRiscv64,
        IMAGE_FILE_MACHINE_LOONGARCH64 => Firmware::UefiLoongarch64,
        _ => return None,
    })
}

/// The boot sector flag and the header's magic (Linux' x86 boot protocol).
fn is_bzimage(kernel: &[u8]) -> bool {
    kernel.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && kernel.get(0x202..0x206) == Some(b"HdrS")
}

/// A volume descriptor of ISO 9660 stands in the 17th sector.
pub fn is_iso(image: &[u8]) -> bool {
    image.get(16 * 2048 + 1..16 * 2048 + 6) == Some(b"CD001")
}

#[cfg(test)]
mod tests;
