//! The manifest of a disk image: which chunks make its bytes, and which ranges are all zero.
//!
//! It goes to the agent as it is kept, so it is checked on both sides by the same rules ([`DiskManifest::check`]).

use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;

/// Bytes of disk that one chunk stands for, unless an image says otherwise.
pub const CHUNK_BYTES: u32 = 4 * 1024 * 1024;
/// A manifest of 256 TiB in chunks of 4 MiB would be 13 GB; this is 16 TiB all filled, 800 MB, and no sane image.
pub const CHUNKS_MAX: usize = 4 * 1024 * 1024;
/// What an image's size is a multiple of.
pub const SECTOR_BYTES: u64 = 512;

/// A disk's bytes. Chunk `i` stands for the bytes from `i * chunk_bytes` on; a chunk that is not listed is all zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskManifest {
    /// Size of the disk image, a multiple of 512.
    pub bytes: u64,
    /// SHA-256 of those bytes, as `sha256sum` of the raw image tells it.
    pub sha256: Digest,
    /// Bytes a chunk stands for; the last one may stand for fewer.
    pub chunk_bytes: u32,
    /// Ascending by index.
    pub chunks: Vec<Chunk>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    pub index: u32,
    /// SHA-256 of the chunk's bytes on the disk.
    pub sha256: Digest,
    /// The blob: one zstd frame of them, named by its own SHA-256.
    pub blob: Digest,
    /// Size of the blob.
    pub stored_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    #[error("{bytes} bytes are no disk: a multiple of {SECTOR_BYTES}, and at least one, is wanted")]
    Size { bytes: u64 },
    #[error("chunks of {chunk_bytes} bytes: a power of two from 64 KiB to 64 MiB is wanted")]
    ChunkSize { chunk_bytes: u32 },
    #[error("{count} chunks are more than {CHUNKS_MAX}")]
    TooMany { count: usize },
    #[error("chunk {index} is out of order, or beyond the end of the disk")]
    Index { index: u32 },
    #[error("chunk {index} is kept in {stored_bytes} bytes, which no frame of it has")]
    Stored { index: u32, stored_bytes: u32 },
}

impl DiskManifest {
    /// The rules that whoever follows the manifest relies on.
    pub fn check(&self) -> Result<(), ManifestFault> {
        if self.bytes == 0 || !self.bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ManifestFault::Size { bytes: self.bytes });
        }
        let sizes = 64 * 1024..=64 * 1024 * 1024;
        if !self.chunk_bytes.is_power_of_two() || !sizes.contains(&self.chunk_bytes) {
            return Err(ManifestFault::ChunkSize { chunk_bytes: self.chunk_bytes });
        }
        if self.chunks.len() > CHUNKS_MAX {
            return Err(ManifestFault::TooMany { count: self.chunks.len() });
        }
        let mut next = 0_u64;
        for chunk in &self.chunks {
            let index = u64::from(chunk.index);
            if index < next || index * u64::from(self.chunk_bytes) >= self.bytes {
                return Err(ManifestFault::Index { index: chunk.index });
            }
            next = index + 1;
            // zstd's own bound for what cannot be compressed is far below twice.
            if chunk.stored_bytes == 0 || chunk.stored_bytes > self.chunk_bytes.saturating_mul(2) {
                return Err(ManifestFault::Stored { index: chunk.index, stored_bytes: chunk.stored_bytes });
            }
        }
        Ok(())
    }

    /// Where on the disk a chunk begins, and how many bytes it has there.
    pub fn place(&self, chunk: &Chunk) -> (u64, u32) {
        let start = u64::from(chunk.index) * u64::from(self.chunk_bytes);
        let length = (self.bytes - start).min(u64::from(self.chunk_bytes));
        // At most `chunk_bytes`.
        (start, length as u32)
    }

    /// Bytes of disk that are not just zero, as counted in whole chunks: what an install writes.
    pub fn filled_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(self.place(chunk).1)).sum()
    }

    /// Bytes an install fetches.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(bytes: u64, indexes: &[u32]) -> DiskManifest {
        let digest = Digest::of(b"");
        let chunk = |index: &u32| Chunk { index: *index, sha256: digest, blob: digest, stored_bytes: 9 };
        DiskManifest {
            bytes,
            sha256: digest,
            chunk_bytes: 65536,
            chunks: indexes.iter().map(chunk).collect(),
        }
    }

    #[test]
    fn chunks_ascend_within_the_disk_and_the_last_may_be_short() {
        let whole = manifest(65536 * 2 + 512, &[0, 2]);
        assert_eq!(whole.check(), Ok(()));
        assert_eq!(whole.place(&whole.chunks[1]), (131_072, 512));
        assert_eq!((whole.filled_bytes(), whole.stored_bytes()), (66_048, 18));
        for (bytes, indexes) in [(65536, &[1][..]), (131_072, &[1, 0]), (131_072, &[0, 0])] {
            assert!(
                matches!(manifest(bytes, indexes).check(), Err(ManifestFault::Index { .. })),
                "{indexes:?}"
            );
        }
        for bytes in [0, 511] {
            assert_eq!(manifest(bytes, &[]).check(), Err(ManifestFault::Size { bytes }));
        }
    }
}
