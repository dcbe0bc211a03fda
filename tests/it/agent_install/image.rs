//! A small disk image, and its manifest and chunks as the appliance keeps them.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Write};

use farrier::agent::install::target::is_zero;
use farrier::image::digest::Digest;
use farrier::image::disk::manifest::{Chunk, DiskManifest};
use gpt::disk::LogicalBlockSize;
use gpt::header::HeaderBuilder;
use gpt::partition::Partition;
use gpt::partition_types;

pub const MIB: u64 = 1024 * 1024;
/// Not whole chunks, and not whole blocks of 4 KiB.
const BYTES: u64 = 21 * MIB + 512 * 1024 + 512;
const CHUNK: u32 = 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As Debian numbers its cloud images: 14 for BIOS, 15 for UEFI, 1 for the system.
    Gpt,
    /// The second partition is a file system labelled CIDATA, with a file.
    GptWithSeed,
    Mbr,
    FullMbr,
    /// No table.
    Bare,
}

pub struct Image {
    pub bytes: Vec<u8>,
    pub manifest: DiskManifest,
    /// The manifest as it travels.
    pub text: Vec<u8>,
    pub digest: Digest,
    pub blobs: HashMap<Digest, Vec<u8>>,
    pub partitions: BTreeMap<u32, Partition>,
}

/// Bytes that do not compress, the same each time.
pub fn noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

impl Image {
    pub fn new(shape: Shape) -> Image {
        let mut bytes = vec![0; BYTES as usize];
        // Boot code, the second partition, and parts of the third: the rest is zero.
        noise(&mut bytes[..440], 1);
        for (from, to) in [(1, 2), (2, 5), (7, 9), (12, 13), (15, 20)] {
            noise(&mut bytes[from * MIB as usize..to * MIB as usize], from as u64);
        }
        let partitions = match shape {
            Shape::Gpt => gpt_table(&mut bytes),
            Shape::GptWithSeed => {
                let partitions = gpt_table(&mut bytes);
                make_seed(&mut bytes[2 * MIB as usize..6 * MIB as usize]);
                partitions
            }
            Shape::Mbr => mbr_table(&mut bytes, 1),
            Shape::FullMbr => mbr_table(&mut bytes, 4),
            Shape::Bare => BTreeMap::new(),
        };
        let mut blobs = HashMap::new();
        let mut chunks = Vec::new();
        for (index, part) in bytes.chunks(CHUNK as usize).enumerate() {
            if is_zero(part) {
                continue;
            }
            let stored = zstd::bulk::compress(part, 1).unwrap();
            let blob = Digest::of(&stored);
            let stored_bytes = stored.len() as u32;
            chunks.push(Chunk { index: index as u32, sha256: Digest::of(part), blob, stored_bytes });
            blobs.insert(blob, stored);
        }
        let sha256 = Digest::of(&bytes);
        let manifest = DiskManifest { bytes: BYTES, sha256, chunk_bytes: CHUNK, chunks };
        manifest.check().unwrap();
        let text = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::of(&text);
        Image { bytes, manifest, text, digest, blobs, partitions }
    }

    /// Another blob for a chunk, which the manifest names.
    pub fn replace(&mut self, chunk: usize, stored: Vec<u8>) {
        let blob = Digest::of(&stored);
        self.manifest.chunks[chunk].blob = blob;
        self.manifest.chunks[chunk].stored_bytes = stored.len() as u32;
        self.blobs.insert(blob, stored);
        self.text = serde_json::to_vec(&self.manifest).unwrap();
        self.digest = Digest::of(&self.text);
    }
}

fn gpt_table(bytes: &mut Vec<u8>) -> BTreeMap<u32, Partition> {
    let sectors = bytes.len() as u64 / 512;
    let partition = |part_type_guid, from: u64, to: u64, name: &str| Partition {
        part_type_guid,
        part_guid: uuid::Uuid::from_u128(u128::from(from)),
        first_lba: from * MIB / 512,
        last_lba: to * MIB / 512 - 1,
        flags: 0,
        name: name.to_owned(),
    };
    let partitions = BTreeMap::from([
        (14, partition(partition_types::BIOS, 1, 2, "bios")),
        (15, partition(partition_types::EFI, 2, 6, "efi")),
        (1, partition(partition_types::LINUX_FS, 6, 21, "root")),
    ]);
    let mut device = Cursor::new(std::mem::take(bytes));
    let mut header = HeaderBuilder::new();
    header.backup_lba(sectors - 1).disk_guid(uuid::Uuid::from_u128(7));
    let mut primary = header.primary(true).build(LogicalBlockSize::Lb512).unwrap();
    let mut backup = header.primary(false).build(LogicalBlockSize::Lb512).unwrap();
    for (number, partition) in &partitions {
        for start in [primary.part_start, backup.part_start] {
            let index = u64::from(number - 1);
            partition.write_to_device(&mut device, index, start, LogicalBlockSize::Lb512, 128).unwrap();
        }
    }
    primary.write_primary(&mut device, LogicalBlockSize::Lb512).unwrap();
    backup.write_backup(&mut device, LogicalBlockSize::Lb512).unwrap();
    *bytes = device.into_inner();
    let entry = &mut bytes[446..462];
    entry[4] = 0xee;
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&((sectors - 1) as u32).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    partitions
}

fn mbr_table(bytes: &mut [u8], entries: usize) -> BTreeMap<u32, Partition> {
    for index in 0..entries {
        let entry = &mut bytes[446 + index * 16..446 + (index + 1) * 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&(2048 * (index as u32 + 1)).to_le_bytes());
        entry[12..16].copy_from_slice(&2048_u32.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    BTreeMap::new()
}

fn make_seed(partition: &mut [u8]) {
    partition.fill(0);
    let mut device = Cursor::new(partition);
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut device, options).unwrap();
    device.set_position(0);
    let system = fatfs::FileSystem::new(device, fatfs::FsOptions::new()).unwrap();
    for (name, text) in
        [("theirs", "stays"), ("meta-data", "a longer text than the one that takes its place")]
    {
        let mut file = system.root_dir().create_file(name).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.flush().unwrap();
    }
    system.unmount().unwrap();
}
