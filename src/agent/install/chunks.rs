//! Chunks on their way: fetched, decoded, checked, written, and read back.
//!
//! Each worker takes one chunk through the whole chain; while one waits for the network, others decode or wait for the
//! disk. No queue lies in between, so memory is bounded by the workers' own buffers.
//!
//! A chunk is hashed once on its way to the disk and once when it is read back. The blob's own hash is not taken: the
//! digest of the chunk's bytes comes from a manifest that was checked against the task, so whatever decodes to those
//! bytes is the right blob. A hostile frame cannot do more than fail: it is decoded into exactly the chunk's length.

use std::sync::atomic::{AtomicUsize, Ordering};

use zstd::bulk::Decompressor;

use crate::agent::backoff::Backoff;
use crate::agent::calls::CallError;
use crate::agent::console::Console;
use crate::agent::install::meter::Meter;
use crate::agent::install::target::{Aligned, Disk, is_zero};
use crate::agent::install::{Blob, Calls, Fault, Halt};
use crate::image::digest::Digest;
use crate::image::disk::manifest::{Chunk, DiskManifest};

/// Enough that the slowest of network, processors and disk is never waited for by the others.
const WORKERS_MAX: usize = 4;
/// For the buffers of all workers: what a small machine can spare beside its ramdisk.
const MEMORY_MAX: usize = 96 * 1024 * 1024;
/// A chunk that arrives damaged so often is damaged where it comes from.
const FETCHES_MAX: u32 = 3;
/// How often an appliance may say that it has no such blob.
const REFUSALS_MAX: u32 = 4;
/// What ranges that must be zero are looked at in.
const PIECE: u64 = 4 * 1024 * 1024;

/// Part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub length: u64,
}

/// Where chunks come from.
pub struct Source<'a> {
    pub calls: &'a dyn Calls,
    pub meter: &'a Meter,
    pub console: &'a Console,
    /// Makes the waits of two machines differ.
    pub seed: u64,
}

impl Source<'_> {
    /// A whole blob. A broken connection costs what had not arrived; an appliance that is away is waited for.
    pub fn blob(&self, blob: Blob, bytes: u64, into: &mut Vec<u8>) -> Result<(), Halt> {
        into.clear();
        let mut backoff = Backoff::new(self.seed ^ bytes);
        let mut refusals = 0;
        loop {
            self.meter.go_on()?;
            let before = into.len();
            let wait = match self.calls.fetch(blob, bytes, into) {
                Ok(()) if into.len() as u64 == bytes => return Ok(()),
                Ok(()) => {
                    into.clear();
                    backoff.wait(None)
                }
                Err(CallError::Later { what, retry_after }) => {
                    if into.len() > before {
                        // It moves; the next part may come at once.
                        backoff.reset();
                    }
                    let wait = backoff.wait(retry_after);
                    self.console.say(format_args!("{what}; again in {:.1} s", wait.as_secs_f64()));
                    wait
                }
                Err(error @ CallError::Rejected { .. }) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        return Err(Fault::Call { what: error.to_string() }.into());
                    }
                    backoff.wait(None)
                }
                Err(CallError::Superseded { reason }) => return Err(Halt::Superseded { reason }),
                Err(CallError::Refused { reason }) => return Err(Halt::Refused { reason }),
            };
            self.meter.pause(wait)?;
        }
    }

    /// A chunk's bytes, which are what the manifest says, at the start of `scratch.bytes`.
    pub fn chunk(&self, chunk: &Chunk, length: u32, scratch: &mut Scratch) -> Result<(), Halt> {
        let mut damage = String::new();
        for _ in 0..FETCHES_MAX {
            self.blob(Blob::Chunk(chunk.blob), u64::from(chunk.stored_bytes), &mut scratch.stored)?;
            match scratch.decode(chunk, length as usize) {
                Ok(()) => return Ok(()),
                Err(what) => {
                    self.console.say(format_args!("chunk {} arrived damaged: {what}", chunk.index));
                    damage = what;
                }
            }
        }
        Err(Fault::Damaged { index: chunk.index, blob: chunk.blob, what: damage, times: FETCHES_MAX }.into())
    }
}

/// A worker's memory, used over and over.
pub struct Scratch {
    decoder: Decompressor<'static>,
    stored: Vec<u8>,
    pub bytes: Aligned,
}

