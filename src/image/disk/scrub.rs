//! Whether the bytes are still what they were: all of an image at once ([`verify`]), or all that is served a little at a
//! time ([`Scrubber`]).
//!
//! A blob that is not is marked, and what needs it is not served any more. Nothing is removed: the next import of the same
//! bytes writes the blob anew.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::image::disk::blobs::check_blob;
use crate::image::disk::catalogue::Entry;
use crate::image::disk::manifest::{Chunk, DiskManifest};
use crate::image::disk::shelf::DiskShelf;
use crate::image::library::{BlobRef, Damage, Library, PublishError, open_sized};

/// From the begin of one round to the begin of the next.
pub const ROUND: Duration = Duration::from_secs(24 * 3600);
/// An appliance that just started has other things to read.
pub const FIRST_ROUND_AFTER: Duration = Duration::from_secs(15 * 60);
/// Bytes of blobs read a second, and at once: a hundredth of what disks give, 700 GB a day.
const PIECE_BYTES: u64 = 8 * 1024 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;

/// Whoever serves blobs, and stops when one of them has gone bad.
pub trait Serves {
    /// Every blob that is served, and its size.
    fn blobs(&self) -> BTreeMap<Digest, u64>;
    /// Whether this blob is one of them; asked at every step, where there may be a million.
    fn serves(&self, blob: Digest) -> bool;
    fn path(&self, blob: Digest) -> PathBuf;
    /// From here on, what needs this blob is not served.
    fn found_bad(&self, blob: Digest, reason: &str) -> Result<(), Box<dyn Error>>;
}

impl Serves for DiskShelf {
    fn blobs(&self) -> BTreeMap<Digest, u64> {
        DiskShelf::blobs(self)
    }
    fn serves(&self, blob: Digest) -> bool {
        DiskShelf::serves(self, blob)
    }
    fn path(&self, blob: Digest) -> PathBuf {
        self.place().blob(blob)
    }
    fn found_bad(&self, blob: Digest, reason: &str) -> Result<(), Box<dyn Error>> {
        Ok(self.mark_damaged(blob, reason)?)
    }
}

/// What machines boot. Needs no mark: these blobs are hashed when they are opened.
impl Serves for Library {
    fn blobs(&self) -> BTreeMap<Digest, u64> {
        Library::blobs(self)
    }
    fn serves(&self, blob: Digest) -> bool {
        // A few dozen.
        Library::blobs(self).contains_key(&blob)
    }
    fn path(&self, blob: Digest) -> PathBuf {
        self.blob_path(blob)
    }
    fn found_bad(&self, blob: Digest, _: &str) -> Result<(), Box<dyn Error>> {
        Ok(self.doubt(blob)?)
    }
}

/// Reads every blob that is served about once a day.
#[derive(Debug)]
pub struct Scrubber {
    round_at: Timestamp,
    /// What this round has still to read, ascending.
    left: BTreeSet<(Digest, u64)>,
    reading: Option<Reading>,
}

/// A blob that is being read, a piece at each step: some are as large as an ISO.
#[derive(Debug)]
struct Reading {
    blob: Digest,
    file: File,
    hash: Sha256,
    left: u64,
}

/// What one step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When to call again.
    pub next: Timestamp,
    pub found: Option<Damage>,
}

impl Scrubber {
    pub fn new(now: Timestamp) -> Scrubber {
        Scrubber { round_at: now.plus(FIRST_ROUND_AFTER), left: BTreeSet::new(), reading: None }
    }

    /// Reads a piece of one blob, if it is time, and has it served no more if it is bad. Blocks for as long as reading
    /// 8 MiB takes.
    pub fn step(&mut self, served_by: &[&dyn Serves], now: Timestamp) -> Step {
        if self.is_between_rounds() {
            if now < self.round_at {
                return Step { next: self.round_at, found: None };
            }
            self.round_at = now.plus(ROUND);
            self.left = served_by.iter().flat_map(|place| place.blobs()).collect();
        }
        let (read, result) = match self.reading.take() {
            Some(reading) => self.read(reading),
            None => {
                let Some((blob, bytes)) = self.left.pop_first() else {
                    return Step { next: self.round_at, found: None };
                };
                // What needed it may have gone meanwhile, and it as well.
                let Some(place) = served_by.iter().find(|place| place.serves(blob)) else {
                    return Step { next: now, found: None };
                };
                match open_sized(&place.path(blob), bytes) {
                    Ok((file, _)) => self.read(Reading { blob, file, hash: Sha256::new(), left: bytes }),
                    Err(reason) => (0, Err((blob, reason))),
                }
            }
        };
        let pause = Duration::from_millis(read.saturating_mul(1000) / PIECE_BYTES);
        let next = if self.is_between_rounds() { self.round_at } else { now.plus(pause) };
        let found = result.err().and_then(|(blob, reason)| {
            let mut path = None;
            for place in served_by.iter().filter(|place| place.serves(blob)) {
                path = Some(place.path(blob));
                if let Err(error) = place.found_bad(blob, &reason) {
                    tracing::error!(%blob, error = &*error, "damaged blob is served still");
                }
            }
            path.map(|path| Damage { path, reason })
        });
        Step { next, found }
    }

