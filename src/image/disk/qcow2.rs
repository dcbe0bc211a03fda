//! qcow2 as a sequence of bytes: a reader that knows one file, and has no way to open another.
//!
//! ```text
//!  header ─> level 1 table ─> level 2 tables ─> clusters: raw, deflate, zstd, or absent (zero)
//! ```
//! A qcow2 may name other files: the backing file whose bytes show where it has none, and a data file that holds all of
//! them. Programs that follow such names read `/etc/shadow` for whoever made the image. Here the names are never looked
//! at: an image that has any is refused, and so is everything whose meaning is not known to the bit (features of later
//! versions, encryption, subclusters). Snapshots are ignored: the disk as it is now is read.
//!
//! The format: QEMU's docs/interop/qcow2.txt. Every offset is checked against the file before it is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::DeflateDecoder;

pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// 512 bytes to 2 MiB, as QEMU has it.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's own bound: 32 MiB, enough for 2 EiB.
const LEVEL_1_ENTRIES_MAX: u64 = 4 * 1024 * 1024;
/// Of the header with its extensions; no writer needs a tenth of it.
const HEADER_BYTES_MAX: usize = 64 * 1024;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Qcow2Fault {
    #[error(
        "this qcow2 has a {what}, and no other file is read for an image: `qemu-img convert -O qcow2` puts all into one"
    )]
    OtherFile { what: &'static str },
    #[error("this qcow2 is encrypted: `qemu-img convert -O qcow2` with its key makes one that is not")]
    Encrypted,
    #[error("this qcow2 was not closed, or is in use: stop its machine, or `qemu-img check -r all` it")]
    Dirty,
    #[error("this qcow2 is marked as corrupt: `qemu-img check -r all` may mend it")]
    Corrupt,
    #[error("this qcow2 has {what}: `qemu-img convert -O qcow2` makes one without")]
    Unsupported { what: &'static str },
    #[error("it is no whole qcow2 image: {what}")]
    Malformed { what: &'static str },
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

/// Bytes by their place; a short read is the end.
pub trait ReadAt {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl ReadAt for &[u8] {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let count = buffer.len().min(self.len() - from);
        buffer[..count].copy_from_slice(&self[from..from + count]);
        Ok(count)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

#[derive(Debug)]
struct Header {
    version: u32,
    cluster_bits: u32,
    bytes: u64,
    level_1_entries: u64,
    level_1_offset: u64,
    compression: Compression,
}

/// The disk in a qcow2 file, read front to back.
pub struct Qcow2<S> {
    file: S,
    file_bytes: u64,
    header: Header,
    level_1: Vec<u64>,
    /// Where the level 2 table lies that was used last, and what it says.
    level_2: Option<(u64, Vec<u64>)>,
    /// The cluster that was unpacked last, by its number.
    unpacked: Option<(u64, Vec<u8>)>,
    position: u64,
}

/// Where a cluster's bytes are.
enum Cluster {
    Zero,
    At(u64),
    Packed { offset: u64, length: usize },
}

impl<S: ReadAt> Qcow2<S> {
    pub fn open(file: S, file_bytes: u64) -> Result<Qcow2<S>, Qcow2Fault> {
        let mut head = vec![0; HEADER_BYTES_MAX];
        let count = file.read_some_at(&mut head, 0).map_err(Qcow2Fault::Read)?;
        head.truncate(count);
        let header = Header::parse(&head)?;
        let wanted = header.level_1_entries_used();
        let raw = read_table(&file, file_bytes, header.level_1_offset, wanted)?;
        let level_1 = raw.ok_or(Qcow2Fault::Malformed { what: "its level 1 table is beyond its end" })?;
        Ok(Qcow2 { file, file_bytes, header, level_1, level_2: None, unpacked: None, position: 0 })
    }

    /// Of the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.header.bytes
    }

    fn locate(&mut self, cluster: u64) -> io::Result<Cluster> {
        let entries = 1_u64 << (self.header.cluster_bits - 3);
        let table = usize::try_from(cluster / entries).ok().and_then(|index| self.level_1.get(index));
        let table = table.copied().unwrap_or(0);
        if table & !(OFFSET_MASK | COPIED) != 0 {
            return Err(malformed("a reserved bit is set in its level 1 table"));
        }
        let offset = table & OFFSET_MASK;
        if offset == 0 {
            return Ok(Cluster::Zero);
        }
        if self.level_2.as_ref().is_none_or(|(known, _)| *known != offset) {
            self.check_aligned(offset)?;
            let read = read_table(&self.file, self.file_bytes, offset, entries).map_err(io::Error::other)?;
            let read = read.ok_or_else(|| malformed("a level 2 table is beyond its end"))?;
            self.level_2 = Some((offset, read));
        }
        let entry = match &self.level_2 {
            Some((_, entries_read)) => entries_read[(cluster % entries) as usize],
            None => 0,
        };
        if entry & COMPRESSED != 0 {
            return self.locate_packed(entry);
        }
        if entry & !(OFFSET_MASK | COPIED | ZERO) != 0 || (self.header.version < 3 && entry & ZERO != 0) {
            return Err(malformed("a reserved bit is set in a level 2 table"));
        }
        let offset = entry & OFFSET_MASK;
        if entry & ZERO != 0 || offset == 0 {
            return Ok(Cluster::Zero);
        }
        self.check_aligned(offset)?;
        if offset >= self.file_bytes {
            return Err(malformed("a cluster is beyond its end"));
        }
        Ok(Cluster::At(offset))
    }

    fn check_aligned(&self, offset: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(1 << self.header.cluster_bits);
        if aligned { Ok(()) } else { Err(malformed("a cluster does not begin where one can")) }
    }

    /// The low bits are the offset, the ones above them how many sectors more than the one it is in.
    fn locate_packed(&self, entry: u64) -> io::Result<Cluster> {
        let split = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << split) - 1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> split) + 1;
        // At most two clusters of 2 MiB.
        let length = sectors * 512 - (offset & 511);
        if offset >= self.file_bytes {
            return Err(malformed("a packed cluster is beyond its end"));
        }
        // The last one need not fill its sector.
        let length = length.min(self.file_bytes - offset) as usize;
        Ok(Cluster::Packed { offset, length })
    }

    fn unpack(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut packed = vec![0; length];
        let count = self.file.read_some_at(&mut packed, offset)?;
        let packed = &packed[..count];
        let mut cluster = vec![0; 1 << self.header.cluster_bits];
        // What follows the end of the packed data belongs to the next.
        let unpacked = match self.header.compression {
            Compression::Deflate => DeflateDecoder::new(packed).read_exact(&mut cluster),
            Compression::Zstd => zstd::Decoder::with_buffer(packed)
                .map(zstd::Decoder::single_frame)
                .and_then(|mut decoder| decoder.read_exact(&mut cluster)),
        };
        unpacked.map_err(|_| malformed("a packed cluster cannot be unpacked"))?;
        Ok(cluster)
    }
}

impl<S: ReadAt> Read for Qcow2<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let cluster_bytes = 1_u64 << self.header.cluster_bits;
        let (cluster, within) = (self.position / cluster_bytes, self.position % cluster_bytes);
        let left = (cluster_bytes - within).min(self.header.bytes - self.position);
        let count = buffer.len().min(left.try_into().unwrap_or(usize::MAX));
        let buffer = &mut buffer[..count];
        if count == 0 {
            return Ok(0);
        }
        match &self.unpacked {
            Some((known, bytes)) if *known == cluster => copy_from(buffer, bytes, within),
            Some(_) | None => match self.locate(cluster)? {
                Cluster::Zero => buffer.fill(0),
                Cluster::At(offset) => {
                    let read = self.file.read_some_at(buffer, offset + within)?;
                    // A file may end within its last cluster: nothing was written there.
                    buffer[read..].fill(0);
                }
                Cluster::Packed { offset, length } => {
                    let bytes = self.unpack(offset, length)?;
                    copy_from(buffer, &bytes, within);
                    self.unpacked = Some((cluster, bytes));
                }
            },
        }
        self.position += count as u64;
        Ok(count)
    }
}

