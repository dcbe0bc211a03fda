//! The EFI system partition: a FAT file system with shim, the signed GRUB and what GRUB is to read.

use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

/// The least that is FAT32 with clusters of one sector, with room for rounding; some firmware reads nothing else.
pub const BYTES_MIN: u64 = 34 << 20;

/// The beginning of FAT's time: the same bytes whenever it is made.
#[derive(Debug)]
struct Beginning;

static BEGINNING: Beginning = Beginning;

impl TimeProvider for Beginning {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// Makes the file system over the whole of `disk`, which is all zero, and puts `files` into it, by path.
pub fn write<D: Read + Write + Seek>(mut disk: D, volume_id: u32, files: &[(&str, &[u8])]) -> io::Result<()> {
    disk.seek(SeekFrom::Start(0))?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(volume_id)
        .volume_label(*b"ESP        ");
    fatfs::format_volume(&mut disk, options)?;
    disk.seek(SeekFrom::Start(0))?;
    let file_system = FileSystem::new(&mut disk, FsOptions::new().time_provider(&BEGINNING))?;
    let root = file_system.root_dir();
    for (path, bytes) in files {
        for (at, _) in path.match_indices('/') {
            root.create_dir(&path[..at])?;
        }
        let mut file = root.create_file(path)?;
        file.truncate()?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    drop(root);
    file_system.unmount()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn made(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(BYTES_MIN).unwrap()];
        write(Cursor::new(&mut disk), 0x1234_ABCD, files).unwrap();
        disk
    }

    #[test]
    fn files_are_found_again_by_firmwares_rules() {
        let large = vec![5_u8; 3 << 20];
        let disk = made(&[("EFI/BOOT/BOOTX64.EFI", &large), ("EFI/debian/grub.cfg", b"set x=y\n")]);
        let system = FileSystem::new(Cursor::new(disk), FsOptions::new()).unwrap();
        assert_eq!((system.fat_type(), system.volume_id()), (FatType::Fat32, 0x1234_ABCD));
        let mut read = Vec::new();
        // FAT knows no case.
        system.root_dir().open_file("efi/boot/bootx64.efi").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, large);
    }

    #[test]
    fn the_same_files_are_the_same_bytes() {
        let files: &[(&str, &[u8])] = &[("a/b.cfg", b"x"), ("c", b"y")];
        assert!(made(files) == made(files));
    }

    #[test]
    fn a_full_partition_is_an_error() {
        let mut disk = vec![0; usize::try_from(BYTES_MIN).unwrap()];
        let large = vec![5_u8; 40 << 20];
        assert!(write(Cursor::new(&mut disk), 1, &[("large", &large)]).is_err());
    }
}
