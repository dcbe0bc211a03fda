//! Where everything is on the disk: a protective MBR whose boot code leads to GRUB, a GPT at both ends, and between
//! them the partitions, each on a boundary of 1 MiB.
//!
//! ```text
//!  MBR | GPT | … 1 MiB: bios | 2 MiB: esp | root, last, so that it can grow | … | backup GPT
//! ```

use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types;
use uuid::Uuid;

pub const SECTOR_BYTES: u64 = 512;
pub const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Room for GRUB's core image: at most 458 KiB are ever embedded.
pub const BIOS_BYTES: u64 = ALIGNMENT_BYTES;
/// Number of the partition that GRUB's core image looks for its files on.
pub const ESP_NUMBER: u32 = 2;
pub const ROOT_NUMBER: u32 = 3;
const BIOS_NUMBER: u32 = 1;

/// A stretch of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: u64,
    pub bytes: u64,
}

impl Extent {
    pub fn end(self) -> u64 {
        self.start + self.bytes
    }

    pub fn first_sector(self) -> u64 {
        self.start / SECTOR_BYTES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub bios: Extent,
    pub esp: Extent,
    pub root: Extent,
    pub disk_bytes: u64,
}

/// The names by which the table knows itself and its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableIds {
    pub disk: Uuid,
    pub bios: Uuid,
    pub esp: Uuid,
    pub root: Uuid,
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the partition table cannot be written")]
    Gpt(#[from] gpt::GptError),
    #[error("the master boot record cannot be written")]
    Mbr(#[from] gpt::mbr::MBRError),
    #[error("the partition table cannot be written")]
    Io(#[from] io::Error),
}

impl Layout {
    /// Sizes are rounded up to the alignment; the backup table has the last mebibyte for itself.
    pub fn new(esp_bytes: u64, root_bytes: u64) -> Layout {
        let after = |before: Extent, bytes: u64| Extent {
            start: before.end(),
            bytes: bytes.next_multiple_of(ALIGNMENT_BYTES),
        };
        let bios = Extent { start: ALIGNMENT_BYTES, bytes: BIOS_BYTES };
        let esp = after(bios, esp_bytes);
        let root = after(esp, root_bytes);
        Layout { bios, esp, root, disk_bytes: root.end() + ALIGNMENT_BYTES }
    }

    /// Writes both tables and the master boot record to a disk that is all zero.
    pub fn write<D: Read + Write + Seek + std::fmt::Debug>(
        &self,
        mut disk: D,
        ids: TableIds,
        boot_code: [u8; 440],
    ) -> Result<D, TableError> {
        let last = u32::try_from(self.disk_bytes / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
        let mut mbr = ProtectiveMBR::with_lb_size(last);
        mbr.set_bootcode(boot_code);
        disk.seek(SeekFrom::Start(0))?;
        mbr.overwrite_lba0(&mut disk)?;
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(LogicalBlockSize::Lb512)
            .create_from_device(disk, Some(ids.disk))?;
        let partitions = [
            (BIOS_NUMBER, "bios", self.bios, partition_types::BIOS),
            (ESP_NUMBER, "esp", self.esp, partition_types::EFI),
            (ROOT_NUMBER, "root", self.root, partition_types::LINUX_FS),
        ];
        for (number, name, extent, kind) in partitions {
            let sectors = extent.bytes / SECTOR_BYTES;
            table.add_partition_at(name, number, extent.first_sector(), sectors, kind, 0)?;
        }
        // The library gives out random ones.
        let mut named = table.take_partitions();
        for (number, id) in [(BIOS_NUMBER, ids.bios), (ESP_NUMBER, ids.esp), (ROOT_NUMBER, ids.root)] {
            if let Some(partition) = named.get_mut(&number) {
                partition.part_guid = id;
            }
        }
        table.update_partitions(named)?;
        Ok(table.write()?)
    }
}

/// A part of a disk as a disk of its own.
#[derive(Debug)]
pub struct Window<D> {
    disk: D,
    extent: Extent,
    at: u64,
}

impl<D> Window<D> {
    pub fn new(disk: D, extent: Extent) -> Window<D> {
        Window { disk, extent, at: 0 }
    }

    fn room(&self, wanted: usize) -> usize {
        let left = self.extent.bytes.saturating_sub(self.at);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }
}

impl<D: Read + Seek> Read for Window<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len());
        self.disk.seek(SeekFrom::Start(self.extent.start + self.at))?;
        let count = self.disk.read(&mut buffer[..room])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<D: Write + Seek> Write for Window<D> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = self.room(buffer.len());
        self.disk.seek(SeekFrom::Start(self.extent.start + self.at))?;
        let count = self.disk.write(&buffer[..room])?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl<D> Seek for Window<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.extent.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let before_start = || io::Error::new(io::ErrorKind::InvalidInput, "seek before the start");
        self.at = target.ok_or_else(before_start)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const IDS: TableIds = TableIds {
        disk: Uuid::from_u128(1),
        bios: Uuid::from_u128(2),
        esp: Uuid::from_u128(3),
        root: Uuid::from_u128(4),
    };

    fn written() -> (Layout, Vec<u8>) {
        let layout = Layout::new((40 << 20) + 1, 5 << 20);
        let disk = vec![0; usize::try_from(layout.disk_bytes).unwrap()];
        let disk = layout.write(Cursor::new(disk), IDS, [0x90; 440]).unwrap();
        (layout, disk.into_inner())
    }

    #[test]
    fn everything_is_aligned_and_nothing_overlaps() {
        let (layout, disk) = written();
        let extents = [layout.bios, layout.esp, layout.root];
        for extent in extents {
            assert_eq!((extent.start % ALIGNMENT_BYTES, extent.bytes % ALIGNMENT_BYTES), (0, 0));
        }
        assert!(extents.windows(2).all(|pair| pair[0].end() == pair[1].start));
        assert_eq!(layout.esp.bytes, 41 << 20);
        assert_eq!(disk.len() as u64, layout.disk_bytes);
        assert_eq!(layout.root.end() + ALIGNMENT_BYTES, layout.disk_bytes);
    }

    #[test]
    fn both_tables_are_whole_and_agree() {
        let (layout, disk) = written();
        let read = gpt::GptConfig::new().only_valid_headers(true).open_from_device(Cursor::new(disk));
        let read = read.unwrap();
        let (primary, backup) = (read.primary_header().unwrap(), read.backup_header().unwrap());
        assert_eq!((primary.current_lba, primary.backup_lba), (backup.backup_lba, backup.current_lba));
        assert_eq!(backup.current_lba, layout.disk_bytes / SECTOR_BYTES - 1);
        assert_eq!((primary.disk_guid, primary.crc32_parts), (IDS.disk, backup.crc32_parts));
        let partitions: Vec<_> = read
            .partitions()
            .values()
            .map(|p| (p.name.as_str(), p.part_type_guid.clone(), p.part_guid, p.first_lba, p.last_lba))
            .collect();
        let expected = [
            ("bios", partition_types::BIOS, IDS.bios, layout.bios),
            ("esp", partition_types::EFI, IDS.esp, layout.esp),
            ("root", partition_types::LINUX_FS, IDS.root, layout.root),
        ]
        .map(|(name, kind, id, extent)| {
            (name, kind, id, extent.first_sector(), extent.end() / SECTOR_BYTES - 1)
        });
        assert_eq!(partitions, expected);
    }

    #[test]
    fn the_first_sector_holds_the_boot_code_and_covers_the_disk() {
        let (layout, disk) = written();
        assert_eq!(disk[..440], [0x90; 440]);
        assert_eq!(disk[510..512], [0x55, 0xAA]);
        // One record: type 0xEE, from sector 1 to the end.
        assert_eq!(disk[450], 0xEE);
        assert_eq!(disk[454..458], 1_u32.to_le_bytes());
        let sectors = u32::try_from(layout.disk_bytes / SECTOR_BYTES - 1).unwrap();
        assert_eq!(disk[458..462], sectors.to_le_bytes());
        assert!(disk[462..510].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_window_keeps_to_its_part() {
        let mut disk = vec![1_u8; 32];
        let extent = Extent { start: 8, bytes: 8 };
        let mut window = Window::new(Cursor::new(&mut disk), extent);
        assert_eq!(window.seek(SeekFrom::End(-2)).unwrap(), 6);
        assert_eq!(window.write(&[9; 5]).unwrap(), 2);
        assert_eq!(window.write(&[9]).unwrap(), 0);
        window.seek(SeekFrom::Start(5)).unwrap();
        let mut read = Vec::new();
        window.read_to_end(&mut read).unwrap();
        assert_eq!(read, [1, 9, 9]);
        assert_eq!((disk[15], disk[16]), (9, 1));
    }
}
