//! The partition table of an image on a disk that is larger than it: mended, and with a place for the node's seed.
//!
//! A GPT's backup belongs at the end of the disk, and its header must say how large the disk is, or firmware and
//! kernels complain and nobody can grow a partition. The seed's partition lies at the very end, so that the root file
//! system can grow up to it. Partitions keep their numbers: a system's configuration may name them.
//!
//! The crate's lower half is used for that: what it writes as a whole would number partitions anew.

use std::io::{self, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::header::Header;
use gpt::partition::Partition;
use gpt::partition_types;
use uuid::Uuid;

use crate::agent::install::overlay::Overlay;
use crate::image::digest::Digest;

/// Images count in these; a disk that counts in others cannot boot them.
pub const SECTOR: u64 = 512;
const LOGICAL: LogicalBlockSize = LogicalBlockSize::Lb512;
/// Of the partition made for the seed, and what its place is a multiple of.
pub const SEED_BYTES: u64 = 4 * 1024 * 1024;
const SEED_ALIGNMENT: u64 = 1024 * 1024;
/// What a disk must have beyond the image: the seed, aligned, and the table's backup.
pub const ROOM: u64 = SEED_BYTES + 2 * SEED_ALIGNMENT;
/// The label by which cloud-init and our own first boot find it.
pub const LABEL: &str = "CIDATA";
/// The UEFI specification asks for 128; more would be no table that anybody makes.
const ENTRIES_MAX: u32 = 1024;
/// FAT with 16-bit sector count and below: what small partitions were given.
const MBR_FAT: u8 = 0x06;
const MBR_PROTECTIVE: u8 = 0xee;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gpt,
    Mbr,
}

/// Where the seed goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedPlace {
    pub start: u64,
    pub length: u64,
    /// It has a file system with that label, which is used.
    pub exists: bool,
}

/// The partition that UEFI boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemPartition {
    pub number: u32,
    pub start_sector: u64,
    pub sectors: u64,
    pub guid: Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mended {
    pub seed: SeedPlace,
    pub system: Option<SystemPartition>,
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the image's partition table cannot be read: {0}")]
    Read(String),
    #[error("the image's GPT has {entries} entries of {bytes} bytes; entries of 128 bytes are wanted")]
    Shape { entries: u32, bytes: u32 },
    #[error(
        "the image's partitions end at sector {last}, which leaves no room for {wanted} bytes before {end}"
    )]
    NoRoom { last: u64, wanted: u64, end: u64 },
    #[error("all four entries of the image's MBR are in use: there is none for the seed's partition")]
    NoEntry,
    #[error(
        "the disk is larger than an MBR can say (2 TiB): the seed's partition at its end cannot be entered"
    )]
    TooLarge,
    #[error("reading or writing the partition table")]
    Io(#[from] io::Error),
}

/// By an image's first chunk.
pub fn kind(first: &[u8]) -> Option<Kind> {
    if first.get(SECTOR as usize..).is_some_and(|rest| rest.starts_with(b"EFI PART")) {
        return Some(Kind::Gpt);
    }
    let entries = || MbrEntry::all(first);
    let is_mbr = first.get(510..512) == Some(&[0x55, 0xaa])
        && entries().all(|entry| matches!(entry.status, 0 | 0x80))
        && entries().any(|entry| entry.is_used() && entry.kind != MBR_PROTECTIVE);
    is_mbr.then_some(Kind::Mbr)
}

/// Makes the table fit the disk, and enters the seed's partition if the image has none of its own.
pub fn mend(overlay: &mut Overlay, kind: Kind) -> Result<Mended, TableError> {
    match kind {
        Kind::Gpt => mend_gpt(overlay),
        Kind::Mbr => mend_mbr(overlay),
    }
}

