//! A disk's bytes → chunks: one thread reads and hashes the whole, a few compress, hash and write.
//!
//! What comes in may be hostile: a small file that unpacks to no end. The disk's size is bounded by the caller, zeros or
//! not. Data that is not zero is bounded by what was read for it as well, so that a bomb ends after megabytes, not after
//! all that would fit.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::image::digest::Digest;
use crate::image::disk::blobs::BlobWriter;
use crate::image::disk::manifest::{CHUNK_BYTES, Chunk, DiskManifest, ManifestFault};
use crate::image::library::PublishError;

/// Three is zstd's own default: images compress to nearly what higher levels reach, at several hundred MB/s.
const LEVEL: i32 = 3;
/// Chunks in memory are a few for each.
const WORKERS_MAX: usize = 8;
/// Finer than chunks: a file system that is all but empty has little in many chunks.
const BLOCK_BYTES: usize = 4096;
/// What is not zero and unpacks to this many times what was read is no system anybody installs.
const GROWTH_MAX: u64 = 500;
/// Small images may be as repetitive as they like.
const GROWTH_FREE_BYTES: u64 = 64 * 1024 * 1024;
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("it cannot be read to its end")]
    Read(#[source] io::Error),
    #[error("it unpacks to more than {} bytes, the limit (`--max-size`)", bytes_max)]
    TooLarge { bytes_max: u64 },
    #[error(
        "it unpacks to {GROWTH_MAX} times its size and more, zeros not counted: a decompression bomb, not a disk"
    )]
    Bomb,
    #[error("{0}")]
    Manifest(#[from] ManifestFault),
    #[error("a chunk cannot be compressed")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Write(#[from] PublishError),
}

/// What came of a disk's bytes.
pub struct Chunked {
    pub manifest: DiskManifest,
    /// The last sector: some formats are told by it alone.
    pub tail: Vec<u8>,
}

/// Bounds, and who is told how far it is.
pub struct Pace<'a> {
    pub bytes_max: u64,
    /// Bytes read so far of what was given, before unpacking.
    pub consumed: &'a (dyn Fn() -> u64 + Sync),
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Reads to the end; every chunk that is not all zero is a blob then, if not yet durable by name.
pub fn chunk_up(reader: &mut dyn Read, blobs: &BlobWriter, pace: &Pace) -> Result<Chunked, ChunkError> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (to_workers, from_reader) = sync_channel(workers);
    let queue = Queue { chunks: Mutex::new(from_reader), failed: AtomicBool::new(false) };
    let (read, kept) = thread::scope(|scope| {
        let working: Vec<_> = (0..workers).map(|_| scope.spawn(|| keep_chunks(&queue, blobs))).collect();
        let read = read_disk(reader, to_workers, &queue.failed, pace);
        let kept: Vec<Result<Vec<Chunk>, ChunkError>> = working
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        (read, kept)
    });
    // A worker's failure is why the reader had nobody to give to.
    let mut chunks = Vec::new();
    for kept in kept {
        chunks.extend(kept?);
    }
    let Disk { bytes, sha256, tail } = read?;
    chunks.sort_by_key(|chunk| chunk.index);
    let manifest = DiskManifest { bytes, sha256, chunk_bytes: CHUNK_BYTES, chunks };
    manifest.check()?;
    Ok(Chunked { manifest, tail })
}

/// What the reader has read ahead.
struct Queue {
    chunks: Mutex<Receiver<(u32, Vec<u8>)>>,
    /// A chunk could not be kept: there is no use in reading on.
    failed: AtomicBool,
}

impl Queue {
    fn next(&self) -> Option<(u32, Vec<u8>)> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

struct Disk {
    bytes: u64,
    sha256: Digest,
    tail: Vec<u8>,
}

fn read_disk(
    reader: &mut dyn Read,
    to_workers: SyncSender<(u32, Vec<u8>)>,
    failed: &AtomicBool,
    pace: &Pace,
) -> Result<Disk, ChunkError> {
    let mut whole = Sha256::new();
    let (mut bytes, mut filled) = (0_u64, 0_u64);
    let mut tail = Vec::new();
    for index in 0_u32.. {
        let chunk = read_chunk(reader).map_err(ChunkError::Read)?;
        if chunk.is_empty() {
            break;
        }
        bytes += chunk.len() as u64;
        if bytes > pace.bytes_max {
            return Err(ChunkError::TooLarge { bytes_max: pace.bytes_max });
        }
        let of_chunk = filled_bytes(&chunk);
        filled += of_chunk;
        if filled > GROWTH_FREE_BYTES.saturating_add((pace.consumed)().saturating_mul(GROWTH_MAX)) {
            return Err(ChunkError::Bomb);
        }
        whole.update(&chunk);
        (pace.progress)(bytes);
        tail = chunk[chunk.len().saturating_sub(512)..].to_vec();
        let last = chunk.len() < CHUNK_BYTES as usize;
        if of_chunk > 0 && to_workers.send((index, chunk)).is_err() {
            break;
        }
        if last || failed.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(Disk { bytes, sha256: Digest::from_bytes(whole.finalize().into()), tail })
}

/// A whole chunk, or what is left.
fn read_chunk(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES as usize);
    reader.take(u64::from(CHUNK_BYTES)).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// Bytes in blocks that are not all zero.
fn filled_bytes(chunk: &[u8]) -> u64 {
    let blocks = chunk.chunks(BLOCK_BYTES).filter(|block| **block != ZEROS[..block.len()]);
    blocks.map(|block| block.len() as u64).sum()
}

fn keep_chunks(queue: &Queue, blobs: &BlobWriter) -> Result<Vec<Chunk>, ChunkError> {
    let mut chunks = Vec::new();
    let mut failure = None;
    // Takes what comes also after a failure: the reader may be waiting for somebody to take it.
    while let Some((index, bytes)) = queue.next() {
        if queue.failed.load(Ordering::Relaxed) {
            continue;
        }
        match keep_chunk(index, &bytes, blobs) {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => {
                queue.failed.store(true, Ordering::Relaxed);
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(chunks), Err)
}

fn keep_chunk(index: u32, bytes: &[u8], blobs: &BlobWriter) -> Result<Chunk, ChunkError> {
    let frame = zstd::bulk::compress(bytes, LEVEL).map_err(ChunkError::Compress)?;
    let blob = blobs.keep(&frame)?;
    // A frame of 4 MiB is far below 4 GiB.
    let stored_bytes = blob.bytes as u32;
    Ok(Chunk { index, sha256: Digest::of(bytes), blob: blob.digest, stored_bytes })
}

#[cfg(test)]
mod tests;