impl Scratch {
    pub fn new(length: usize) -> Result<Scratch, Halt> {
        let decoder = Decompressor::new().map_err(|error| Fault::Memory { what: error.to_string() })?;
        Ok(Scratch { decoder, stored: Vec::new(), bytes: Aligned::zeroed(length) })
    }

    fn decode(&mut self, chunk: &Chunk, length: usize) -> Result<(), String> {
        let target = &mut self.bytes[..length];
        let decoded = self
            .decoder
            .decompress_to_buffer(&self.stored, target)
            .map_err(|error| format!("it is no zstd frame of {length} bytes ({error})"))?;
        if decoded != length {
            return Err(format!("it decodes to {decoded} bytes, not {length}"));
        }
        let found = Digest::of(target);
        if found == chunk.sha256 {
            Ok(())
        } else {
            Err(format!("its SHA-256 is {found}, not {}", chunk.sha256))
        }
    }
}

/// Puts an image's chunks on a disk.
pub struct Writer<'a> {
    pub disk: &'a dyn Disk,
    pub manifest: &'a DiskManifest,
    pub source: &'a Source<'a>,
}

impl Writer<'_> {
    fn meter(&self) -> &Meter {
        self.source.meter
    }

    /// Writes the chunks; with `keep` those that are on the disk already stay. Returns those that were written.
    pub fn write(&self, chunks: &[Chunk], keep: bool) -> Result<Vec<Chunk>, Halt> {
        let meter = self.meter();
        let flags = self.each(chunks, |chunk, scratch| {
            let (start, length) = self.manifest.place(chunk);
            if keep && self.is_there(chunk, scratch)? {
                meter.keep(u64::from(length));
                return Ok(false);
            }
            self.source.chunk(chunk, length, scratch)?;
            meter.go_on()?;
            self.disk
                .write(start, &scratch.bytes[..length as usize])
                .map_err(|error| Fault::disk("writing", start, &error))?;
            meter.wrote(u64::from(length));
            meter.add(u64::from(length));
            Ok(true)
        })?;
        Ok(chunks.iter().zip(flags).filter(|(_, written)| *written).map(|(chunk, _)| *chunk).collect())
    }

    /// Reads chunks back.
    pub fn verify(&self, chunks: &[Chunk]) -> Result<(), Halt> {
        let meter = self.meter();
        self.each(chunks, |chunk, scratch| {
            let (start, length) = self.manifest.place(chunk);
            if !self.is_there(chunk, scratch)? {
                return Err(Fault::ReadBack { index: chunk.index, start }.into());
            }
            meter.add(u64::from(length));
            Ok(true)
        })?;
        Ok(())
    }

    fn is_there(&self, chunk: &Chunk, scratch: &mut Scratch) -> Result<bool, Halt> {
        let (start, length) = self.manifest.place(chunk);
        let bytes = &mut scratch.bytes[..length as usize];
        self.disk.read(start, bytes).map_err(|error| Fault::disk("reading", start, &error))?;
        Ok(Digest::of(bytes) == chunk.sha256)
    }

    fn each(
        &self,
        chunks: &[Chunk],
        work: impl Fn(&Chunk, &mut Scratch) -> Result<bool, Halt> + Sync,
    ) -> Result<Vec<bool>, Halt> {
        each(self.meter(), chunks, self.manifest.chunk_bytes as usize, work)
    }
}

/// Looks at each range and writes zeros where there is something else; returns those that it wrote.
pub fn clear(disk: &dyn Disk, meter: &Meter, ranges: &[Range]) -> Result<Vec<Range>, Halt> {
    let flags = each(meter, ranges, PIECE as usize, |range, scratch| {
        let dirty = !reads_as_zero(disk, *range, scratch)?;
        if dirty {
            meter.go_on()?;
            write_zeros(disk, *range, scratch)?;
            meter.wrote(range.length);
        }
        meter.add(range.length);
        Ok(dirty)
    })?;
    Ok(ranges.iter().zip(flags).filter(|(_, dirty)| *dirty).map(|(range, _)| *range).collect())
}

/// Writes zeros, whatever is there and whatever the disk could do by itself.
pub fn overwrite(disk: &dyn Disk, meter: &Meter, ranges: &[Range]) -> Result<(), Halt> {
    each(meter, ranges, PIECE as usize, |range, scratch| {
        // Made of zeros, and nothing else is put into it here.
        let zeros = &scratch.bytes[..range.length as usize];
        disk.write(range.start, zeros).map_err(|error| Fault::disk("writing", range.start, &error))?;
        meter.wrote(range.length);
        meter.add(range.length);
        Ok(true)
    })?;
    Ok(())
}

