//! What lies on a disk, told from its first and last mebibyte, as `wipefs` would name it.
//!
//! A disk whose start and end are all zero is empty. One that is not carries data, whether it is known what or not:
//! overwriting it takes the operator's word.

use crate::agent::install::target::is_zero;
use crate::node::install::disk_rule::Signature;

/// How much of either end is looked at; every signature below lies within.
pub const ENDS: u64 = 1024 * 1024;

/// A magic at a fixed place from the start.
const AT_START: &[(Signature, usize, &[u8])] = &[
    (Signature::Gpt, 512, b"EFI PART"),
    // Disks with sectors of 4 KiB.
    (Signature::Gpt, 4096, b"EFI PART"),
    (Signature::Ext, 1024 + 0x38, b"\x53\xef"),
    (Signature::Xfs, 0, b"XFSB"),
    (Signature::Btrfs, 0x10040, b"_BHRfS_M"),
    (Signature::F2fs, 1024, b"\x10\x20\xf5\xf2"),
    (Signature::Fat, 54, b"FAT1"),
    (Signature::Fat, 82, b"FAT32   "),
    (Signature::Exfat, 3, b"EXFAT   "),
    (Signature::Ntfs, 3, b"NTFS    "),
    (Signature::Iso9660, 0x8001, b"CD001"),
    (Signature::Squashfs, 0, b"hsqs"),
    // By the size of a page: 4, 8, 16, 64 KiB.
    (Signature::Swap, 0xff6, b"SWAPSPACE2"),
    (Signature::Swap, 0x1ff6, b"SWAPSPACE2"),
    (Signature::Swap, 0x3ff6, b"SWAPSPACE2"),
    (Signature::Swap, 0xfff6, b"SWAPSPACE2"),
    (Signature::Luks, 0, b"LUKS\xba\xbe"),
    // The second header of LUKS2, should the first be gone.
    (Signature::Luks, 0x4000, b"SKUL\xba\xbe"),
    (Signature::Lvm, 0, b"LABELONE"),
    (Signature::Lvm, 512, b"LABELONE"),
    (Signature::Lvm, 1024, b"LABELONE"),
    (Signature::Lvm, 1536, b"LABELONE"),
    // Version 1.1, and 1.2 which is what mdadm makes.
    (Signature::MdRaid, 0, b"\xfc\x4e\x2b\xa9"),
    (Signature::MdRaid, 4096, b"\xfc\x4e\x2b\xa9"),
    (Signature::Bcache, 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
];

/// A magic at a fixed distance from the end.
const AT_END: &[(Signature, usize, &[u8])] = &[
    (Signature::Gpt, 512, b"EFI PART"),
    (Signature::Gpt, 4096, b"EFI PART"),
    (Signature::FirmwareRaid, 1024, b"Intel Raid ISM Cfg Sig. "),
    // SNIA DDF.
    (Signature::FirmwareRaid, 512, b"\xde\x11\xde\x11"),
];

/// `start` and `end` are the first and last [`ENDS`] bytes of a disk of `bytes`, or all of a smaller one, twice.
pub fn signatures(start: &[u8], end: &[u8], bytes: u64) -> Vec<Signature> {
    let has =
        |text: &[u8], at: usize, magic: &[u8]| text.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let mut found: Vec<Signature> = AT_START
        .iter()
        .filter(|(_, at, magic)| has(start, *at, magic))
        .map(|(signature, ..)| *signature)
        .collect();
    for (signature, before_end, magic) in AT_END {
        if end.len().checked_sub(*before_end).is_some_and(|at| has(end, at, magic)) {
            found.push(*signature);
        }
    }
    if has_md_at_end(end, bytes) {
        found.push(Signature::MdRaid);
    }
    if has_zfs_label(start) {
        found.push(Signature::Zfs);
    }
    // A boot sector ends as a partition table does; one of a file system is that, whatever stands in the table's place.
    let is_boot_sector =
        found.iter().any(|found| matches!(found, Signature::Fat | Signature::Exfat | Signature::Ntfs));
    if !found.contains(&Signature::Gpt) && !is_boot_sector && has_mbr(start) {
        found.push(Signature::Mbr);
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() && !(is_zero(start) && is_zero(end)) {
        found.push(Signature::Unknown);
    }
    found
}

/// Four entries, at least one of them in use, and each active or not.
fn has_mbr(start: &[u8]) -> bool {
    let Some(table) = start.get(446..512) else { return false };
    let (entries, mark) = table.split_at(64);
    let entries = || entries.chunks_exact(16);
    mark == [0x55, 0xaa]
        && entries().all(|entry| matches!(entry[0], 0 | 0x80))
        && entries().any(|entry| entry[4] != 0 && entry[12..16] != [0; 4])
}

/// Versions 0.90 (in the last 64 KiB that are aligned so) and 1.0 (8 KiB before the end, aligned to 4 KiB).
fn has_md_at_end(end: &[u8], bytes: u64) -> bool {
    let magic = [0xfc_u8, 0x4e, 0x2b, 0xa9];
    let places = [
        (bytes & !0xffff).checked_sub(0x10000),
        (bytes & !0xfff).checked_sub(0x2000),
        // 1.0 counts in sectors and rounds those down.
        bytes.checked_sub(0x2000).map(|place| place & !0xfff),
    ];
    let window = bytes - (end.len() as u64).min(bytes);
    places.into_iter().flatten().any(|place| {
        place
            .checked_sub(window)
            .and_then(|at| end.get(usize::try_from(at).ok()?..))
            .is_some_and(|text| text.starts_with(&magic))
    })
}

/// An uberblock in the first label: from 128 KiB on, one each KiB, in either byte order.
fn has_zfs_label(start: &[u8]) -> bool {
    const UBERBLOCK: u64 = 0x00ba_b10c;
    (128..256).any(|kibibyte| {
        start.get(kibibyte * 1024..).and_then(|text| text.first_chunk::<8>()).is_some_and(|bytes| {
            u64::from_le_bytes(*bytes) == UBERBLOCK || u64::from_be_bytes(*bytes) == UBERBLOCK
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 64 * 1024 * 1024;

    fn found(places: &[(u64, &[u8])]) -> Vec<Signature> {
        let (mut start, mut end) = (vec![0; ENDS as usize], vec![0; ENDS as usize]);
        for (at, magic) in places {
            let (part, at) = if *at < ENDS { (&mut start, *at) } else { (&mut end, at - (BYTES - ENDS)) };
            part[at as usize..at as usize + magic.len()].copy_from_slice(magic);
        }
        signatures(&start, &end, BYTES)
    }

    #[test]
    fn each_is_recognised_where_it_lies() {
        assert_eq!(found(&[]), []);
        for (signature, at, magic) in AT_START {
            assert_eq!(found(&[(*at as u64, magic)]), [*signature], "at {at:#x}");
        }
        for (signature, before_end, magic) in AT_END {
            assert_eq!(found(&[(BYTES - *before_end as u64, magic)]), [*signature]);
        }
        let md = b"\xfc\x4e\x2b\xa9";
        assert_eq!(found(&[(BYTES - 0x10000, md)]), [Signature::MdRaid]);
        assert_eq!(found(&[(BYTES - 0x2000, md)]), [Signature::MdRaid]);
        assert_eq!(found(&[(131 * 1024, b"\x0c\xb1\xba\0\0\0\0\0")]), [Signature::Zfs]);
        assert_eq!(found(&[(700_000, b"x")]), [Signature::Unknown]);
        assert_eq!(found(&[(BYTES - 1, b"x")]), [Signature::Unknown]);
    }

    #[test]
    fn a_partition_table_is_told_from_a_boot_sector() {
        let entry = b"\x80\0\0\0\x83\0\0\0\x00\x08\0\0\x00\x10\0\0";
        let table: [(u64, &[u8]); 2] = [(446, entry), (510, b"\x55\xaa")];
        assert_eq!(found(&table), [Signature::Mbr]);
        assert_eq!(found(&[table[0], table[1], (54, b"FAT16   ")]), [Signature::Fat]);
        assert_eq!(found(&[table[0], table[1], (512, b"EFI PART")]), [Signature::Gpt]);
        assert_eq!(found(&[(510, b"\x55\xaa")]), [Signature::Unknown], "no entry");
    }

    #[test]
    fn a_disk_smaller_than_its_ends_is_looked_at_whole() {
        let mut small = vec![0; 4096];
        assert_eq!(signatures(&small, &small, 4096), []);
        small[4096 - 512..4096 - 504].copy_from_slice(b"EFI PART");
        assert_eq!(signatures(&small, &small, 4096), [Signature::Gpt]);
    }
}
