use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::image::disk::place::Place;
use crate::image::disk::testing::{MIB, disk, names_in, noise};

/// Never refuses what it reads.
fn chunk(bytes: &[u8], blobs: &BlobWriter, bytes_max: u64, consumed: u64) -> Result<Chunked, ChunkError> {
    let pace = Pace { bytes_max, consumed: &move || consumed, progress: &|_| {} };
    chunk_up(&mut Cursor::new(bytes), blobs, &pace)
}

#[test]
fn chunks_of_zeros_are_left_out_and_the_last_may_be_short() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::open(state.path()).unwrap();
    let blobs = BlobWriter::new(&place);
    let bytes = disk();
    let told = AtomicU64::new(0);
    let progress = |done| told.store(done, Ordering::Relaxed);
    let pace = Pace { bytes_max: bytes.len() as u64, consumed: &|| 0, progress: &progress };
    let Chunked { manifest, tail } = chunk_up(&mut bytes.as_slice(), &blobs, &pace).unwrap();
    assert_eq!(manifest.chunks.iter().map(|chunk| chunk.index).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!((manifest.bytes, manifest.sha256), (bytes.len() as u64, Digest::of(&bytes)));
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!(manifest.place(&manifest.chunks[2]).1, 1536);
    assert_eq!(tail, bytes[bytes.len() - 512..]);
    assert_eq!(told.into_inner(), bytes.len() as u64);
    assert_eq!(manifest.stored_bytes(), blobs.added_bytes());
    // The same once more is nothing new.
    let again = BlobWriter::new(&place);
    assert_eq!(chunk(&bytes, &again, u64::MAX, 0).unwrap().manifest, manifest);
    assert_eq!(again.added_bytes(), 0);
}

#[test]
fn a_disk_ends_at_its_limit() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::open(state.path()).unwrap();
    let blobs = BlobWriter::new(&place);
    assert!(chunk(&[0; 8192], &blobs, 8192, 0).is_ok());
    assert!(matches!(chunk(&[0; 8193], &blobs, 8192, 0), Err(ChunkError::TooLarge { bytes_max: 8192 })));
    // Zeros without end are read to the limit, and no further.
    let pace = Pace { bytes_max: 64 * MIB as u64, consumed: &|| 0, progress: &|_| {} };
    let endless = chunk_up(&mut std::io::repeat(0), &blobs, &pace);
    assert!(matches!(endless, Err(ChunkError::TooLarge { .. })));
    for bytes in [0, 511, 513] {
        assert!(
            matches!(chunk(&vec![1; bytes], &blobs, u64::MAX, 0), Err(ChunkError::Manifest(_))),
            "{bytes}"
        );
    }
}

#[test]
fn a_bomb_ends_early_and_a_disk_of_little_does_not() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::open(state.path()).unwrap();
    let blobs = BlobWriter::new(&place);
    let read = AtomicU64::new(0);
    struct Told<'a>(std::io::Take<std::io::Repeat>, &'a AtomicU64);
    impl Read for Told<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1.fetch_add(count as u64, Ordering::Relaxed);
            Ok(count)
        }
    }
    let mut bomb = Told(std::io::repeat(b'A').take(1 << 40), &read);
    // What was read for it is a few hundred bytes.
    let pace = Pace { bytes_max: 1 << 40, consumed: &|| 300, progress: &|_| {} };
    assert!(matches!(chunk_up(&mut bomb, &blobs, &pace), Err(ChunkError::Bomb)));
    assert!(read.into_inner() < 80 * MIB as u64);
    // One block in each chunk, read from next to nothing: an empty file system is like that.
    let mut sparse = vec![0; 80 * MIB];
    sparse.iter_mut().step_by(4 * MIB).for_each(|byte| *byte = 1);
    assert!(chunk(&sparse, &blobs, u64::MAX, 0).is_ok());
}

#[test]
fn what_cannot_be_written_ends_the_reading() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::open(state.path()).unwrap();
    std::fs::remove_dir(place.blobs()).unwrap();
    let blobs = BlobWriter::new(&place);
    // More chunks than fit into the queue.
    let result = chunk(&noise(3, 48 * MIB), &blobs, u64::MAX, u64::MAX);
    assert!(matches!(result, Err(ChunkError::Write(_))));
    assert!(names_in(state.path(), "blobs").is_empty());
}

#[test]
fn what_cannot_be_read_is_no_shorter_disk() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::open(state.path()).unwrap();
    let blobs = BlobWriter::new(&place);
    let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(&noise(4, 5 * MIB)).unwrap();
    let packed = packed.finish().unwrap();
    let mut cut = zstd::Decoder::new(&packed[..packed.len() - 10]).unwrap();
    let pace = Pace { bytes_max: u64::MAX, consumed: &|| u64::MAX, progress: &|_| {} };
    assert!(matches!(chunk_up(&mut cut, &blobs, &pace), Err(ChunkError::Read(_))));
}