/// Reads ranges back that must be zero.
pub fn verify_zero(disk: &dyn Disk, meter: &Meter, ranges: &[Range]) -> Result<(), Halt> {
    each(meter, ranges, PIECE as usize, |range, scratch| {
        if !reads_as_zero(disk, *range, scratch)? {
            return Err(Fault::NotZero { start: range.start, length: range.length }.into());
        }
        meter.add(range.length);
        Ok(true)
    })?;
    Ok(())
}

/// Does `work` on each item, several at a time. The first that fails ends all, through the meter.
fn each<T: Sync>(
    meter: &Meter,
    items: &[T],
    buffer: usize,
    work: impl Fn(&T, &mut Scratch) -> Result<bool, Halt> + Sync,
) -> Result<Vec<bool>, Halt> {
    // A chunk's buffer and its blob, which is smaller as a rule.
    let workers = (MEMORY_MAX / (2 * buffer).max(1)).clamp(1, WORKERS_MAX).min(items.len());
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut flags = Vec::new();
        let outcome = Scratch::new(buffer).and_then(|mut scratch| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else { return Ok(()) };
                meter.go_on()?;
                flags.push((index, work(item, &mut scratch)?));
            }
        });
        if let Err(halt) = outcome {
            meter.halt(halt);
        }
        flags
    };
    let mut flags = std::thread::scope(|scope| {
        // Fewer threads than wished for do the same work.
        let others: Vec<_> = (1..workers)
            .filter_map(|_| {
                std::thread::Builder::new().name("chunks".to_owned()).spawn_scoped(scope, worker).ok()
            })
            .collect();
        let mut flags = worker();
        flags.extend(others.into_iter().filter_map(|other| other.join().ok()).flatten());
        flags
    });
    meter.go_on()?;
    flags.sort_unstable();
    Ok(flags.into_iter().map(|(_, flag)| flag).collect())
}

/// What an image says is zero, within its size, in pieces.
pub fn zero_ranges(manifest: &DiskManifest) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut from = 0;
    for chunk in &manifest.chunks {
        let (start, length) = manifest.place(chunk);
        ranges.extend(pieces(from, start));
        from = start + u64::from(length);
    }
    ranges.extend(pieces(from, manifest.bytes));
    ranges
}

/// From `start` to before `end`.
pub fn pieces(start: u64, end: u64) -> impl Iterator<Item = Range> {
    // At most a u32 number of chunks of 64 KiB.
    (start..end).step_by(PIECE as usize).map(move |start| Range { start, length: PIECE.min(end - start) })
}

fn reads_as_zero(disk: &dyn Disk, range: Range, scratch: &mut Scratch) -> Result<bool, Halt> {
    let bytes = &mut scratch.bytes[..range.length as usize];
    disk.read(range.start, bytes).map_err(|error| Fault::disk("reading", range.start, &error))?;
    Ok(is_zero(bytes))
}

/// By the disk itself where it can, as it says; else by writing.
fn write_zeros(disk: &dyn Disk, range: Range, scratch: &mut Scratch) -> Result<(), Halt> {
    if disk.zero(range.start, range.length).is_ok() && reads_as_zero(disk, range, scratch)? {
        return Ok(());
    }
    let bytes = &mut scratch.bytes[..range.length as usize];
    bytes.fill(0);
    Ok(disk.write(range.start, bytes).map_err(|error| Fault::disk("writing", range.start, &error))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_what_no_chunk_stands_for() {
        let digest = Digest::of(b"");
        let chunk = |index| Chunk { index, sha256: digest, blob: digest, stored_bytes: 9 };
        let chunk_bytes = 4 * 1024 * 1024;
        let manifest = |bytes, indexes: &[u32]| DiskManifest {
            bytes,
            sha256: digest,
            chunk_bytes,
            chunks: indexes.iter().copied().map(chunk).collect(),
        };
        let size = u64::from(chunk_bytes);
        let range = |start, length| Range { start, length };
        assert_eq!(zero_ranges(&manifest(size * 2, &[0, 1])), []);
        assert_eq!(
            zero_ranges(&manifest(size * 3 + 512, &[0, 2])),
            [range(size, size), range(size * 3, 512)]
        );
        assert_eq!(zero_ranges(&manifest(size * 2, &[])), [range(0, size), range(size, size)]);
    }
}
