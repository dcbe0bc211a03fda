//! Disk images: what is written to a node's disk, kept as chunks.
//!
//! An image is a manifest and its chunks, all of them blobs named by their SHA-256. A name in the catalogue points to
//! a manifest; a manifest never changes, so whoever holds its digest (an install intent) means these very bytes.
//!
//! ```text
//!  FILE ──────────────┐                                  ┌─> zstd, hash, write ─┐
//!  URL ─> download ───┴─> input (raw | zst | gz | xz | qcow2) ─> 4 MiB ─> …      ├─> manifest ─> catalogue ─> shelf
//!                                                        └─> zstd, hash, write ─┘
//! ```
//! - [`manifest`]: the list of chunks, and its rules
//! - [`place`]: what lies where in the state directory; [`catalogue`]: what a name stands for
//! - [`import`]: from a file, a URL or a reader to a published image; its steps are [`source`], [`download`],
//!   [`input`], [`qcow2`], [`chunker`] and [`blobs`]
//! - [`shelf`]: what can be installed, as the appliance serves it
//! - [`scrub`]: whether the bytes are still what they were
//! - [`gc`]: blobs that nothing names any more

pub mod blobs;
pub mod catalogue;
pub mod chunker;
pub mod download;
pub mod gc;
pub mod import;
pub mod input;
pub mod manifest;
pub mod place;
pub mod qcow2;
pub mod scrub;
pub mod shelf;
pub mod source;
#[cfg(test)]
mod testing;
