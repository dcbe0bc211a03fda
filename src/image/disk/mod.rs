//! Disk images: what is written to a node's disk, kept as chunks.
//!
//! An image is a manifest and its chunks, all of them blobs named by their SHA-256. A name in the catalogue points to
//! a manifest; a manifest never changes, so whoever holds its digest (an install intent) means these very bytes.
//!
//! - [`manifest`]: the list of chunks, and its rules

pub mod manifest;
