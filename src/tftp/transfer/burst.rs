//! What a transfer hands out to be sent.

use bytes::Bytes;

use crate::tftp::wire::{self, DATA_HEADER_LEN};

/// Something to send; keeps its bytes alive until it has left.
#[derive(Clone, Debug)]
pub enum Transmit {
    OptionAck(Bytes),
    Blocks(Burst),
}

/// Consecutive DATA blocks: `count` of them from block `first` on, each with `blksize` bytes of `payload`. Only the last
/// may be shorter, so that the kernel can cut one buffer into these datagrams.
#[derive(Clone, Debug)]
pub struct Burst {
    pub first: u64,
    pub count: usize,
    pub payload: Bytes,
    pub blksize: usize,
}

impl Burst {
    /// Each datagram as header and data.
    pub fn segments(&self) -> impl Iterator<Item = ([u8; DATA_HEADER_LEN], &[u8])> {
        self.headers().zip(self.payloads())
    }

    pub fn headers(&self) -> impl Iterator<Item = [u8; DATA_HEADER_LEN]> + use<> {
        (self.first..self.first + self.count as u64).map(wire::data_header)
    }

    /// The last of a file may be empty.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map(|index| {
            let start = (index * self.blksize).min(self.payload.len());
            let end = (start + self.blksize).min(self.payload.len());
            &self.payload[start..end]
        })
    }

    /// What each but the last datagram is long.
    pub fn segment_len(&self) -> usize {
        self.blksize + DATA_HEADER_LEN
    }
}
