//! The image that is written: half text-like, half noise, which compresses to about two thirds, as a system's files do.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use farrier::image::digest::Digest;
use farrier::image::disk::manifest::{CHUNK_BYTES, Chunk, DiskManifest};

pub struct Image {
    pub manifest: DiskManifest,
    pub text: Vec<u8>,
}

/// The image's chunks in order.
pub fn chunks(size: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = 1_u64;
    (0..(size / u64::from(CHUNK_BYTES)) as u32).map(move |index| {
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value =
                if (number / 512) % 2 == 0 { state } else { u64::from(index) << 32 | (state & 0x0f0f) };
            word.copy_from_slice(&value.to_le_bytes());
        }
        if index == 0 {
            // An entry of an MBR, so that the image counts as one that boots.
            bytes[446..510].fill(0);
            bytes[450] = 0x83;
            bytes[454..458].copy_from_slice(&2048_u32.to_le_bytes());
            bytes[458..462].copy_from_slice(&2048_u32.to_le_bytes());
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        bytes
    })
}

pub fn write_raw(path: &Path, size: u64) {
    let mut raw = File::create(path).expect("a file");
    chunks(size).for_each(|bytes| raw.write_all(&bytes).expect("room for the image"));
}

/// The image below `place/www`, as chunks under the agent's paths and as one compressed file; `place/whole.raw` as well.
pub fn prepare(place: &Path, size: u64) -> Image {
    let chunks_dir = place.join("www/agent/v1/chunk");
    fs::create_dir_all(&chunks_dir).expect("a directory");
    fs::create_dir_all(place.join("www/agent/v1/image")).expect("a directory");
    let raw = place.join("whole.raw");
    write_raw(&raw, size);
    let mut listed = Vec::new();
    let mut whole = sha2::Sha256::default();
    for (index, bytes) in (0..).zip(chunks(size)) {
        sha2::Digest::update(&mut whole, &bytes);
        let stored = zstd::bulk::compress(&bytes, 3).expect("a frame");
        let blob = Digest::of(&stored);
        fs::write(chunks_dir.join(blob.to_string()), &stored).expect("room for the chunks");
        listed.push(Chunk { index, sha256: Digest::of(&bytes), blob, stored_bytes: stored.len() as u32 });
    }
    let compressed = place.join("www/whole.raw.zst");
    let status = Command::new("zstd").args(["-q", "-3", "-o"]).arg(&compressed).arg(&raw).status();
    assert!(status.is_ok_and(|status| status.success()), "zstd compresses the image");
    let sha256: [u8; 32] = sha2::Digest::finalize(whole).into();
    let sha256 =
        sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>().parse().expect("a digest");
    let manifest = DiskManifest { bytes: size, sha256, chunk_bytes: CHUNK_BYTES, chunks: listed };
    let text = serde_json::to_vec(&manifest).expect("JSON");
    fs::write(place.join("www/agent/v1/image").join(Digest::of(&text).to_string()), &text).expect("room");
    Image { manifest, text }
}
