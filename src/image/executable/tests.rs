//! Files made by hand: headers as the PE/COFF specification has them, one section, a signature.

use super::*;

const DIRECTORIES: usize = 64 + BEFORE_OPTIONAL_HEADER + size_of::<object::pe::ImageOptionalHeader64>();
const SECURITY: usize = DIRECTORIES + IMAGE_DIRECTORY_ENTRY_SECURITY * 8;
const SECTION: usize = DIRECTORIES + 16 * 8;
const DATA: usize = 512;

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A program for x86-64 with this section `.sbat`.
fn program_with(sbat: &str) -> Vec<u8> {
    let mut file = vec![0; DATA];
    file[..2].copy_from_slice(b"MZ");
    put(&mut file, 0x3c, 64);
    file[64..68].copy_from_slice(b"PE\0\0");
    // Machine, one section, the length of the optional header, an executable.
    file[68..72].copy_from_slice(&[0x64, 0x86, 1, 0]);
    file[84..88].copy_from_slice(&[240, 0, 2, 0]);
    file[88..90].copy_from_slice(&[0x0b, 2]);
    put(&mut file, DIRECTORIES - 4, 16);
    file[SECTION..SECTION + 5].copy_from_slice(b".sbat");
    let length = u32::try_from(sbat.len()).unwrap();
    for (field, value) in [(8, length), (12, 4096), (16, length), (20, DATA as u32)] {
        put(&mut file, SECTION + field, value);
    }
    file.extend_from_slice(sbat.as_bytes());
    file
}

/// The same with what stands for a signature of it.
fn signed(mut file: Vec<u8>) -> Vec<u8> {
    let start = file.len();
    put(&mut file, SECURITY, u32::try_from(start).unwrap());
    put(&mut file, SECURITY + 4, 64);
    let checksum = 64 + BEFORE_OPTIONAL_HEADER + CHECKSUM.start;
    let digest =
        Digest::of_parts(&[&file[..checksum], &file[checksum + 4..SECURITY], &file[SECURITY + 8..start]]);
    file.extend_from_slice(&[0x5a; 16]);
    file.extend_from_slice(digest.bytes());
    file.extend_from_slice(&[0x5a; 16]);
    file
}

const GRUB: &str = "sbat,1,SBAT Version,sbat,1,https://example\ngrub,5,FSF,grub,2.06,https://example\ngrub.debian,5,Debian,grub2,2.06-13,https://example\n\0\0\0";

#[test]
fn the_checked_in_level_is_one_and_packages_of_debian_are_up_to_it() {
    let level = RevocationSbat::parse(SBAT_LEVEL).unwrap();
    assert_eq!(level.date().unwrap().as_str(), "2025051000");
    for current in [GRUB, "sbat,1,x\nshim,4,UEFI shim,shim,1,x\nshim.debian,1,Debian,shim,15.8,x\n"] {
        assert_eq!(check_generation(&program_with(current)), Ok(()));
    }
}

#[test]
fn a_component_below_the_level_is_named_with_its_generation() {
    for (old, component, generation, wanted) in [
        (GRUB.replace("grub,5", "grub,3"), "grub", 3, 5),
        (GRUB.replace("grub.debian,5", "grub.debian,3"), "grub.debian", 3, 4),
        ("sbat,1,x\nshim,2,UEFI shim,shim,1,x\n".to_owned(), "shim", 2, 4),
    ] {
        let revoked = check_generation(&program_with(&old)).unwrap_err();
        assert_eq!(
            (revoked.component.as_str(), revoked.generation, revoked.wanted),
            (component, generation, wanted)
        );
        assert_eq!(revoked.level, "2025051000");
        let text = revoked.to_string();
        assert!(text.contains(&format!("{component} has generation {generation}")), "{text}");
    }
}

#[test]
fn what_says_nothing_of_itself_is_let_pass_and_nothing_panics() {
    assert_eq!(check_generation(b"#!ipxe\n"), Ok(()));
    assert_eq!(check_generation(&program_with("no list at all")), Ok(()));
    let whole = signed(program_with(&GRUB.replace("grub,5", "grub,1")));
    for end in 0..whole.len() {
        let _ = check_generation(&whole[..end]);
        let _ = signature(&whole[..end]);
    }
    for at in 0..DATA {
        for value in [0, 0x7f, 0xff] {
            let mut bent = whole.clone();
            bent[at] = value;
            let _ = check_generation(&bent);
            let _ = signature(&bent);
        }
    }
}

#[test]
fn a_byte_that_was_changed_breaks_the_signature() {
    assert_eq!(signature(&program_with(GRUB)), Signature::Absent);
    assert_eq!(signature(b"#!ipxe\n"), Signature::Absent);
    let whole = signed(program_with(GRUB));
    assert_eq!(signature(&whole), Signature::Whole);
    for at in [80, SECTION + 36, DATA + 30, DATA + GRUB.len() - 1] {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        assert_eq!(signature(&bent), Signature::Broken, "at {at}");
    }
    // Neither the checksum nor what follows the digest is covered by it.
    for at in [64 + BEFORE_OPTIONAL_HEADER + CHECKSUM.start, whole.len() - 1] {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        assert_eq!(signature(&bent), Signature::Whole, "at {at}");
    }
}

#[test]
fn where_a_program_runs_is_read_from_its_headers() {
    let efi = |machine: u16, subsystem: u16| {
        let mut file = program_with("");
        file[68..70].copy_from_slice(&machine.to_le_bytes());
        file[64 + BEFORE_OPTIONAL_HEADER + 68..][..2].copy_from_slice(&subsystem.to_le_bytes());
        super::program(&file)
    };
    assert_eq!(efi(0x8664, 10).platform, Some(Firmware::UefiX64));
    assert_eq!(efi(0xaa64, 10).platform, Some(Firmware::UefiArm64));
    assert_eq!(efi(0x8664, 2).platform, None, "a program for Windows");
    assert_eq!(efi(0x0200, 10).platform, None, "Itanium");
    let mut kernel = vec![0; 0x400];
    assert_eq!(super::program(&kernel), Program::default());
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let read = super::program(&kernel);
    assert!(read.bios && read.platform.is_none() && read.signature == Signature::Absent);
    let mut image = vec![0; 17 * 2048];
    assert!(!is_iso(&image) && !is_iso(b"CD001"));
    image[16 * 2048 + 1..][..5].copy_from_slice(b"CD001");
    assert!(is_iso(&image));
}
