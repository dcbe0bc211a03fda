//! The bytes of a transfer, cut into blocks.

use bytes::Bytes;

use crate::tftp::netascii::Netascii;

#[derive(Debug)]
pub enum Content {
    Octet {
        bytes: Bytes,
        last: u64,
    },
    /// Knows its last block when it has been read.
    Netascii(Netascii),
}

impl Content {
    pub fn octets(bytes: Bytes, blksize: u16) -> Content {
        // A file that fills its last block is followed by an empty one (RFC 1350 §6).
        Content::Octet { last: bytes.len() as u64 / u64::from(blksize) + 1, bytes }
    }

    pub fn text(bytes: Bytes) -> Content {
        Content::Netascii(Netascii::new(bytes))
    }

    pub fn is_last(&self, block: u64, blksize: u16) -> bool {
        match self {
            Content::Octet { last, .. } => block == *last,
            // With a window of one the block held is the one in flight.
            Content::Netascii(reader) => reader.block().len() < usize::from(blksize),
        }
    }

    /// The bytes of `count` blocks from block `first` on; shared with the file's memory, except text.
    pub fn blocks(&self, first: u64, count: u64, blksize: u16) -> Bytes {
        match self {
            Content::Netascii(reader) => Bytes::copy_from_slice(reader.block()),
            Content::Octet { bytes, .. } => {
                let start = (first - 1) as usize * usize::from(blksize);
                bytes.slice(start..(start + count as usize * usize::from(blksize)).min(bytes.len()))
            }
        }
    }
}
