//! What was given → the disk's bytes, by what its first bytes say it is, never by its name.
//!
//! Everything is read front to back by well-known decoders, but for qcow2 ([`super::qcow2`]), which needs to look around
//! in its one file. Formats that say by their first or last bytes that they are no raw disk are refused by name: written
//! to a disk as they are, they would install nothing.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use crate::image::disk::qcow2::{Qcow2, Qcow2Fault};

/// `xz -9` needs 65 MiB to be unpacked; a file asks for as much as it likes.
const XZ_MEMORY_MAX: u64 = 256 * 1024 * 1024;
/// The same for zstd: 128 MiB, all that `zstd -19` and `--long` use.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Large enough for every magic number looked for.
const HEAD_BYTES: usize = 1024;
const TAIL_BYTES: u64 = 512;
const READ_AHEAD: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Zstd,
    Gzip,
    Xz,
    Qcow2,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Zstd => "zst",
            Format::Gzip => "gz",
            Format::Xz => "xz",
            Format::Qcow2 => "qcow2",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it is {what}, which is no disk: {way_out}")]
    Foreign { what: &'static str, way_out: &'static str },
    #[error("what is packed in it is {what}, which is no raw disk: unpack it first, and import that")]
    Within { what: &'static str },
    #[error("it is {given} bytes, and the limit is {bytes_max} (`--max-size`)")]
    TooLarge { given: u64, bytes_max: u64 },
    #[error("it is empty")]
    Empty,
    #[error(transparent)]
    Qcow2(#[from] Qcow2Fault),
}

/// The disk's bytes, to be read once.
pub struct Input {
    pub format: Format,
    pub reader: Box<dyn Read>,
    /// How large the disk is, where the file says so.
    pub disk_bytes: Option<u64>,
    consumed: Arc<AtomicU64>,
}

impl Input {
    /// `bytes_max` bounds the file, and the disk where a file says how large it is.
    pub fn open(file: File, bytes_max: u64) -> Result<Input, InputError> {
        let given = file.metadata().map_err(InputError::Read)?.len();
        if given == 0 {
            return Err(InputError::Empty);
        }
        let mut head = vec![0; HEAD_BYTES.min(given.try_into().unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0).map_err(InputError::Read)?;
        let format = recognise(&head)?;
        if given > bytes_max {
            return Err(InputError::TooLarge { given, bytes_max });
        }
        let from = given.saturating_sub(TAIL_BYTES);
        let mut tail = vec![0; (given - from) as usize];
        file.read_exact_at(&mut tail, from).map_err(InputError::Read)?;
        check_tail(&tail)?;
        let consumed = Arc::new(AtomicU64::new(0));
        if format == Format::Qcow2 {
            let disk = Qcow2::open(file, given)?;
            let disk_bytes = disk.disk_bytes();
            if disk_bytes > bytes_max {
                return Err(InputError::TooLarge { given: disk_bytes, bytes_max });
            }
            // It is not read front to back: what unpacks to too much is told from all of it.
            consumed.store(given, Ordering::Relaxed);
            return Ok(Input { format, reader: Box::new(disk), disk_bytes: Some(disk_bytes), consumed });
        }
        let file = BufReader::with_capacity(READ_AHEAD, Counted { file, consumed: consumed.clone() });
        Ok(Input { format, reader: unpacked(format, file)?, disk_bytes: None, consumed })
    }

    /// Bytes read so far of what was given.
    pub fn consumed(&self) -> impl Fn() -> u64 + Sync + use<> {
        let consumed = self.consumed.clone();
        move || consumed.load(Ordering::Relaxed)
    }
}

fn unpacked(format: Format, file: BufReader<Counted>) -> Result<Box<dyn Read>, InputError> {
    let mut decoder: Box<dyn Read> = match format {
        Format::Raw | Format::Qcow2 => return Ok(Box::new(file)),
        Format::Gzip => Box::new(MultiGzDecoder::new(file)),
        Format::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED);
            Box::new(XzDecoder::new_stream(file, stream.map_err(io::Error::from).map_err(InputError::Read)?))
        }
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(InputError::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(InputError::Read)?;
            Box::new(decoder)
        }
    };
    let mut head = Vec::with_capacity(HEAD_BYTES);
    decoder.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(InputError::Read)?;
    match recognise(&head) {
        Ok(Format::Raw) => Ok(Box::new(Cursor::new(head).chain(decoder))),
        Ok(Format::Zstd | Format::Gzip | Format::Xz) => Err(InputError::Within { what: "packed once more" }),
        Ok(Format::Qcow2) => Err(InputError::Within { what: "a qcow2 image" }),
        Err(InputError::Foreign { what, .. }) => Err(InputError::Within { what }),
        Err(other) => Err(other),
    }
}

/// By magic number. What has none that is known here is a raw disk.
pub fn recognise(head: &[u8]) -> Result<Format, InputError> {
    const CONVERT: &str = "`qemu-img convert -O qcow2` makes one that can be imported";
    const UNPACK: &str = "unpack it first, and import the disk in it";
    const FOREIGN: [(usize, &[u8], &str, &str); 18] = [
        (0, b"conectix", "a VHD image", CONVERT),
        (0, b"vhdxfile", "a VHDX image", CONVERT),
        (0, b"KDMV", "a VMDK image", CONVERT),
        (0, b"COWD", "a VMDK image", CONVERT),
        (0, b"# Disk DescriptorFile", "a VMDK description", CONVERT),
        (64, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
        (0, b"QED\0", "a QED image", CONVERT),
        (0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
        (0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
        (0, b"BZh", "a bzip2 file", UNPACK),
        (0, b"PK\x03\x04", "a zip archive", UNPACK),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
        (0, b"\x04\x22\x4d\x18", "an lz4 file", UNPACK),
        (0, b"LZIP", "an lzip file", UNPACK),
        (257, b"ustar", "a tar archive", UNPACK),
        (0, b"<!DOCTYPE ", "a web page", "its URL is not the image's own"),
        (0, b"<html", "a web page", "its URL is not the image's own"),
    ];
    let has = |at: usize, magic: &[u8]| {
        head.get(at..at + magic.len()).is_some_and(|found| found.eq_ignore_ascii_case(magic))
    };
    if let Some((_, _, what, way_out)) = FOREIGN.iter().find(|(at, magic, _, _)| has(*at, magic)) {
        return Err(InputError::Foreign { what, way_out });
    }
    Ok(match head {
        [b'Q', b'F', b'I', 0xfb, ..] => Format::Qcow2,
        // Frames that are to be skipped come first in some writers' files.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        [0x1f, 0x8b, ..] => Format::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
        _ => Format::Raw,
    })
}

/// A VHD of fixed size is a raw disk and one sector more.
pub fn check_tail(tail: &[u8]) -> Result<(), InputError> {
    if tail.len() as u64 == TAIL_BYTES && tail.starts_with(b"conectix") {
        return Err(InputError::Foreign {
            what: "a VHD image",
            way_out: "`qemu-img convert -O qcow2` makes one that can be imported",
        });
    }
    Ok(())
}

struct Counted {
    file: File,
    consumed: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.consumed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