fn mend_gpt(overlay: &mut Overlay) -> Result<Mended, TableError> {
    let read = |error: &dyn std::fmt::Display| TableError::Read(error.to_string());
    let header =
        gpt::header::read_header_from_arbitrary_device(overlay, LOGICAL).map_err(|error| read(&error))?;
    if header.part_size != 128 || !(1..=ENTRIES_MAX).contains(&header.num_parts) {
        return Err(TableError::Shape { entries: header.num_parts, bytes: header.part_size });
    }
    let partitions =
        gpt::partition::file_read_partitions(overlay, &header, LOGICAL).map_err(|error| read(&error))?;
    let used = || partitions.iter().filter(|(_, partition)| partition.is_used());
    let array_bytes = u64::from(header.num_parts) * u64::from(header.part_size);
    let sectors = overlay.size() / SECTOR;
    let last = used().map(|(_, partition)| partition.last_lba).max().unwrap_or(header.first_usable);
    let no_room = |end| TableError::NoRoom { last, wanted: SEED_BYTES, end };
    let last_usable = sectors
        .checked_sub(2 + array_bytes.div_ceil(SECTOR))
        .filter(|last_usable| *last_usable >= last)
        .ok_or_else(|| no_room(sectors))?;

    let mut own = None;
    for (_, partition) in used() {
        let length = (partition.last_lba + 1).saturating_sub(partition.first_lba) * SECTOR;
        let start = partition.first_lba * SECTOR;
        if own.is_none() && has_seed_label(overlay, start)? {
            own = Some(SeedPlace { start, length, exists: true });
        }
    }
    let seed = match own {
        Some(own) => own,
        None => {
            let seed = at_end((last_usable + 1) * SECTOR, last + 1).ok_or_else(|| no_room(last_usable))?;
            let highest = used().map(|(number, _)| *number).max().unwrap_or(0);
            let number = (highest + 1..=header.num_parts)
                .chain(1..=highest)
                .find(|number| used().all(|(other, _)| other != number))
                .ok_or_else(|| no_room(last_usable))?;
            let partition = Partition {
                part_type_guid: partition_types::BASIC,
                part_guid: seed_guid(&header.disk_guid),
                first_lba: seed.start / SECTOR,
                last_lba: (seed.start + seed.length) / SECTOR - 1,
                flags: 0,
                name: LABEL.to_owned(),
            };
            let size = header.part_size;
            partition.write_to_device(overlay, u64::from(number - 1), header.part_start, LOGICAL, size)?;
            seed
        }
    };
    let primary = Header { backup_lba: sectors - 1, last_usable, ..header };
    write_headers(overlay, primary, array_bytes)?;
    mend_protective(overlay, sectors)?;
    let system = used().find(|(_, partition)| partition.part_type_guid.guid == partition_types::EFI.guid);
    Ok(Mended {
        seed,
        system: system.map(|(number, partition)| SystemPartition {
            number: *number,
            start_sector: partition.first_lba,
            sectors: (partition.last_lba + 1).saturating_sub(partition.first_lba),
            guid: partition.part_guid,
        }),
    })
}

/// The array goes to the end as it is at the start; the headers' checksums are computed as they are written.
fn write_headers(overlay: &mut Overlay, mut primary: Header, array_bytes: u64) -> Result<(), TableError> {
    // At most 128 KiB: the number of entries was checked.
    let mut array = vec![0; array_bytes as usize];
    overlay.seek(SeekFrom::Start(primary.part_start * SECTOR))?;
    overlay.read_exact(&mut array)?;
    let mut backup = Header {
        current_lba: primary.backup_lba,
        backup_lba: primary.current_lba,
        part_start: primary.last_usable + 1,
        ..primary.clone()
    };
    overlay.put(backup.part_start * SECTOR, &array)?;
    let written = |error: gpt::header::HeaderError| TableError::Read(error.to_string());
    backup.write_backup(overlay, LOGICAL).map_err(written)?;
    primary.write_primary(overlay, LOGICAL).map_err(written)?;
    Ok(())
}