fn copy_from(buffer: &mut [u8], cluster: &[u8], within: u64) {
    let from = within as usize;
    buffer.copy_from_slice(&cluster[from..from + buffer.len()]);
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Qcow2Fault::Malformed { what })
}

/// Numbers of a table; `None` if the file ends before it does.
fn read_table(
    file: &impl ReadAt,
    file_bytes: u64,
    offset: u64,
    entries: u64,
) -> Result<Option<Vec<u64>>, Qcow2Fault> {
    let length = entries * 8;
    if offset.checked_add(length).is_none_or(|end| end > file_bytes) {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    let count = file.read_some_at(&mut bytes, offset).map_err(Qcow2Fault::Read)?;
    if count < bytes.len() {
        return Ok(None);
    }
    let (numbers, _) = bytes.as_chunks::<8>();
    Ok(Some(numbers.iter().map(|number| u64::from_be_bytes(*number)).collect()))
}

impl Header {
    fn parse(head: &[u8]) -> Result<Header, Qcow2Fault> {
        let fields = Fields(head);
        if !head.starts_with(&MAGIC) {
            return Err(Qcow2Fault::Malformed { what: "it does not begin as one" });
        }
        let version = fields.number_32(4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Fault::Unsupported { what: "another version than 2 and 3" });
        }
        let (backing_offset, backing_length) = (fields.number_64(8)?, fields.number_32(16)?);
        if backing_offset != 0 || backing_length != 0 {
            return Err(Qcow2Fault::OtherFile { what: "backing file" });
        }
        if fields.number_32(32)? != 0 {
            return Err(Qcow2Fault::Encrypted);
        }
        let mut compression = Compression::Deflate;
        let mut header_length = 72;
        if version >= 3 {
            let incompatible = fields.number_64(72)?;
            header_length = fields.number_32(100)?;
            if header_length < 104 || !header_length.is_multiple_of(8) {
                return Err(Qcow2Fault::Malformed { what: "its header has no such length" });
            }
            check_features(incompatible)?;
            // The field came later, and zero, or a header without it, is deflate.
            if incompatible & (1 << 3) != 0 {
                compression = match head.get(104) {
                    Some(1) if header_length > 104 => Compression::Zstd,
                    _ => return Err(Qcow2Fault::Unsupported { what: "a compression not known here" }),
                };
            }
        }
        check_extensions(&fields, header_length as usize)?;
        let cluster_bits = fields.number_32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Fault::Malformed { what: "its clusters have no size that is allowed" });
        }
        let header = Header {
            version,
            cluster_bits,
            bytes: fields.number_64(24)?,
            level_1_entries: fields.number_32(36)?.into(),
            level_1_offset: fields.number_64(40)?,
            compression,
        };
        if !header.level_1_offset.is_multiple_of(1 << cluster_bits) {
            return Err(Qcow2Fault::Malformed { what: "its level 1 table does not begin where one can" });
        }
        let used = header.level_1_entries_used();
        if used > header.level_1_entries || used > LEVEL_1_ENTRIES_MAX {
            return Err(Qcow2Fault::Malformed { what: "its level 1 table does not fit its size" });
        }
        Ok(header)
    }

    /// A level 1 entry stands for a level 2 table, which is one cluster of 8-byte entries.
    fn level_1_entries_used(&self) -> u64 {
        self.bytes.div_ceil(1 << (2 * self.cluster_bits - 3))
    }
}

