//! The disk that is written: aligned reads and writes past the page cache, discarding, and making sure.
//!
//! [`Disk`] is the seam: the agent writes to a [`BlockDisk`], tests to one that keeps a log or fails when it is told.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};

use crate::net::sys;

/// What direct input and output wants offsets, lengths and memory to be a multiple of; covers every sector size.
pub const ALIGNMENT: usize = 4096;

pub trait Disk: Send + Sync {
    fn bytes(&self) -> u64;
    /// All of `bytes`, or an error.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// What is on the medium, not what a cache of ours remembers.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
    /// The range is not needed; it may read as anything afterwards. An error means that nothing happened.
    fn discard(&self, start: u64, length: u64) -> io::Result<()>;
    /// The range reads as zeros afterwards, done by the device itself; an error means: write them.
    fn zero(&self, start: u64, length: u64) -> io::Result<()>;
    /// What was written is on the medium.
    fn sync(&self) -> io::Result<()>;
    /// The kernel learns of new partitions.
    fn announce(&self) -> io::Result<()>;
}

/// Memory that starts where direct input and output may: more than is needed, from the right place on.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub fn zeroed(length: usize) -> Aligned {
        let memory = vec![0; length + ALIGNMENT];
        // Never more than ALIGNMENT - 1 for bytes; if it were, writing would just not be direct.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Aligned { memory, start, length }
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Whether every byte is zero; in pieces that are compared as memory is, which is fast even under emulation.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 1024] = [0; 1024];
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// A whole disk, or a plain file that stands for one.
pub struct BlockDisk {
    /// For whole blocks; absent where the file system knows no direct input and output.
    direct: Option<File>,
    /// For what is not a multiple of a block: the end of an image, or of a disk.
    plain: File,
    bytes: u64,
    is_block_device: bool,
}

impl BlockDisk {
    /// Exclusively: the kernel refuses with `EBUSY` when anything on the disk is mounted or otherwise held.
    pub fn open(path: &Path) -> io::Result<BlockDisk> {
        let plain = File::options().read(true).write(true).custom_flags(OFlag::O_EXCL.bits()).open(path)?;
        let is_block_device = plain.metadata()?.file_type().is_block_device();
        let direct = File::options().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
        // Counts for block devices as well, whose metadata have no length.
        let bytes = io::Seek::seek(&mut &plain, io::SeekFrom::End(0))?;
        Ok(BlockDisk { direct: direct.ok(), plain, bytes, is_block_device })
    }

    /// The direct file and how many bytes of a transfer it takes.
    fn direct_part(&self, at: u64, memory: &[u8]) -> Option<(&File, usize)> {
        let file = self.direct.as_ref()?;
        let aligned = at.is_multiple_of(ALIGNMENT as u64) && memory.as_ptr().align_offset(ALIGNMENT) == 0;
        let length = memory.len() / ALIGNMENT * ALIGNMENT;
        (aligned && length > 0).then_some((file, length))
    }

    fn forget_cached(&self, at: u64, length: usize) {
        let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) else { return };
        // Advice: where it is not taken, a read may come from memory.
        let _ = posix_fadvise(&self.plain, at, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// What a file system or device says that takes no direct transfers of this shape.
fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

impl Disk for BlockDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        if let Some((file, length)) = self.direct_part(at, bytes) {
            match file.write_all_at(&bytes[..length], at) {
                Ok(()) => done = length,
                Err(error) if refuses_direct(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.plain.write_all_at(&bytes[done..], at + done as u64)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        if let Some((file, length)) = self.direct_part(at, into) {
            match file.read_exact_at(&mut into[..length], at) {
                Ok(()) => done = length,
                Err(error) if refuses_direct(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let (rest, from) = (&mut into[done..], at + done as u64);
        if rest.is_empty() {
            return Ok(());
        }
        self.forget_cached(from, rest.len());
        self.plain.read_exact_at(rest, from)
    }

    fn discard(&self, start: u64, length: u64) -> io::Result<()> {
        if self.is_block_device {
            sys::discard_blocks(&self.plain, start, length)
        } else {
            punch(&self.plain, start, length)
        }
    }

    fn zero(&self, start: u64, length: u64) -> io::Result<()> {
        if self.is_block_device {
            sys::zero_blocks(&self.plain, start, length)
        } else {
            punch(&self.plain, start, length)
        }
    }

    fn sync(&self) -> io::Result<()> {
        // Flushes the device's own cache too, for both files: it belongs to the device.
        self.plain.sync_data()
    }

    fn announce(&self) -> io::Result<()> {
        if self.is_block_device { sys::read_partitions_again(&self.plain) } else { Ok(()) }
    }
}

/// A file's way of discarding, which also zeroes.
fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let number = |value: u64| value.try_into().map_err(|_| Errno::EINVAL);
    Ok(fallocate(file, flags, number(start)?, number(length)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_offset_and_length_is_written_and_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = BlockDisk::open(file.path()).unwrap();
        assert_eq!(disk.bytes(), 1 << 20);
        for (at, length) in [(0, 8192), (4096, 4608), (512, 512), (12_288, 100), (65_536, 0)] {
            let mut bytes = Aligned::zeroed(length);
            bytes.fill(at as u8 | 1);
            disk.write(at, &bytes).unwrap();
            disk.sync().unwrap();
            let mut back = Aligned::zeroed(length);
            disk.read(at, &mut back).unwrap();
            assert_eq!(&back[..], &bytes[..], "{length} at {at}");
            disk.zero(at, length.max(1) as u64).unwrap();
            disk.read(at, &mut back).unwrap();
            assert!(is_zero(&back));
        }
        assert!(disk.read((1 << 20) - 512, &mut [0; 1024]).is_err(), "beyond the end");
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0; 3000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for place in [0, 255, 1023, 1024, 2047, 2048, 2999] {
            bytes[place] = 1;
            assert!(!is_zero(&bytes), "{place}");
            bytes[place] = 0;
        }
    }
}