    fn is_between_rounds(&self) -> bool {
        self.left.is_empty() && self.reading.is_none()
    }

    /// How many bytes were read, and what is wrong with the blob. Keeps it if there is more of it.
    fn read(&mut self, mut reading: Reading) -> (u64, Result<(), (Digest, String)>) {
        let piece = reading.left.min(PIECE_BYTES);
        let mut rest = piece;
        let mut buffer = vec![0; BUFFER_BYTES];
        while rest > 0 {
            let wanted = rest.min(BUFFER_BYTES as u64) as usize;
            if let Err(error) = reading.file.read_exact(&mut buffer[..wanted]) {
                return (piece - rest, Err((reading.blob, error.to_string())));
            }
            reading.hash.update(&buffer[..wanted]);
            rest -= wanted as u64;
        }
        reading.left -= piece;
        if reading.left > 0 {
            self.reading = Some(reading);
            return (piece, Ok(()));
        }
        let found = Digest::from_bytes(reading.hash.finalize().into());
        let good = found == reading.blob;
        let bad = (reading.blob, format!("its bytes hash to {found}"));
        (piece, if good { Ok(()) } else { Err(bad) })
    }
}

/// What was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub chunks: u64,
    /// Of blobs, and of the disk they make.
    pub stored_bytes: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("no disk image `{name}`: `farrier image list` tells which there are")]
    NotFound { name: String },
    #[error("image `{image}` is damaged: blob {}: {reason}; it is not served until it is imported again", blob.display())]
    Damaged { image: String, blob: PathBuf, reason: String },
    #[error(transparent)]
    Write(#[from] PublishError),
}

/// Reads all of an image back, as an install would. `told` hears how many bytes of blobs were read.
pub fn verify(shelf: &DiskShelf, name: &str, told: &dyn Fn(u64)) -> Result<Verified, VerifyError> {
    let place = shelf.place();
    let path = place.entry(name);
    if !path.exists() {
        return Err(VerifyError::NotFound { name: name.to_owned() });
    }
    let damaged =
        |blob: PathBuf, reason: String| VerifyError::Damaged { image: name.to_owned(), blob, reason };
    let entry = Entry::read(&path).map_err(|reason| damaged(path, reason))?;
    let manifest_path = place.blob(entry.manifest.digest);
    let bad_manifest = |reason: String| {
        let marked = shelf.mark_damaged(entry.manifest.digest, &reason);
        marked.map_or_else(VerifyError::Write, |()| damaged(manifest_path.clone(), reason))
    };
    check_blob(&manifest_path, entry.manifest).map_err(bad_manifest)?;
    shelf.clear_damage(entry.manifest.digest)?;
    let read = std::fs::read(&manifest_path).map_err(|error| error.to_string());
    let manifest: DiskManifest = read
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
        .map_err(bad_manifest)?;
    manifest.check().map_err(|fault| bad_manifest(fault.to_string()))?;

    let mut whole = Whole { hash: Sha256::new(), at: 0 };
    let mut stored = 0;
    for chunk in &manifest.chunks {
        let path = place.blob(chunk.blob);
        let (start, length) = manifest.place(chunk);
        match read_chunk(&path, chunk, length) {
            Ok(bytes) => {
                shelf.clear_damage(chunk.blob)?;
                whole.zeros_to(start);
                whole.take(&bytes);
            }
            Err(reason) => {
                shelf.mark_damaged(chunk.blob, &reason)?;
                return Err(damaged(path, reason));
            }
        }
        stored += u64::from(chunk.stored_bytes);
        told(stored);
    }
    whole.zeros_to(manifest.bytes);
    let found = Digest::from_bytes(whole.hash.finalize().into());
    if found != manifest.sha256 {
        return Err(bad_manifest(format!("its chunks make a disk that hashes to {found}")));
    }
    let chunks = manifest.chunks.len() as u64;
    Ok(Verified { chunks, stored_bytes: stored, bytes: manifest.bytes })
}

/// A chunk's bytes on the disk, if its blob is what the manifest says in every respect.
pub fn read_chunk(path: &std::path::Path, chunk: &Chunk, length: u32) -> Result<Vec<u8>, String> {
    check_blob(path, BlobRef { digest: chunk.blob, bytes: chunk.stored_bytes.into() })?;
    let unpacked = std::fs::File::open(path).and_then(|file| {
        let mut bytes = Vec::with_capacity(length as usize);
        zstd::Decoder::new(file)?.take(u64::from(length) + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let bytes = unpacked.map_err(|error| format!("it cannot be unpacked: {error}"))?;
    if bytes.len() != length as usize || Digest::of(&bytes) != chunk.sha256 {
        return Err("it unpacks to something else than chunk ".to_owned() + &chunk.index.to_string());
    }
    Ok(bytes)
}

/// The hash of a disk whose zeros are not kept.
struct Whole {
    hash: Sha256,
    at: u64,
}

impl Whole {
    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
    }

    fn zeros_to(&mut self, end: u64) {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        while self.at < end {
            let count = (end - self.at).min(ZEROS.len() as u64) as usize;
            self.take(&ZEROS[..count]);
        }
    }
}

#[cfg(test)]
mod tests;