fn check_features(incompatible: u64) -> Result<(), Qcow2Fault> {
    const DIRTY: u64 = 1;
    const CORRUPT: u64 = 1 << 1;
    const DATA_FILE: u64 = 1 << 2;
    const COMPRESSION: u64 = 1 << 3;
    const SUBCLUSTERS: u64 = 1 << 4;
    match incompatible {
        bits if bits & DATA_FILE != 0 => Err(Qcow2Fault::OtherFile { what: "data file" }),
        bits if bits & CORRUPT != 0 => Err(Qcow2Fault::Corrupt),
        bits if bits & DIRTY != 0 => Err(Qcow2Fault::Dirty),
        bits if bits & SUBCLUSTERS != 0 => Err(Qcow2Fault::Unsupported { what: "subclusters" }),
        bits if bits & !COMPRESSION != 0 => Err(Qcow2Fault::Unsupported { what: "features not known here" }),
        _ => Ok(()),
    }
}

/// Names of other files stand in extensions as well, whatever the header's flags say.
fn check_extensions(fields: &Fields, mut at: usize) -> Result<(), Qcow2Fault> {
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE: u32 = 0x4441_5441;
    const ENCRYPTION: u32 = 0x0537_be77;
    loop {
        // The end of what was read is the end of the first cluster, or far beyond any header.
        let Ok(kind) = fields.number_32(at) else { return Ok(()) };
        match kind {
            0 => return Ok(()),
            BACKING_FORMAT => return Err(Qcow2Fault::OtherFile { what: "backing file" }),
            DATA_FILE => return Err(Qcow2Fault::OtherFile { what: "data file" }),
            ENCRYPTION => return Err(Qcow2Fault::Encrypted),
            _ => {}
        }
        let length = fields.number_32(at + 4)? as usize;
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(8));
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], Qcow2Fault> {
        let end = at.checked_add(N).ok_or(Qcow2Fault::Malformed { what: "its header is cut off" })?;
        let field = self.0.get(at..end).and_then(|field| field.try_into().ok());
        field.ok_or(Qcow2Fault::Malformed { what: "its header is cut off" })
    }

    fn number_32(&self, at: usize) -> Result<u32, Qcow2Fault> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn number_64(&self, at: usize) -> Result<u64, Qcow2Fault> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