/// The one entry that covers the disk is made to cover it; boot code and what else the sector holds stay.
fn mend_protective(overlay: &mut Overlay, sectors: u64) -> Result<(), TableError> {
    let mut sector = [0; SECTOR as usize];
    overlay.seek(SeekFrom::Start(0))?;
    overlay.read_exact(&mut sector)?;
    for entry in sector[446..510].chunks_exact_mut(16).filter(|entry| entry[4] == MBR_PROTECTIVE) {
        let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
        entry[12..16].copy_from_slice(&size.to_le_bytes());
    }
    Ok(overlay.put(0, &sector)?)
}

/// One table gives one GUID, at each attempt, without asking the kernel for entropy that a young machine has not.
fn seed_guid(disk: &Uuid) -> Uuid {
    let digest = Digest::of_parts(&[b"farrier seed partition", disk.as_bytes()]);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The last aligned place before `end` (in bytes) that begins at `first_sector` or later.
fn at_end(end: u64, first_sector: u64) -> Option<SeedPlace> {
    let end = end / SEED_ALIGNMENT * SEED_ALIGNMENT;
    let start = end.checked_sub(SEED_BYTES)?;
    (start >= first_sector * SECTOR).then_some(SeedPlace { start, length: SEED_BYTES, exists: false })
}

/// A FAT file system says its label in its boot sector.
fn has_seed_label(overlay: &mut Overlay, start: u64) -> io::Result<bool> {
    if start + SECTOR > overlay.size() {
        return Ok(false);
    }
    let mut sector = [0; SECTOR as usize];
    overlay.seek(SeekFrom::Start(start))?;
    overlay.read_exact(&mut sector)?;
    // FAT12 and FAT16, then FAT32: where the file system's name is, and its label before it.
    let is_labelled = |name: usize, label: usize| {
        sector[name..].starts_with(b"FAT")
            && String::from_utf8_lossy(&sector[label..label + 11]).trim_end().eq_ignore_ascii_case(LABEL)
    };
    Ok(sector[510..] == [0x55, 0xaa] && (is_labelled(54, 43) || is_labelled(82, 71)))
}

#[derive(Clone, Copy)]
struct MbrEntry {
    status: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

impl MbrEntry {
    fn all(sector: &[u8]) -> impl Iterator<Item = MbrEntry> {
        let number = |entry: &[u8], at: usize| {
            entry[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default()
        };
        sector.get(446..510).unwrap_or_default().chunks_exact(16).map(move |entry| MbrEntry {
            status: entry[0],
            kind: entry[4],
            first: number(entry, 8),
            sectors: number(entry, 12),
        })
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
}

fn mend_mbr(overlay: &mut Overlay) -> Result<Mended, TableError> {
    let mut sector = [0; SECTOR as usize];
    overlay.seek(SeekFrom::Start(0))?;
    overlay.read_exact(&mut sector)?;
    let entries: Vec<MbrEntry> = MbrEntry::all(&sector).collect();
    for entry in entries.iter().filter(|entry| entry.is_used()) {
        let start = u64::from(entry.first) * SECTOR;
        if has_seed_label(overlay, start)? {
            let length = u64::from(entry.sectors) * SECTOR;
            return Ok(Mended { seed: SeedPlace { start, length, exists: true }, system: None });
        }
    }
    let free = entries.iter().position(|entry| entry.kind == 0).ok_or(TableError::NoEntry)?;
    let used = entries.iter().filter(|entry| entry.is_used());
    let last = used.map(|entry| u64::from(entry.first) + u64::from(entry.sectors)).max().unwrap_or(1);
    let seed = at_end(overlay.size(), last).ok_or(TableError::NoRoom {
        last,
        wanted: SEED_BYTES,
        end: overlay.size() / SECTOR,
    })?;
    let first = u32::try_from(seed.start / SECTOR).map_err(|_| TableError::TooLarge)?;
    let entry = &mut sector[446 + free * 16..446 + (free + 1) * 16];
    entry.fill(0);
    // Cylinders, heads and sectors that say: count in sectors.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = MBR_FAT;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    // Four mebibytes in sectors.
    entry[12..16].copy_from_slice(&((SEED_BYTES / SECTOR) as u32).to_le_bytes());
    overlay.put(0, &sector)?;
    Ok(Mended { seed, system: None })
}
