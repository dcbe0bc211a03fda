//! What tests of disk images begin with.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use crate::image::digest::Digest;
use crate::image::disk::import::{
    DISK_BYTES_MAX_DEFAULT, ImportError, Imported, Label, Request, import, import_raw,
};
use crate::image::disk::shelf::{DiskImage, DiskShelf};
use crate::image::disk::source::Source;

pub const MIB: usize = 1024 * 1024;

/// Bytes that hardly compress, the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Three chunks, the middle one of which is all zero, and a part of a fourth.
pub fn disk() -> Vec<u8> {
    let mut disk = noise(1, 4 * MIB);
    disk.extend(vec![0; 4 * MIB]);
    disk.extend(noise(2, 1000));
    disk.resize(12 * MIB, 0);
    disk.extend(vec![7; 1536]);
    disk
}

pub fn take_raw(state: &Path, name: &str, mut bytes: &[u8]) -> Result<DiskImage, ImportError> {
    let label = Label { name: name.to_owned(), description: String::new(), source: "a test".to_owned() };
    import_raw(state, &mut bytes, &label, &ProgressBar::hidden())
}

pub fn request(path: &Path, name: &str) -> Request {
    Request {
        source: Source::File(path.to_owned()),
        name: name.to_owned(),
        description: String::new(),
        sha256: None,
        bytes_max: DISK_BYTES_MAX_DEFAULT,
    }
}

/// Writes a file beside the state directory and imports it.
pub fn take_file(state: &Path, name: &str, bytes: &[u8]) -> Result<Imported, ImportError> {
    let path = state.join("given");
    fs::write(&path, bytes).unwrap();
    import(state, &request(&path, name), &ProgressBar::hidden())
}

/// The disk as an install writes it: fetched by the manifest, every digest checked.
pub fn install(shelf: &DiskShelf, manifest: Digest) -> Vec<u8> {
    let text = shelf.manifest(manifest).expect("a manifest that is served");
    assert_eq!(Digest::of(&text.bytes), manifest);
    let plan = shelf.disk_manifest(manifest).unwrap();
    let mut disk = vec![0; plan.bytes as usize];
    for chunk in &plan.chunks {
        let blob = shelf.chunk(manifest, chunk.blob).expect("a chunk that is served");
        assert_eq!(Digest::of(&blob.bytes), chunk.blob);
        let bytes = zstd::decode_all(&blob.bytes[..]).unwrap();
        assert_eq!(Digest::of(&bytes), chunk.sha256);
        assert!(bytes.iter().any(|byte| *byte != 0), "a chunk of zeros is not kept");
        let (start, length) = plan.place(chunk);
        disk[start as usize..][..length as usize].copy_from_slice(&bytes);
    }
    assert_eq!(Digest::of(&disk), plan.sha256);
    disk
}

/// Names of files below a directory of the images, whatever they are.
pub fn names_in(state: &Path, directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(state.join("images").join(directory)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub fn blob_path(state: &Path, digest: Digest) -> PathBuf {
    state.join("images/blobs").join(digest.to_string())
}

/// As a bad disk would.
pub fn flip_a_bit(state: &Path, digest: Digest) {
    let path = blob_path(state, digest);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();
}
